"""The lines of the benchmark: what each makes, reads and compares."""

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from forebay.bench.dataset import Sample, make_images, make_large, shuffled
from forebay.bench.endpoint import Endpoint
from forebay.bench.measure import Reader, Series, alternate, epoch, fetch_ranges, random_reads, timed, warm_memory
from forebay.bench.node import Node, cpu_seconds
from forebay.bench.table import Line
from forebay.cacheruntime.config import FillConfig

MIB = 1 << 20
GIB = 1 << 30
_SEED = 7
_RANDOM_BLOCK_BYTES = 4096
_PART_BYTES = FillConfig().part_bytes
_PARALLEL = FillConfig().parallel_gets


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    rounds: int
    warm_bytes: int
    cold_bytes: int
    """256 MiB: moto copies the whole object for each range, so larger ones would measure moto alone."""
    images: int
    random_reads: int
    random_s: float


FULL = Sizes(5, GIB, 256 * MIB, 2000, 200_000, 3.0)
QUICK = Sizes(3, 128 * MIB, 64 * MIB, 300, 30_000, 1.0)


@dataclass(frozen=True)
class Bench:
    """What a group of lines works with: a cold node, and an endpoint that holds the samples as `dataset`."""

    node: Node
    endpoint: Endpoint
    dataset: str
    samples: list[Sample]
    sizes: Sizes
    step: Callable[[str], None]

    def mount(self, name: str = "mount") -> Path:
        """Mount the dataset."""
        return self.node.mount(name, self.endpoint.source(self.dataset), self.endpoint.options())

    def daemons(self) -> list[int]:
        """Process ids whose CPU time counts: handlers and worker."""
        found = self.node.processes()
        return found["handlers"] + found["worker"]


@dataclass(frozen=True)
class Group:
    """Lines that share their data."""

    make: Callable[[Path, Sizes], list[Sample]]
    run: Callable[[Bench], list[Line]]


Folders = Mapping[str, Path]
"""Sides of the warm lines: the same files, by the side's name; ours is 'Forebay'. A peer is one more."""


Sides = dict[str, Callable[[int], float]]


def _check(reader: Reader, folder: Path, sample: Sample) -> None:
    if reader.digest(folder / sample.key) != sample.digest:
        raise ValueError(f"{folder / sample.key} has other bytes than were published")


def _compare(sides: Mapping[str, Series]) -> list[tuple[str, Series]]:
    return [(name, series) for name, series in sides.items() if name != "Forebay"]


def _make_warm(folder: Path, sizes: Sizes) -> list[Sample]:
    return [make_large(folder / "warm", "large.bin", sizes.warm_bytes, _SEED)]


def warm(bench: Bench) -> list[Line]:
    """Lines 1 and 2: a large file that is wholly cached."""
    sample = bench.samples[0]
    mount = bench.mount()
    bench.step("warm: warming up")
    bench.node.warmup(mount)
    mode = bench.node.mounted(mount)["open_mode"]
    folders: Folders = {"Forebay": mount, "local file system": sample.path.parent}
    reader = Reader()
    for folder in folders.values():
        _check(reader, folder, sample)
    bench.step("warm: reading in order")
    pids, before, used = bench.daemons(), bench.node.counters(mount), 0.0

    def in_order(folder: Path, ours: bool, _: int) -> float:
        nonlocal used
        started = cpu_seconds(pids) if ours else 0.0
        speed = sample.size / timed(lambda: reader.read(folder / sample.key)) / 1e9
        used += cpu_seconds(pids) - started if ours else 0.0
        return speed

    sides = {name: partial(in_order, folder, name == "Forebay") for name, folder in folders.items()}
    got = alternate(sides, bench.sizes.rounds)
    after = bench.node.counters(mount)
    gib = bench.sizes.rounds * sample.size / GIB
    facts: dict[str, float | str] = {
        "CPU s/GiB": used / gib,
        "READ requests": float(after["hits"] + after["misses"] - before["hits"] - before["misses"]),
        "mode": mode,
    }
    method = f"{sample.size // MIB} MiB wholly cached, 1 MiB read(2), opened anew each time; the other is a local copy."
    found = [
        Line("warm, in order", "GB/s", got["Forebay"], other, name, 0.9, method, facts) for name, other in _compare(got)
    ]
    bench.step("warm: reading at random")
    fio = shutil.which("fio")

    def at_random(path: Path, number: int) -> float:
        if fio is not None:
            return _fio(fio, path, bench.sizes.random_s, number)
        return random_reads(path, bench.sizes.random_reads, _RANDOM_BLOCK_BYTES, number)

    sides = {name: partial(at_random, folder / sample.key) for name, folder in folders.items()}
    got = alternate(sides, bench.sizes.rounds)
    program = "fio psync randread, one job" if fio else "preadv in a Python loop"
    method = f"4 KiB reads at random in the same file, the same offsets for both; {program}."
    return found + [
        Line("warm, 4 KiB random", "IOPS", got["Forebay"], other, name, 0.85, method) for name, other in _compare(got)
    ]


