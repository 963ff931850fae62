"""Histograms of durations with fixed buckets: cheap to count, to add up and to subtract.

Bucket b holds durations of [2**(b-1), 2**b) microseconds, bucket 0 those below 1 us, the last one all longer ones. So a
quantile is known to a factor of two, which is what tells a page cache from a disk and a disk from a store.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

BUCKETS = 28
"""The last one begins at 67 s: longer than a reader waits."""


def bucket_of(nanoseconds: int) -> int:
    """The bucket of a duration."""
    return min((nanoseconds // 1000).bit_length(), BUCKETS - 1)


def upper_s(bucket: int) -> float:
    """Upper bound of a bucket in seconds; infinite for the last one."""
    return float(1 << bucket) / 1e6 if bucket < BUCKETS - 1 else float("inf")


@dataclass
class Histogram:
    """Durations counted."""

    counts: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    sum_ns: int = 0

    def add(self, nanoseconds: int) -> None:
        """Count one duration."""
        self.counts[bucket_of(nanoseconds)] += 1
        self.sum_ns += nanoseconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def sum_s(self) -> float:
        return self.sum_ns / 1e9

    def quantile_s(self, share: float) -> float | None:
        """The duration that this share of all is not above; None without any.

        Within a bucket, durations are taken as spread evenly over the logarithm.
        """
        total = self.count
        if not total:
            return None
        rank = share * total
        below = 0
        for bucket, count in enumerate(self.counts):
            if count and below + count >= rank:
                inside = max(rank - below, 0.0) / count
                return float(2.0 ** (bucket - 1 + inside)) / 1e6
            below += count
        raise AssertionError("unreachable")

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram([a + b for a, b in zip(self.counts, other.counts, strict=True)], self.sum_ns + other.sum_ns)

    def __sub__(self, earlier: "Histogram") -> "Histogram":
        """What was counted since; of a counter that began anew in between, what it has now."""
        if any(a < b for a, b in zip(self.counts, earlier.counts, strict=True)):
            return Histogram(list(self.counts), self.sum_ns)
        counts = [a - b for a, b in zip(self.counts, earlier.counts, strict=True)]
        return Histogram(counts, self.sum_ns - earlier.sum_ns)

    @classmethod
    def of(cls, counts: Sequence[int], sum_ns: int) -> "Histogram":
        """From what another process sent; counts may be shorter."""
        known = [*counts, *[0] * BUCKETS][:BUCKETS]
        return cls(known, sum_ns)
