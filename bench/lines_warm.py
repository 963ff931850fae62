"""`forebay warmup` beside the bare client, which throws away what it gets: small files, and one large file.

A warm-up can be as fast as the store or as the disk, whichever is less: the column of obstore is the lesser of what it
fetches and of what the file system takes from memory, with both beside it.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import obstore
from obstore.store import S3Store

from forebay.bench import sheet
from forebay.bench.crew import cpu_seconds, spent
from forebay.bench.dataset import Sample, make_images, make_large
from forebay.bench.groups import MIB, SEED, Place, Sizes, per_gib
from forebay.bench.measure import Reader, fetch_ranges, timed, warm_memory
from forebay.bench.sendfile_endpoint import LATENCY_S
from forebay.bench.sheet import OBSTORE, Aim, LineSpec, Reading
from forebay.bench.sides import Dataset, Forebay, Side, sync_file_system

_COLUMNS = (sheet.OBSTORE, sheet.OURS)
_AT_ONCE = (32, 64, 128, 256)
_PARTS = tuple((part * MIB, parallel) for part in (2, 4, 8) for parallel in (8, 16, 32))
_WARM_TIMES = 4


def _warmed(side: Side, path: str) -> tuple[float, float]:
    """Seconds that a warm-up of a path took, without the start of the command, and CPU seconds of our daemons."""
    ours = cast(Forebay, side)
    before = cpu_seconds(side.pids())
    words = ours.node.command("warmup", str(side.directory), path, "--json")
    last = json.loads(words.splitlines()[-1])
    assert last["state"] == "done"
    assert last["files_failed"] == last["files_uncached"] == 0
    return float(last["elapsed_s"]), spent(before, cpu_seconds(side.pids()))


def _written(folder: Path, size: int) -> float:
    """Seconds in which the file system takes that many bytes from memory into one new file."""
    block = memoryview(bytes(range(256)) * (MIB // 256))
    path = folder / "written"

    def write() -> None:
        with path.open("wb", buffering=0) as output:
            for start in range(0, size, MIB):
                output.write(block[: size - start])

    try:
        return timed(write)
    finally:
        path.unlink()


def _limit(fetched_s: float, written_s: float, amount: float, facts: Mapping[str, float]) -> Reading:
    both = {"store": round(amount / fetched_s, 2), "disk": round(amount / written_s, 2)}
    return Reading(min(amount / fetched_s, amount / written_s), None, {**both, **facts})


def _ready(side: Side, samples: Sequence[Sample]) -> None:
    """The disk is no part of the store; what the rounds before wrote is not written out now."""
    reader = Reader()
    for sample in samples:
        reader.read(sample.path)
    for folder in side.cache_folders:
        sync_file_system(folder)
    warm_memory(_WARM_TIMES * sum(sample.size for sample in samples))


class WarmSmall:
    """Another folder in each round."""

    name = "warm-small"
    distant = True
    columns = _COLUMNS
    lines = (
        LineSpec(
            "warm-small",
            f"warm-up of small files, 100 KiB, {LATENCY_S * 1000:g} ms added",
            "files/s",
            (Aim(0.9, (OBSTORE,)),),
        ),
    )

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        folders = sizes.rounds + 1
        return make_images(folder, folders * sizes.small_files // 4, SEED, classes=folders)

    def __init__(self) -> None:
        self._at_once = _AT_ONCE[0]
        self._store: S3Store | None = None
        """One for all rounds: its connections stay, as the worker's do."""

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        """The last folder is fetched beforehand and not measured."""
        path = f"class-{place.sizes.rounds:02}"
        if side.name != OBSTORE:
            cast(Forebay, side).listed()
            _warmed(side, path)
            return
        samples = _below(dataset, path)
        store = self._store = dataset.endpoint.store(dataset.name)
        self._at_once = min(_AT_ONCE, key=lambda at_once: _bare_small(store, samples, at_once))

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        path = f"class-{number:02}"
        samples = _below(dataset, path)
        size = sum(sample.size for sample in samples)
        _ready(side, samples)
        if side.name == OBSTORE:
            assert self._store is not None
            fetched_s = _bare_small(self._store, samples, self._at_once)
            written_s = _written(place.folder, size)
            return {"warm-small": _limit(fetched_s, written_s, len(samples), {"at once": float(self._at_once)})}
        seconds, used = _warmed(side, path)
        return {"warm-small": Reading(len(samples) / seconds, per_gib(used, size))}


def _below(dataset: Dataset, path: str) -> list[Sample]:
    return [sample for sample in dataset.samples if sample.key.startswith(f"{path}/")]


def _bare_small(store: S3Store, samples: Sequence[Sample], at_once: int) -> float:
    def fetch(sample: Sample) -> int:
        return len(obstore.get_range(store, sample.key, start=0, length=sample.size))

    with ThreadPoolExecutor(at_once) as pool:
        return timed(lambda: sum(pool.map(fetch, samples)))


class WarmLarge:
    """Another object in each round."""

    name = "warm-large"
    distant = True
    columns = _COLUMNS
    lines = (
        LineSpec(
            "warm-large",
            f"warm-up of one large file, {LATENCY_S * 1000:g} ms added",
            "GB/s",
            (Aim(0.9, (OBSTORE,)),),
        ),
    )

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        return [
            make_large(folder, f"large-{number}.bin", 4 * sizes.cold_bytes, SEED + number)
            for number in range(sizes.rounds + 1)
        ]

    def __init__(self) -> None:
        self._ways = _PARTS[0]
        self._store: S3Store | None = None

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        """The last object is fetched beforehand and not measured."""
        last = dataset.samples[-1]
        if side.name != OBSTORE:
            cast(Forebay, side).listed()
            _warmed(side, last.key)
            return
        store = self._store = dataset.endpoint.store(dataset.name)
        self._ways = min(_PARTS, key=lambda ways: _bare_large(store, last, *ways))

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        sample = dataset.samples[number]
        _ready(side, [sample])
        if side.name == OBSTORE:
            assert self._store is not None
            fetched_s = _bare_large(self._store, sample, *self._ways)
            written_s = _written(place.folder, sample.size)
            facts = {"part MiB": self._ways[0] / MIB, "at once": float(self._ways[1])}
            return {"warm-large": _limit(fetched_s, written_s, sample.size / 1e9, facts)}
        seconds, used = _warmed(side, sample.key)
        return {"warm-large": Reading(sample.size / seconds / 1e9, per_gib(used, sample.size))}


def _bare_large(store: S3Store, sample: Sample, part_bytes: int, parallel: int) -> float:
    return timed(lambda: fetch_ranges(store, sample.key, sample.size, part_bytes, parallel))
