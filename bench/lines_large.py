"""Large files that are wholly cached: in sequence, at random, and mapped."""

import json
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from forebay.bench import sheet
from forebay.bench.crew import cpu_seconds, run_readers, spent
from forebay.bench.dataset import Sample, make_large
from forebay.bench.groups import MIB, SEED, Place, Sizes, check_bytes, measured, per_gib, read_all, warm
from forebay.bench.reader import Job
from forebay.bench.sheet import LOCAL, Aim, LineSpec, Reading
from forebay.bench.sides import Dataset, Forebay, Side, SideFailed, load_pages, shed
from forebay.cacheruntime.counters import Counts

_TENSOR_BYTES = 32 * MIB
_READS = "READ requests"
_JUICEFS = (sheet.JUICEFS, sheet.TUNED)


def _line(key: str, title: str, of_local: float, *more: Aim) -> LineSpec:
    unit = "IOPS" if "random" in key else "GB/s"
    return LineSpec(key, title, unit, (Aim(of_local, (LOCAL,)), *more), at_most={_READS: 0})


class Large:
    """An epoch over large files, with one reader and with four, and 4 KiB reads at random over all of them.

    Twice: on a fresh mount, when the side has everything and the kernel nothing of the mount (so it is too where the
    data is larger than memory), and when all was read through the same mount before, so that the kernel may have it.
    """

    name = "large"
    distant = False
    columns = (
        sheet.LOCAL, sheet.OURS, sheet.PYFUSE3, sheet.JUICEFS, sheet.TUNED, sheet.RCLONE, sheet.S3FS,
    )  # fmt: skip
    lines = (
        _line("sequential-fresh", "cached, fresh mount: 1 MiB in sequence, 1 reader", 0.95),
        _line("random-fresh", "cached, fresh mount: 4 KiB at random (fio psync, 1 job)", 0.9, Aim(40, _JUICEFS)),
        _line("sequential", "cached, read before: 1 MiB in sequence, 1 reader", 0.95),
        _line("sequential-4", "cached, read before: 1 MiB in sequence, 4 readers", 0.95),
        _line("random", "cached, read before: 4 KiB at random (fio psync, 1 job)", 0.9),
    )

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        return [
            make_large(folder, f"large-{number}.bin", sizes.large_bytes, SEED + number)
            for number in range(sizes.large_files)
        ]

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        warm(side, dataset)
        check_bytes(side, dataset.samples)

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        load_pages(side.cache_folders[0])  # the other sides may have pushed it out of memory
        side.mount()
        found = _at_random("random-fresh", place, side, dataset, number)
        side.mount()
        found["sequential-fresh"] = _in_sequence(side, dataset, 1)
        found["sequential"] = _in_sequence(side, dataset, 1)
        found["sequential-4"] = _in_sequence(side, dataset, place.sizes.large_files)
        return found | _at_random("random", place, side, dataset, number)


def _at_random(key: str, place: Place, side: Side, dataset: Dataset, number: int) -> dict[str, Reading]:
    """4 KiB reads over all files; nothing without fio."""
    fio = shutil.which("fio")
    if fio is None:
        return {}
    facts = _Reads(side)
    before = cpu_seconds(side.pids())
    iops, size = run_fio(fio, [side.directory / key for key in dataset.keys], place.sizes.random_s, number)
    return {key: Reading(iops, per_gib(spent(before, cpu_seconds(side.pids())), size), facts.since())}


class _Reads:
    """Counts the READ requests that a side of ours gets."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._before = _reads(side.counts()) if isinstance(side, Forebay) else 0

    def since(self) -> dict[str, float]:
        """A fact; none for other sides, which do not say."""
        if not isinstance(self._side, Forebay):
            return {}
        counts = self._side.counts()
        if not counts.requests:  # opens at least came to the handler: without them 0 would prove nothing
            raise SideFailed("the handlers have counted nothing")
        return {_READS: float(_reads(counts) - self._before)}


def _reads(counts: Counts) -> int:
    return counts.hits + counts.misses


def _in_sequence(side: Side, dataset: Dataset, readers: int) -> Reading:
    facts = _Reads(side)
    total, used = measured(side, read_all(side, dataset.keys, readers))
    return Reading(total.size / total.seconds / 1e9, per_gib(used, total.size), facts.since())


def run_fio(program: str, paths: Sequence[Path], seconds: float, seed: int) -> tuple[float, int]:
    """4 KiB reads at random offsets, the same ones for the same seed; operations a second, and bytes."""
    command = [
        program, "--name=random", f"--filename={':'.join(map(str, paths))}",
        "--readonly", "--rw=randread", "--bs=4k", "--ioengine=psync",
        "--invalidate=0", f"--randseed={seed + 1}", "--time_based", f"--runtime={seconds:g}", "--output-format=json",
    ]  # fmt: skip
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    read = json.loads(output)["jobs"][0]["read"]
    return float(read["iops"]), int(read["io_bytes"])


class Mapped:
    """One file loaded through a mapping: every tensor by safetensors, every byte by numpy.

    Each load is on a fresh mount; what the side keeps on the disk is in the page cache. A side is mounted for its turn
    alone and its pages are dropped after it, for two copies of the file for each side would not fit into memory.
    """

    name = "mapped"
    distant = False
    columns = (sheet.LOCAL, sheet.OURS, sheet.PYFUSE3, sheet.TUNED, sheet.RCLONE, sheet.S3FS)
    lines = (
        LineSpec("safetensors", "cached, fresh mount: load by safetensors (mapped)", "GB/s", (Aim(0.9, (LOCAL,)),)),
        LineSpec("memmap", "cached, fresh mount: load by numpy.memmap", "GB/s", (Aim(0.9, (LOCAL,)),)),
    )

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        return [as_safetensors(make_large(folder, "model.safetensors", sizes.mapped_bytes, SEED))]

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        warm(side, dataset)
        check_bytes(side, dataset.samples)
        shed(side)

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        found = {}
        for folder in side.cache_folders:
            load_pages(folder)
        for key, job in (("safetensors", "load_safetensors"), ("memmap", "load_memmap")):
            side.mount()
            total, used = measured(side, read_all(side, dataset.keys, 1, job))
            found[key] = Reading(total.size / total.seconds / 1e9, per_gib(used, total.size))
        shed(side)
        return found


def as_safetensors(sample: Sample) -> Sample:
    """Write the header of a safetensors file (its length, then JSON) over a file's begin; what follows are tensors."""
    with sample.path.open("r+b") as output:
        room = sample.size - MIB
        starts = range(0, room, _TENSOR_BYTES)
        header = json.dumps(
            {
                f"layer.{number}": {
                    "dtype": "F32",
                    "shape": [(min(start + _TENSOR_BYTES, room) - start) // 4],
                    "data_offsets": [start, min(start + _TENSOR_BYTES, room)],
                }
                for number, start in enumerate(starts)
            }
        ).encode()
        output.write(struct.pack("<Q", MIB - 8) + header.ljust(MIB - 8))
    digest = run_readers([Job("digest_files", str(sample.path.parent), (sample.key,))]).digests[0]
    return replace(sample, digest=digest)
