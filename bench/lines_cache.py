"""What a cache that is too small, reads of pieces, and many readers cost: bytes from the store, and memory.

Bytes are counted by the endpoint, the same way for all sides (`FolderEndpoint.sent_bytes`).
"""

import os
import random
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from forebay.bench.crew import Total
from forebay.bench.dataset import Sample, make_images, make_large, shuffled
from forebay.bench.groups import MIB, SEED, Group, Place, Sizes, measured, per_gib, read_all
from forebay.bench.lines_small import list_first
from forebay.bench.peak import peak
from forebay.bench.reader import piece
from forebay.bench.sendfile_endpoint import LATENCY_S
from forebay.bench.sheet import OURS, RCLONE, TUNED, Aim, LineSpec, Reading
from forebay.bench.sides import Dataset, Forebay, Side, SideFailed, shed

FRACTIONS = (0.25, 0.5, 0.75)
_PEERS = (TUNED, RCLONE)
_READERS = 8

_PIECE_BYTES = 128 << 10
_FILE_BYTES = MIB


class Epochs:
    """Epochs in random order, another one each time, over files of which a share fits into the cache.

    The first one fills the cache and is not counted. Each is on a fresh mount, with all daemons started anew and with
    what is on the disk dropped from the page cache: what memory holds would be no hit of the cache.
    """

    name = "cache"
    distant = True
    columns: tuple[str, ...] = (OURS, TUNED, RCLONE)
    lines = tuple(
        LineSpec(
            f"cache-{fraction}",
            f"random epochs of 100 KiB files, cache {fraction:.0%} of the data: fetched from the store for each epoch",
            "MiB",
            (Aim(1, _PEERS),),
            less_is_better=True,
            at_most={"points below the fraction": 1.0},
        )
        for fraction in FRACTIONS
    )

    def __init__(self) -> None:
        self._limited: dict[tuple[str, float], Side] = {}

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        return make_images(folder, sizes.epoch_files, SEED)

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        side.umount()
        for fraction in FRACTIONS:
            limited = side.anew(f"{fraction:.0%}".rstrip("%"), quota_of(dataset, fraction))
            self._limited[side.name, fraction] = limited
            _epoch(limited, dataset, SEED - 1)
            place.watchdog.pat()

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        found = {}
        for fraction in FRACTIONS:
            total, used, fetched = _epoch(self._limited[side.name, fraction], dataset, SEED + number)
            place.watchdog.pat()
            quota = quota_of(dataset, fraction)
            missed = fetched / total.size
            facts = {
                "points below the fraction": round(100 * (missed - 1 + quota / size_of(dataset)), 2),
                "% fetched": round(100 * missed, 2),
                "on disk / quota": round(_on_disk(self._limited[side.name, fraction]) / quota, 3),
                "s": round(total.seconds, 1),
            }
            found[f"cache-{fraction}"] = Reading(fetched / MIB, per_gib(used, total.size), facts)
        return found


def size_of(dataset: Dataset) -> int:
    """Bytes of all files."""
    return sum(sample.size for sample in dataset.samples)


def quota_of(dataset: Dataset, fraction: float) -> int:
    """A share of the data, in bytes: whole MiB, the only unit that all sides take."""
    return round(fraction * size_of(dataset) / MIB) * MIB


def _epoch(side: Side, dataset: Dataset, seed: int) -> tuple[Total, float, int]:
    """One on a fresh mount; what the readers did, CPU seconds, and bytes that the store sent."""
    if isinstance(side, Forebay):
        side.ended()
    shed(side)
    side.mount()
    list_first(side, dataset.keys)
    if isinstance(side, Forebay):
        side.listed()
    before = dataset.endpoint.sent_bytes()
    order = [sample.key for sample in shuffled(list(dataset.samples), seed)]
    total, used = measured(side, read_all(side, order, _READERS))
    side.umount()  # ends what it still fetches, so that it is counted here
    return total, used, dataset.endpoint.sent_bytes() - before


def _on_disk(side: Side) -> int:
    """Bytes that the file system gave to what a side keeps."""
    found = 0
    for place, _, names in os.walk(side.cache_folders[0]):
        for name in names:
            with suppress(FileNotFoundError):  # it is being evicted
                found += os.lstat(f"{place}/{name}").st_blocks * 512
    return found


