"""Workers that read from each other, as processes on loopback, before a store that counts its GETs."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, Node, until
from range_server import RangeServer
from source_tree import MIB

LARGE = 20 * MIB + 12345
SMALL = 70_000


@pytest.fixture
def make_server() -> Iterator[Callable[[int, int], RangeServer]]:
    made: list[RangeServer] = []

    def make(count: int, size: int) -> RangeServer:
        made.append(RangeServer(count, size))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Loopback]]:
    made: list[Loopback] = []

    def make(count: int, server: RangeServer, **more: Any) -> Loopback:
        options = dict(text.split("=", 1) for text in server.args[1::2])
        made.append(Loopback(tmp_path, count, options, **more))
        made[-1].attach(server.source)
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def digest(node: Node, number: int) -> str:
    return sha256(node.read("s3://bucket", str(number))).hexdigest()


def fetched_once(server: RangeServer) -> bool:
    """Whether no byte has left the store twice."""
    spans = sorted(server.gets)
    return all(one[0] != other[0] or one[2] <= other[1] for one, other in pairwise(spans))


@pytest.mark.parametrize(("count", "size"), [(3, LARGE), (40, SMALL)])
def test_each_byte_leaves_the_store_once_and_reaches_every_node(
    make_server: Any, make_cluster: Any, count: int, size: int
) -> None:
    server = make_server(count, size)
    cluster = make_cluster(3, server)
    nodes = cluster.members
    for number in range(count):
        for node in nodes:
            assert digest(node, number) == server.digest(number)
    assert fetched_once(server)
    assert sum(end - start for _, start, end in server.gets) == count * size
    assert sum(node.traffic().peer_bytes for node in nodes) == 2 * count * size


def test_many_that_ask_at_once_cost_one_get(make_server: Any, make_cluster: Any) -> None:
    server = make_server(4, LARGE)
    cluster = make_cluster(3, server)
    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(digest, node, number) for node in cluster.members for number in range(4)]
        assert [job.result() for job in jobs] == [server.digest(number) for number in range(4)] * 3
    assert fetched_once(server)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_worker_that_is_gone_costs_no_read(make_server: Any, make_cluster: Any, number: signal.Signals) -> None:
    server = make_server(12, 3 * MIB)
    cluster = make_cluster(3, server)
    reader, gone = cluster.members[0], cluster.members[1]
    for one in range(6):
        assert digest(reader, one) == server.digest(one)
    if number is signal.SIGSTOP:
        os.kill(gone.pid, number)
    else:
        gone.end(number)
    for one in range(12):
        assert digest(reader, one) == server.digest(one)


def test_what_is_damaged_at_rest_is_never_taken(make_server: Any, make_cluster: Any) -> None:
    server = make_server(6, 2 * MIB)
    cluster = make_cluster(2, server)
    owner, reader = cluster.members
    for one in range(6):
        assert digest(owner, one) == server.digest(one)
    damaged = 0
    for path in (owner.config.tiers[0].path).rglob("*"):
        if path.is_file() and path.stat().st_size == 2 * MIB:
            _flip(path)
            damaged += 1
    assert damaged
    for one in range(6):
        assert digest(reader, one) == server.digest(one)


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(MIB + 17)
        byte = file.read(1)
        file.seek(MIB + 17)
        file.write(bytes([byte[0] ^ 4]))


def test_a_worker_keeps_its_share_through_a_restart(make_server: Any, make_cluster: Any) -> None:
    server = make_server(6, 2 * MIB)
    cluster = make_cluster(3, server)
    for one in range(6):
        digest(cluster.members[0], one)
    gets = len(server.gets)
    ids = [(member.config.cache_dir / "worker-id").read_text() for member in cluster.members]
    cluster.members[1].end()
    cluster.members[1].start()
    assert ids == [(member.config.cache_dir / "worker-id").read_text() for member in cluster.members]
    until(lambda: "the cluster has 3 members" in cluster.members[1].log())
    for one in range(6):
        assert digest(cluster.members[2], one) == server.digest(one)
    assert len(server.gets) == gets
