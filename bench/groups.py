"""A group of lines: one dataset, the sides that read it, and turns that give a reading for each line."""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import Protocol

from forebay.bench import sheet
from forebay.bench.crew import ReaderFailed, Total, cpu_seconds, run_readers, share, spent
from forebay.bench.dataset import Sample, by_key
from forebay.bench.node import CommandFailed, Watchdog
from forebay.bench.peers import bucket_sides, juice_sides
from forebay.bench.reader import Job
from forebay.bench.sendfile_endpoint import FolderEndpoint
from forebay.bench.sheet import Line, LineSpec, Reading
from forebay.bench.sides import Dataset, Forebay, Local, Side, SideFailed

MIB = 1 << 20
GIB = 1 << 30
SEED = 7

Failures = (SideFailed, ReaderFailed, CommandFailed, OSError, subprocess.SubprocessError)
"""What takes one side out of a group; the others go on."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything; bytes, seconds, counts."""

    rounds: int
    large_files: int
    large_bytes: int
    """Of each large file."""
    mapped_bytes: int
    small_files: int
    names: int
    cold_bytes: int
    cold_files: int
    """Small files of a cold epoch."""
    epoch_files: int
    """Small files of which a share fits into the cache."""
    piece_files: int
    """Of 1 MiB, of which pieces are read."""
    at_once: int
    """Large files that are read at the same time."""
    at_once_bytes: int
    """Of each of them."""
    random_s: float
    """Of 4 KiB reads at random."""
    limit_s: float
    """A turn of many small operations stops after this; its rate is that of what was done."""


FULL = Sizes(5, 4, 256 * MIB, 2 * GIB, 10_000, 100_000, 256 * MIB, 400, 4_000, 128, 64, 64 * MIB, 1.5, 3.0)
QUICK = Sizes(3, 4, 32 * MIB, 128 * MIB, 500, 5_000, 64 * MIB, 40, 800, 16, 64, 8 * MIB, 1.0, 2.0)


@dataclass(frozen=True)
class Place:
    """Where and with what a group runs."""

    folder: Path
    endpoint: FolderEndpoint
    sizes: Sizes
    wanted: Sequence[str]
    """Sides."""
    environ: Mapping[str, str]
    step: Callable[[str], None]
    """Says what is done next."""
    watchdog: Watchdog


class Group(Protocol):
    """Lines that share their data."""

    @property
    def name(self) -> str:
        """On the command line, and of the bucket."""

    @property
    def lines(self) -> Sequence[LineSpec]:
        """Its rows of the table."""

    @property
    def columns(self) -> Sequence[str]:
        """Sides that it compares."""

    @property
    def distant(self) -> bool:
        """It reads through the endpoint's latency."""

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        """Write the local copies."""

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        """Bring a side that has just been mounted into the state of the group."""

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        """Readings of one side in round `number`, by the line's key."""


@dataclass
class Outcome:
    """What a group gave."""

    lines: list[Line]
    notes: dict[str, str] = field(default_factory=dict)
    """By side: version and flags."""
    modes: list[str] = field(default_factory=list)
    """Sides of ours with the open mode that they picked."""
    missing: dict[str, str] = field(default_factory=dict)
    """By side: why it has no figures."""


def run_group(group: Group, place: Place) -> Outcome:
    """Make the data, let the sides take turns, and leave nothing mounted."""
    outcome = Outcome([])
    place.step(f"{group.name}: making the data")
    folder = place.folder / group.name
    samples = group.make(folder / "local", place.sizes)
    endpoint = place.endpoint.distant() if group.distant else place.endpoint
    if endpoint is None:
        outcome.missing["all"] = f"{group.name}: nginx's echo module is not installed, so there is no latency"
        return outcome
    dataset = Dataset(group.name, folder / "local", samples, endpoint)
    endpoint.publish(group.name, by_key(samples))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stack.callback(endpoint.withdraw, group.name, [])
        sides = make_sides(group, dataset, place, folder)
        for side in sides:
            place.watchdog.guard(side)
            stack.callback(side.close)
            place.step(f"{group.name}: {side.name} makes ready")
            _try(outcome, side, partial(_begin, group, place, side, dataset))
            outcome.notes[side.name] = side.notes
            if isinstance(side, Forebay) and side.open_mode:
                outcome.modes.append(f"{side.name} {side.open_mode}")
        rounds = _rounds(group, place, sides, dataset, outcome)
        outcome.lines = sheet.collect(group.name, group.lines, rounds)
    for side_name in group.columns:
        if side_name in place.wanted and side_name not in outcome.notes:
            outcome.missing.setdefault(side_name, "not installed")
    return outcome


