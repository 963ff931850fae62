"""How much is fair: water-filling, largest remainders, dominant and borrowed shares, decay. Plain arithmetic.

Sources: Koordinator's runtime quota (guarantee first, the rest by weight), KAI-Scheduler's buckets by priority,
Ghodsi et al., "Dominant Resource Fairness" (NSDI 2011), Kueue's fair sharing and admission fair sharing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

Number = float | Fraction
"""What is reckoned from fractions is exact."""


@dataclass(frozen=True)
class Claim:
    """What one of several siblings asks of something that they share, in units of that."""

    request: int
    """What it uses and waits for."""
    min: int = 0
    max: int | None = None
    weight: float = 1.0
    priority: int = 0
    """All surplus that a higher one can use goes there first."""
    unlent: int = 0
    """Part of min that it keeps even when idle."""

    @property
    def base(self) -> int:
        return max(min(self.min, self.request), min(self.unlent, self.min))

    @property
    def most(self) -> int:
        wanted = max(self.request, self.base)
        return wanted if self.max is None else max(min(wanted, self.max), self.base)


def largest_remainder(total: int, weights: Sequence[float | Fraction]) -> list[int]:
    """`total` in whole parts in proportion to `weights` (Hamilton's method); ties go to the earlier one."""
    exact = [Fraction(weight) for weight in weights]
    whole = sum(exact)
    if not whole:
        return [0] * len(exact)
    return _rounded([total * weight / whole for weight in exact], total)


def _rounded(parts: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers next to `parts`, which sum to `total`, or to their own sum where that is less."""
    floors = [part.numerator // part.denominator for part in parts]
    spare = min(total, int(sum(parts))) - sum(floors)
    for place in sorted(range(len(parts)), key=lambda place: floors[place] - parts[place])[:spare]:
        floors[place] += 1
    return floors


def water_fill(capacity: int, claims: Sequence[Claim]) -> list[int]:
    """How much of `capacity` each claim should have.

    First each gets what it asks for up to its min (all of them scaled down where there is too little); then, priority
    by priority, the rest rises like water in vessels as wide as their weights, each closed at its request or max. The
    level is exact; only the result is rounded, by largest remainders, so that nobody gets less for a larger weight.
    """
    base = [claim.base for claim in claims]
    if sum(base) > capacity:
        return largest_remainder(capacity, base)
    granted = list(base)
    rest = capacity - sum(base)
    for priority in sorted({claim.priority for claim in claims}, reverse=True):
        places = [place for place, claim in enumerate(claims) if claim.priority == priority and claim.weight > 0]
        given = _fill(rest, [(claims[place].most - base[place], Fraction(claims[place].weight)) for place in places])
        for place, amount in zip(places, given, strict=True):
            granted[place] += amount
        rest -= sum(given)
    idle = [place for place, claim in enumerate(claims) if claim.weight == 0]
    for place in idle:
        more = min(rest, claims[place].most - base[place])
        granted[place] += more
        rest -= more
    return granted


def _fill(capacity: int, vessels: Sequence[tuple[int, Fraction]]) -> list[int]:
    """Raise one level over vessels of (depth, width) until `capacity` is used up or all are full."""
    order = sorted(range(len(vessels)), key=lambda place: vessels[place][0] / vessels[place][1])
    rest, width = Fraction(capacity), sum((vessel[1] for vessel in vessels), Fraction(0))
    level: Fraction | None = None
    for place in order:
        depth, wide = vessels[place]
        if depth * width > rest * wide:
            level = rest / width
            break
        rest -= depth
        width -= wide
    if level is None:
        return [depth for depth, _ in vessels]
    return _rounded([min(Fraction(depth), level * wide) for depth, wide in vessels], capacity)


def dominant_share(used: Sequence[Number], total: Sequence[int], weight: float = 1.0) -> Number:
    """The largest part that is used of any resource, over the weight (DRF); infinite for use at weight 0.

    Args:
        total: of the same resources; 0 where there is no known total.
    """
    parts = (part / whole for part, whole in zip(used, total, strict=True) if whole)
    return _weighted(max(parts, default=0.0), weight)


def rescaled(children: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """What a queue counts as using, for hierarchical DRF: its children's use, each scaled down to the least of them.

    So what one child uses of one resource does not keep another one from a resource of which it has little
    (Bhattacharya et al., "Hierarchical Scheduling for Diverse Datacenter Workloads", SoCC 2013).

    Args:
        children: for each that can go on, the parts of the totals that it uses, and its weight.
    """
    shares = [_weighted(max(parts, default=0.0), weight) for parts, weight in children]
    least = min(shares)
    scales = [least / share if share > 0 and math.isfinite(share) else 0.0 for share in shares]
    columns = zip(*(parts for parts, _ in children), strict=True)
    return [math.fsum(part * scale for part, scale in zip(column, scales, strict=True)) for column in columns]


def borrowed_share(
    used: Sequence[Number], quota: Sequence[int], lendable: Sequence[int], weight: float = 1.0
) -> Number:
    """Kueue's share: the largest part of what the parent can lend or borrow that is used above `quota`, in thousandths.

    Args:
        lendable: of the same resources; 0 where nothing can be had.
    """
    shares = (
        (part - own) * 1000 / most for part, own, most in zip(used, quota, lendable, strict=True) if part > own and most
    )
    return _weighted(max(shares, default=0.0), weight)


def _weighted(share: Number, weight: float) -> Number:
    if share == 0:
        return 0.0
    if weight <= 0:
        return float("inf")
    if isinstance(share, Fraction):
        return share / Fraction(str(weight))  # 0.3 means three tenths, which no float is
    return share / weight


def decay_factor(elapsed_s: float, half_life_s: float) -> float:
    """The part A of an old usage that is replaced by the current one: 1 - 0.5 ** (elapsed / half-life)."""
    return 1.0 - math.pow(0.5, elapsed_s / half_life_s)


def decayed(usage: float, current: float, elapsed_s: float, half_life_s: float) -> float:
    """Historic usage after `elapsed_s` at `current` (Kueue's admission fair sharing)."""
    replaced = decay_factor(elapsed_s, half_life_s)
    return (1.0 - replaced) * usage + replaced * current


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything."""
    squares = math.fsum(share * share for share in shares)
    total = math.fsum(shares)
    return total * total / (len(shares) * squares) if squares else 1.0
