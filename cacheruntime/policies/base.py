"""What every cache policy answers, and how victims are given out one by one."""

from collections.abc import Callable, Hashable, Iterator
from typing import ClassVar, Protocol, TypeVar

Item = TypeVar("Item", bound=Hashable)
"""What is cached and dropped whole: a content id, a pack."""


class Policy(Protocol[Item]):
    """Who has to leave when there is no room. Pure: no clock, no I/O, no lock; for one thread at a time.

    A policy knows what is cached by what it was told. Telling it twice is harmless, and so is telling it of an item
    that it does not hold.
    """

    replaces: ClassVar[bool]
    """Whether anything that is in may leave for what comes, while the dataset is in use."""

    def inserted(self, item: Item, size: int) -> None:
        """It is cached now, with `size` bytes. Of an item that is in: it has grown to that size, no more than that."""

    def accessed(self, item: Item) -> None:
        """It was read (since the last look at the touch bits)."""

    def removed(self, item: Item) -> None:
        """It left, for whatever reason."""

    def victims(self, coming: Item | None = None) -> Iterator[Item]:
        """Who goes first, who next, and so on: all that is in, each once, but never `coming`.

        Lazy: what is called on the policy between two of them counts for the next one. The caller drops them and calls
        `removed` for each, while it iterates or after. It takes no more than it means to drop, since the hand of
        `sieve` moves with each. Items that it cannot drop are passed over again by each call, so very many should not
        be left in.
        """

    def admits(self, item: Item, size: int) -> bool:
        """Whether it is worth dropping the first victims to free `size` bytes for `item`."""

    def __len__(self) -> int: ...

    def __contains__(self, item: object) -> bool: ...


def one_by_one(
    policy: Policy[Item],
    front: Callable[[set[Item | None], int], list[Item]],
    changes: Callable[[], int],
    coming: Item | None,
) -> Iterator[Item]:
    """Victims out of batches that grow, so that k of them cost O(k) looks though nothing is dropped meanwhile.

    Args:
        policy: whose victims they are; asked whether one is still in.
        front: the first victims that are not in the set, at most so many.
        changes: a number that differs after any change of the order other than by a removal.
        coming: never given out.
    """
    given: set[Item | None] = {coming}
    count = 1
    while batch := front(given, count):
        made_at = changes()
        for item in batch:
            if changes() != made_at:
                break
            if item in policy:
                given.add(item)
                yield item
        count *= 2
