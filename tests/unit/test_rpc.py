"""The bridge between grpc's threads and trio, over a real socket."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from forebay.cacheruntime import rpc
from forebay.cacheruntime.errors import SourceStale

RUN_S = 20.0


class _Handler(grpc.GenericRpcHandler):
    """Every method of one service is `serve`, on raw bytes."""

    def __init__(self, serve: Callable[[bytes, grpc.ServicerContext], bytes]) -> None:
        self._serve = serve

    def service(self, _: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._serve)


async def _with_server(tmp_path: Path, method: Any, test: Any) -> None:
    """Run `test(call)` against a server whose calls run `method(request)` in this loop."""
    token = trio.lowlevel.current_trio_token()
    server = grpc.server(ThreadPoolExecutor(4))
    serve = lambda request, context: rpc.enter(token, method, context, request)  # noqa: E731
    server.add_generic_rpc_handlers((_Handler(serve),))
    address = f"unix:{tmp_path}/socket"
    server.add_insecure_port(address)
    server.start()
    channel = grpc.insecure_channel(address)
    try:
        with trio.fail_after(RUN_S):
            await test(channel.unary_unary("/service/Method"))
    finally:
        channel.close()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(server.stop(1.0).wait, 5.0)


def test_answers_and_errors_cross(tmp_path: Path) -> None:
    async def method(request: bytes) -> bytes:
        if request == b"stale":
            raise SourceStale("it: changed")
        return request * 2

    async def test(call: Any) -> None:
        assert await rpc.call(call, b"ab", 5.0) == b"abab"
        with pytest.raises(SourceStale, match=r"^it: changed$"):
            await rpc.call(call, b"stale", 5.0)

    trio.run(_with_server, tmp_path, method, test)


def test_a_call_goes_on_when_its_client_goes_away(tmp_path: Path) -> None:
    """Others may depend on what it does."""
    began, go_on, ended = trio.Event(), trio.Event(), trio.Event()

    async def method(request: bytes) -> bytes:
        if request:
            return request
        began.set()
        await go_on.wait()
        ended.set()
        return b""

    async def test(call: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(rpc.call, call, b"", 2 * RUN_S))
            await began.wait()
            nursery.cancel_scope.cancel()
        assert await rpc.call(call, b"other", RUN_S) == b"other", "the server has seen the first call's end by now"
        assert not ended.is_set()
        go_on.set()
        await ended.wait()

    trio.run(_with_server, tmp_path, method, test)
