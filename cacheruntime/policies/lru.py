"""Least recently used goes first."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Generic

from forebay.cacheruntime.policies.base import Item, one_by_one


class Lru(Generic[Item]):
    """Policy `lru`. Every operation is O(1).

    Under random order in epochs it is the wrong one: with a fraction c of the data cached it hits c + (1-c) ln(1-c).
    """

    replaces: ClassVar[bool] = True

    def __init__(self) -> None:
        self._order: OrderedDict[Item, None] = OrderedDict()
        self._changes = 0

    def inserted(self, item: Item, size: int) -> None:
        if item not in self._order:
            self._order[item] = None
            self._changes += 1

    def accessed(self, item: Item) -> None:
        if item in self._order:
            self._order.move_to_end(item)
            self._changes += 1

    def removed(self, item: Item) -> None:
        self._order.pop(item, None)

    def victims(self, coming: Item | None = None) -> Iterator[Item]:
        return one_by_one(self, self._front, lambda: self._changes, coming)

    def _front(self, given: set[Item | None], count: int) -> list[Item]:
        return list(islice((item for item in self._order if item not in given), count))

    def admits(self, item: Item, size: int) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, item: object) -> bool:
        return item in self._order
