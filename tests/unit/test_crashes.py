"""kill -9 at every step: each operation is done in a child process that kills itself at its n-th line of storage code,
for every n (in `make soak`; else for every few). What is left must hold every sentence of the storage formats after the
next start, without any byte that is not the source's."""

import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from cache_box import Box, bytes_of, compactor_of
from check import check_storage

from forebay.cacheruntime import mounts
from forebay.cacheruntime.blocks import PIECE_BYTES
from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.catalogue_changes import changes_path, read_changes
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.index import PackNumber
from forebay.cacheruntime.keys import ROOT_NODE
from forebay.cacheruntime.mounts import MountState
from forebay.cacheruntime.worker import datasets as datasets_module
from forebay.cacheruntime.worker.check import Check
from forebay.cacheruntime.worker.core import Core
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.mover import Mover
from forebay.proto import worker_pb2 as pb

_TRACED = (
    "storage", "index_writer", "writes", "departed", "room", "mover", "ledger", "fetch", "tier", "packs", "compaction",
)  # fmt: skip
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


def pieces_of_a_file(box: Box, files: list[SourceFile]) -> None:
    async def test(filler: Filler) -> None:
        for offset in (MIB + 600_000, 100, 700_000, MIB + 200_000):
            await filler.fill(files[2], offset, 150_000, 0)
        await filler.fill(files[2], 0, files[2].size, 0)

    box.run(test, checked=False)


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


def evict_what_is_open(box: Box, files: list[SourceFile]) -> None:
    opened = os.open(box.tier_file(files[0].content), os.O_RDONLY)
    box.storage.drop_file(files[0].content)
    box.storage.tidy(float("inf"))
    os.close(opened)
    box.storage.tidy(float("inf"))


def evict_a_pack(box: Box, files: list[SourceFile]) -> None:
    box.storage.drop(PackNumber(1))
    box.storage.tidy(float("inf"))


def evict_by_command(box: Box, files: list[SourceFile]) -> None:
    box.storage.evict(file.content for file in files)


def compact_a_pack(box: Box, files: list[SourceFile]) -> None:
    box.storage.evict([files[4].content])
    compactor = compactor_of(box.storage)
    trio.run(compactor.step)
    box.storage.ledger.take(box.storage.ledger.begin(), [tier.config.path for tier in box.storage.tiers])
    trio.run(compactor.step)
    box.storage.tidy(float("inf"))


def pin(box: Box, files: list[SourceFile]) -> None:
    box.storage.pin(box.dataset, b"", [file.content for file in files])


def checkpoint(box: Box, files: list[SourceFile]) -> None:
    _fill(box, files[2])
    taken = box.storage.ledger.begin()
    box.storage.ledger.take(taken, [tier.config.path for tier in box.storage.tiers])


def stop_in_order(box: Box, files: list[SourceFile]) -> None:
    box.storage.close()


OPERATIONS = [
    fill, go_on_with_a_partial_file, pieces_of_a_file, append_to_a_pack, small_file_alone, move_a_file, move_a_pack,
    evict, evict_what_is_open, evict_a_pack, evict_by_command, compact_a_pack, pin, checkpoint, stop_in_order,
]  # fmt: skip


