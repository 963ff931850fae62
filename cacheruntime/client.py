"""Talking to the node's worker, starting it when it is not there.

Used by the command line, the FUSE handlers and the fsspec client. A client outlives workers: each call that finds
none starts one and attaches its source again.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import grpc
import trio

from forebay.cacheruntime import rpc
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import NotAttached, UsageError, WorkerUnavailable, by_name
from forebay.cacheruntime.fill_socket import BlockingFills, FillCall, FillConnection
from forebay.proto import worker_pb2 as pb
from forebay.proto import worker_pb2_grpc

_T = TypeVar("_T")

_FILL_S = 120.0
"""Longer than any deadline of a miss: the worker answers before, with the reason."""

TRIES = 4
"""Of one call, each with another worker: one that is killed again and again costs a reader nothing but time."""

_START_S = 20.0
"""A worker has served or given up after this long; usually it takes less than a second."""

_SECRET_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "OSS_", "ALIBABA_")
"""Variables that a worker must not inherit: it serves several mounts, each with credentials of its own."""


KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_ARENA_MAX": "2",
}
"""For glibc (mallopt(3)): buffers of fetched data are used again instead of being mapped, faulted in and unmapped for
each megabyte, which cost the worker half of its time. With an arena for each thread, what all of them keep would be
half as much again as the worker's memory budget."""


