"""The worker's side of `fill_socket.py`: requests of handlers and of Python programs, in the core's loop."""

import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import trio
from google.protobuf.message import DecodeError

from forebay.cacheruntime.errors import ForebayError
from forebay.cacheruntime.fill_socket import REPLY, FillRequests, ReplyKind
from forebay.cacheruntime.worker.core import Core
from forebay.cacheruntime.worker.memory import Lease
from forebay.proto import worker_pb2 as pb

log = logging.getLogger(__name__)

_BACKLOG = 128
_RECEIVE_BYTES = 1 << 16

_SEND_S = 60.0
"""A client that takes none of its replies for so long is stopped or hangs: the memory of its replies is given back."""


async def serve_fills(
    core: Core, path: Path, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve on a Unix socket that only this user may reach, until cancelled.

    Raises:
        ForebayError: the socket cannot be made.
    """
    path.unlink(missing_ok=True)  # of a worker that was killed; the cache folder's lock says that none runs
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ForebayError(f"cannot listen on {path}: {error}") from error
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))

    async def serve(stream: trio.SocketStream) -> None:
        await _Client(core, stream).serve()

    try:
        task_status.started()
        await trio.serve_listeners(serve, [listener])
    finally:
        path.unlink(missing_ok=True)


class _Client:
    """One connection. When it ends, nobody wants its replies: what still waits is cancelled."""

    def __init__(self, core: Core, stream: trio.SocketStream) -> None:
        self._core = core
        self._stream = stream
        self._sending = trio.Lock()
        self._under_way: dict[int, trio.CancelScope] = {}

    async def serve(self) -> None:
        """Raises nothing: a client that breaks off, or sends what is none of ours, loses its connection."""
        requests: list[tuple[int, bytes | None, bool]] = []
        frames = FillRequests(
            lambda number, message: requests.append((number, message, False)),
            lambda number, message: requests.append((number, message, True)),
        )
        async with self._stream, trio.open_nursery() as nursery:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while received := await self._stream.receive_some(_RECEIVE_BYTES):
                    try:
                        frames.feed(received)
                        for number, message, is_call in requests:
                            if is_call and message is not None:
                                nursery.start_soon(self._answer_call, number, message)
                            else:
                                await self._take(nursery, number, message)
                    except (ForebayError, DecodeError) as error:
                        log.warning("a client of the fill socket is cut off: %s", error)
                        break
                    requests.clear()
            nursery.cancel_scope.cancel()
        self._core.reader_left(self)

    async def _answer_call(self, number: int, message: bytes) -> None:
        name, _, request = message.partition(b"\0")

        async def call() -> tuple[ReplyKind, bytes]:
            if name == b"Attach":
                reply = await self._core.attach(pb.AttachRequest.FromString(request))
                return ReplyKind.ANSWER, reply.SerializeToString()
            if name == b"PostOrder":
                posted = await self._core.post_order(pb.PostOrderRequest.FromString(request), self)
                return ReplyKind.ANSWER, posted.SerializeToString()
            raise ForebayError(f"there is no call {name!r} on this socket")

        await self._send(number, *await _outcome_of(call))

    async def _take(self, nursery: trio.Nursery, number: int, message: bytes | None) -> None:
        if message is None:
            scope = self._under_way.get(number)
            if scope is not None:
                scope.cancel()
            return
        request = pb.FillRequest.FromString(message)
        if request.background:
            # Here and now, for the order in which requests come is the order in which they are fetched.
            await self._outcome(request, None)
            return
        scope = self._under_way[number] = trio.CancelScope()
        nursery.start_soon(self._answer, number, request, scope)

    async def _answer(self, number: int, request: pb.FillRequest, scope: trio.CancelScope) -> None:
        lease = self._core.filler.lease()
        try:
            with scope:
                kind, payload = await self._outcome(request, lease)
            if not scope.cancelled_caught:
                # A reply that was begun is sent to its end, wanted or not: others follow it.
                await self._send(number, kind, payload)
        finally:
            if self._under_way.get(number) is scope:  # who has the reply may use its number again before we are here
                del self._under_way[number]
            lease.release()

    async def _outcome(self, request: pb.FillRequest, lease: Lease | None) -> tuple[ReplyKind, bytes]:
        async def fill() -> tuple[ReplyKind, bytes]:
            data = await self._core.fill(request, lease)
            return (ReplyKind.CACHED, b"") if data is None else (ReplyKind.THROUGH, data)

        return await _outcome_of(fill)

    async def _send(self, number: int, kind: ReplyKind, payload: bytes) -> None:
        frame = REPLY.pack(len(payload), number, kind)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with trio.move_on_after(_SEND_S) as patience:
                async with self._sending:
                    await self._stream.send_all(frame + payload if payload else frame)
            if patience.cancelled_caught:
                # Part of the reply may be on its way: nothing that follows could be understood.
                await trio.aclose_forcefully(self._stream)


async def _outcome_of(work: Callable[[], Awaitable[tuple[ReplyKind, bytes]]]) -> tuple[ReplyKind, bytes]:
    """What a piece of work gives, or its error as a reply."""
    try:
        return await work()
    except ForebayError as error:
        return ReplyKind.ERROR, f"{type(error).__name__}: {error}".encode("utf-8", "surrogateescape")
    except Exception as error:
        log.exception("a request on the fill socket failed")
        return ReplyKind.ERROR, f"{ForebayError.__name__}: the cache worker failed: {error!r}".encode()
