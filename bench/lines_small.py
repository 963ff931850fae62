"""Small files in random order, as an image loader reads them: cached and warm, and cached on the disk alone."""

from collections.abc import Mapping
from pathlib import Path, PurePath

from forebay.bench import sheet
from forebay.bench.crew import run_readers
from forebay.bench.dataset import Sample, make_images, shuffled
from forebay.bench.groups import SEED, Place, Sizes, check_bytes, measured, per_gib, read_all, warm
from forebay.bench.reader import Job
from forebay.bench.sheet import LOCAL, Aim, LineSpec, Reading
from forebay.bench.sides import Dataset, Side, shed

_READERS = (1, 4)
_CHECKED = 200  # files; the others are read without a look at their bytes


class Small:
    """The second epoch and later ones: everything is cached, and was read once through the mount."""

    name = "small"
    distant = False
    columns: tuple[str, ...] = (
        sheet.LOCAL, sheet.OURS, sheet.PYFUSE3, sheet.JUICEFS, sheet.TUNED, sheet.RCLONE, sheet.S3FS,
    )  # fmt: skip
    lines = tuple(
        LineSpec(
            f"later-{readers}",
            f"100 KiB files at random, second epoch, {readers} reader{'s' if readers > 1 else ''}",
            "files/s",
            (Aim(0.8, (LOCAL,)), Aim(4, (sheet.TUNED,))),
        )
        for readers in _READERS
    )

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        return make_images(folder, sizes.small_files, SEED)

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        warm(side, dataset)
        check_bytes(side, dataset.samples[:_CHECKED])

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        found = {}
        for readers in _READERS:
            # The first epoch, not timed: while other sides had their turns the kernel may have dropped what it had.
            epoch(side, dataset, readers, SEED - 1 - number, place.sizes.limit_s)
            found[f"later-{readers}"] = epoch(side, dataset, readers, SEED + number, place.sizes.limit_s)
        return found


class First(Small):
    """The first epoch of a new mount, with the data cached on the disk and not in the page cache.

    Directories are listed first, as loaders do to make their order; that is not timed. Before each reading the side is
    unmounted, what it keeps on the disk is synced and dropped from the page cache, and it is mounted anew.
    """

    name = "first"
    columns = (
        sheet.LOCAL, sheet.OURS, sheet.POSTED, sheet.PYFUSE3, sheet.JUICEFS, sheet.TUNED, sheet.RCLONE, sheet.S3FS,
    )  # fmt: skip
    lines = tuple(
        LineSpec(
            f"first-{readers}",
            f"100 KiB files at random, first epoch, cached on disk, {readers} reader{'s' if readers > 1 else ''}",
            "files/s",
            (Aim(0.6, (LOCAL,), sheet.POSTED), Aim(3, sheet.PEERS), Aim(3, sheet.PEERS, sheet.POSTED)),
        )
        for readers in _READERS
    )

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        found = {}
        for readers in _READERS:
            shed(side)
            side.mount()
            list_first(side, dataset.keys)
            found[f"first-{readers}"] = epoch(side, dataset, readers, SEED + number, place.sizes.limit_s)
        return found


def list_first(side: Side, keys: tuple[str, ...]) -> None:
    """List the folders of these keys."""
    folders = tuple(dict.fromkeys(str(PurePath(key).parent) for key in keys))
    run_readers([Job("list_folders", str(side.directory), folders)])


def epoch(side: Side, dataset: Dataset, readers: int, seed: int, limit_s: float) -> Reading:
    """One pass in random order, dealt out to readers; the order is posted to the mount where the side is named so."""
    order = [sample.key for sample in shuffled(list(dataset.samples), seed)]
    do = "read_posted" if side.name == sheet.POSTED else "read_files"
    total, used = measured(side, read_all(side, order, readers, do, limit_s))
    return Reading(total.count / total.seconds, per_gib(used, total.size))
