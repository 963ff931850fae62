"""Names alone: a walk over 100,000 files and single look-ups, with nothing cached in the kernel."""

import random
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePath

from forebay.bench import sheet
from forebay.bench.catalogue import measured_apart
from forebay.bench.crew import run_readers
from forebay.bench.dataset import Sample
from forebay.bench.groups import SEED, Place, Sizes, measured
from forebay.bench.reader import Job
from forebay.bench.sheet import PEERS, Aim, LineSpec, Reading
from forebay.bench.sides import Dataset, Forebay, Side, SideFailed, drop_names, settle

_FOLDERS = 100
_STATS = 10_000
_FIND_S = 5.0  # a slower walk is stopped; its rate is that of what it had printed
_EMPTY_DIGEST = 0x2D06800538D394C2  # XXH3-64 of nothing


class Metadata:
    """`find -ls`, and stat(2) of names that the kernel has not seen.

    The first walk of a turn is on a fresh mount; what a daemon lists for it is in its time. The rest is on the same
    mount, with its source listed and each folder once, after the kernel was made to forget all names: as many requests
    as on a fresh mount (counted with Forebay: 903 and 806 for the walk, one for each stat). The local file system reads
    its inodes from the page cache then.
    """

    name = "metadata"
    distant = False
    columns = (
        sheet.LOCAL, sheet.OURS, sheet.PYFUSE3, sheet.JUICEFS, sheet.TUNED, sheet.RCLONE, sheet.S3FS,
    )  # fmt: skip
    lines = (
        LineSpec("walk", "find -ls over 100,000 files, cold kernel", "names/s", (Aim(3, PEERS),), cpu_per="1,000"),
        LineSpec("find", "find -ls over 100,000 files, fresh mount", "names/s", (Aim(3, PEERS),), cpu_per="1,000"),
        LineSpec("stat", "stat, nothing cached in the kernel", "us", (Aim(2, PEERS),), True, "1,000"),
        LineSpec("absent", "stat of an absent name, nothing cached", "us", (Aim(2, PEERS),), True, "1,000"),
        LineSpec("catalogue", "listing of 100,000 local files into the catalogue", "entries/s", cpu_per="1,000"),
    )

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        samples = []
        for number in range(sizes.names):
            key = f"folder-{number % _FOLDERS:02}/{number:06}"
            path = folder / key
            if number < _FOLDERS:
                path.parent.mkdir(parents=True)
            path.touch()
            samples.append(Sample(key, path, 0, _EMPTY_DIGEST))
        return samples

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        """Nothing: there are no bytes."""

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        side.mount()
        found = {"find": _walk(side, len(dataset.samples))}
        if isinstance(side, Forebay):
            side.listed()
        folders = sorted({str(PurePath(name).parent) for name in dataset.keys})
        # Of sides whose walk was stopped; the others have all that it brings.
        run_readers([Job("list_folders", str(side.directory), tuple(folders))])
        if drop_names():
            settle(side)
            found["walk"] = _walk(side, len(dataset.samples))
            drop_names()
            settle(side)
        else:
            side.mount()
            if isinstance(side, Forebay):
                side.listed()
        names = list(dataset.keys)
        random.Random(SEED + number).shuffle(names)
        # A daemon that loads folders as a whole does so now. To list them would fill the kernel's caches.
        firsts = tuple({str(PurePath(name).parent): name for name in reversed(names)}.values())
        run_readers([Job("stat_names", str(side.directory), firsts)])
        rest = [name for name in names if name not in firsts][:_STATS]
        found["stat"] = _stat(side, rest, place.sizes.limit_s)
        found["absent"] = _stat(side, [f"{name}.not" for name in rest], place.sizes.limit_s)
        if side.name == sheet.OURS:
            found["catalogue"] = _catalogue(dataset.samples[0].path.parents[1])
        return found


def _walk(side: Side, files: int) -> Reading:
    total, used = measured(side, [Job("find_ls", str(side.directory), limit_s=_FIND_S)])
    if total.seconds < _FIND_S and total.count != files:
        raise SideFailed(f"find printed {total.count} files of {files}")
    return Reading(total.count / total.seconds, used / total.count * 1000)


def _catalogue(folder: Path) -> Reading:
    """Of the worker's own path, without a mount; its CPU time is without that of the process that scans."""
    with tempfile.TemporaryDirectory() as apart:
        listed = measured_apart(str(folder), 0, Path(apart))
    return Reading(listed.entries_per_s, listed.cpu_us / 1000)


def _stat(side: Side, names: list[str], limit_s: float) -> Reading:
    total, used = measured(side, [Job("stat_names", str(side.directory), tuple(names), limit_s)])
    return Reading(total.seconds / total.count * 1e6, used / total.count * 1000)
