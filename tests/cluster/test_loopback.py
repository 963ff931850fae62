"""Workers that read from each other, as processes on loopback, before a store that counts its GETs."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from loopback import Loopback, Node, free_ports, until
from range_server import RangeServer
from source_tree import MIB

from forebay.cacheruntime.cluster.placement import SLICE_BYTES
from forebay.cacheruntime.config import ClusterConfig, FillConfig
from forebay.cacheruntime.dataset_source import SourceSpec, StoreMount, Tree
from forebay.cacheruntime.errors import SourceDenied
from forebay.proto import peer_pb2 as peer_pb
from forebay.proto import worker_pb2 as pb

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


@pytest.mark.semantics("M1")
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
    assert server.has_sent_once
    assert sum(end - start for _, start, end in server.gets) == count * size
    assert sum(node.traffic().peer_bytes for node in nodes) == 2 * count * size


def test_many_that_ask_at_once_cost_one_get(make_server: Any, make_cluster: Any) -> None:
    server = make_server(4, LARGE)
    cluster = make_cluster(3, server)
    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(digest, node, number) for node in cluster.members for number in range(4)]
        assert [job.result() for job in jobs] == [server.digest(number) for number in range(4)] * 3
    assert server.has_sent_once or cluster.is_late


@pytest.mark.parametrize(("count", "size"), [(3, 2 * SLICE_BYTES), (60, SMALL)])
def test_regression_workers_do_not_wait_for_each_other(
    make_server: Any, make_cluster: Any, count: int, size: int
) -> None:
    """Each had its slots full of what the other was to fetch, which waited there for a slot."""
    server = make_server(count, size)
    cluster = make_cluster(2, server, fill=FillConfig(parallel_gets=1))
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(digest, node, (number + place) % count)
            for number in range(count)
            for place, node in enumerate(cluster.members)
        ]
        assert Counter(job.result() for job in jobs) == dict.fromkeys(map(server.digest, range(count)), 2)
    assert not any("that it comes" in member.log() for member in cluster.members)
    assert server.has_sent_once or cluster.is_late


@pytest.mark.semantics("M2")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_worker_that_is_gone_costs_no_read(make_server: Any, make_cluster: Any, number: signal.Signals) -> None:
    server = make_server(12, 3 * MIB)
    cluster = make_cluster(3, server)
    reader, gone = cluster.members[0], cluster.members[1]
    if number is signal.SIGSTOP:
        cluster.wait_for_shares()  # else it gets its share from the others when it is back
    for one in range(6):
        assert digest(reader, one) == server.digest(one)
    before = gone.traffic()
    if number is signal.SIGSTOP:
        os.kill(gone.pid, number)
    else:
        gone.end(number)
    for one in range(12):
        assert digest(reader, one) == server.digest(one)
    if number is signal.SIGSTOP:
        os.kill(gone.pid, signal.SIGCONT)
        time.sleep(0.5)  # for what should not come
        assert gone.traffic() == before, "it has fetched what nobody waits for any more"


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


@pytest.mark.semantics("M4")
def test_a_worker_keeps_its_share_through_a_restart(make_server: Any, make_cluster: Any) -> None:
    server = make_server(6, 2 * MIB)
    cluster = make_cluster(3, server)
    for one in range(6):
        digest(cluster.members[0], one)
    gets = len(server.gets)
    ids = [(member.config.cache_dir / "worker-id").read_text() for member in cluster.members]
    known = "the cluster has 3 members"
    before = cluster.members[1].log().count(known)
    cluster.members[1].end()
    cluster.members[1].start()
    assert ids == [(member.config.cache_dir / "worker-id").read_text() for member in cluster.members]
    until(lambda: cluster.members[1].log().count(known) > before)
    for one in range(6):
        assert digest(cluster.members[2], one) == server.digest(one)
    assert cluster.members[1].traffic().gets == 0
    assert len(server.gets) == gets


@pytest.mark.semantics("M6")
@pytest.mark.parametrize(("count", "size"), [(3, 70 * MIB), (60, SMALL)])
def test_a_warm_up_loads_each_share_where_it_belongs(
    make_server: Any, make_cluster: Any, count: int, size: int
) -> None:
    server = make_server(count, size)
    cluster = make_cluster(3, server)
    dataset = cluster.attach(server.source)
    node = cluster.members[0]
    *_, last = node.client.warmup(pb.WarmupRequest(dataset_id=dataset))
    assert (last.state, last.files_done, last.files_failed, last.files_uncached) == ("done", count, 0, 0)
    assert last.bytes_done == last.bytes_total == last.bytes_fetched == count * size
    assert server.has_sent_once
    members = node.client.call("Members", pb.MembersRequest(dataset_id=dataset)).members
    held = {member.address: member.datasets[0].bytes if member.datasets else 0 for member in members}
    assert sum(held.values()) == count * size
    assert len([size for size in held.values() if size]) > 1
    gets = len(server.gets)
    for one in range(count):
        assert digest(cluster.members[2], one) == server.digest(one)
    assert len(server.gets) == gets


def test_who_holds_what_below_a_path(make_server: Any, make_cluster: Any) -> None:
    server = make_server(4, 2 * MIB)
    cluster = make_cluster(2, server)
    dataset = cluster.attach(server.source)
    cluster.members[1].client.attach(cluster.spec(server.source), list_tree=True)
    list(cluster.members[1].client.warmup(pb.WarmupRequest(dataset_id=dataset, paths=[b"0", b"1"], local=True)))
    asked = pb.MembersRequest(dataset_id=dataset, path=b"0")
    members = {member.address: member for member in cluster.members[0].client.call("Members", asked).members}
    own = cluster.members[1].config.cluster.listen
    held = members[own].datasets[0]
    assert (held.bytes, held.files, held.path_bytes, held.path_files) == (4 * MIB, 2, 2 * MIB, 1)
    gone = cluster.members[1]
    gone.end()
    members = {member.address: member for member in cluster.members[0].client.call("Members", asked).members}
    assert members[own].state == "away"
    assert members[own].trouble


def held(cluster: Loopback, asked: int = 0) -> list[int]:
    """Bytes that each member holds, as one of them says."""
    members = cluster.members[asked].client.call("Members", pb.MembersRequest()).members
    by_address = {member.address: sum(one.bytes for one in member.datasets) for member in members}
    return [by_address[node.config.cluster.listen] for node in cluster.members if node.config.cluster is not None]


@pytest.mark.semantics("M5")
@pytest.mark.parametrize(("count", "size"), [(3, 70 * MIB), (60, SMALL)])
def test_a_drained_worker_takes_nothing_with_it(make_server: Any, make_cluster: Any, count: int, size: int) -> None:
    server = make_server(count, size)
    cluster = make_cluster(3, server)
    dataset = cluster.attach(server.source)
    list(cluster.members[0].client.warmup(pb.WarmupRequest(dataset_id=dataset)))
    gets = len(server.gets)
    leaving = max((1, 2), key=lambda number: held(cluster)[number])
    *_, last = cluster.stub(leaving).Drain(peer_pb.DrainRequest())
    assert (last.finished, last.lost_bytes) == (True, 0)
    assert last.moved_bytes == held(cluster)[leaving]
    cluster.members[leaving].end(signal.SIGKILL)
    for one in range(count):
        assert digest(cluster.members[0], one) == server.digest(one)
    assert len(server.gets) == gets


@pytest.mark.semantics("M5")
def test_who_comes_gets_its_share_from_the_others(make_server: Any, make_cluster: Any) -> None:
    server = make_server(80, SMALL)
    cluster = make_cluster(3, server, later=1)
    dataset = cluster.attach(server.source)
    list(cluster.members[0].client.warmup(pb.WarmupRequest(dataset_id=dataset)))
    gets, before = len(server.gets), held(cluster)
    assert sum(before[:2]) == 80 * SMALL
    cluster.members[2].start()
    share = 80 * SMALL // 8  # a third is expected
    until(lambda: held(cluster)[2] >= share, 120.0)
    for one in range(80):
        assert digest(cluster.members[2], one) == server.digest(one)
    assert len(server.gets) == gets


_SPOIL_SUMS = """
import lmdb, sys
with lmdb.open(sys.argv[1], max_dbs=20, map_size=1 << 37) as index, index.begin(write=True) as txn:
    sums = index.open_db(b"sums", txn, create=False)
    for key, value in list(txn.cursor(db=sums)):
        txn.put(key, bytes([value[0] ^ 1]) + value[1:], db=sums)
