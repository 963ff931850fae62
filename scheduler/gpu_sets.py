"""Which cards of one node, by the links between them: the best-effort partition of go-gpuallocator, memoised.

The score of a set is the sum of the points of its pairs. The free cards are split into sets of the requested size (one
set may stay incomplete); of all splits the one with the largest total wins, and its best set is given out. So the cards
that stay free are good for the next request of that size too.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

POINTS = {"SYS": 10, "NODE": 20, "PHB": 30, "PXB": 40, "PIX": 50, "PSB": 60}
"""Of what `nvidia-smi topo -m` shows between two cards; n NVLinks (NVn) add 100 n to the path over PCIe."""

NVLINK_POINTS = 100

EXACT_CARDS = 10
"""So many free cards are split exactly; of more, sets are taken greedily, best first: splits grow as factorials."""

Links = tuple[tuple[int, ...], ...]


def points(link: str) -> int:
    """Points of 'NV2', 'PIX' or both as 'NV2+PIX'.

    Raises:
        ValueError: there is no such link.
    """
    total = 0
    for part in link.upper().split("+"):
        if part in POINTS:
            total += POINTS[part]
        elif part.startswith("NV") and part[2:].isdecimal():
            total += NVLINK_POINTS * int(part[2:])
        else:
            raise ValueError(f"link {part!r}; known are {', '.join(POINTS)} and NV1, NV2...")
    return total


def members(mask: int) -> tuple[int, ...]:
    """Places of the cards in a bit mask."""
    return tuple(place for place in range(mask.bit_length()) if mask >> place & 1)


def mask_of(cards: Iterable[int]) -> int:
    mask = 0
    for card in cards:
        mask |= 1 << card
    return mask


class GpuSets:
    """Choices among the cards of one kind of node. Answers are kept: 256 masks by 8 sizes for eight cards."""

    def __init__(self, links: Links, cards: int) -> None:
        """Args: links: points between each two cards, empty where all are alike."""
        if links and (len(links) != cards or any(len(row) != cards for row in links)):
            raise ValueError(f"links of {cards} cards must be {cards} rows of {cards} points")
        self.cards = cards
        self._links = links
        self._best: dict[tuple[int, int, int], tuple[int, ...]] = {}
        self._totals: dict[tuple[int, int], int] = {}
        self._quality: dict[int, NDArray[np.float64]] = {}

    def score(self, cards: Sequence[int]) -> int:
        if not self._links:
            return 0
        return sum(self._links[one][other] for one, other in combinations(cards, 2))

    def choose(self, free: int, size: int, required: int = 0) -> tuple[int, ...]:
        """The cards to give out of the mask `free`, with all in the mask `required`; empty: there are not enough."""
        if free.bit_count() < size or required & ~free or required.bit_count() > size or size < 1:
            return ()
        key = (free, size, required)
        if key not in self._best:
            self._best[key] = self._choose(free, size, required)
        return self._best[key]

    def _choose(self, free: int, size: int, required: int) -> tuple[int, ...]:
        if size == 1 and not required:
            return (self._loneliest(free),)
        if free.bit_count() > EXACT_CARDS:
            return self._greedy(free, size, required)
        best: tuple[int, int, tuple[int, ...]] | None = None
        for cards in combinations(members(free), size):
            mask = mask_of(cards)
            if required & ~mask:
                continue
            found = self.score(cards)
            rank = (found + self._split(free & ~mask, size), found, tuple(-card for card in cards))
            if best is None or rank > best:
                best = rank
        assert best is not None
        return tuple(-card for card in best[2])

    def _loneliest(self, free: int) -> int:
        """The card with the least points to other free ones, so that well-linked ones stay together (HAMi)."""
        cards = members(free)
        if not self._links:
            return cards[0]
        return min(cards, key=lambda card: (sum(self._links[card][other] for other in cards if other != card), card))

    def _split(self, free: int, size: int) -> int:
        """The largest total of a split of `free`; one set of it may be incomplete."""
        count = free.bit_count()
        if count < 2 or not self._links:
            return 0
        key = (free, size)
        if key in self._totals:
            return self._totals[key]
        cards = members(free)
        first, others = cards[0], cards[1:]
        best = 0
        sizes = {size, count % size} if count >= size else {count}
        for width in sizes - {0}:
            for more in combinations(others, width - 1):
                chosen = (first, *more)
                rest = free & ~mask_of(chosen)
                best = max(best, self.score(chosen) + self._split(rest, size))
        self._totals[key] = best
        return best

    def _greedy(self, free: int, size: int, required: int) -> tuple[int, ...]:
        """Grow a set from each card (or from `required`) by the best linked next one; the best of these."""
        seeds = [members(required)] if required else [(card,) for card in members(free)]
        best: tuple[int, tuple[int, ...]] | None = None
        for seed in seeds:
            chosen = list(seed)
            while len(chosen) < size:
                left = [card for card in members(free) if card not in chosen]
                chosen.append(max(left, key=lambda card: (self._pull(card, chosen), -card)))
            rank = (self.score(chosen), tuple(-card for card in sorted(chosen)))
            if best is None or rank > best:
                best = rank
        assert best is not None
        return tuple(-card for card in best[1])

    def _pull(self, card: int, chosen: Sequence[int]) -> int:
        return sum(self._links[card][other] for other in chosen) if self._links else 0

    def ideal(self, size: int) -> int:
        """The score of the best set of this size on an idle node."""
        return _ideal(self._links, self.cards, size)

    def quality(self, masks: NDArray[np.int64], size: int) -> NDArray[np.float64]:
        """For each mask of free cards, the score of the set that would be given out, over the ideal one; 0 to 1."""
        if size < 2 or not self._links:
            return np.ones(len(masks))
        if self.cards > 16:
            return np.array([self._quality_of(int(mask), size) for mask in masks])
        table = self._quality.setdefault(size, np.full(1 << self.cards, np.nan))
        found = table[masks]
        for mask in np.unique(masks[np.isnan(found)]):
            table[mask] = self._quality_of(int(mask), size)
        return table[masks]

    def _quality_of(self, mask: int, size: int) -> float:
        ideal = self.ideal(size)
        return self.score(self.choose(mask, size)) / ideal if ideal else 1.0


@lru_cache(maxsize=256)
def _ideal(links: Links, cards: int, size: int) -> int:
    if not links or size > cards:
        return 0
    if cards > EXACT_CARDS:
        sets = GpuSets(links, cards)
        return sets.score(sets.choose((1 << cards) - 1, size))
    return max(sum(links[a][b] for a, b in combinations(chosen, 2)) for chosen in combinations(range(cards), size))