def _fio(program: str, path: Path, seconds: float, seed: int) -> float:
    command = [
        program, "--name=random", f"--filename={path}", "--readonly", "--rw=randread", "--bs=4k", "--ioengine=psync",
        "--invalidate=0", f"--randseed={seed + 1}", "--time_based", f"--runtime={seconds:g}", "--output-format=json",
    ]  # fmt: skip
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    return float(json.loads(output)["jobs"][0]["read"]["iops"])


def _make_cold(folder: Path, sizes: Sizes) -> list[Sample]:
    return [
        make_large(folder / "cold", f"large-{number}.bin", sizes.cold_bytes, _SEED + number)
        for number in range(sizes.rounds + 1)
    ]


def cold(bench: Bench) -> list[Line]:
    """Line 3: another object each round, so nothing of it is cached."""
    mount = bench.mount()
    store = bench.endpoint.store(bench.dataset)
    reader = Reader()
    pids, used = bench.daemons(), 0.0
    last = bench.samples[bench.sizes.rounds]
    # Connections, threads and code paths of both sides; this object is not measured.
    _check(reader, mount, last)
    fetch_ranges(store, last.key, last.size, _PART_BYTES, _PARALLEL)
    fetch_ranges(store, last.key, last.size, _PART_BYTES, 1)

    def ours(number: int) -> float:
        nonlocal used
        bench.step(f"cold, {bench.endpoint.name}: round {number + 1}")
        warm_memory(3 * bench.sizes.cold_bytes)  # for the tier file's and the mount's page cache
        sample, started = bench.samples[number], cpu_seconds(pids)
        speed = sample.size / timed(lambda: reader.read(mount / sample.key)) / 1e9
        used += cpu_seconds(pids) - started
        return speed

    def bare(parallel: int, number: int) -> float:
        sample = bench.samples[number]
        took = timed(lambda: fetch_ranges(store, sample.key, sample.size, _PART_BYTES, parallel))
        return sample.size / took / 1e9

    sides: Sides = {"Forebay": ours, "1": partial(bare, 1), "16": partial(bare, _PARALLEL)}
    got = alternate(sides, bench.sizes.rounds)
    best = max(("1", "16"), key=lambda name: got[name].median)
    size, part = bench.samples[0].size, _PART_BYTES // MIB
    facts: dict[str, float | str] = {
        "CPU s/GiB": used / (bench.sizes.rounds * size / GIB),
        "obstore 1 at once": got["1"].median,
        f"{_PARALLEL} at once": got["16"].median,
    }
    moto = " moto reads the whole object for each range: it is the limit." if bench.endpoint.name == "moto" else ""
    method = (
        f"another {size // MIB} MiB object each round, 1 MiB read(2) through a cold cache; the other is obstore with"
        f" {part} MiB ranges from the same {bench.endpoint.name}, one or {_PARALLEL} at once, the better of both.{moto}"
    )
    return [Line(f"cold, {bench.endpoint.name}", "GB/s", got["Forebay"], got[best], "obstore", 0.8, method, facts)]


def _make_small(folder: Path, sizes: Sizes) -> list[Sample]:
    return make_images(folder / "small", sizes.images, _SEED, classes=0)


def small(bench: Bench) -> list[Line]:
    """Line 4: epochs over small files in random order."""
    mount = bench.mount()
    bench.step("small: warming up")
    bench.node.warmup(mount)
    mode = bench.node.mounted(mount)["open_mode"]
    folders: Folders = {"Forebay": mount, "local file system": bench.samples[0].path.parent}
    reader = Reader()
    for sample in bench.samples:
        for folder in folders.values():
            _check(reader, folder, sample)

    def one(folder: Path, number: int) -> float:
        order = shuffled(bench.samples, _SEED + number)
        return epoch(reader.read, [folder / sample.key for sample in order])

    def first(number: int) -> float:
        nonlocal mount
        bench.node.umount(mount)
        mount = bench.mount(f"mount-{number}")
        return one(mount, number)

    bench.step("small: later epochs")
    sides = {name: partial(one, folder) for name, folder in folders.items()}
    later = alternate(sides, bench.sizes.rounds)
    bench.step("small: first epochs after mounting")
    local = folders["local file system"]
    early = alternate({"Forebay": first, "local file system": partial(one, local)}, bench.sizes.rounds)
    what = f"{len(bench.samples):,} JPEG files of about 100 KiB, all cached, random order"
    facts: dict[str, float | str] = {"mode": mode}
    return [
        Line("small files, later epochs", "files/s", later["Forebay"], other, name, None, f"{what}.", facts)
        for name, other in _compare(later)
    ] + [
        Line(
            "small files, first epoch after mounting",
            "files/s",
            early["Forebay"],
            early["local file system"],
            "local file system",
            None,
            f"{what}; mounted anew each round, so the kernel holds nothing of the mount, but all of the copy.",
            facts,
        )
    ]


GROUPS: Mapping[str, Group] = {
    "warm": Group(_make_warm, warm),
    "cold": Group(_make_cold, cold),
    "small": Group(_make_small, small),
}
