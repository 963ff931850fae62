"""SIEVE: a hand goes from the oldest to the newest, and takes what was not visited since it last came by."""

from collections.abc import Iterator
from typing import ClassVar, Generic

from forebay.cacheruntime.policies.base import Item


class _Link(Generic[Item]):
    """One cached item in the ring, between the next older and the next newer one."""

    __slots__ = ("item", "newer", "older", "visited")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.visited = False
        self.older: _Link[Item] = self
        self.newer: _Link[Item] = self


class Sieve(Generic[Item]):
    """Policy `sieve`, for general use (Zhang and others, NSDI'24).

    Items stay in the order of insertion. An access sets one bit; the hand clears it in passing, and takes the first
    item whose bit is clear. New items come in at the head, so the hand reaches them last of all. Every operation is
    O(1), amortised for victims.
    """

    replaces: ClassVar[bool] = True

    def __init__(self) -> None:
        self._links: dict[Item, _Link[Item]] = {}
        self._oldest: _Link[Item] | None = None
        """The links are a ring: the newest is the one that is older than the oldest."""
        self._hand: _Link[Item] | None = None
        """Where the search goes on; None: at the oldest, also one that comes later."""

    def inserted(self, item: Item, size: int) -> None:
        if item in self._links:
            return
        link = self._links[item] = _Link(item)
        oldest = self._oldest
        if oldest is None:
            self._oldest = link
            return
        link.newer, link.older = oldest, oldest.older
        oldest.older.newer = link
        oldest.older = link

    def accessed(self, item: Item) -> None:
        link = self._links.get(item)
        if link is not None:
            link.visited = True

    def removed(self, item: Item) -> None:
        link = self._links.pop(item, None)
        if link is None:
            return
        newer = link.newer if link.newer is not self._oldest else None
        if self._hand is link:
            self._hand = newer
        if self._oldest is link:
            self._oldest = newer
        link.older.newer, link.newer.older = link.newer, link.older

    def victims(self, coming: Item | None = None) -> Iterator[Item]:
        given: set[Item | None] = {coming}
        steps = 0
        while steps <= 2 * len(self._links):  # one round clears the bits, and another finds all that is left
            link = self._hand or self._oldest
            if link is None:
                return
            self._hand = link.newer if link.newer is not self._oldest else None
            steps += 1
            if link.item in given:
                continue
            if link.visited:
                link.visited = False
                continue
            given.add(link.item)
            steps = 0
            yield link.item

    def admits(self, item: Item, size: int) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._links)

    def __contains__(self, item: object) -> bool:
        return item in self._links
