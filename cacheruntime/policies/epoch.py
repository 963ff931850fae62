"""Nothing leaves for another: what is in stays."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Generic

from forebay.cacheruntime.policies.base import Item, one_by_one


class Epoch(Generic[Item]):
    """Policy `epoch`, the default: training reads every sample once an epoch in random order.

    There any replacing policy that does not know the order loses to keeping what is in, whose hit ratio is the fraction
    that is cached (CoorDL, VLDB'21); for one reader no policy reaches more.

    `victims` is for a dataset that nobody uses any more: in the order of insertion, those first that were not accessed.
    When all have been accessed, their marks are taken away together, so that accesses are remembered for about one
    round of victims. Every operation is O(1), but for that moment: O(n log n) once in at least n accesses.
    """

    replaces: ClassVar[bool] = False

    def __init__(self) -> None:
        self._untouched: OrderedDict[Item, int] = OrderedDict()
        self._touched: dict[Item, int] = {}
        self._inserted = 0
        self._changes = 0

    def inserted(self, item: Item, size: int) -> None:
        if item not in self:
            self._inserted += 1
            self._changes += 1
            self._untouched[item] = self._inserted

    def accessed(self, item: Item) -> None:
        number = self._untouched.pop(item, None)
        if number is not None:
            self._touched[item] = number
            self._changes += 1

    def removed(self, item: Item) -> None:
        self._untouched.pop(item, None)
        self._touched.pop(item, None)

    def victims(self, coming: Item | None = None) -> Iterator[Item]:
        return one_by_one(self, self._front, lambda: self._changes, coming)

    def _front(self, given: set[Item | None], count: int) -> list[Item]:
        found = list(islice((item for item in self._untouched if item not in given), count))
        if not found and any(item not in given for item in self._touched):
            everything = sorted([*self._untouched.items(), *self._touched.items()], key=lambda entry: entry[1])
            self._untouched, self._touched = OrderedDict(everything), {}
            found = list(islice((item for item in self._untouched if item not in given), count))
        return found

    def admits(self, item: Item, size: int) -> bool:
        return False

    def __len__(self) -> int:
        return len(self._untouched) + len(self._touched)

    def __contains__(self, item: object) -> bool:
        return item in self._untouched or item in self._touched
