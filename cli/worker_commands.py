"""What `forebay worker` does: sees that the worker of a cache folder runs, and that it knows what was applied here."""

import fcntl
import json as jsonlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import grpc

from forebay.cacheruntime import rpc
from forebay.cacheruntime.client import WorkerClient, start_worker, worker_pid
from forebay.cacheruntime.cluster.channels import Channels
from forebay.cacheruntime.cluster.directory import join_address, parse_directory, split_address
from forebay.cacheruntime.cluster.membership import Address
from forebay.cacheruntime.cluster.security import Security
from forebay.cacheruntime.cluster.settings import bundle_setting
from forebay.cacheruntime.config import CacheConfig, ClusterConfig
from forebay.cacheruntime.dataset_reference import parse_reference
from forebay.cacheruntime.errors import ForebayError, TierUnusable, UsageError, WorkerUnavailable
from forebay.cacheruntime.mounts import start_time
from forebay.cli.commands import cache_config
from forebay.cli.dataset_sources import make_resolver, state_folder_path
from forebay.cli.screens import size_text
from forebay.dataset_controller.resolve import shown_name
from forebay.dataset_controller.state_folder import StateFolder
from forebay.proto import peer_pb2 as pb

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_RESTART_S = 1.0
"""After a worker that ended by itself: one that ends at once must not be started a hundred times a second."""
_STOP_S = 60.0
_TROUBLE = "trouble "


def worker(
    listen: str,
    peers: str | None,
    tiers: list[str],
    cache_dir: Path | None,
    tls: Path | None,
    insecure: bool,
    advertise: str | None,
    replicas: int,
    data_port: int,
) -> None:
    security = Security.from_setting(bundle_setting(tls, insecure, os.environ))
    host, port = security.listen_address(listen)
    own = advertise or join_address(_reachable(host), port)
    split_address(own)
    parse_directory(peers or f"static:{own}")
    cluster = ClusterConfig(
        listen=join_address(host, port), peers=peers or f"static:{own}", advertise=own, replicas=replicas,
        tls="" if security.is_insecure else security.setting, data_port=data_port,
    )  # fmt: skip
    config = replace(cache_config(cache_dir, tiers), cluster=cluster)
    _Keeper(config, bool(tiers)).run()


def _reachable(host: str) -> str:
    """The address by which others reach what listens on `host`."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else host


@contextmanager
def _only_one(cache_dir: Path) -> Iterator[None]:
    """Of two that keep one worker running, the end of either would be the end of both's.

    Raises:
        ForebayError: there is another one.
    """
    path = cache_dir / "keeper.lock"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TierUnusable(
            f"the cache folder {cache_dir} cannot be used: {error.strerror or error}; name another by --cache-dir"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(descriptor, 32).decode()
            raise UsageError(
                f"forebay worker runs already for {cache_dir} (process {other}); end it, or name another by --cache-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


class _Keeper:
    """Keeps one worker running."""

    def __init__(self, config: CacheConfig, tiers_given: bool) -> None:
        self._config = config
        self._tiers_given = tiers_given
        self._client = WorkerClient(config)
        self._attached: dict[str, str] = {}
        self._pid: int | None = None
        """Of the worker that knows what was attached; None: it has ended, or is not as it should be."""
        self._stop_read, self._stop_write = os.pipe()
        self._stopping = False

    def run(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop())
        cluster = self._config.cluster
        assert cluster is not None
        with _only_one(self._config.cache_dir):
            self._pid = self._start()
            where = f"{self._config.cache_dir} on {cluster.listen}"
            print(f"worker {self._pid} serves {where}; Ctrl-C ends it", flush=True)
            try:
                while not self._stopping:
                    self._attach_applied()
                    self._wait(_LOOK_S)
                    self._look()
            finally:
                self._client.close()
                self._end_worker()

    def _look(self) -> None:
        """See that the worker runs. A mount's miss may have started another one meanwhile, which knows no dataset."""
        with suppress(ChildProcessError):  # those that it has started stay as zombies else
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        pid = worker_pid(self._config)
        if self._stopping or (pid is not None and pid == self._pid):
            return
        if pid is None:
            print("the worker has ended; another is started (see worker.log)", file=sys.stderr, flush=True)
            self._wait(_RESTART_S)
        if not self._stopping:
            self._restart()

    def _stop(self) -> None:
        self._stopping = True
        with suppress(OSError):
            os.write(self._stop_write, b".")

    def _wait(self, seconds: float) -> None:
        select.select([self._stop_read], [], [], seconds)

    def _start(self) -> int:
        start_worker(self._config)
        self._client.check_cluster()
        self._client.check_tiers(self._tiers_given)
        pid = worker_pid(self._config)
        if pid is None:
            raise ForebayError(
                f"the worker has ended as soon as it was started; see {self._config.cache_dir}/worker.log"
            )
        return pid

    def _restart(self) -> None:
        self._attached = {key: text for key, text in self._attached.items() if key.startswith(_TROUBLE)}
        self._pid = None
        try:
            self._pid = self._start()
        except ForebayError as error:
            self._complain("", error)

    def _attach_applied(self) -> None:
        """Make known what was applied here, and was not or differently when we looked last."""
        try:
            stored = StateFolder(state_folder_path()).all()
        except ForebayError as error:
            self._complain("", error)
            return
        for one in stored:
            if self._stopping:
                return
            name = shown_name(one.key).removeprefix("dataset://")
            if self._attached.get(name) == (mark := f"{one.generation}"):
                continue
            try:
                resolver = make_resolver()
                reference = parse_reference(f"dataset://{one.key[1]}")
                assert reference is not None
                spec = resolver.source(resolver.find(reference, one.key[0]))
                self._client.attach(spec)
                self._attached[name] = mark
                print(f"dataset {name} is known to the worker", flush=True)
            except ForebayError as error:
                self._complain(name, error)

    def _complain(self, name: str, error: ForebayError) -> None:
        """Once for each trouble."""
        text = f"dataset {name}: {error}" if name else str(error)
        if self._attached.get(_TROUBLE + name) != text:
            self._attached[_TROUBLE + name] = text
            print(f"forebay: {text}; trying again", file=sys.stderr, flush=True)

    def _end_worker(self) -> None:
        pid = worker_pid(self._config)
        if pid is None:
            return
        born = start_time(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while time.monotonic() < deadline and born is not None and start_time(pid) == born:
            time.sleep(0.05)


def drain(address: str, tls: Path | None, insecure: bool, *, undo: bool, json: bool) -> None:
    channels = Channels(Security.from_setting(bundle_setting(tls, insecure, os.environ)))
    last, shown = pb.DrainProgress(), ""
    try:
        stub = channels.stub(Address(join_address(*split_address(address))))
        for last in stub.Drain(pb.DrainRequest(undo=undo)):
            if json:
                print(
                    jsonlib.dumps({name.name: getattr(last, name.name) for name in last.DESCRIPTOR.fields}), flush=True
                )
            elif not undo and shown != (
                shown := f"{size_text(last.left_bytes)} left, {size_text(last.moved_bytes)} moved"
            ):
                print(shown, flush=True)
    except grpc.RpcError as error:
        raise rpc.to_error(error) from error
    finally:
        channels.close()
    if not last.finished:
        raise WorkerUnavailable(f"{address} has ended before it was drained")
    if undo:
        if not json:
            print(f"{address} owns a share again")
    elif last.lost_bytes:
        print(f"{address} is drained; {size_text(last.lost_bytes)} found no room with the others", file=sys.stderr)
        sys.exit(1)
    elif not json:
        print(f"{address} is drained, and can be ended")
