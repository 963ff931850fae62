"""Several owners of each piece: as many copies as a dataset or a path asks for, each byte fetched once."""

import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, Node, until
from range_server import RangeServer
from source_tree import MIB

from forebay.proto import worker_pb2 as pb

SMALL = 70_000


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Loopback]]:
    made: list[Any] = []

    def make(members: int, count: int, size: int, **more: Any) -> tuple[Loopback, RangeServer]:
        server = RangeServer(count, size)
        made.append(server)
        options = dict(text.split("=", 1) for text in server.args[1::2])
        made.append(Loopback(tmp_path, members, options, **more))
        return made[-1], server

    yield make
    for one in reversed(made):
        one.close()


def reader(cluster: Loopback, **more: Any) -> Node:
    """A node that owns nothing."""
    return cluster.client(**more)


def read_all(node: Node, server: RangeServer) -> None:
    for number in range(server.count):
        assert sha256(node.read("s3://bucket", str(number))).hexdigest() == server.digest(number)


def held(cluster: Loopback, asked: int = 0) -> list[int]:
    members = cluster.members[asked].client.call("Members", pb.MembersRequest()).members
    return [sum(one.bytes for one in member.datasets) for member in members]


@pytest.mark.semantics("M9")
@pytest.mark.parametrize(("count", "size"), [(2, 70 * MIB), (12, 2 * MIB), (40, SMALL)])
def test_two_owners_of_each_piece(make_cluster: Any, count: int, size: int) -> None:
    """One of them is lost: nothing is fetched again, and those that are left see to two copies again."""
    cluster, server = make_cluster(3, count, size, replicas=2)
    cluster.wait_for_shares()
    cluster.attach(server.source)
    total = count * size
    client = reader(cluster, replicas=2)
    read_all(client, server)
    until(lambda: sum(held(cluster)) == 2 * total)
    assert server.has_sent_once or cluster.is_late
    gets = len(server.gets)
    lost = cluster.members[2]
    lost.end(signal.SIGKILL)
    second = reader(cluster, replicas=2)
    read_all(second, server)
    assert len(server.gets) == gets
    shutil.rmtree(lost.config.cache_dir)
    shutil.rmtree(lost.config.tiers[0].path)
    lost.client.close()
    lost.start()  # with a new identity, and nothing
    until(lambda: sum(held(cluster)) >= 2 * total, 60.0)
    assert len(server.gets) == gets


def test_readers_use_all_owners(make_cluster: Any) -> None:
    cluster, server = make_cluster(2, 20, SMALL, replicas=2)
    dataset = cluster.attach(server.source)
    *_, last = cluster.members[0].client.warmup(pb.WarmupRequest(dataset_id=dataset))
    assert (last.state, last.files_failed, last.files_uncached) == ("done", 0, 0)
    until(lambda: held(cluster) == [20 * SMALL] * 2)
    client = reader(cluster, replicas=2)
    read_all(client, server)
    peers = client.client.call("Traffic", pb.TrafficRequest()).peers
    assert sorted(peer.bytes > 0 for peer in peers) == [True, True]
    assert server.has_sent_once or cluster.is_late


def test_a_path_has_more_copies_than_the_rest(make_cluster: Any) -> None:
    cluster, server = make_cluster(3, 9, 2 * MIB)
    request = cluster.spec(server.source).attach_request(list_tree=True)
    request.cache_policy.paths.add(path=b"4", replicas=3)
    cluster.members[0].client.call("Attach", request)
    client = reader(cluster)
    read_all(client, server)
    until(lambda: sum(held(cluster)) == 11 * 2 * MIB)
    assert server.has_sent_once or cluster.is_late


@pytest.mark.semantics("M8")
@pytest.mark.parametrize(("count", "size"), [(120, MIB), (150, 700_000)])
def test_tiers_that_together_hold_a_dataset_hold_all_of_it(make_cluster: Any, count: int, size: int) -> None:
    """Each node reads everything, twice. What it reads of the others' does not take the place of its own share."""
    # Shares are uneven: a third of 120 files is 40 +- 5, by the names of the nodes. Half of them is four sigma.
    cluster, server = make_cluster(3, count, size, quota_bytes=count * size // 2)
    cluster.attach(server.source)
    for node in cluster.members:
        node.client.attach(cluster.spec(server.source))
    epochs = []
    for _ in range(2):
        before = len(server.gets)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda node: read_all(node, server), cluster.members))
        epochs.append(len(server.gets) - before)
    print("GETs in each epoch:", epochs)
    assert epochs[0] <= 1.1 * count, "a file that was refused room may be fetched again"
    assert epochs[1] <= 0.02 * count
    members = cluster.members[0].client.call("Members", pb.MembersRequest()).members
    owned = sum(one.bytes - one.replica_bytes for member in members for one in member.datasets)
    assert owned >= 0.97 * count * size
