"""Names alone: a walk over 100,000 files and single look-ups, with nothing cached in the kernel."""

import random
from collections.abc import Mapping
from pathlib import Path, PurePath

from forebay.bench import sheet
from forebay.bench.crew import run_readers
from forebay.bench.dataset import Sample
from forebay.bench.groups import SEED, Place, Sizes, measured
from forebay.bench.reader import Job
from forebay.bench.sheet import PEERS, Aim, LineSpec, Reading
from forebay.bench.sides import Dataset, Forebay, Side, SideFailed

_FOLDERS = 100
_STATS = 20_000
_FIND_S = 10.0  # a slower walk is stopped; its rate is that of what it had printed
_EMPTY_DIGEST = 0x2D06800538D394C2  # XXH3-64 of nothing


class Metadata:
    """`find -ls`, and stat(2) of names that the kernel has not seen.

    Each walk and each round of stats is on a fresh mount; what a daemon lists for the walk is in its time. Before the
    stats our listing has ended, and one name of each folder is looked up, so that a daemon that loads folders as a
    whole has done so; listing them would fill the kernel's caches. The local file system keeps its inodes in memory,
    so its column is warm.
    """

    name = "metadata"
    distant = False
    columns = (
        sheet.LOCAL, sheet.OURS, sheet.PYFUSE3, sheet.JUICEFS, sheet.TUNED, sheet.RCLONE, sheet.S3FS,
    )  # fmt: skip
    lines = (
        LineSpec("find", "find -ls over 100,000 files, fresh mount", "names/s", (Aim(3, PEERS),), cpu_per="1,000"),
        LineSpec("stat", "stat, nothing cached in the kernel", "us", (Aim(2, PEERS),), True, "1,000"),
        LineSpec("absent", "stat of an absent name, nothing cached", "us", (Aim(2, PEERS),), True, "1,000"),
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
        total, used = measured(side, [Job("find_ls", str(side.directory), limit_s=_FIND_S)])
        if total.seconds < _FIND_S and total.count != len(dataset.samples):
            raise SideFailed(f"find printed {total.count} files of {len(dataset.samples)}")
        found = {"find": Reading(total.count / total.seconds, used / total.count * 1000)}
        side.mount()
        if isinstance(side, Forebay):
            side.listed()
        names = list(dataset.keys)
        random.Random(SEED + number).shuffle(names)
        firsts = tuple({str(PurePath(name).parent): name for name in reversed(names)}.values())
        run_readers([Job("stat_names", str(side.directory), firsts)])
        rest = [name for name in names if name not in firsts][:_STATS]
        found["stat"] = _stat(side, rest, place.sizes.limit_s)
        found["absent"] = _stat(side, [f"{name}.not" for name in rest], place.sizes.limit_s)
        return found


def _stat(side: Side, names: list[str], limit_s: float) -> Reading:
    total, used = measured(side, [Job("stat_names", str(side.directory), tuple(names), limit_s)])
    return Reading(total.seconds / total.count * 1e6, used / total.count * 1000)
