"""Misses over their socket: both clients against the worker's side, over a real socket."""

import os
import socket
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.client import AttachedClient
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import ForebayError, SourceStale, WorkerUnavailable
from forebay.cacheruntime.fill_socket import (
    REPLY,
    REQUEST,
    REQUEST_BYTES,
    TAKE_BACK,
    BlockingFills,
    FillConnection,
    FillRequests,
    ReplyKind,
    pack_call,
    pack_request,
)
from forebay.cacheruntime.worker import fill_server
from forebay.cacheruntime.worker.fill_server import serve_fills
from forebay.proto import worker_pb2 as pb

RUN_S = 20.0
LARGE = os.urandom(8 << 20)


class _Lease:
    def __init__(self, core: "_Core") -> None:
        self._core = core
        core.leases += 1

    def release(self) -> None:
        self._core.leases -= 1


class _Core:
    """Answers as the offset of a request says."""

    def __init__(self) -> None:
        self.filler = self
        self.leases = 0
        self.offsets: list[int] = []
        self.holders: dict[str, object] = {}
        self.left: list[object] = []
        self.began, self.ended = trio.Event(), trio.Event()

    def lease(self) -> _Lease:
        return _Lease(self)

    async def attach(self, request: pb.AttachRequest) -> pb.AttachReply:
        return pb.AttachReply(dataset_id=request.source)

    async def post_order(self, request: pb.PostOrderRequest, holder: object) -> pb.PostOrderReply:
        self.holders[request.reader] = holder
        return pb.PostOrderReply(known=request.first + len(request.nodes))

    def reader_left(self, holder: object) -> None:
        self.left.append(holder)

    async def fill(self, request: pb.FillRequest, lease: _Lease | None = None) -> bytes | None:
        self.offsets.append(request.offset)
        match request.offset:
            case 1:
                return LARGE
            case 2:
                raise SourceStale("it: changed\udcff")
            case 3:
                raise ZeroDivisionError("a fault of ours")
            case 4:
                self.began.set()
                try:
                    await trio.sleep_forever()
                finally:
                    self.ended.set()
        return None


Test = Callable[[_Core, FillConnection, Path], Awaitable[None]]


def _run(tmp_path: Path, test: Test) -> _Core:
    """Run `test` against a server; it must leave no lease."""
    path = tmp_path / "fills.sock"

    async def main() -> _Core:
        with trio.fail_after(RUN_S):
            async with trio.open_nursery() as nursery:
                core = _Core()
                await nursery.start(serve_fills, core, path)
                connection = FillConnection(path)
                nursery.start_soon(connection.receive)
                await test(core, connection, path)
                connection.close()
                while core.leases:
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
        return core

    core = trio.run(main)
    assert not path.exists()
    return core


async def _ask(connection: FillConnection, offset: int, timeout_s: float = RUN_S) -> bytes | None:
    return await connection.finish(connection.begin(pb.FillRequest(offset=offset)), timeout_s)


def test_answers_and_errors_cross(tmp_path: Path) -> None:
    async def test(_: _Core, connection: FillConnection, path: Path) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await _ask(connection, 0) is None
        assert await _ask(connection, 1) == LARGE
        with pytest.raises(SourceStale, match=r"^it: changed.$"):
            await _ask(connection, 2)
        with pytest.raises(ForebayError, match="a fault of ours"):
            await _ask(connection, 3)
        assert await _ask(connection, 0) is None, "a fault costs its own request only"

    _run(tmp_path, test)


def test_answers_and_errors_cross_to_threads(tmp_path: Path) -> None:
    async def test(core: _Core, _: FillConnection, path: Path) -> None:
        fills = BlockingFills(path, RUN_S)
        ask = lambda offset, **kw: trio.to_thread.run_sync(fills.fill, pb.FillRequest(offset=offset, **kw))  # noqa: E731
        assert await ask(0) is None
        assert await ask(1) == LARGE
        with pytest.raises(SourceStale, match=r"^it: changed.$"):
            await ask(2)
        assert await ask(5, background=True) is None
        assert await ask(0) is None
        assert core.offsets == [0, 1, 2, 5, 0]
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask, 1)
        fills.close()

    _run(tmp_path, test)


def test_requests_in_the_background_are_done_in_their_order(tmp_path: Path) -> None:
    async def test(core: _Core, connection: FillConnection, _: Path) -> None:
        for offset in range(100, 1100):
            connection.post(pb.FillRequest(offset=offset, background=True))
        await _ask(connection, 0)
        assert core.offsets == [*range(100, 1100), 0]

    _run(tmp_path, test)


def test_a_request_that_is_cancelled_ends_at_the_worker(tmp_path: Path) -> None:
    """A reader that was killed kept the worker busy until the deadline of its fill."""

    async def test(core: _Core, connection: FillConnection, _: Path) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask, connection, 4)
            await core.began.wait()
            nursery.cancel_scope.cancel()
        await core.ended.wait()
        assert await _ask(connection, 0) is None

    _run(tmp_path, test)


