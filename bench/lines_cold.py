"""Nothing cached: a large file in sequence and an epoch of small files, from S3 with latency."""

import random
from collections.abc import Mapping
from pathlib import Path

from forebay.bench import sheet
from forebay.bench.crew import run_readers
from forebay.bench.dataset import Sample, make_images, make_large
from forebay.bench.groups import MIB, SEED, Place, Sizes, measured, per_gib, read_all
from forebay.bench.lines_small import list_first
from forebay.bench.measure import Reader, fetch_ranges, timed, warm_memory
from forebay.bench.sendfile_endpoint import LATENCY_S
from forebay.bench.sheet import OBSTORE, PEERS, Aim, LineSpec, Reading
from forebay.bench.sides import Dataset, Side

_PARTS = tuple((part * MIB, parallel) for part in (2, 4, 8, 16) for parallel in (4, 8, 16, 32))
"""Part sizes in bytes and ranges at once, of which obstore's best are taken."""
_TRIED_AGAIN = 3
_READERS = 4


class Cold:
    """Another object in each round, so nothing of it is cached; a last one is read beforehand and not measured."""

    name = "cold"
    distant = True
    columns = (
        sheet.OBSTORE, sheet.OURS, sheet.PYFUSE3, sheet.JUICEFS, sheet.TUNED, sheet.RCLONE, sheet.S3FS,
    )  # fmt: skip
    lines = (
        LineSpec(
            "cold",
            f"cold, 1 MiB in sequence from S3, {LATENCY_S * 1000:g} ms added",
            "GB/s",
            (Aim(0.9, (OBSTORE,)), Aim(1, PEERS)),
        ),
    )

    def __init__(self) -> None:
        self._best: list[tuple[int, int]] = []

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        return [
            make_large(folder, f"large-{number}.bin", sizes.cold_bytes, SEED + number)
            for number in range(sizes.rounds + 1)
        ]

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        last = dataset.samples[-1]
        if side.name != OBSTORE:
            run_readers(read_all(side, [last.key], 1))
            return
        speeds = {ways: _bare(dataset, last, *ways) for ways in _PARTS}
        self._best = sorted(speeds, key=lambda ways: -speeds[ways])[:_TRIED_AGAIN]

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        sample = dataset.samples[number]
        Reader().read(sample.path)  # the disk is no part of a distant store
        warm_memory(4 * sample.size)  # for the cache's and the mount's page cache
        if side.name == OBSTORE:
            part, parallel = max(self._best, key=lambda ways: _bare(dataset, sample, *ways))
            speed = _bare(dataset, sample, part, parallel)
            return {"cold": Reading(speed, None, {"part MiB": part / MIB, "at once": float(parallel)})}
        total, used = measured(side, read_all(side, [sample.key], 1))
        return {"cold": Reading(total.size / total.seconds / 1e9, per_gib(used, total.size))}


def _bare(dataset: Dataset, sample: Sample, part_bytes: int, parallel: int) -> float:
    store = dataset.endpoint.store(dataset.name)
    return sample.size / timed(lambda: fetch_ranges(store, sample.key, sample.size, part_bytes, parallel)) / 1e9


class ColdSmall:
    """Another folder in each round; it is listed first, which is not timed."""

    name = "cold-small"
    distant = True
    columns = (
        sheet.OURS, sheet.POSTED, sheet.PYFUSE3, sheet.JUICEFS, sheet.TUNED, sheet.RCLONE, sheet.S3FS,
    )  # fmt: skip
    lines = (
        LineSpec(
            "cold-small",
            f"cold epoch of 100 KiB files from S3, {LATENCY_S * 1000:g} ms added, 4 readers",
            "files/s",
            (Aim(1, PEERS), Aim(1, PEERS, sheet.POSTED)),
        ),
    )

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        folders = sizes.rounds + 1
        return make_images(folder, folders * sizes.cold_files, SEED, classes=folders)

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        keys = _folder(dataset, place.sizes.rounds)
        list_first(side, keys)
        run_readers(read_all(side, keys, _READERS))

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        order = list(_folder(dataset, number))
        list_first(side, tuple(order))
        random.Random(SEED + number).shuffle(order)
        do = "read_posted" if side.name == sheet.POSTED else "read_files"
        total, used = measured(side, read_all(side, order, _READERS, do))
        return {"cold-small": Reading(total.count / total.seconds, per_gib(used, total.size))}


def _folder(dataset: Dataset, number: int) -> tuple[str, ...]:
    return tuple(key for key in dataset.keys if key.startswith(f"class-{number:02}/"))
