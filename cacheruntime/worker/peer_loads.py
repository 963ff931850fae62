"""Bringing in what another worker says this one owns: the other side of `spread.py`. In the event loop."""

import os
from typing import TYPE_CHECKING

import trio

from forebay.cacheruntime.blocks import BLOCK_BYTES
from forebay.cacheruntime.catalogue_writer import is_file_path
from forebay.cacheruntime.config import Medium
from forebay.cacheruntime.errors import ForebayError, SourceNotFound, SourceStale, UsageError
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.peer_reads import LARGEST_BYTES
from forebay.cacheruntime.worker.warmup import DEFAULT_SMALL_JOBS
from forebay.proto import peer_pb2 as pb

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.core import Core


def refuse_outside(path: bytes) -> None:
    """Let nobody name by a path what is not in the dataset, whatever its store makes of such a path.

    Raises:
        SourceNotFound: no file has that path.
    """
    if path and not is_file_path(path):
        raise SourceNotFound(f"no file of a dataset has the path {os.fsdecode(path)!r}")


def wanted(dataset: Dataset, want: pb.Want, hops: int) -> SourceFile:
    """The file that another node means.

    Raises:
        SourceNotFound: it is in no store of the dataset. UsageError: it is another file here.
    """
    refuse_outside(want.path)
    path = os.fsdecode(want.path)
    file = dataset.file(path, want.size, want.version, hops)
    if file.content != want.content:
        raise UsageError(f"{path!r} of that size and version is another file here: the sources differ")
    return file


async def load(core: "Core", file: SourceFile, want: pb.Want, medium: str, skip_existing: bool) -> pb.LoadReply:
    """Bring a file or a part of it into this worker's own tiers.

    Raises:
        ForebayError: it could not be had.
    """
    storage, filler = core.storage, core.filler
    if medium and medium not in {tier.config.medium.value for tier in storage.tiers}:
        raise UsageError(f"worker has no tier of medium {medium}")
    reply = pb.LoadReply()
    end = want.offset + want.length
    if want.offset % BLOCK_BYTES or end > want.size or want.size > LARGEST_BYTES:
        raise UsageError("a piece begins at a multiple of 1 MiB, and is inside the file")
    cached = storage.find(file.content)
    if want.suspect and cached is not None:
        await filler.verifier.verify(file.content)
        cached = storage.index.reader.find(file.content)
        reply.damaged = cached is None
    if cached is not None and (skip_existing or cached.has(want.offset, end)):
        return reply
    kind = Medium[medium] if medium else None
    if filler.is_small(file.size):
        await _load_small(core, file, kind)
    else:
        step = filler.window_bytes
        for offset in range(want.offset, end, step):
            length = min(step, end - offset)
            await filler.fill(file, offset, length, length, through=False, medium=kind)
    reply.bytes_fetched = want.length
    cached = storage.index.reader.find(file.content)
    reply.uncached = cached is None or not cached.has(want.offset, end)
    return reply


async def _load_small(core: "Core", file: SourceFile, medium: Medium | None) -> None:
    ended = trio.Event()
    failure: list[ForebayError] = []

    def done(_: bool, error: ForebayError | None) -> None:
        if error is not None:
            failure.append(error)
        ended.set()

    with core.small_files.used():
        if not await core.small_files.fetch(file, medium, DEFAULT_SMALL_JOBS, done):
            await core.filler.fill(file, 0, file.size, file.size, through=False, medium=medium)
            return
        await ended.wait()
    if failure:
        raise failure[0]


async def note_stale(core: "Core", error: ForebayError, dataset_id: str, path: str) -> None:
    """A file that is another version than listed is looked at again."""
    if isinstance(error, SourceStale):
        await core.datasets.refresh_file(core.datasets.get(dataset_id), path)