def make_sides(group: Group, dataset: Dataset, place: Place, folder: Path) -> list[Side]:
    """The sides that are wanted, take part, and are installed; those of a group's own come from it."""
    wanted = [name for name in group.columns if name in place.wanted]
    found: list[Side] = [Local(dataset)] if sheet.LOCAL in wanted else []
    flags = {sheet.OURS: (), sheet.POSTED: (), sheet.PYFUSE3: ("--engine", "pyfuse3")}
    for name, words in flags.items():
        if name in wanted:
            found.append(
                Forebay(dataset, folder / name.replace(", ", "-").replace(" ", "-"), place.environ, name, *words)
            )
    near = place.endpoint.url if group.distant else None
    found += juice_sides(dataset, folder, wanted, near)
    found += bucket_sides(dataset, folder, wanted)
    if sheet.OBSTORE in wanted:
        found.append(Bare(dataset))
    return found


class Bare(Local):
    """obstore alone: it reads into memory and keeps nothing. Its folder is not read."""

    name = sheet.OBSTORE

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self.notes = "get_range from threads, bytes thrown away; the best of several part sizes and parallelisms"


def _begin(group: Group, place: Place, side: Side, dataset: Dataset) -> None:
    side.prepare()
    side.mount()
    group.begin(place, side, dataset)


def _rounds(
    group: Group, place: Place, sides: Sequence[Side], dataset: Dataset, outcome: Outcome
) -> list[dict[str, Mapping[str, Reading]]]:
    rounds = []
    for number in range(place.sizes.rounds):
        found: dict[str, Mapping[str, Reading]] = {}
        first = number % len(sides)
        for side in [*sides[first:], *sides[:first]]:
            if side.name in outcome.missing:
                continue
            place.step(f"{group.name}: round {number + 1}, {side.name}")

            def take(side: Side = side, number: int = number, found: dict[str, Mapping[str, Reading]] = found) -> None:
                found[side.name] = group.turn(place, side, dataset, number)

            _try(outcome, side, take)
        rounds.append(found)
    return rounds


def _try(outcome: Outcome, side: Side, work: Callable[[], None]) -> None:
    try:
        work()
    except Failures as error:
        outcome.missing[side.name] = f"failed: {error}"


def measured(side: Side, jobs: Sequence[Job]) -> tuple[Total, float]:
    """Run readers; what they did, and the CPU seconds that the side's daemons used meanwhile."""
    before = cpu_seconds(side.pids())
    total = run_readers(jobs)
    return total, spent(before, cpu_seconds(side.pids()))


def read_all(side: Side, names: Sequence[str], readers: int, do: str = "read_files", limit_s: float = inf) -> list[Job]:
    """The files of a side dealt out to readers."""
    return share(Job(do, str(side.directory), tuple(names), limit_s), readers)


def per_gib(seconds: float, size: int) -> float | None:
    """CPU seconds for each GiB; None where nothing was read."""
    return seconds / (size / GIB) if size else None


def check_bytes(side: Side, samples: Sequence[Sample]) -> None:
    """Compare what a side shows with what was published.

    Raises:
        SideFailed: it shows other bytes.
    """
    total = run_readers([Job("digest_files", str(side.directory), tuple(sample.key for sample in samples))])
    for sample, digest in zip(samples, total.digests, strict=True):
        if sample.digest != digest:
            raise SideFailed(f"{sample.key} has other bytes than were published")


def warm(side: Side, dataset: Dataset, readers: int = 4) -> None:
    """Have a side cache everything: `forebay warmup` where there is one, then each file is read whole once."""
    if isinstance(side, Forebay):
        side.node.warmup(side.directory)
    run_readers(read_all(side, dataset.keys, readers))