class Pieces:
    """128 KiB reads at random over files of 1 MiB: all of them once, and one of each file.

    Other files in each round, so nothing of them is cached. What nobody asked for shall not be fetched, and nothing
    twice.
    """

    name = "pieces"
    distant = True
    columns: tuple[str, ...] = (OURS, TUNED, RCLONE)
    lines = (
        LineSpec(
            "pieces",
            "cold, 128 KiB at random over 1 MiB files, each piece once: fetched / used",
            "x",
            less_is_better=True,
            at_most={"fetched / used": 1.1},
        ),
        LineSpec(
            "sparse",
            "cold, 128 KiB at random over 1 MiB files, one piece of each file: fetched / used",
            "x",
            less_is_better=True,
            at_most={"fetched / used": 1.1},
        ),
    )

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        samples = []
        for place, part in enumerate(self._parts(sizes)):
            for number in range(sizes.piece_files):
                sample = make_large(folder / part, f"{number:04}.bin", _FILE_BYTES, 1000 * place + number)
                samples.append(replace(sample, key=f"{part}/{sample.key}"))
        return samples

    def _parts(self, sizes: Sizes) -> list[str]:
        return [f"{line.key}-{number}" for line in self.lines for number in range(sizes.rounds)]

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        """Nothing is read beforehand."""
        if isinstance(side, Forebay):
            side.listed()

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        found = {}
        for line in self.lines:
            keys = [sample.key for sample in dataset.samples if sample.key.startswith(f"{line.key}-{number}/")]
            side.mount()
            list_first(side, tuple(keys))
            before = dataset.endpoint.sent_bytes()
            names = pieces_of(keys, random.Random(SEED + number), every=line.key == "pieces")
            total, used = measured(side, read_all(side, names, _READERS, "read_pieces"))
            side.umount()
            ratio = (dataset.endpoint.sent_bytes() - before) / total.size
            facts = {"fetched / used": round(ratio, 3), "s": round(total.seconds, 2)}
            found[line.key] = Reading(ratio, per_gib(used, total.size), facts)
        return found


def pieces_of(keys: Sequence[str], chance: random.Random, every: bool) -> list[str]:
    """Pieces in random order, for `read_pieces`: every one of each file, or one of each."""
    starts = range(0, _FILE_BYTES, _PIECE_BYTES)
    names = [
        piece(key, start, _PIECE_BYTES) for key in keys for start in (starts if every else [chance.choice(starts)])
    ]
    chance.shuffle(names)
    return names


class AtOnce:
    """Many large files, each with a reader of its own, all at the same time, with nothing cached.

    Once with a cache that takes it all, and once with one that is full after a sixteenth, so that most of what is read
    finds no room.
    """

    name = "at-once"
    distant = True
    columns: tuple[str, ...] = (OURS, RCLONE)
    lines = tuple(
        LineSpec(
            key,
            f"cold, 64 large files at once, {LATENCY_S * 1000:g} ms added{what}: most memory of all daemons (PSS)",
            "MiB",
            less_is_better=True,
            at_most={"most memory, MiB": 512},
        )
        for key, what in (("at-once", ""), ("at-once-full", ", cache 1/16 of the data"))
    )

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        return [
            make_large(folder, f"large-{number:02}.bin", sizes.at_once_bytes, SEED + number)
            for number in range(sizes.at_once)
        ]

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        side.umount()

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        full = quota_of(dataset, 1 / 16)
        found = {"at-once": _at_once(side.anew(f"round-{number}"), dataset)}
        place.watchdog.pat()
        if isinstance(side, Forebay):  # rclone's cache grows with the files that are open, whatever its limit
            found["at-once-full"] = _at_once(side.anew(f"full-{number}", full), dataset)
        return found


def _at_once(side: Side, dataset: Dataset) -> Reading:
    """The most memory of a side that is mounted for this alone; what it cached is removed."""
    try:
        side.mount()
        list_first(side, dataset.keys)
        if isinstance(side, Forebay):
            side.listed()
        jobs = read_all(side, dataset.keys, len(dataset.keys))
        with peak(side.pids) as most:
            total, used = measured(side, jobs)
    finally:
        side.close()
        shutil.rmtree(side.cache_folders[0], ignore_errors=True)
    if total.size != size_of(dataset):
        raise SideFailed(f"{side.name} gave {total.size} bytes of {size_of(dataset)}")
    facts = {
        "most memory, MiB": round(most.pss / MIB, 1),
        "of it anonymous and shared, MiB": round(most.held / MIB, 1),
        "looks": float(most.looks),
        "s": round(total.seconds, 1),
    }
    return Reading(most.pss / MIB, per_gib(used, total.size), facts)


BOUNDED: tuple[Group, ...] = (Epochs(), Pieces(), AtOnce())
"""All groups here."""
