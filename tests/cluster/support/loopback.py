"""Several nodes on loopback: a worker process and a cache folder for each, without namespaces."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from forebay.cacheruntime.client import WorkerClient, start_worker, worker_pid
from forebay.cacheruntime.cluster.channels import Channels
from forebay.cacheruntime.cluster.membership import Address
from forebay.cacheruntime.cluster.security import Security
from forebay.cacheruntime.config import GIB, CacheConfig, ClusterConfig, FillConfig, Medium, TierConfig
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.fsspec_client import CachedFile, ForebayFileSystem
from forebay.proto import worker_pb2 as pb

PATIENCE_S = 30.0


def until(what: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < deadline, "it has not come to be in time"
        time.sleep(0.05)


class Node:
    """One node. `close` ends its worker."""

    def __init__(
        self,
        root: Path,
        cluster: ClusterConfig,
        options: dict[str, str],
        quota_bytes: int = GIB,
        fill: FillConfig = FillConfig(),  # noqa: B008
    ) -> None:
        """Args: quota_bytes: of its tier; 0: it has none."""
        tiers = (TierConfig(Medium.SSD, root / "tier", quota_bytes),) if quota_bytes else ()
        self.config = CacheConfig(root / "c", tiers, root / "r", free_reserve_ratio=0.0, cluster=cluster, fill=fill)
        self.client = WorkerClient(self.config)
        self._options = options

    def start(self) -> "Node":
        start_worker(self.config)
        return self

    @property
    def pid(self) -> int:
        pid = worker_pid(self.config)
        assert pid is not None
        return pid

    def files(self) -> ForebayFileSystem:
        """A view through this node's cache."""
        view = ForebayFileSystem(str(self.config.cache_dir), self._options, skip_instance_cache=True)
        view._config = self.config
        return view

    def read(self, source: str, path: str) -> bytes:
        """A whole file."""
        with self.open(source, path) as file:
            return file.readall()

    def open(self, source: str, path: str) -> CachedFile:
        """A file, as the listing of its directory has it."""
        view = self.files()
        spec, inner = view._locate(f"forebay://{source}/{path}")
        children = view._ask(spec, os.path.dirname(inner), children=True).children
        entry = next(entry for entry in children if os.fsdecode(entry.path) == inner)
        return CachedFile(self.config, spec, inner, entry)

    def traffic(self) -> pb.SourceTraffic:
        """Of all sources together."""
        total = pb.SourceTraffic()
        for source in self.client.call("Traffic", pb.TrafficRequest()).sources:
            total.gets += source.gets
            total.bytes += source.bytes
            total.peer_reads += source.peer_reads
            total.peer_bytes += source.peer_bytes
        return total

    def log(self) -> str:
        return (self.config.cache_dir / "worker.log").read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal that ends the worker, and wait for its end."""
        pid = worker_pid(self.config)
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, number)
        until(lambda: worker_pid(self.config) is None)  # its last thread is gone too

    def close(self) -> None:
        self.client.close()
        self.end(signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


class Loopback:
    """A cluster of members, and client nodes of it. `close` ends all."""

    def __init__(
        self,
        root: Path,
        count: int,
        options: dict[str, str],
        *,
        quota_bytes: int = GIB,
        later: int = 0,
        traces: bool = False,
        fill: FillConfig = FillConfig(),  # noqa: B008
        **more: object,
    ) -> None:
        """Args: later: members of `count` that do not run yet; more: fields of each member's ClusterConfig."""
        self._root = root
        self._options = options
        self._channels = Channels(Security(None))
        addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
        self.peers = "static:" + ",".join(addresses)
        settings = ClusterConfig(peers=self.peers, **more)  # type: ignore[arg-type]
        self.members = [
            Node(root / f"w{number}", replace(settings, listen=own, advertise=own), options, quota_bytes, fill)
            for number, own in enumerate(addresses)
        ]
        for member in self.members:
            member.config = replace(member.config, traces=traces)
        self.clients: list[Node] = []
        running = self.members[: count - later]
        for member in running:
            member.start()
        if len(running) > 1:
            self.settled(running)

    @staticmethod
    def settled(running: list[Node]) -> None:
        """Wait until these know each other."""
        text = f"the cluster has {len(running)} members"
        until(lambda: all(text in member.log() for member in running))

    @property
    def is_late(self) -> bool:
        """Whether a worker has not answered in time, as on a busy machine: then a byte may leave the store twice."""
        traffic = [node.client.call("Traffic", pb.TrafficRequest()) for node in self.members]
        return any(peer.errors for one in traffic for peer in one.peers)

    def wait_for_shares(self) -> None:
        """Wait until what is read moves with the next change of the members, and with none of before."""
        text = f"has its share among {len(self.members)} members"
        until(lambda: all(text in member.log() for member in self.members))

    def client(self, quota_bytes: int = GIB, fill: FillConfig = FillConfig(), **more: object) -> Node:  # noqa: B008
        """Another client node."""
        cluster = ClusterConfig(peers=self.peers, **more)  # type: ignore[arg-type]
        node = Node(self._root / f"x{len(self.clients)}", cluster, {}, quota_bytes, fill)
        self.clients.append(node)
        return node.start()

    def spec(self, source: str) -> SourceSpec:
        return SourceSpec(source, self._options)

    def attach(self, source: str) -> str:
        """Make a source known to the first member; returns its dataset's id."""
        return str(self.members[0].client.attach(self.spec(source), list_tree=True).dataset_id)

    def stub(self, number: int) -> Any:
        """Of a member's Peer service."""
        cluster = self.members[number].config.cluster
        assert cluster is not None
        return self._channels.stub(Address(cluster.listen))

    def close(self) -> None:
        self._channels.close()
        for node in (*self.clients, *self.members):
            node.close()
