"""The worker's gRPC face: each method runs in a grpc thread and goes into the core's trio loop."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import trio

from forebay.cacheruntime import rpc
from forebay.cacheruntime.errors import ForebayError
from forebay.cacheruntime.worker.core import Core
from forebay.proto import worker_pb2 as pb
from forebay.proto import worker_pb2_grpc

_THREADS = 128
"""Each call that waits holds one; beyond this, calls queue in grpc. Look-ups wait in it while a source is slow."""


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """Passes requests to the core."""

    def __init__(self, core: Core, token: trio.lowlevel.TrioToken) -> None:
        self._core = core
        self._token = token

    def Warmup(self, request: pb.WarmupRequest, context: grpc.ServicerContext) -> Iterator[pb.WarmupProgress]:
        """A stream, so not among the unary methods below."""
        job = rpc.enter(self._token, self._core.start_warmup, context, request)
        try:
            more = True
            while more and context.is_active():
                more = rpc.enter(self._token, job.wait_update, context)
                yield job.message()
            if job.failed is not None:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{type(job.failed).__name__}: {job.failed}")
        finally:
            rpc.in_loop(self._token, job.scope.cancel)

    def Check(self, request: pb.CheckRequest, context: grpc.ServicerContext) -> Iterator[pb.CheckProgress]:
        """As `Warmup`."""
        check = rpc.enter(self._token, self._core.start_check, context, request)
        shown = 0
        try:
            finished = False
            while not finished and context.is_active():
                finished = rpc.enter(self._token, check.updates, context)
                progress = check.progress
                fresh = progress.findings[shown:]
                shown += len(fresh)
                yield pb.CheckProgress(
                    files=progress.files,
                    bytes=progress.bytes,
                    findings=[pb.CheckFinding(**vars(finding)) for finding in fresh],
                    finished=finished,
                )
        finally:
            rpc.in_loop(self._token, check.scope.cancel)


def _unary(name: str) -> Callable[[WorkerService, Any, grpc.ServicerContext], Any]:
    core_method = "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")

    def method(self: WorkerService, request: Any, context: grpc.ServicerContext) -> Any:
        return rpc.enter(self._token, getattr(self._core, core_method), context, request)

    method.__name__ = name
    return method


for _name in (
    "Members",
    "Attach",
    "ListDirectory",
    "Sync",
    "Stat",
    "Status",
    "Retire",
    "StartJob",
    "CancelJob",
    "Traffic",
    "ServeMetrics",
    "Evict",
    "Pin",
    "CollectSnapshots",
    "Forget",
    "PostOrder",
):
    setattr(WorkerService, _name, _unary(_name))


def start_server(core: Core, socket: Path) -> grpc.Server:
    """Serve on a Unix socket that only this user may reach.

    Raises:
        ForebayError: the socket cannot be made.
    """
    socket.unlink(missing_ok=True)  # of a worker that was killed; the cache folder's lock says that none runs
    server = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="rpc"), options=rpc.OPTIONS)
    service = WorkerService(core, trio.lowlevel.current_trio_token())
    worker_pb2_grpc.add_WorkerServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    try:
        server.add_insecure_port(f"unix:{socket}")
    except RuntimeError as error:
        raise ForebayError(f"cannot listen on {socket}: {error}") from error
    server.start()
    socket.chmod(0o600)
    return server