"""


@pytest.mark.semantics("M3")
def test_wrong_bytes_of_a_worker_are_refused_counted_and_mended(make_server: Any, make_cluster: Any) -> None:
    """Its index says another checksum than the bytes have: as when they were damaged on the disk, or on the way."""
    server = make_server(32, 2 * MIB)
    cluster = make_cluster(2, server)
    owner, reader = cluster.members
    for one in range(32):
        digest(owner, one)
    owned = held(cluster)[0]
    assert owned == 32 * 2 * MIB
    owner.end(signal.SIGKILL)  # after an orderly end it would see that its index was changed
    # LMDB is opened once in a process, and this one has it.
    subprocess.run([sys.executable, "-c", _SPOIL_SUMS, str(owner.config.index_dir)], check=True)
    owner.start()
    cluster.attach(server.source)
    unread = iter(range(32))

    def refused() -> bool:
        """The reader may find out late that the owner is back: it reads file after file until it has."""
        one = next(unread)
        assert digest(reader, one) == server.digest(one)
        return any(peer.wrong for peer in reader.client.call("Traffic", pb.TrafficRequest()).peers)

    until(refused)
    until(lambda: owner.client.call("Status", pb.StatusRequest()).damaged_files >= 1)


@pytest.mark.semantics("M7")
def test_local_folders(tmp_path: Path) -> None:
    """A worker that is told of file:///... by another opens nothing."""
    source = tmp_path / "s"
    source.mkdir()
    (source / "f").write_bytes(b"x" * 3 * MIB)
    cluster = Loopback(tmp_path, 2, {})
    try:
        assert cluster.members[0].read(f"file://{source}", "f") == b"x" * 3 * MIB
        dataset = cluster.members[0].client.attach(cluster.spec("file:///")).dataset_id
        with pytest.raises(grpc.RpcError, match="attach it on this worker too"):
            list(cluster.stub(1).List(peer_pb.ListRequest(dataset_id=dataset)))
    finally:
        cluster.close()


