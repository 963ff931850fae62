"""Nodes of a cluster on this machine, for the lines of the cluster: a worker process and a cache folder for each."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from forebay.bench.in_process import Opening
from forebay.bench.sides import SideFailed
from forebay.cacheruntime.client import WorkerClient, start_worker, worker_pid
from forebay.cacheruntime.cluster.remote_sources import remote_spec
from forebay.cacheruntime.config import CacheConfig, ClusterConfig, Medium, TierConfig
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.proto import worker_pb2 as pb

_QUOTA_BYTES = 1 << 40
"""Nothing is evicted."""

_PATIENCE_S = 30.0
_IDLE_S = 120.0
"""A node whose reader is still making ready does not end."""


@dataclass(frozen=True)
class Origin:
    """A dataset as a worker with an under-store is told of it."""

    url: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Keys included."""


class ClusterNode:
    """One node: a member, a client node or, without a cluster, a worker that is alone.

    Resources: `close` ends its worker.
    """

    def __init__(self, folder: Path, cluster: ClusterConfig | None) -> None:
        tier = TierConfig(Medium.SSD, folder / "tier", _QUOTA_BYTES)
        self.config = CacheConfig(
            folder / "cache", (tier,), folder / "run", free_reserve_ratio=0.0, idle_exit_s=_IDLE_S, cluster=cluster
        )
        self._client = WorkerClient(self.config)
        self._dataset_id = ""
        start_worker(self.config)

    @property
    def pid(self) -> int:
        """Of its worker."""
        pid = worker_pid(self.config)
        if pid is None:
            raise SideFailed(f"the worker of {self.config.cache_dir} has ended")
        return pid

    @property
    def address(self) -> str:
        """HOST:PORT of a member."""
        assert self.config.cluster is not None
        return self.config.cluster.listen

    def attach(self, origin: Origin) -> None:
        """Make a dataset known to the worker, listed; on a client node, as its cluster has it."""
        cluster = self.config.client_of
        spec = SourceSpec(origin.url, origin.options) if cluster is None else remote_spec(origin.url, cluster)
        self._dataset_id = self._client.attach(spec, list_tree=True).dataset_id

    def warmup(self, *, local: bool = False) -> float:
        """Have the whole of what was attached cached, by its owners or here; seconds.

        Raises:
            SideFailed: some of it could not be had.
        """
        *_, last = self._client.warmup(pb.WarmupRequest(dataset_id=self._dataset_id, local=local))
        if last.state != "done" or last.files_failed or last.files_uncached:
            raise SideFailed(f"a warm-up has not brought everything: {last.error or list(last.failures)}")
        return float(last.elapsed_s)

    def opening(self, origin: Origin) -> Opening:
        """For readers of `in_process`."""
        environ = {"FOREBAY_RUNTIME_DIR": str(self.config.runtime_dir)}
        return Opening(origin.url, origin.options, str(self.config.cache_dir), environ)

    def said(self, text: str) -> bool:
        """Whether its log has a text."""
        return text in (self.config.cache_dir / "worker.log").read_text()

    def close(self) -> None:
        self._client.close()
        pid = worker_pid(self.config)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            _until(lambda: worker_pid(self.config) is None)


@contextmanager
def alone(folder: Path) -> Iterator[ClusterNode]:
    """A node without others, ended on leaving."""
    with ExitStack() as stack:
        yield _made(stack, folder, None)


@contextmanager
def cluster(folder: Path, count: int, tls: str = "") -> Iterator[list[ClusterNode]]:
    """Members that know each other, ended on leaving.

    Args:
        folder: a new one is made here for each.
        count: of members.
        tls: folder of a bundle; empty: plain text.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(count)]
    settings = ClusterConfig(peers="static:" + ",".join(addresses), tls=tls)
    with ExitStack() as stack:
        members = [
            _made(stack, folder / f"w{number}", replace(settings, listen=own, advertise=own))
            for number, own in enumerate(addresses)
        ]
        if count > 1:
            _until(lambda: all(member.said(f"the cluster has {count} members") for member in members))
        yield members


@contextmanager
def client_node(folder: Path, members: list[ClusterNode]) -> Iterator[ClusterNode]:
    """A node that owns nothing and reads from members only, ended on leaving."""
    own = members[0].config.cluster
    assert own is not None
    with ExitStack() as stack:
        yield _made(stack, folder, ClusterConfig(peers=own.peers, tls=own.tls))


def _made(stack: ExitStack, folder: Path, own: ClusterConfig | None) -> ClusterNode:
    folder.mkdir(parents=True)
    node = ClusterNode(folder, own)
    stack.callback(node.close)
    return node


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def _until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not what():
        if time.monotonic() > deadline:
            raise SideFailed("the workers of the cluster have not come to know each other, or do not end")
        time.sleep(0.05)
