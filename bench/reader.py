"""One reader, a process of its own: `python -m forebay.bench.reader`.

It takes a job as a line of JSON, makes ready, says so, waits for the word to go, works, and prints what it did. It
imports little, so that a reader costs as little as a reader can.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from math import inf

READ_BYTES = 1 << 20
"""Of one read(2), as the usual loaders do; also the largest FUSE request."""

_TIME_EVERY = 64
"""Calls between two looks at the clock, where a call may take a microsecond."""


@dataclass(frozen=True)
class Job:
    """What one reader does."""

    do: str
    """A name in `JOBS`."""
    folder: str
    names: tuple[str, ...] = ()
    """Below the folder, in the order in which they are read."""
    limit_s: float = inf
    """It stops after the file in which this has passed; its speed is that of what it read."""


@dataclass(frozen=True)
class Done:
    """What a reader did."""

    count: int
    """Files read, names looked at, or lines printed."""
    size: int = 0
    """Bytes."""
    started_s: float = 0.0
    """On the monotonic clock, which all processes share."""
    ended_s: float = 0.0
    digests: tuple[int, ...] = field(default=())
    waited: int = 0
    """Files that were not cached when the reader came to them; counted by some jobs."""
    fetched: float = 0.0
    """Bytes that came from the store meanwhile, for all readers; told by some jobs."""


def read_files(job: Job) -> Done:
    """Read whole files, one after the other."""
    return _read(job, job.names)


def read_posted(job: Job) -> Done:
    """The same, with the order posted to the mount ahead of the reads."""
    return _read(job, import_module("forebay.fuse.order").ahead(job.folder, job.names, window=256))


def _read(job: Job, names: Iterable[str]) -> Done:
    buffer = (bytearray(READ_BYTES),)
    end, count, size = time.monotonic() + job.limit_s, 0, 0
    for name in names:
        descriptor = os.open(f"{job.folder}/{name}", os.O_RDONLY)
        try:
            while got := os.readv(descriptor, buffer):
                size += got
        finally:
            os.close(descriptor)
        count += 1
        if time.monotonic() > end:
            break
    return Done(count, size)


def read_pieces(job: Job) -> Done:
    """One piece of each file; names are written as by `piece`. A file is opened anew for each."""
    size = 0
    for name in job.names:
        path, offset, length = name.rsplit(":", 2)
        descriptor = os.open(f"{job.folder}/{path}", os.O_RDONLY)
        try:
            size += len(os.pread(descriptor, int(length), int(offset)))
        finally:
            os.close(descriptor)
    return Done(len(job.names), size)


def piece(name: str, offset: int, length: int) -> str:
    """A piece of a file, in bytes, for `read_pieces`."""
    return f"{name}:{offset}:{length}"


def load_files(job: Job) -> Done:
    """Read whole files as a dataset of a folder does: each comes as bytes of its own."""
    end, count, size = time.monotonic() + job.limit_s, 0, 0
    for name in job.names:
        with open(f"{job.folder}/{name}", "rb", buffering=0) as opened:
            size += len(opened.read())
        count += 1
        if time.monotonic() > end:
            break
    return Done(count, size)


def load_in_process(job: Job) -> Callable[[], Done]:
    """The same through `forebay.torch`, out of the cache in this process; the folder is as `in_process.Opening`."""
    files = import_module("forebay.bench.in_process").open_files(job.folder)
    number = {files.path(index): index for index in range(len(files))}
    indices = [number[name] for name in job.names]

    def read() -> Done:
        end, count, size = time.monotonic() + job.limit_s, 0, 0
        for index in indices:
            size += len(files.read(index))
            count += 1
            if time.monotonic() > end:
                break
        return Done(count, size)

    return read


def train(job: Job) -> Callable[[], Done]:
    """Epochs in shuffled orders, posted ahead, at a pace; see `in_process.Training`."""
    training: Callable[[], Done] = import_module("forebay.bench.in_process").Training(job.folder).run
    return training


def digest_files(job: Job) -> Done:
    """Read whole files and give the XXH3-64 of each."""
    import xxhash

    found, size = [], 0
    for name in job.names:
        with open(f"{job.folder}/{name}", "rb", buffering=0) as opened:
            hasher = xxhash.xxh3_64()
            while data := opened.read(READ_BYTES):
                hasher.update(data)
                size += len(data)
        found.append(hasher.intdigest())
    return Done(len(found), size, digests=tuple(found))


def stat_names(job: Job) -> Done:
    """stat(2) of each name, whether it is there or not."""
    end, count = time.monotonic() + job.limit_s, 0
    for count, name in enumerate(job.names, 1):
        with suppress(FileNotFoundError):
            os.stat(f"{job.folder}/{name}")
        if count % _TIME_EVERY == 0 and time.monotonic() > end:
            break
    return Done(count)


def list_folders(job: Job) -> Done:
    """List folders as a loader does: names, without a stat of each."""
    return Done(sum(len(os.listdir(f"{job.folder}/{name}")) for name in job.names))


def find_ls(job: Job) -> Done:
    """`find -ls` over the folder; the lines that it printed."""
    with subprocess.Popen(["find", job.folder, "-type", "f", "-ls"], stdout=subprocess.PIPE) as find:
        assert find.stdout is not None
        end, count = time.monotonic() + job.limit_s, 0
        while data := os.read(find.stdout.fileno(), READ_BYTES):
            count += data.count(b"\n")
            if time.monotonic() > end:
                find.kill()
                return Done(count)
    if find.returncode:
        raise OSError(f"find {job.folder}: exit status {find.returncode}")
    return Done(count)


def load_safetensors(job: Job) -> Done:
    """Every tensor of a file, out of the mapping that safetensors makes."""
    from safetensors import safe_open

    count, size = 0, 0
    for name in job.names:
        with safe_open(f"{job.folder}/{name}", framework="numpy") as opened:
            for key in opened.keys():  # noqa: SIM118 - safe_open is not a mapping
                size += opened.get_tensor(key).nbytes
                count += 1
    return Done(count, size)


def load_memmap(job: Job) -> Done:
    """A file mapped by numpy, copied out of the mapping 1 MiB at a time into memory that is there already."""
    import numpy

    count, size = 0, 0
    room = numpy.zeros(READ_BYTES, numpy.uint8)
    for name in job.names:
        mapped = numpy.memmap(f"{job.folder}/{name}", numpy.uint8, mode="r")
        for start in range(0, len(mapped), READ_BYTES):
            part = mapped[start : start + READ_BYTES]
            room[: len(part)] = part
            size += len(part)
        count += 1
    return Done(count, size)


JOBS: dict[str, Callable[[Job], Done]] = {
    work.__name__: work
    for work in (
        read_files,
        read_posted,
        read_pieces,
        load_files,
        digest_files,
        stat_names,
        list_folders,
        find_ls,
        load_safetensors,
        load_memmap,
    )
}

_IMPORTED = {
    "digest_files": "xxhash",
    "load_safetensors": "safetensors",
    "load_memmap": "numpy",
    "read_posted": "forebay.fuse.order",
}
"""What a job imports; loaded before the reader says that it is ready."""

PREPARED: dict[str, Callable[[Job], Callable[[], Done]]] = {"load_in_process": load_in_process, "train": train}
"""Jobs that make ready, and give what is timed."""


def main() -> None:
    """Command line."""
    words = json.loads(sys.stdin.readline())
    job = Job(**{**words, "names": tuple(words["names"])})
    if job.do in _IMPORTED:
        import_module(_IMPORTED[job.do])
    work = PREPARED[job.do](job) if job.do in PREPARED else partial(JOBS[job.do], job)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    done = work()
    ended = time.monotonic()
    print(json.dumps({**asdict(done), "started_s": started, "ended_s": ended}), flush=True)


if __name__ == "__main__":
    main()