def test_a_request_that_is_taken_back_amid_its_reply_leaves_the_others_whole(tmp_path: Path) -> None:
    """The rest of the reply was left out, and the next one taken for it."""

    async def test(_: _Core, __: FillConnection, path: Path) -> None:
        client = await trio.open_unix_socket(path)
        await client.send_all(pack_request(7, pb.FillRequest(offset=1)))
        received = bytearray(await client.receive_some(100))
        await client.send_all(REQUEST.pack(TAKE_BACK, 7) + pack_request(8, pb.FillRequest()))
        await trio.testing.wait_all_tasks_blocked()
        expected = REPLY.pack(len(LARGE), 7, ReplyKind.THROUGH) + LARGE + REPLY.pack(0, 8, ReplyKind.CACHED)
        while len(received) < len(expected):
            received += await client.receive_some()
        assert received == expected
        await client.aclose()

    _run(tmp_path, test)


def test_a_number_may_be_used_again(tmp_path: Path) -> None:
    """A thread that had its reply asked again before the worker had put the first request away: the worker ended."""

    async def test(_: _Core, connection: FillConnection, path: Path) -> None:
        client = await trio.open_unix_socket(path)
        await client.send_all(pack_request(1, pb.FillRequest()) * 2)
        received = b""
        while len(received) < 2 * REPLY.size:
            received += await client.receive_some()
        assert received == REPLY.pack(0, 1, ReplyKind.CACHED) * 2
        assert await _ask(connection, 0) is None
        await client.aclose()

    _run(tmp_path, test)


class _Worker:
    """What `AttachedClient` wants of a `WorkerClient`."""

    def __init__(self, path: Path) -> None:
        self.config = SimpleNamespace(fill_socket_path=path)
        self.stub = None
        self.attached = 0

    def close(self) -> None:
        pass

    def attach(self, *_: object, **__: object) -> pb.AttachReply:
        self.attached += 1
        return pb.AttachReply(dataset_id="it")


def test_what_was_begun_on_a_lost_connection_is_no_request_of_the_next(tmp_path: Path) -> None:
    """Its number is another reader's there: he waited in vain; and the new connection was taken for lost."""

    async def test(core: _Core, _: FillConnection, path: Path) -> None:
        worker = _Worker(path)
        client = AttachedClient(worker, SourceSpec("s3://b", {}), 0)  # type: ignore[arg-type]
        await client.post_fill_later(pb.FillRequest())
        lost = client._fills
        assert lost is not None
        lost.close()
        begun = client.begin_fill(request := pb.FillRequest())
        assert begun is not None
        await client.post_fill_later(pb.FillRequest())  # over the next
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.fill, pb.FillRequest(offset=4), RUN_S)
            await core.began.wait()
            assert await client.fill(request, RUN_S, begun) is None
            assert not core.ended.is_set()
            assert worker.attached == 2
            nursery.cancel_scope.cancel()
        assert client._fills is not None
        client._fills.close()

    _run(tmp_path, test)


def test_silence_has_an_end(tmp_path: Path) -> None:
    async def test(core: _Core, connection: FillConnection, _: Path) -> None:
        with pytest.raises(WorkerUnavailable, match="not within"):
            await _ask(connection, 4, 0.05)
        await core.ended.wait()

    _run(tmp_path, test)


def test_a_client_that_goes_away_ends_what_it_waits_for(tmp_path: Path) -> None:
    async def test(core: _Core, connection: FillConnection, _: Path) -> None:
        call = connection.begin(pb.FillRequest(offset=4))
        await core.began.wait()
        connection.close()
        await core.ended.wait()
        with pytest.raises(WorkerUnavailable):
            await connection.finish(call, RUN_S)
        with pytest.raises(WorkerUnavailable):
            await _ask(connection, 0)
        connection.post(pb.FillRequest(offset=0))

    _run(tmp_path, test)


def test_a_worker_that_goes_away_ends_its_calls(tmp_path: Path) -> None:
    path = tmp_path / "fills.sock"

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            core = _Core()
            with pytest.raises(WorkerUnavailable):
                FillConnection(path)
            scope = trio.CancelScope()

            async def serve(task_status: Any) -> None:
                with scope:
                    await serve_fills(core, path, task_status=task_status)  # type: ignore[arg-type]

            await nursery.start(serve)
            connection = FillConnection(path)
            nursery.start_soon(connection.receive)
            call = connection.begin(pb.FillRequest(offset=4))
            fills = BlockingFills(path, RUN_S)
            await trio.to_thread.run_sync(fills.fill, pb.FillRequest())
            await core.began.wait()
            scope.cancel()
            with pytest.raises(WorkerUnavailable, match="it is gone"):
                await connection.finish(call, RUN_S)
            assert connection.lost
            with pytest.raises(WorkerUnavailable):
                await trio.to_thread.run_sync(fills.fill, pb.FillRequest())

    trio.run(main)