def test_a_client_without_a_tier_reads_within_its_memory(make_server: Any, make_cluster: Any) -> None:
    """[R4]"""
    budget = 64 * MIB
    server = make_server(2, 300 * MIB + 17)
    cluster = make_cluster(2, server)
    client = cluster.client(0, FillConfig(memory_bytes=budget))
    client.files().ls("forebay://s3://bucket")  # it is at work
    before = _peak_bytes(client.pid)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda one: _streamed(client, one), range(2))) == [server.digest(0), server.digest(1)]
    assert _peak_bytes(client.pid) - before < 2 * budget
    assert server.has_sent_once
    assert client.client.call("Status", pb.StatusRequest()).tiers == []


def _streamed(node: Node, number: int) -> str:
    found = sha256()
    with node.open("s3://bucket", str(number)) as file:
        while piece := file.read(MIB):
            found.update(piece)
    return found.hexdigest()


def _peak_bytes(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_a_drain_that_cannot_list_says_what_is_lost_and_harms_nobody(
    make_server: Any, make_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(8, 2 * MIB)
    cluster = make_cluster(2, server)
    for one in range(8):
        digest(cluster.members[0], one)
    leaving = cluster.members[1]  # it was never asked for a listing
    before, pid = held(cluster)[1], leaving.pid
    assert before
    monkeypatch.setattr(server, "refuses_listings", True)
    *_, last = cluster.stub(1).Drain(peer_pb.DrainRequest())
    assert (last.finished, last.lost_bytes, leaving.pid) == (True, before, pid)


def test_a_drain_ends_when_it_is_undone(make_server: Any, make_cluster: Any) -> None:
    server = make_server(1, MIB)
    cluster = make_cluster(2, server)
    drain = cluster.stub(0).Drain(peer_pb.DrainRequest())
    assert not next(drain).finished
    assert next(iter(cluster.stub(0).Drain(peer_pb.DrainRequest(undo=True)))).finished
    with pytest.raises(grpc.RpcError, match="undone"):
        list(drain)
    assert cluster.stub(0).Identify(peer_pb.IdentifyRequest()).state == "serving"


def test_hundreds_of_reads_at_once_are_no_more_than_a_worker_allows(make_server: Any, make_cluster: Any) -> None:
    """A worker that says that it has too much under way would be taken for one that fails."""
    server = make_server(600, 5000)
    cluster = make_cluster(2, server)
    client = cluster.client()
    dataset = client.client.attach(cluster.spec(server.source), list_tree=True).dataset_id
    *_, last = client.client.warmup(pb.WarmupRequest(dataset_id=dataset, local=True))
    assert (last.state, last.files_done) == ("done", 600)
    assert "under way, which is the limit" not in "".join(member.log() for member in cluster.members)


def test_a_client_node_hears_what_the_owners_say_of_the_source_without_waiting(
    make_server: Any, make_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(2, MIB)
    cluster = make_cluster(2, server)
    client = cluster.client()
    assert digest(client, 0) == server.digest(0)
    monkeypatch.setattr(server, "refuses_gets", True)
    began = time.monotonic()
    with pytest.raises(SourceDenied, match="HTTP 403"):
        digest(client, 1)
    assert time.monotonic() - began < 15  # with nothing to say but that nobody gives it, half a minute is tried
    monkeypatch.setattr(server, "refuses_gets", False)
    assert digest(client, 1) == server.digest(1)


def test_a_file_of_two_datasets_is_to_be_had_through_either(make_server: Any, make_cluster: Any) -> None:
    """It is cached once, as the first one's."""
    server = make_server(6, 2 * MIB)
    cluster = make_cluster(2, server)
    for one in range(6):
        digest(cluster.members[0], one)
    gets = len(server.gets)
    options = cluster.spec(server.source).options
    named = SourceSpec("dataset://default/both", {}, Tree((StoreMount("in", server.source, options),), "epoch"))
    cluster.members[0].client.attach(named)
    client = cluster.client()
    dataset = client.client.attach(named, list_tree=True).dataset_id
    *_, last = client.client.warmup(pb.WarmupRequest(dataset_id=dataset, local=True))
    assert (last.state, last.files_done, last.files_failed) == ("done", 6, 0)
    assert len(server.gets) == gets


def test_a_worker_that_the_list_names_twice_is_one_member(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    own = f"127.0.0.1:{port}"
    node = Node(tmp_path, ClusterConfig(listen=own, advertise=own, peers=f"static:localhost:{port},{own}"), {})
    try:
        node.start()
        members = node.client.call("Members", pb.MembersRequest()).members
        assert [(member.address, member.me) for member in members] == [(own, True)]
    finally:
        node.close()
