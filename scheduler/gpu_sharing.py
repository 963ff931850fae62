"""Shares of cards: which card takes a share, and what a placement makes unusable (fragmentation gradient).

Fragmentation after Weng et al., "Beware of Fragmentation" (USENIX ATC 2023): of a node and a mix of request classes,
the expected amount of free GPU that the next request cannot use. A class that asks for a part of a card cannot use
cards that have less; a class that asks for k whole cards cannot use partly used cards, nor any if fewer than k are
whole. Only the GPU part is counted: the figure of a node is then a sum of table look-ups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from forebay.scheduler.model import CARD


@dataclass(frozen=True)
class Mix:
    """How likely each class of request is: the weights by which fragments are measured."""

    part: NDArray[np.float64]
    """[f]: expected thousandths of a card with f free that are unusable for classes of shares."""
    whole: NDArray[np.float64]
    """[w]: the probability that the next request asks for whole cards, and for at most w of them."""
    whole_total: float
    """The probability that it asks for whole cards at all."""
    _steps_of: dict[int, NDArray[np.float64]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, classes: Mapping[tuple[int, int], float], cards_max: int) -> "Mix":
        """Args: classes: weights by (cards, thousandths of each); whole cards have 1000."""
        total = sum(classes.values()) or 1.0
        free = np.arange(CARD + 1)
        part = np.zeros(CARD + 1)
        whole = np.zeros(cards_max + 1)
        for (cards, milli), weight in sorted(classes.items()):
            if milli >= CARD:
                whole[min(cards, cards_max) :] += weight / total * (cards <= cards_max)
            else:
                part += np.where(free < milli, free, 0) * (weight / total)
        whole_total = sum(weight for (_, milli), weight in classes.items() if milli >= CARD) / total
        return cls(part, whole, whole_total)

    def fragments(self, free: Sequence[int]) -> float:
        """Expected unusable thousandths of a node whose healthy cards have so much free."""
        cards = np.asarray(free, dtype=np.int64)
        idle = int((cards == CARD).sum())
        return float(self.part[cards].sum() + self.whole_total * cards.sum() - self._usable[idle])

    @cached_property
    def _usable(self) -> NDArray[np.float64]:
        """[w]: thousandths of w whole cards that requests for whole ones can use."""
        found: NDArray[np.float64] = self.whole * CARD * np.arange(len(self.whole))
        return found

    @cached_property
    def _broken(self) -> NDArray[np.float64]:
        """[w]: what is lost when one of w whole cards is broken into. It is no more for whole requests; one less idle
        is also a smaller choice for them."""
        return np.diff(self._usable, prepend=self._usable[0])

    def _steps(self, milli: int) -> NDArray[np.float64]:
        """[f]: the change by a share of `milli` on a partly used card with f free; infinite where there is less."""
        found = self._steps_of.get(milli)
        if found is None:
            found = self._steps_of[milli] = np.full(CARD + 1, np.inf)
            found[milli:] = self.part[: CARD + 1 - milli] - self.part[milli:] - self.whole_total * milli
        return found

    def after_share(self, free: NDArray[np.int32], idle: NDArray[np.int64], milli: int) -> NDArray[np.float64]:
        """The change by a share of `milli` on each card.

        Args:
            free: [node, card] free thousandths.
            idle: [node] wholly free cards.

        Returns: [node, card]; meaningless where the card has less free.
        """
        free = np.maximum(free, 0)  # a card that is reserved while it is in use
        change: NDArray[np.float64] = self._steps(milli)[free] + (free == CARD) * self._broken[idle][:, None]
        return change

    def after_breaking(self, milli: int) -> NDArray[np.float64]:
        """[w]: as `after_share`, on one of w idle cards; infinite for none."""
        found: NDArray[np.float64] = self._steps(milli)[CARD] + self._broken
        found[0] = np.inf
        return found

    def after_whole(self, idle: NDArray[np.int64], cards: int) -> NDArray[np.float64]:
        """The change by taking `cards` whole cards of each node; [node]."""
        usable, rest = self._usable, np.maximum(idle - cards, 0)
        change: NDArray[np.float64] = usable[idle] - usable[rest] - self.whole_total * CARD * cards
        return change


def share_card(
    free_milli: Sequence[int], free_mib: Sequence[int], milli: int, mib: int, order: str, cards: int = 1
) -> tuple[int, ...]:
    """The cards of one node that take a share of `milli` thousandths and `mib` MiB each; empty: not enough fit.

    Args:
        order: 'binpack': those with least free first; 'spread': with most.
    """
    fitting = [
        card
        for card, (compute, memory) in enumerate(zip(free_milli, free_mib, strict=True))
        if compute >= max(milli, 1) and memory >= mib
    ]
    if len(fitting) < cards:
        return ()
    sign = 1 if order == "binpack" else -1
    fitting.sort(key=lambda card: (sign * free_mib[card], sign * free_milli[card], card))
    return tuple(sorted(fitting[:cards]))