@pytest.mark.parametrize(
    "rubbish",
    [REQUEST.pack(REQUEST_BYTES + 1, 1), REQUEST.pack(4, 1) + b"\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"],
    ids=["too long", "no message", "another protocol"],
)
def test_rubbish_costs_its_sender_the_connection(tmp_path: Path, rubbish: bytes) -> None:
    async def test(_: _Core, connection: FillConnection, path: Path) -> None:
        stranger = await trio.open_unix_socket(path)
        await stranger.send_all(rubbish)
        assert await stranger.receive_some() == b""
        await stranger.aclose()
        assert await _ask(connection, 1) == LARGE

    _run(tmp_path, test)


def test_who_takes_no_replies_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill_server, "_SEND_S", 0.2)

    async def test(core: _Core, connection: FillConnection, path: Path) -> None:
        stopped = await trio.open_unix_socket(path)
        for number in range(3):
            await stopped.send_all(pack_request(number, pb.FillRequest(offset=1)))
        await trio.testing.wait_all_tasks_blocked()
        assert core.leases == 3
        assert await _ask(connection, 1) == LARGE
        while core.leases:  # given back, though it lives
            await trio.sleep(0.01)
        await stopped.aclose()

    _run(tmp_path, test)


def test_a_worker_that_takes_nothing_loses_nothing(tmp_path: Path) -> None:
    """More than the socket holds is sent once the worker goes on."""
    path = tmp_path / "fills.sock"
    count, name = 200, b"n" * 4096
    seen: list[int] = []

    async def main() -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        connection = FillConnection(path)
        accepted, _ = listening.accept()
        worker = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.receive)
            calls = [
                connection.begin(pb.FillRequest(offset=offset, file=pb.FileRef(path=name))) for offset in range(count)
            ]
            await trio.testing.wait_all_tasks_blocked()
            replies: list[bytes] = []

            def take(number: int, message: bytes | None) -> None:
                assert message is not None
                seen.append(pb.FillRequest.FromString(message).offset)
                replies.append(REPLY.pack(0, number, ReplyKind.CACHED))

            frames = FillRequests(take)
            while len(seen) < count:
                frames.feed(await worker.receive_some())
            for byte in b"".join(replies):
                await worker.send_all(bytes([byte]))
            for call in calls:
                assert await connection.finish(call, RUN_S) is None
            connection.close()
        await worker.aclose()
        listening.close()

    trio.run(partial(_within, main))
    assert seen == list(range(count))


async def _within(main: Callable[[], Awaitable[None]]) -> None:
    with trio.fail_after(RUN_S):
        await main()


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.none() | st.binary(max_size=300))), st.data())
def test_requests_are_found_however_they_are_cut(requests: list[tuple[int, bytes | None]], data: st.DataObject) -> None:
    taken: list[tuple[int, bytes | None]] = []
    frames = FillRequests(lambda number, message: taken.append((number, message)))
    stream = b"".join(
        REQUEST.pack(TAKE_BACK, number) if message is None else REQUEST.pack(len(message), number) + message
        for number, message in requests
    )
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        frames.feed(stream[:size])
        stream = stream[size:]
    assert taken == requests


# Calls by the same way


def test_calls_go_by_the_same_socket(tmp_path: Path) -> None:
    async def test(core: _Core, _: FillConnection, path: Path) -> None:
        def client() -> None:
            fills = BlockingFills(path, RUN_S)
            attached = fills.call("Attach", pb.AttachRequest(source="s3://b").SerializeToString())
            assert pb.AttachReply.FromString(attached).dataset_id == "s3://b"
            order = pb.PostOrderRequest(reader="r", nodes=range(1, 100_000), first=7)
            assert pb.PostOrderReply.FromString(fills.call("PostOrder", order.SerializeToString())).known == 100_006
            with pytest.raises(ForebayError, match="no call b'Retire'"):
                fills.call("Retire", b"")
            with pytest.raises(ForebayError, match="the cache worker failed"):
                fills.call("Attach", b"\xff\xff")
            with pytest.raises(ValueError, match="4194304 is the most"):
                fills.call("Attach", bytes(4 << 20))
            fills.close()

        await trio.to_thread.run_sync(client)
        while core.holders["r"] not in core.left:
            await trio.sleep(0.001)  # its connection ended: so did its reader

    _run(tmp_path, test)


def test_many_fills_are_under_way_at_once(tmp_path: Path) -> None:
    async def test(core: _Core, _: FillConnection, path: Path) -> None:
        def client() -> list[tuple[int, bytes]]:
            fills = BlockingFills(path, RUN_S)
            try:
                return fills.begin([pb.FillRequest(offset=offset) for offset in (0, 1, 2, 0)]).replies()
            finally:
                fills.close()

        kinds = await trio.to_thread.run_sync(client)
        assert [kind for kind, _ in kinds] == [
            ReplyKind.CACHED, ReplyKind.THROUGH, ReplyKind.ERROR, ReplyKind.CACHED,
        ]  # fmt: skip
        assert kinds[1][1] == LARGE

    _run(tmp_path, test)


def test_a_call_is_none_of_a_requests_only_stream() -> None:
    frames = FillRequests(lambda *_: None)
    with pytest.raises(ForebayError, match="none of ours"):
        frames.feed(pack_call(1, "Attach", b""))
