"""`forebay warmup` beside the bare client: small files, and one large file.

A warm-up can be as fast as the store or as the disk, whichever is less: the column of obstore is the lesser of what it
fetches and throws away and of what the file system takes from memory, with both beside it. Where store, client and disk
share the cores no program reaches that; so there is a second line, in which the bare client's threads write what they
get into one file.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import cast

import obstore
from obstore.store import S3Store

from forebay.bench import sheet
from forebay.bench.crew import cpu_seconds, spent
from forebay.bench.dataset import Sample, make_images, make_large
from forebay.bench.groups import MIB, SEED, Place, Sizes, per_gib
from forebay.bench.measure import Keep, Reader, fetch_ranges, timed, warm_memory
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


@contextmanager
def _kept(folder: Path) -> Iterator[Keep]:
    """Writes into a new file below a folder, which is removed at the end."""
    path = folder / "kept"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        yield lambda data, offset: os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)
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
        LineSpec("warm-small-kept", "the same, obstore writes into a file", "files/s", (Aim(0.9, (OBSTORE,)),)),
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
            with _kept(place.folder) as keep:
                kept_s = _bare_small(self._store, samples, self._at_once, keep)
            return {
                "warm-small": _limit(fetched_s, written_s, len(samples), {"at once": float(self._at_once)}),
                "warm-small-kept": Reading(len(samples) / kept_s, None),
            }
        seconds, used = _warmed(side, path)
        ours = Reading(len(samples) / seconds, per_gib(used, size))
        return {"warm-small": ours, "warm-small-kept": ours}


def _below(dataset: Dataset, path: str) -> list[Sample]:
    return [sample for sample in dataset.samples if sample.key.startswith(f"{path}/")]


def _bare_small(store: S3Store, samples: Sequence[Sample], at_once: int, keep: Keep | None = None) -> float:
    ends = list(accumulate(sample.size for sample in samples))

    def fetch(sample: Sample, end: int) -> int:
        data = obstore.get_range(store, sample.key, start=0, length=sample.size)
        if keep is not None:
            keep(data, end - sample.size)
        return len(data)

    with ThreadPoolExecutor(at_once) as pool:
        return timed(lambda: sum(pool.map(fetch, samples, ends)))


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
        LineSpec("warm-large-kept", "the same, obstore writes into a file", "GB/s", (Aim(0.9, (OBSTORE,)),)),
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
            with _kept(place.folder) as keep:
                kept_s = _bare_large(self._store, sample, *self._ways, keep)
            facts = {"part MiB": self._ways[0] / MIB, "at once": float(self._ways[1])}
            return {
                "warm-large": _limit(fetched_s, written_s, sample.size / 1e9, facts),
                "warm-large-kept": Reading(sample.size / kept_s / 1e9, None),
            }
        seconds, used = _warmed(side, sample.key)
        ours = Reading(sample.size / seconds / 1e9, per_gib(used, sample.size))
        return {"warm-large": ours, "warm-large-kept": ours}


def _bare_large(store: S3Store, sample: Sample, part_bytes: int, parallel: int, keep: Keep | None = None) -> float:
    return timed(lambda: fetch_ranges(store, sample.key, sample.size, part_bytes, parallel, keep=keep))
