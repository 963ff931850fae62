"""A random reader that knows what it has to find: the file system exerciser for a read-only mount.

``python fsx.py FILE REFERENCE SEED STEPS`` keeps several handles of FILE and reads it in every way there is, each
time compared with the bytes of REFERENCE. The same seed does the same steps. Prints one JSON object: ``steps`` done,
how often each way was taken, and ``wrong``, empty or what differed, with the last steps before. Standard library only.
"""

import ctypes
import json
import mmap
import os
import random
import sys
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress

PAGE = mmap.PAGESIZE
DIRECT_BYTES = 4096
"""What O_DIRECT takes on every disk: offsets and sizes are multiples of it."""

_HANDLES = 5
_MAPPINGS = 3
_TOLD = 12
"""Steps before the wrong one that are shown."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.readahead.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_size_t]


class Wrong(Exception):
    """What was read is not what is there."""


class Handle:
    """An open descriptor and where its position must be."""

    def __init__(self, path: str, direct: bool) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
        self.direct = direct
        self.position = 0


class Reader:
    """One run. Everything random comes from `rng`."""

    def __init__(self, path: str, reference: bytes, rng: random.Random) -> None:
        self.path, self.data, self.rng = path, reference, rng
        self.size = len(reference)
        self.handles = [Handle(path, direct=False)]
        self.mappings: list[tuple[mmap.mmap, int]] = []
        self.told: deque[str] = deque(maxlen=_TOLD)
        self.ways: Counter[str] = Counter()
        self.steps: dict[str, tuple[int, Callable[[Handle], None]]] = {
            "read": (8, self.read), "pread": (12, self.pread), "preadv": (3, self.preadv),
            "map": (2, self.map), "mapped": (8, self.mapped), "unmap": (1, self.unmap),
            "seek": (4, self.seek), "seek_data": (2, self.seek_data), "open": (4, self.open), "close": (3, self.close),
            "dup": (1, self.dup), "fadvise": (3, self.fadvise), "madvise": (2, self.madvise),
            "readahead": (1, self.readahead), "sendfile": (3, self.sendfile), "splice": (3, self.splice),
            "stat": (1, self.stat),
        }  # fmt: skip

    def run(self, steps: int) -> str:
        """Do that many steps; returns what was wrong, or ''."""
        names, weights = list(self.steps), [weight for weight, _ in self.steps.values()]
        for _ in range(steps):
            name = self.rng.choices(names, weights)[0]
            handle = self.rng.choice(self.handles)
            self.told.append(name)
            try:
                self.steps[name][1](handle)
            except (Wrong, OSError) as error:
                return f"{error}; direct: {handle.direct}; steps: {', '.join(self.told)}"
            self.ways[name] += 1
        for handle in self.handles:
            os.close(handle.descriptor)
        for mapped, _ in self.mappings:
            mapped.close()
        return ""

    # Places and proofs

    def span(self, handle: Handle | None = None) -> tuple[int, int]:
        """Offset and size: often small, often at a border, sometimes past the end."""
        size = self.rng.choice((1, 3, 511, 512, 4095, PAGE, PAGE + 1, 70_001, 1 << 17, (1 << 17) + 1, 600_000, 1 << 20))
        border = self.rng.choice((0, PAGE, 1 << 17, 1 << 20, 2 << 20, self.size - size, self.size))
        offset = self.rng.choice((self.rng.randrange(self.size + PAGE), border + self.rng.randrange(-3, 4)))
        offset = max(offset, 0)
        if handle is not None and handle.direct:
            offset -= offset % DIRECT_BYTES
            size = max(size - size % DIRECT_BYTES, DIRECT_BYTES)
        self.told[-1] += f" {offset}+{size}"
        return offset, size

    def same(self, found: bytes, offset: int, wanted: int) -> None:
        """`found` is what lies there, and short only at the end of the file."""
        expected = self.data[offset : offset + wanted]
        if found == expected:
            return
        at = next(
            (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
        )
        raise Wrong(
            f"{len(found)} bytes for {len(expected)} at {offset}, the first that differs is {offset + at}:"
            f" {found[at : at + 16].hex()} for {expected[at : at + 16].hex()}"
        )

    def started(self, found: bytes, offset: int, wanted: int) -> None:
        """`found` is the beginning of what lies there, and not nothing unless that is nothing."""
        if not found and offset < self.size and wanted:
            raise Wrong(f"nothing at {offset} of {self.size}")
        self.same(found, offset, len(found) if found else wanted)

    # Steps

    def read(self, handle: Handle) -> None:
        """At the position, which moves."""
        if handle.direct:
            handle.position = os.lseek(handle.descriptor, handle.position - handle.position % DIRECT_BYTES, os.SEEK_SET)
        size = self.span(handle)[1]
        with mmap.mmap(-1, size) as buffer:
            got = os.readv(handle.descriptor, [buffer])
            self.same(buffer[:got], handle.position, size)
        handle.position += got

    def pread(self, handle: Handle) -> None:
        offset, size = self.span(handle)
        with mmap.mmap(-1, size) as buffer:
            got = os.preadv(handle.descriptor, [buffer], offset)
            self.same(buffer[:got], offset, size)

    def preadv(self, handle: Handle) -> None:
        """Into pieces; for direct reads each is whole blocks."""
        offset, _ = self.span(handle)
        sizes = [self.rng.randrange(1, 9) * DIRECT_BYTES for _ in range(self.rng.randrange(1, 5))]
        buffers = [mmap.mmap(-1, size) for size in sizes]
        got = os.preadv(handle.descriptor, buffers, offset)
        self.same(b"".join(buffer[:] for buffer in buffers)[:got], offset, sum(sizes))
        for buffer in buffers:
            buffer.close()

    def map(self, handle: Handle) -> None:
        """A mapping lives on when its handle is closed."""
        start = self.rng.randrange(self.size) & -PAGE
        length = self.rng.choice((self.size - start, min(self.size - start, 200_000)))
        flags = self.rng.choice((mmap.MAP_SHARED, mmap.MAP_PRIVATE))
        self.mappings.append((mmap.mmap(handle.descriptor, length, flags, mmap.PROT_READ, offset=start), start))
        if len(self.mappings) > _MAPPINGS:
            self.mappings.pop(0)[0].close()

    def mapped(self, handle: Handle) -> None:
        if not self.mappings:
            return
        mapped, start = self.rng.choice(self.mappings)
        at = self.rng.randrange(len(mapped))
        size = min(self.span()[1], len(mapped) - at)
        self.same(mapped[at : at + size], start + at, size)

    def unmap(self, handle: Handle) -> None:
        if self.mappings:
            self.mappings.pop(self.rng.randrange(len(self.mappings)))[0].close()

    def madvise(self, handle: Handle) -> None:
        if self.mappings:
            advice = (mmap.MADV_DONTNEED, mmap.MADV_WILLNEED, mmap.MADV_RANDOM, mmap.MADV_SEQUENTIAL, mmap.MADV_NORMAL)
            self.rng.choice(self.mappings)[0].madvise(self.rng.choice(advice))

    def seek(self, handle: Handle) -> None:
        offset, _ = self.span()
        whence = self.rng.choice((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END))
        base = {os.SEEK_SET: 0, os.SEEK_CUR: handle.position, os.SEEK_END: self.size}[whence]
        handle.position = os.lseek(handle.descriptor, offset - base, whence)
        if handle.position != offset:
            raise Wrong(f"lseek went to {handle.position}, not {offset}")

    def seek_data(self, handle: Handle) -> None:
        """All is data up to the end, and what seeks finds or fails without moving."""
        offset = self.span()[0]
        for whence, expected in ((os.SEEK_DATA, offset), (os.SEEK_HOLE, self.size)):
            try:
                found = os.lseek(handle.descriptor, offset, whence)
            except OSError as error:
                if offset < self.size:
                    raise Wrong(f"no data or hole from {offset} on: {error.strerror}") from error
                continue
            handle.position = found
            if offset >= self.size or found != expected:
                raise Wrong(f"lseek({offset}, {whence}) went to {found}")

    def open(self, handle: Handle) -> None:
        if len(self.handles) < _HANDLES:
            self.handles.append(Handle(self.path, direct=self.rng.random() < 0.3))

    def close(self, handle: Handle) -> None:
        """Sometimes of all, so that the file is opened anew."""
        for one in list(self.handles) if self.rng.random() < 0.3 else [handle]:
            os.close(one.descriptor)
            self.handles.remove(one)
        if not self.handles:
            self.handles.append(Handle(self.path, direct=self.rng.random() < 0.3))

    def dup(self, handle: Handle) -> None:
        """The copy stays as the handle."""
        copy = os.dup(handle.descriptor)
        os.close(handle.descriptor)
        handle.descriptor = copy

    def fadvise(self, handle: Handle) -> None:
        advice = (
            os.POSIX_FADV_NORMAL, os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_RANDOM, os.POSIX_FADV_WILLNEED,
            os.POSIX_FADV_DONTNEED,
        )  # fmt: skip
        offset, size = self.span()
        os.posix_fadvise(handle.descriptor, offset, size, self.rng.choice(advice))

    def readahead(self, handle: Handle) -> None:
        _libc.readahead(handle.descriptor, *self.span())

    def sendfile(self, handle: Handle) -> None:
        offset, size = self.span(handle)
        sink = os.memfd_create("sink")
        try:
            sent = os.sendfile(sink, handle.descriptor, offset, size)
            self.started(os.pread(sink, size, 0), offset, size)
            if sent > size:
                raise Wrong(f"sendfile sent {sent} of {size}")
        finally:
            os.close(sink)

    def splice(self, handle: Handle) -> None:
        offset, size = self.span(handle)
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            moved = os.splice(handle.descriptor, writer, size, offset_src=offset)
            with suppress(BlockingIOError):
                self.started(os.read(reader, size) if moved else b"", offset, size)
        finally:
            os.close(reader)
            os.close(writer)

    def stat(self, handle: Handle) -> None:
        for status in (os.fstat(handle.descriptor), os.stat(self.path)):
            if status.st_size != self.size:
                raise Wrong(f"a size of {status.st_size}")


def main() -> None:
    path, reference, seed, steps = sys.argv[1:]
    with open(reference, "rb") as opened:
        data = opened.read()
    reader = Reader(path, data, random.Random(int(seed)))
    wrong = reader.run(int(steps))
    print(json.dumps({"steps": sum(reader.ways.values()), "ways": reader.ways, "wrong": wrong}))


if __name__ == "__main__":
    main()
