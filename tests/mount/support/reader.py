"""A program that reads files in many ways: the application of the mount tests. Standard library only.

Reads a JSON task from standard input: ``jobs`` is a list of [how, path], ``seed`` an integer, ``rounds`` how often.
Prints one JSON line for each job: path, how, and either sha256 and size, or errno and at (the offset).
"""

import errno
import hashlib
import itertools
import json
import mmap
import os
import random
import sys
from collections.abc import Callable

_PIECE_BYTES = 256 << 10
_DIRECT_BYTES = 1 << 20
"""A multiple of every block size in use."""


class Failed(Exception):
    """At which offset, and why."""


def by_read(descriptor: int, size: int, rng: random.Random) -> bytes:
    digest = hashlib.sha256()
    at = 0
    while True:
        piece = _at(at, lambda: os.read(descriptor, _PIECE_BYTES))
        if not piece:
            break
        at += len(piece)
        digest.update(piece)
    return _checked(digest, at, size)


def by_pread(descriptor: int, size: int, rng: random.Random) -> bytes:
    """All of it in pieces of random size and in random order."""
    cuts = sorted({0, size, *(rng.randrange(size + 1) for _ in range(max(3, size >> 18)))})
    spans = list(itertools.pairwise(cuts))
    rng.shuffle(spans)
    buffer = bytearray(size)
    for start, end in spans:
        at = start
        while at < end:
            piece = _at(at, lambda at=at, end=end: os.pread(descriptor, end - at, at))
            if not piece:
                raise AssertionError(f"end of file at {at} of {size}")
            buffer[at : at + len(piece)] = piece
            at += len(piece)
    return hashlib.sha256(buffer).digest()


def by_mmap(descriptor: int, size: int, rng: random.Random) -> bytes:
    if not size:
        return hashlib.sha256().digest()
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped:
        return hashlib.sha256(mapped).digest()


def by_sendfile(descriptor: int, size: int, rng: random.Random) -> bytes:
    sink = os.memfd_create("sink")
    try:
        at = 0
        while True:
            sent = _at(at, lambda: os.sendfile(sink, descriptor, None, _PIECE_BYTES))
            if not sent:
                break
            at += sent
        digest = hashlib.sha256()
        os.lseek(sink, 0, os.SEEK_SET)
        while piece := os.read(sink, _PIECE_BYTES):
            digest.update(piece)
        return _checked(digest, at, size)
    finally:
        os.close(sink)


def by_direct(descriptor: int, size: int, rng: random.Random) -> bytes:
    digest = hashlib.sha256()
    with mmap.mmap(-1, _DIRECT_BYTES) as buffer:
        at = 0
        while at < size:
            got = _at(at, lambda at=at: os.preadv(descriptor, [buffer], at))
            if not got:
                break
            digest.update(buffer[:got])
            at += got
    return _checked(digest, at, size)


HOWS: dict[str, Callable[[int, int, random.Random], bytes]] = {
    "read": by_read, "pread": by_pread, "mmap": by_mmap, "sendfile": by_sendfile, "direct": by_direct,
}  # fmt: skip


def _at(offset: int, call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        raise Failed(offset, error.errno) from error


def _checked(digest: "hashlib._Hash", got: int, size: int) -> bytes:
    if got != size:
        raise AssertionError(f"read {got} bytes of a file of {size}")
    return digest.digest()


def run(how: str, path: str, rng: random.Random) -> dict[str, object]:
    result: dict[str, object] = {"path": path, "how": how}
    flags = os.O_RDONLY | (os.O_DIRECT if how == "direct" else 0)
    try:
        descriptor = os.open(os.fsencode(path), flags)
    except OSError as error:
        return result | {"errno": errno.errorcode[error.errno], "at": "open"}
    try:
        size = os.fstat(descriptor).st_size
        result |= {"sha256": HOWS[how](descriptor, size, rng).hex(), "size": size}
        past = b"" if how == "direct" else os.pread(descriptor, 1, size)
        if past:
            result["error"] = "there are bytes past the end"
    except Failed as failed:
        offset, number = failed.args
        result |= {"errno": errno.errorcode[number], "at": offset}
    except AssertionError as wrong:
        result["error"] = str(wrong)
    finally:
        os.close(descriptor)
    return result


def main() -> None:
    task = json.load(sys.stdin)
    rng = random.Random(task.get("seed", 0))
    for _ in range(task.get("rounds", 1)):
        for how, path in task["jobs"]:
            print(json.dumps(run(how, path, rng)), flush=True)


if __name__ == "__main__":
    main()
