"""The bridge between trio and grpc's threads, and between our errors and gRPC's.

Everything that knows both worlds is here. A server method runs in a grpc thread and enters the worker's trio loop with
`enter`; a client call made in a trio task waits on `call`. An error crosses as ``ClassName: message`` in the
status details, so that it arrives as what it was.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import grpc
import trio

from forebay.cacheruntime.errors import AccessDenied, ForebayError, LimitReached, WorkerUnavailable, by_name

_T = TypeVar("_T")

MESSAGE_BYTES = 70 * (1 << 20)
"""Largest message. None of ours comes near it; a listing of a directory (Stat) is the longest."""

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)

_CODES = {AccessDenied: grpc.StatusCode.PERMISSION_DENIED, LimitReached: grpc.StatusCode.RESOURCE_EXHAUSTED}
"""For programs of others; ours go by the name in the details."""


def enter(
    token: trio.lowlevel.TrioToken,
    method: Callable[..., Awaitable[_T]],
    context: grpc.ServicerContext,
    *args: Any,
) -> _T:
    """Run a coroutine function in the trio loop from a grpc thread, and map its errors to a status.

    Args:
        token: of the loop.
        method: with its `args`.
        context: of the call.
    """
    try:
        return trio.from_thread.run(method, *args, trio_token=token)
    except ForebayError as error:
        abort(context, error)
    except trio.RunFinishedError:
        context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is stopping")
    except trio.Cancelled:
        context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is stopping")
    raise AssertionError("abort() raises")


def abort(context: grpc.ServicerContext, error: ForebayError) -> NoReturn:
    """End a call with an error of ours; `to_error` makes it of the status again."""
    context.abort(_CODES.get(type(error), grpc.StatusCode.FAILED_PRECONDITION), f"{type(error).__name__}: {error}")
    raise AssertionError("abort() raises")


def in_loop(token: trio.lowlevel.TrioToken, call: Callable[[], object]) -> None:
    """Call a function in the trio loop, from any thread, unless that has ended."""
    with suppress(trio.RunFinishedError):
        token.run_sync_soon(call)


def to_error(error: grpc.RpcError | ValueError) -> ForebayError:
    """The ForebayError that a failed call stands for; ValueError is grpc's for a channel that was closed."""
    if isinstance(error, ValueError):
        return WorkerUnavailable(f"the connection to the cache worker is closed ({error})")
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call) else str(error)) or ""
    name, _, message = details.partition(": ")
    if code is grpc.StatusCode.FAILED_PRECONDITION or (code in _CODES.values() and by_name(name) is not ForebayError):
        return by_name(name)(message)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED):
        return WorkerUnavailable(f"the cache worker does not answer ({details})")
    return ForebayError(f"the cache worker failed: {code.name}: {details}")


async def call(method: Any, request: Any, timeout_s: float) -> Any:
    """Make a unary call from a trio task.

    Args:
        method: of a stub.
        request: its message.
        timeout_s: after which the call fails as WorkerUnavailable.

    Raises:
        ForebayError: what the server raised, or WorkerUnavailable.

    Cancellation: cancels the call.
    """
    token = trio.lowlevel.current_trio_token()
    done = trio.Event()
    future = method.future(request, timeout=timeout_s)

    def wake(_: object) -> None:
        in_loop(token, done.set)

    future.add_done_callback(wake)
    try:
        await done.wait()
    except trio.Cancelled:
        future.cancel()
        raise
    try:
        return future.result()
    except grpc.FutureCancelledError as error:
        raise WorkerUnavailable("the call to the cache worker was cancelled") from error
    except grpc.RpcError as error:
        raise to_error(error) from error
