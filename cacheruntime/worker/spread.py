"""A warm-up over a cluster: each file, or slice of a large one, is brought in by the workers that own it.

The worker that runs the job goes through the catalogue, so there is one progress, one rate and one list of failures,
however many load. The owners are told in batches what to bring (`Peer.Load`), and say of each piece how it went. A
piece whose owner does not answer goes to the next in order.
"""

import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import trio

from forebay.cacheruntime import rpc
from forebay.cacheruntime.cluster.membership import Known
from forebay.cacheruntime.cluster.placement import SLICE_BYTES, WorkerId
from forebay.cacheruntime.errors import ForebayError, WorkerUnavailable, by_name
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.proto import peer_pb2 as pb

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.cluster_node import ClusterNode

PIECES_UNDER_WAY = 1024
"""Of one warm-up: enough for several workers with 128 small files each."""

_BATCH = 128
"""Pieces in one request at most."""

_BATCH_BYTES = 4 * SLICE_BYTES
"""Of one request: a worker that is lost takes little with it."""

_AT_ONCE = 4
"""Requests under way for each worker."""

_TRIES = 3
"""Workers that a piece is given to."""


@dataclass
class _Piece:
    """What one worker is asked to bring."""

    file: SourceFile
    offset: int
    length: int
    suspect: bool
    answered: trio.Event = field(default_factory=trio.Event)
    reply: pb.LoadReply | None = None
    """None with `answered`: the worker did not say."""

    def want(self) -> pb.Want:
        file = self.file
        return pb.Want(
            content=file.content, path=os.fsencode(file.asked_path or file.path), size=file.size, version=file.version,
            offset=self.offset, length=self.length, suspect=self.suspect,
        )  # fmt: skip


@dataclass
class _Outbox:
    """Pieces for one worker that were not sent yet."""

    pieces: deque[_Piece] = field(default_factory=deque)
    senders: int = 0


class Spread:
    """Gives out pieces. For one warm-up, in the event loop."""

    def __init__(
        self, node: "ClusterNode", dataset_id: str, nursery: trio.Nursery, *, medium: str, skip_existing: bool
    ) -> None:
        """
        Args:
            node: this worker in its cluster.
            dataset_id: of what is warmed up.
            nursery: runs the requests.
            medium, skip_existing: as in `LoadRequest`.
        """
        self._node = node
        self._dataset_id = dataset_id
        self._nursery = nursery
        self._medium = medium
        self._skip_existing = skip_existing
        self._outboxes: dict[WorkerId, _Outbox] = {}

    async def bring(self, file: SourceFile, offset: int, length: int, *, suspect: bool = False) -> pb.LoadReply:
        """Have a piece with each of its owners; returns what the first of them said.

        Args:
            file, offset, length: a whole file or one slice of it.
            suspect: what is cached of it is compared with its checksums.

        Raises:
            ForebayError: no owner could get it, or no worker could be asked.
        """
        first: pb.LoadReply | None = None
        refused: set[WorkerId] = set()
        trouble = "no worker of the cluster answers"
        for place in range(self._node.source.copies(file)):
            while len(refused) < _TRIES:
                order = [worker for worker in self._node.source.order(file, offset) if worker not in refused]
                if place >= len(order):
                    break
                reply = await self._ask(order[place], _Piece(file, offset, length, suspect))
                if reply is not None and not reply.error:
                    first = first or reply
                    break
                if reply is not None:
                    name, _, trouble = reply.error.partition(": ")
                    if not by_name(name).TRANSIENT:
                        raise by_name(name)(trouble)
                refused.add(order[place])
        if first is None:
            raise WorkerUnavailable(trouble)
        return first

    async def copy(self, file: SourceFile, offset: int, length: int) -> bool:
        """Have a piece that this worker holds with its other owners; whether all of them have answered that they do.

        Args:
            file, offset, length: a whole file or a part of one slice of it.
        """
        source, all_have = self._node.source, True
        for worker in source.owners(file, offset):
            if worker == self._node.id:
                continue
            reply = None
            if source.usable(worker):
                reply = await self._ask(worker, _Piece(file, offset, length, False))
            all_have = all_have and reply is not None and not reply.error
        return all_have

    async def _ask(self, worker: WorkerId, piece: _Piece) -> pb.LoadReply | None:
        """What a worker says of a piece; None when it does not answer."""
        if worker == self._node.id:
            return await self._node.load_one(self._dataset_id, piece.want(), self._medium, self._skip_existing)
        known = self._node.membership.view.workers.get(worker)
        if known is None:
            return None
        outbox = self._outboxes.setdefault(worker, _Outbox())
        outbox.pieces.append(piece)
        if outbox.senders < _AT_ONCE:
            outbox.senders += 1
            self._nursery.start_soon(self._send_all, known, outbox)
        await piece.answered.wait()
        return piece.reply

    async def _send_all(self, known: Known, outbox: _Outbox) -> None:
        await trio.lowlevel.checkpoint()  # others of the same moment come along
        try:
            while outbox.pieces:
                batch: list[_Piece] = []
                size = 0
                while outbox.pieces and len(batch) < _BATCH and size < _BATCH_BYTES:
                    batch.append(outbox.pieces.popleft())
                    size += batch[-1].length
                await self._send(known, batch)
        finally:
            outbox.senders -= 1

    async def _send(self, known: Known, batch: list[_Piece]) -> None:
        request = pb.LoadRequest(
            dataset_id=self._dataset_id, wants=[piece.want() for piece in batch], medium=self._medium,
            skip_existing=self._skip_existing,
        )  # fmt: skip
        token = trio.lowlevel.current_trio_token()
        call = None

        def answered(reply: pb.LoadReply) -> None:
            if reply.want < len(batch):
                piece = batch[reply.want]
                piece.reply = reply
                piece.answered.set()

        def receive(replies: Iterable[pb.LoadReply]) -> None:
            for reply in replies:
                rpc.in_loop(token, lambda reply=reply: answered(reply))  # type: ignore[misc]

        try:
            call = self._node.channels.stub(known.address).Load(request)
            # A limiter of its own: what others wait for must not stand behind calls that last as long as fetches do.
            alone = trio.CapacityLimiter(1)
            await trio.to_thread.run_sync(receive, call, limiter=alone, abandon_on_cancel=True)
        except (grpc.RpcError, ValueError, ForebayError) as error:
            failure = error if isinstance(error, ForebayError) else rpc.to_error(error)
            if not isinstance(failure, WorkerUnavailable):
                text = f"{type(failure).__name__}: {failure}"
                for piece in batch:
                    piece.reply = piece.reply or pb.LoadReply(error=text)
        finally:
            if call is not None:
                call.cancel()
            await _settle(batch)


async def _settle(batch: list[_Piece]) -> None:
    """Those that were not answered will not be; replies that are on their way into the loop come first."""
    with trio.CancelScope(shield=True):
        await trio.lowlevel.checkpoint()
    for piece in batch:
        piece.answered.set()


def slices(size: int, *, small: bool) -> list[tuple[int, int]]:
    """Offset and length of each part of a file that is placed by itself."""
    if small or size <= SLICE_BYTES:
        return [(0, size)]
    return [(start, min(SLICE_BYTES, size - start)) for start in range(0, size, SLICE_BYTES)]


def failed(error: ForebayError) -> pb.LoadReply:
    """The answer for what could not be brought."""
    return pb.LoadReply(error=f"{type(error).__name__}: {error}")