class _Killer:
    """Counts lines of some modules of the worker in all threads, and kills the process at one of them."""

    def __init__(self, at: int, traced: tuple[str, ...] = _TRACED) -> None:
        self._left = at
        self._traced = traced
        self.seen = 0

    def arm(self) -> None:
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def disarm(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _trace(self, frame: Any, event: str, arg: object) -> Any:
        path = frame.f_code.co_filename
        if "/cacheruntime/" not in path or Path(path).stem not in self._traced:
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

    def work() -> int:
        box, files = _prepare(root)
        killer = _Killer(kill_at)
        killer.arm()
        operation(box, files)
        killer.disarm()
        return killer.seen

    return _in_child(work)


def _in_child(work: Callable[[], int]) -> int:
    """Do something in a child; what it returns, or 0 when it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(_CHILD_S)
        try:
            os.write(writing, str(work()).encode())
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
    for start in range(0, file.size, PIECE_BYTES):
        end = min(start + PIECE_BYTES, file.size)
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


_SYNC_TRACED = (
    "sync", "datasets", "dataset", "snapshot", "snapshot_history", "catalogue_writer", "catalogue_changes", "durable",
)  # fmt: skip
_BEFORE = {"same": "1", "changed": "1", "gone": "1", "d/e": "1"}
_AFTER = {"same": "1", "changed": "2", "come": "1", "d/e": "1"}


def _run_core(box: Box, test: Callable[[Core], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        with trio.fail_after(_CHILD_S):
            async with trio.open_nursery() as nursery:
                core = Core(box.config, box.storage, nursery, "test")
                try:
                    return await test(core)
                finally:
                    for dataset in core.datasets.all.values():
                        for snapshot in (*dataset.snapshots.values(), *dataset.dropped):
                            await snapshot.ended.wait()
                            snapshot.writer.close()

    return trio.run(main)


def _put_all(box: Box, files: dict[str, str]) -> None:
    box.store.files.clear()
    for path, version in files.items():
        box.store.put(path, version.encode() * 10, version)


def _register(box: Box, dataset: str, snapshot: int, catalogue: str) -> None:
    """What a mount does that shows a snapshot."""
    state = MountState(
        dir="/mnt", source="fake://store", url="fake://store", dataset_id=dataset, snapshot=snapshot,
        catalogue=catalogue, cache_dir=str(box.config.cache_dir), engine="kernel", open_mode="cached",
        open_mode_reason="", supervisor=1, supervisor_start=mounts.start_time(1) or 0,
    )  # fmt: skip
    folder = mounts.mount_folder(box.config.runtime_dir, "/mnt")
    folder.mkdir(parents=True, exist_ok=True)
    mounts.write_state(folder, state)


async def _attach(core: Core, snapshot: int = 0) -> pb.AttachReply:
    request = pb.AttachRequest(source="fake://store", list=True, relist=not snapshot, snapshot=snapshot)
    reply = await core.attach(request)
    await core.datasets.get(reply.dataset_id).snapshots[reply.snapshot].ended.wait()
    return reply


def _sync_and_switch(root: Path, kill_at: int) -> int:
    """A mount that shows snapshot 1, a sync, and the mount's switch to what that has brought; twice."""
    box = Box(root, 1 << 30)
    _put_all(box, _BEFORE)
    killer = _Killer(kill_at, _SYNC_TRACED)

    async def test(core: Core) -> None:
        first = await _attach(core)
        _register(box, first.dataset_id, first.snapshot, first.catalogue)
        _put_all(box, _AFTER)
        killer.arm()
        synced = await core.sync(pb.SyncRequest(dataset_id=first.dataset_id, shown=first.snapshot))
        _register(box, first.dataset_id, synced.snapshot, synced.catalogue)
        await core.sync(pb.SyncRequest(dataset_id=first.dataset_id, shown=synced.snapshot))
        killer.disarm()

    _run_core(box, test)
    return killer.seen


def _look_at_snapshots(root: Path) -> None:
    """The next worker: the mount's snapshot is whole, and a sync brings the rest, exactly."""
    box = Box(root, 1 << 30)
    _put_all(box, _AFTER)
    state = mounts.read_state(mounts.mount_folder(box.config.runtime_dir, "/mnt"))
    assert state is not None

    async def test(core: Core) -> None:
        shown = await _attach(core, state.snapshot)
        assert (shown.snapshot, shown.catalogue) == (state.snapshot, state.catalogue)
        catalogue = core.datasets.get(shown.dataset_id).snapshots[shown.snapshot].catalogue
        assert catalogue.complete
        assert _names(catalogue) == set(_BEFORE if state.snapshot == 1 else _AFTER)
        synced = await core.sync(pb.SyncRequest(dataset_id=shown.dataset_id, shown=state.snapshot))
        told = (synced.added, synced.changed, synced.removed)
        assert told == ((1, 1, 1) if state.snapshot == 1 else (0, 0, 0))
        now = core.datasets.get(shown.dataset_id).snapshots[synced.snapshot].catalogue
        assert now.complete
        assert _names(now) == set(_AFTER)
        if state.snapshot == 1:
            kinds = {
                (change.name, change.kind.name) for change in read_changes(changes_path(Path(synced.catalogue), 1))
            }
            assert {name for name, _ in kinds} >= {b"changed", b"gone", b"come"}

    _run_core(box, test)
    box.storage.close()


def _names(catalogue: Catalogue) -> set[str]:
    return {os.fsdecode(catalogue.path_of(node.node)) for node in catalogue.files_below(ROOT_NODE)}


@pytest.mark.parametrize("step", [pytest.param(23, id="some"), pytest.param(1, id="every", marks=pytest.mark.soak)])
@pytest.mark.semantics("C9")
def test_kill_in_a_switch_of_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    stores: list[Any] = []
    monkeypatch.setattr(datasets_module, "open_store", lambda *_: stores[-1])
    real = Box.__init__

    def made(self: Box, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        stores.append(self.store)

    monkeypatch.setattr(Box, "__init__", made)
    lines = _in_child(lambda: _sync_and_switch(tmp_path / "whole", -1))
    assert lines > 100
    for at in range(1 + 31 % step, lines + 1, step):
        folder = tmp_path / str(at)
        _in_child(lambda folder=folder, at=at: _sync_and_switch(folder, at))  # type: ignore[misc]
        _look_at_snapshots(folder)
