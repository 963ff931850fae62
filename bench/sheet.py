"""What is compared and what came out: pure values, without a clock or a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median

LOCAL, OURS, POSTED, PYFUSE3 = "local", "Forebay", "Forebay, order posted", "Forebay pyfuse3"
JUICEFS, TUNED, RCLONE, S3FS, OBSTORE = "JuiceFS", "JuiceFS tuned", "rclone", "s3fs", "obstore"
GRPC, SENDFILE, STORE, ONE_WORKER = "bare gRPC stream", "bare sendfile", "from the store", "one worker"
"""What stands beside the lines of the cluster."""

SIDES = (LOCAL, OBSTORE, OURS, POSTED, PYFUSE3, JUICEFS, TUNED, RCLONE, S3FS, GRPC, SENDFILE, STORE, ONE_WORKER)
"""All sides, in the order of the table's columns."""

PEERS = (JUICEFS, TUNED, RCLONE, S3FS)


@dataclass(frozen=True)
class Aim:
    """How good we want to be."""

    at_least: float
    """Times as good: the ratio of the numbers, or its inverse where less is better."""
    against: tuple[str, ...]
    """Sides; of several, the best one that is there."""
    ours: str = OURS


@dataclass(frozen=True)
class LineSpec:
    """One row of the table."""

    key: str
    title: str
    unit: str
    aims: tuple[Aim, ...] = ()
    less_is_better: bool = False
    cpu_per: str = "GiB"
    """What CPU time is divided by: "GiB", or "1,000" for lines without data."""
    at_most: Mapping[str, float] = field(default_factory=dict)
    """Facts of ours with the most that we want of each."""


@dataclass(frozen=True)
class Reading:
    """What one side gave in one turn."""

    value: float
    """In the unit of the line."""
    cpu_s: float | None = None
    """CPU seconds of the side's daemons, for each GiB or 1,000 (`LineSpec.cpu_per`); None where it has none."""
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """Numbers, one for each round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Figure:
    """What one side gave in all rounds."""

    value: Series
    cpu_s: float | None
    """The median."""
    facts: Mapping[str, float]
    """The most of each in any round."""


def figure(readings: Sequence[Reading]) -> Figure:
    """The readings of one side, in the order of the rounds."""
    costs = [reading.cpu_s for reading in readings if reading.cpu_s is not None]
    values = Series(tuple(reading.value for reading in readings))
    facts = {name: max(reading.facts[name] for reading in readings) for name in readings[-1].facts}
    return Figure(values, median(costs) if costs else None, facts)


@dataclass(frozen=True)
class Line:
    """One row of the table with its numbers."""

    group: str
    spec: LineSpec
    figures: Mapping[str, Figure]
    """By side; a side that is not installed or failed is absent."""

    def ratio(self, ours: str, other: str) -> Series:
        """Times as good, round by round, since what disturbs a round disturbs both sides of it."""
        pairs = zip(self.figures[ours].value.values, self.figures[other].value.values, strict=True)
        return Series(tuple(_times(b, a) if self.spec.less_is_better else _times(a, b) for a, b in pairs))

    def best(self, sides: Sequence[str]) -> str | None:
        """The best of these sides that is there, by its median."""
        there = [side for side in sides if side in self.figures]
        sign = -1 if self.spec.less_is_better else 1
        return max(there, key=lambda side: sign * self.figures[side].value.median, default=None)


def _times(more: float, less: float) -> float:
    """A quotient of figures, which may be 0: of reads that waited, say."""
    if less:
        return more / less
    return inf if more else 1.0


@dataclass(frozen=True)
class Verdict:
    """An aim beside what was reached."""

    line: Line
    aim: Aim
    other: str
    ratio: Series

    @property
    def met(self) -> bool:
        return self.ratio.median >= self.aim.at_least


def verdicts(lines: Sequence[Line]) -> list[Verdict]:
    """Every aim whose two sides are there."""
    found = []
    for line in lines:
        for aim in line.spec.aims:
            other = line.best(aim.against)
            if other and aim.ours in line.figures:
                found.append(Verdict(line, aim, other, line.ratio(aim.ours, other)))
    return found


def collect(group: str, specs: Sequence[LineSpec], rounds: Sequence[Mapping[str, Mapping[str, Reading]]]) -> list[Line]:
    """Lines from rounds.

    Args:
        group: the group's name.
        specs: its lines.
        rounds: of each round, by side, the readings by the line's key. A side that missed a round is left out.
    """
    lines = []
    for spec in specs:
        figures = {}
        for side in SIDES:
            got = [one[side][spec.key] for one in rounds if side in one and spec.key in one[side]]
            if got and len(got) == len(rounds):
                figures[side] = figure(got)
        lines.append(Line(group, spec, figures))
    return lines