def environment_without_secrets() -> dict[str, str]:
    """This process's environment for a process of ours that lives on: what it has to know comes another way."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_SECRET_PREFIXES)}


def worker_pid(config: CacheConfig) -> int | None:
    """Process id of the running worker of a cache folder, or None."""
    try:
        descriptor = os.open(config.lock_path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None  # nobody holds it
    except BlockingIOError:
        text = os.read(descriptor, 32)
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)


def start_worker(config: CacheConfig) -> None:
    """Have a worker run for this cache folder; returns at once when one does.

    Raises:
        ForebayError: it could not start, with its reason (such as TierUnusable).
    """
    for _ in range(TRIES):
        if worker_pid(config) is not None:
            return
        trouble, killed_by = _start(config)
        if not killed_by:
            break
    else:
        name = signal.strsignal(killed_by)
        trouble = f"signal {killed_by} ({name}) has ended it, {TRIES} times; is memory short?"
    if trouble:
        name, _, message = trouble.partition(": ")
        raise by_name(name)(message) if message else WorkerUnavailable(f"the cache worker did not start: {trouble}")


def _start(config: CacheConfig) -> tuple[str, int]:
    """Start a worker.

    Returns:
        What was wrong, if anything; and the signal that has ended it before it said so, or 0.
    """
    command = [sys.executable, "-m", "forebay.cacheruntime.worker"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment_without_secrets() | KEEP_MEMORY,
        cwd="/",
        text=True,
        start_new_session=True,  # Ctrl-C in the terminal of the first mount is not for the worker
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write(config.to_json())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it says why on its output
        line = process.stdout.readline().strip()
        if line in ("ready", "taken"):
            # The worker lives on: forget the child instead of waiting for it (init inherits it when we end).
            process.returncode = 0
            return "", 0
        lines = [line.removeprefix("error ")] if line else process.stderr.read().strip().splitlines()
    if not lines and process.returncode < 0:
        return "", -process.returncode
    return (lines[-1] if lines else "it gave no reason; see worker.log in the cache folder"), 0


class WorkerClient:
    """A connection to the worker of one cache folder.

    Resources: `close` ends the connection. Not to be used across a fork.
    Concurrency: any number of threads; one of them connects anew, and none closes what another has just connected.
    """

    def __init__(self, config: CacheConfig, *, cluster_of_folder: bool = False) -> None:
        """
        Args:
            config: of the cache.
            cluster_of_folder: a worker that is started takes part in the cluster that the folder was last used in,
                whatever `config` says: for mounts, which outlive such settings.
        """
        self._config = config
        self._cluster_of_folder = cluster_of_folder
        self._channel: grpc.Channel | None = None
        self._stub: Any = None
        self._fills = BlockingFills(config.fill_socket_path, _FILL_S)
        self._lock = threading.RLock()

    @property
    def config(self) -> CacheConfig:
        return self._config

    @property
    def stub(self) -> Any:
        """The connected stub; connects when there is none."""
        with self._lock:
            return self._stub or self.connect()

    def connect(self) -> Any:
        """The stub, connected to a running worker (started if need be).

        Raises:
            ForebayError: there is none and none could be started.
        """
        with self._lock:
            return self._connect_anew()

    def _connect_anew(self) -> Any:
        deadline = time.monotonic() + _START_S
        while True:
            config = self._config
            if self._cluster_of_folder:
                config = replace(config, cluster=config.remembered_cluster() or config.cluster)
            start_worker(config)
            self.close()
            self._channel = grpc.insecure_channel(f"unix:{self._config.socket_path}", options=rpc.OPTIONS)
            try:
                grpc.channel_ready_future(self._channel).result(timeout=2.0)
                break
            except grpc.FutureTimeoutError:
                if time.monotonic() > deadline:
                    pid = worker_pid(self._config)
                    raise WorkerUnavailable(
                        f"the cache worker of {self._config.cache_dir} (process {pid}) does not answer;"
                        " end that process and try again: what is cached is kept"
                    ) from None
        self._stub = worker_pb2_grpc.WorkerStub(self._channel)  # type: ignore[no-untyped-call]
        return self._stub

    def close(self) -> None:
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel = self._stub = None
            self._fills.close()

    def _lost(self, stub: Any) -> None:
        """That connection is of no use any more; another one, which some thread has made since, stays."""
        with self._lock:
            if self._stub is stub:
                self.close()

    def check_tiers(self, asked: bool) -> None:
        """See that the running worker has the tiers of our configuration, if the user `asked` for some.

        Raises:
            UsageError: it has others.
        """
        if not asked:
            return
        ours = [(t.medium.value, str(t.path), t.quota_bytes) for t in self._config.tiers]
        theirs = [(t.medium, t.path, t.quota_bytes) for t in self.call("Status", pb.StatusRequest()).tiers]
        if ours != theirs:
            shown = " ".join(f"{medium}:{path}:{quota}" for medium, path, quota in theirs)
            raise UsageError(
                f"the worker of {self._config.cache_dir} runs with other tiers ({shown});"
                " leave out --tier, unmount what uses it, or name another --cache-dir"
            )

    def check_cluster(self) -> None:
        """See that the running worker takes part in the cluster of our configuration.

        Raises:
            UsageError: in another one, or in none.
        """
        ours = self._config.cluster
        theirs = self.call("Status", pb.StatusRequest()).cluster
        if ours is not None and theirs != ours.to_json():
            pid = worker_pid(self._config)
            raise UsageError(
                f"the worker of {self._config.cache_dir} (process {pid}) runs with other settings of the cluster; end"
                f" it (kill {pid}, or unmount what uses it), or name another --cache-dir"
            )

    def call(self, method: str, request: Any, timeout_s: float | None = 120.0) -> Any:
        """Make a unary call and wait; a worker that is gone is started again.

        Raises:
            ForebayError: what the worker raised.
        """

        def ask(stub: Any) -> Any:
            try:
                return getattr(stub, method)(request, timeout=timeout_s)
            except (grpc.RpcError, ValueError) as error:
                # ValueError: another thread found the worker gone first, and has closed the channel.
                raise rpc.to_error(error) from error

        return self._persist(ask)

    def fill(self, request: pb.FillRequest) -> bytes | None:
        """Have a range fetched and wait for it, unless it is to be done in the background.

        Returns:
            None when the bytes are in the index; the bytes themselves when no tier had room.

        Raises:
            ForebayError: what the worker raised; NotAttached when it is a new one.
        """
        return self._persist(lambda _: self._fills.fill(request))

    def _persist(self, ask: Callable[[Any], _T]) -> _T:
        """Ask with the stub, and again, with the next worker, when this one proves to be gone."""
        for left in reversed(range(TRIES)):
            stub = self.stub
            try:
                return ask(stub)
            except WorkerUnavailable:
                self._lost(stub)
                if not left:
                    raise
        raise AssertionError("unreachable")

    def attach(
        self,
        spec: SourceSpec,
        *,
        list_tree: bool = False,
        relist: bool = False,
        snapshot: int = 0,
        stored: bool = False,
    ) -> Any:
        """See `Attach` in proto/worker.proto."""
        request = spec.attach_request(list_tree=list_tree, relist=relist, snapshot=snapshot, stored=stored)
        return self.call("Attach", request)

    def sync(self, dataset_id: str, shown: int = 0) -> pb.SyncReply:
        """List a source again and wait for it, however long that takes; see `Sync` in proto/worker.proto.

        Args:
            dataset_id: of an attached source.
            shown: the snapshot to compare with; 0 for the newest.

        Raises:
            NotAttached: the worker does not know the dataset, for it is a new one.
            ForebayError: the listing failed; nothing has changed.
        """
        reply: pb.SyncReply = self.call("Sync", pb.SyncRequest(dataset_id=dataset_id, shown=shown), None)
        return reply

    def warmup(self, request: pb.WarmupRequest) -> Iterator[pb.WarmupProgress]:
        """Progress until the end. Dropping the iterator stops the warm-up.

        Raises:
            ForebayError: it cannot go on; single files that fail are counted instead.
        """
        yield from self.stream("Warmup", request)

    def stream(self, method: str, request: Any) -> Iterator[Any]:
        """Make a call whose answer is a stream. Dropping the iterator ends it.

        Raises:
            ForebayError: what the worker raised.
        """
        stream = getattr(self.stub, method)(request)
        try:
            yield from stream
        except grpc.RpcError as error:
            raise rpc.to_error(error) from error
        finally:
            stream.cancel()


class AttachedClient:
    """A client bound to one source, for use in a trio loop: what a FUSE handler holds.

    Concurrency: any number of tasks; they share one connection for fills, one for all else, and one restart.
    """

    def __init__(self, client: WorkerClient, spec: SourceSpec, snapshot: int) -> None:
        self._client = client
        self._spec = spec
        self.snapshot = snapshot
        """What is asked for when a new worker is attached to."""
        self._dataset_id = ""
        self._lock = trio.Lock()
        self._stub: Any = None
        self._fills: FillConnection | None = None

    async def call(self, method: str, make_request: Any, timeout_s: float) -> Any:
        """Make a unary call whose request `make_request(dataset_id)` builds; survives the worker's death.

        Raises:
            ForebayError: what the worker raised; WorkerUnavailable when it cannot be brought back in `timeout_s`.
        """

        def ask(fills: FillConnection, left_s: float) -> Awaitable[Any]:
            return rpc.call(getattr(self._stub, method), make_request(self._dataset_id), left_s)

        return await self._persist(ask, timeout_s)

    def post_fill(self, request: pb.FillRequest) -> bool:
        """Have a range fetched in the background; its dataset is filled in. False: there is no worker now."""
        request.background = True
        fills = self._fills
        if fills is None or fills.lost:
            return False
        request.dataset_id = self._dataset_id
        fills.post(request)
        return True

    async def post_fill_later(self, request: pb.FillRequest) -> None:
        """`post_fill`, with a worker started if there is none. Raises: ForebayError, none could be."""
        await self._connected()
        self.post_fill(request)

    def begin_fill(self, request: pb.FillRequest) -> FillCall | None:
        """Send a request at once, in its order, for `fill` to wait for. None: there is no worker now."""
        if self._fills is None:
            return None
        request.dataset_id = self._dataset_id
        return self._fills.begin(request)

    async def fill(self, request: pb.FillRequest, timeout_s: float, begun: FillCall | None = None) -> bytes | None:
        """Have a range fetched and wait for it; survives the worker's death.

        Args:
            request: its dataset is filled in.
            timeout_s: for all tries together.
            begun: what `begin_fill` gave for it.

        Returns:
            None when the bytes are in the index; the bytes themselves when no tier had room.

        Raises:
            ForebayError: what the worker raised; WorkerUnavailable when it cannot be brought back in `timeout_s`.
        """

        def ask(fills: FillConnection, left_s: float) -> Awaitable[bytes | None]:
            nonlocal begun
            call, begun = begun, None
            if call is None or call.connection is not fills:  # it was lost since, with all that was sent
                request.dataset_id = self._dataset_id
                call = fills.begin(request)
            return fills.finish(call, left_s)

        return await self._persist(ask, timeout_s)

    async def _persist(self, ask: Callable[[FillConnection, float], Awaitable[_T]], timeout_s: float) -> _T:
        """Ask until there is an answer, of this worker or of the next."""
        deadline = trio.current_time() + timeout_s
        delay_s = 0.05
        while True:
            fills = None
            try:
                fills = await self._connected()
                return await ask(fills, max(deadline - trio.current_time(), 0.1))
            except (WorkerUnavailable, NotAttached):
                if trio.current_time() + delay_s > deadline:
                    raise
            if fills is not None and self._fills is fills:
                fills.close()
            await trio.sleep(delay_s)
            delay_s = min(delay_s * 2, 1.0)

    async def _connected(self) -> FillConnection:
        if self._fills is not None and not self._fills.lost:
            return self._fills
        async with self._lock:
            if self._fills is None or self._fills.lost:
                self._fills = await trio.to_thread.run_sync(self._connect)
                trio.lowlevel.spawn_system_task(self._fills.receive)
        return self._fills

    def _connect(self) -> FillConnection:
        self._client.close()
        reply = self._client.attach(self._spec, list_tree=bool(self.snapshot), snapshot=self.snapshot)
        self._dataset_id = reply.dataset_id
        self._stub = self._client.stub
        return FillConnection(self._client.config.fill_socket_path)
