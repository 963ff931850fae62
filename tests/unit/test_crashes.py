"""kill -9 at every step: each operation is done in a child process that kills itself at its n-th line of storage code,
for every n (in `make soak`; else for every few). What is left must hold every sentence of the storage formats after the
next start, without any byte that is not the source's."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from cache_box import Box, bytes_of
from check import check_storage

from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.index import PackNumber
from forebay.cacheruntime.worker.check import Check
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.mover import Mover
from forebay.proto import worker_pb2 as pb

_TRACED = ("storage", "index_writer", "writes", "departed", "room", "mover", "ledger", "fetch", "tier")
_QUICK_STEP = 61
"""Of the lines, in `make test`: prime, so that loops are not always hit at the same place."""

_CHILD_S = 60


def _fill(box: Box, *files: SourceFile, end: int | None = None) -> None:
    async def test(filler: Filler) -> None:
        for file in files:
            await filler.fill(file, 0, file.size if end is None else end, 0)

    box.run(test, checked=False)


def _files(box: Box) -> list[SourceFile]:
    large = [box.source(f"l{n}", bytes_of(2 * MIB + n, n)) for n in range(3)]
    return large + [box.source(f"s{n}", bytes_of(1000 + n, n)) for n in range(3)]


Operation = Callable[[Box, list[SourceFile]], Any]


def fill(box: Box, files: list[SourceFile]) -> None:
    _fill(box, files[2], files[0])


def go_on_with_a_partial_file(box: Box, files: list[SourceFile]) -> None:
    _fill(box, files[1])


def append_to_a_pack(box: Box, files: list[SourceFile]) -> None:
    _fill(box, files[5])


def small_file_alone(box: Box, files: list[SourceFile]) -> None:
    box.storage.set_policy(box.dataset, pb.CachePolicy(policy="sieve"))
    _fill(box, files[5])


def move_a_file(box: Box, files: list[SourceFile]) -> None:
    trio.run(Mover(box.storage).move, files[0].content, box.storage.tiers[1])


def move_a_pack(box: Box, files: list[SourceFile]) -> None:
    trio.run(Mover(box.storage).move, PackNumber(1), box.storage.tiers[1])


def evict(box: Box, files: list[SourceFile]) -> None:
    box.storage.drop_file(files[0].content)
    box.storage.tidy(float("inf"))


def evict_a_pack(box: Box, files: list[SourceFile]) -> None:
    box.storage.drop(PackNumber(1))
    box.storage.tidy(float("inf"))


def evict_by_command(box: Box, files: list[SourceFile]) -> None:
    box.storage.evict(file.content for file in files)


def pin(box: Box, files: list[SourceFile]) -> None:
    box.storage.pin(box.dataset, b"", [file.content for file in files])


def checkpoint(box: Box, files: list[SourceFile]) -> None:
    _fill(box, files[2])
    taken = box.storage.ledger.begin()
    box.storage.ledger.take(taken, [tier.config.path for tier in box.storage.tiers])


def stop_in_order(box: Box, files: list[SourceFile]) -> None:
    box.storage.close()


OPERATIONS = [
    fill, go_on_with_a_partial_file, append_to_a_pack, small_file_alone, move_a_file, move_a_pack, evict, evict_a_pack,
    evict_by_command, pin, checkpoint, stop_in_order,
]  # fmt: skip


class _Killer:
    """Counts lines of storage code in all threads, and kills the process at one of them."""

    def __init__(self, at: int) -> None:
        self._left = at
        self.seen = 0

    def arm(self) -> None:
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def disarm(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _trace(self, frame: Any, event: str, arg: object) -> Any:
        path = frame.f_code.co_filename
        if "/cacheruntime/worker/" not in path or Path(path).stem not in _TRACED:
            return None
        if event == "line":
            self.seen += 1
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._trace


def _prepare(root: Path) -> tuple[Box, list[SourceFile]]:
    box = Box(root, 1 << 30, 1 << 30)
    files = _files(box)
    _fill(box, files[0], *files[3:5])
    _fill(box, files[1], end=MIB)
    box.storage.tidy(float("inf"))
    return box, files


def _child(root: Path, operation: Operation, kill_at: int) -> int:
    """Run an operation in a child; the number of lines that it took, or 0 when it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(_CHILD_S)
        try:
            box, files = _prepare(root)
            killer = _Killer(kill_at)
            killer.arm()
            operation(box, files)
            killer.disarm()
            os.write(writing, str(killer.seen).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, "it hung"
        return 0
    assert said, "it failed before it was killed"
    return int(said)


def _look(root: Path, boot: str) -> None:
    """Start again, and hold everything against the formats and the source."""
    box = Box(root, 1 << 30, 1 << 30, boot=boot)
    files = _files(box)
    reader = ContentReader(box.storage.index.reader, box.storage.touch)
    try:
        for file in files:
            _right_or_absent(box, reader, file)
        made = Check(box.storage, deep=True, repair=False)
        trio.run(made.run)
        # The killed worker was writing: its files have no seal until they were looked at. Nothing else may be found.
        assert [f for f in made.progress.findings if f.kind != "seal"] == []
        repair = Check(box.storage, deep=True, repair=True)
        trio.run(repair.run)
        check_storage(box.storage)
        _fill(box, *files)
        for file in files:
            place = reader.find(file.content, 0, file.size)
            assert place is not None, file.path
            assert os.pread(place.descriptor, file.size, place.base) == box.store.files[file.path][0]
        box.storage.tidy(float("inf"))
        check_storage(box.storage)
    finally:
        reader.close()
        box.storage.close()


def _right_or_absent(box: Box, reader: ContentReader, file: SourceFile) -> None:
    for start in range(0, file.size, MIB):
        end = min(start + MIB, file.size)
        place = reader.find(file.content, start, end)
        if place is not None:
            read = os.pread(place.descriptor, end - start, place.base + start)
            assert read == box.store.files[file.path][0][start:end]


def _every(root: Path, operation: Operation, step: int, boot: str) -> None:
    lines = _child(root / "whole", operation, -1)
    assert lines > 3
    offset = 1 + sum(operation.__name__.encode()) % step
    for at in range(offset, lines + 1, step):
        folder = root / str(at)
        _child(folder, operation, at)  # with several threads it may be over before
        _look(folder, boot)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
@pytest.mark.semantics("D1")
def test_kill_at_some_lines(tmp_path: Path, operation: Operation) -> None:
    _every(tmp_path, operation, _QUICK_STEP, "5a7dbb1c-boot")


@pytest.mark.soak
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_kill_at_every_line(tmp_path: Path, operation: Operation) -> None:
    _every(tmp_path, operation, 1, "5a7dbb1c-boot")
