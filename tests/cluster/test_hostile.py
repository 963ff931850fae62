"""Strangers at a worker's two ports: any bytes, any message, any path, and clients that are slow on purpose."""

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from loopback import Loopback, Node, until
from parties import Parties
from range_server import RangeServer
from source_tree import MIB
from stranger import call, connect, data_port, footprint, framed, nothing_left, read, shout, tree, want_of

from forebay.cacheruntime.cluster.certs import SERVER_NAME, Role
from forebay.cacheruntime.cluster.channels import Channels
from forebay.cacheruntime.cluster.membership import Address
from forebay.cacheruntime.cluster.peer_client import READ_METHOD
from forebay.cacheruntime.cluster.peer_wire import Channel, PeerBroken
from forebay.cacheruntime.cluster.security import Security
from forebay.cacheruntime.cluster.tokens import Verb, create_token
from forebay.cacheruntime.config import LimitConfig
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.keys import content_id
from forebay.cacheruntime.worker.peer_gate import CONNECTIONS_PER_STREAM
from forebay.proto import peer_pb2 as pb

pytestmark = [pytest.mark.slow]

SECRET = b"nobody's business " * 7
METHODS = {
    "Identify": pb.IdentifyRequest, "Define": pb.DefineRequest, "Find": pb.FindRequest, "List": pb.ListRequest,
    "Look": pb.LookRequest, "Load": pb.LoadRequest, "Drain": pb.DrainRequest, "Report": pb.ReportRequest,
    "Read": pb.ReadRequest,
}  # fmt: skip


def full_name(method: str) -> str:
    return READ_METHOD if method == "Read" else f"/forebay.cache.v1.Peer/{method}"


class Place:
    """A worker with a dataset that is a folder, and secrets all around it."""

    def __init__(self, root: Path) -> None:
        self.root = root / "data" / "set"
        (self.root / "inner").mkdir(parents=True)
        (self.root / "file").write_bytes(b"open to all")
        (self.root / "inner" / "large").write_bytes(os.urandom(3 * MIB))
        for place in (root / "secret", root / "data" / "secret"):
            place.write_bytes(SECRET)
        (self.root / "link").symlink_to(root)
        (self.root / "direct").symlink_to(root / "secret")
        self.outside = root
        self.cluster = Loopback(root / "nodes", 1, {})
        self.node = self.cluster.members[0]
        self.url = f"file://{self.root}"
        self.dataset = str(self.node.client.attach(SourceSpec(self.url, {}), list_tree=True).dataset_id)
        assert self.node.config.cluster is not None
        self.channel = grpc.insecure_channel(self.node.config.cluster.listen)

    def close(self) -> None:
        self.channel.close()
        self.cluster.close()

    def read(self, *wants: pb.Want, **more: Any) -> list[tuple[pb.ReadHeader, bytes]]:
        return read(self.node, pb.ReadRequest(**{"dataset_id": self.dataset, "wants": wants, "hops": 1} | more))

    def file(self) -> pb.Want:
        """The want of a file that is there."""
        entry = self.cluster.stub(0).Look(pb.LookRequest(dataset_id=self.dataset, path=b"file")).entry
        return want_of(self.url, "file", entry.size, entry.version)

    def serves(self) -> bool:
        return [body for _, body in self.read(self.file())] == [b"open to all"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with closing(Place(tmp_path_factory.mktemp("p"))) as made:
        yield made


PATHS = [
    "../secret", "../../secret", "inner/../../secret", "./../secret", "inner/..", "..", ".", "/", "//", "/etc/passwd",
    "../../../../../../../../../../etc/passwd", "link/secret", "link/../secret", "link/data/secret", "link", "direct",
    "file/../../secret", "inner//large", "inner/large/", "\0", "file\0", "../secret\0x", "a" * 300, "a/" * 3000 + "b",
    "\udcff\udcfe", "file/x", "/proc/self/environ", "inner/./large", "..%2fsecret", "%2e%2e/secret",
]  # fmt: skip


def test_no_path_leads_out_of_a_dataset(place: Place) -> None:
    stub = place.cluster.stub(0)
    before = tree(place.outside / "data"), (place.outside / "secret").stat()
    codes: set[tuple[Any, str]] = set()
    for path in [*PATHS, str(place.outside / "secret"), os.path.relpath("/etc/passwd", place.root)]:
        raw = os.fsencode(path)
        for children in (False, True):
            try:
                reply = stub.Look(pb.LookRequest(dataset_id=place.dataset, path=raw, children=children), timeout=10)
            except grpc.RpcError as error:
                codes.add((error.code(), path))
                continue
            names = {entry.path for entry in (reply.entry, *reply.children)}
            assert not any(b"secret" in name or b"passwd" in name for name in names), path
            assert path in ("link", "direct"), (path, reply)  # links are described, as listings have them
            assert reply.entry.kind == "symlink"
        for size in (len(SECRET), os.stat("/etc/passwd").st_size, 11):
            want = want_of(place.url, path, size)
            for mode in (pb.FETCH, pb.ONLY_CACHED):
                ((header, body),) = place.read(want, mode=mode)
                assert header.state == (pb.FAILED if mode == pb.FETCH else pb.MISSING), (path, header)
                assert not body
            (loaded,) = stub.Load(pb.LoadRequest(dataset_id=place.dataset, wants=[want]), timeout=10)
            assert loaded.error, path
        call(place.channel, full_name("List"), pb.ListRequest(dataset_id=place.dataset, path=raw).SerializeToString())
        report = stub.Report(pb.ReportRequest(dataset_id=place.dataset, path=raw), timeout=10)
        assert all(held.path_bytes <= held.bytes for held in report.datasets)
    assert (tree(place.outside / "data"), (place.outside / "secret").stat().st_mtime_ns) == (
        before[0], before[1].st_mtime_ns,
    )  # fmt: skip
    assert {code for code, _ in codes} == {grpc.StatusCode.FAILED_PRECONDITION}, codes
    cached = [
        path.read_bytes()
        for path in (place.outside / "nodes").rglob("*")
        if path.is_file() and path.stat().st_size < MIB
    ]
    assert not any(SECRET[:40] in data for data in cached)
    assert place.serves()


def test_names_of_other_kinds(place: Place) -> None:
    """Ids that are none, and sources and datasets that nobody knows."""
    stub = place.cluster.stub(0)
    for name in ("", "../../x", "0" * 16, "\0", "x" * 1000, "/etc", "dataset://a/b", "file:///etc"):
        for request, method in ((pb.ListRequest(dataset_id=name), "List"), (pb.LookRequest(dataset_id=name), "Look"),
                                (pb.FindRequest(source=name), "Find"), (pb.FindRequest(dataset_id=name), "Find"),
                                (pb.DefineRequest(dataset_id=name), "Define")):  # fmt: skip
            code = call(place.channel, full_name(method), request.SerializeToString())
            assert code is grpc.StatusCode.FAILED_PRECONDITION, (name, method, code)
        assert not stub.Report(pb.ReportRequest(dataset_id=name)).datasets or not name
    for content in (b"", b"\0", b"x" * 15, b"y" * 16, b"z" * 700):
        ((header, _),) = place.read(pb.Want(content=content, path=b"file", size=11, length=11), mode=pb.ONLY_CACHED)
        assert header.state == pb.MISSING
    assert place.serves()


@pytest.mark.parametrize("size", [2**64 - 1, 2**63, 2**63 - 1, 2**60, 2**44, 2**43])
def test_sizes_that_no_file_has(place: Place, size: int) -> None:
    """A claim of size costs nothing, and is no fault of the tier."""
    began = time.monotonic()
    for length in (1, MIB, size):
        for offset in (0, size // MIB * MIB - MIB):
            want = want_of(place.url, "file", size, length=length, offset=offset)
            ((header, _),) = place.read(want)
            assert header.state == pb.FAILED
            (loaded,) = place.cluster.stub(0).Load(pb.LoadRequest(dataset_id=place.dataset, wants=[want]), timeout=10)
            assert loaded.error
    assert time.monotonic() - began < 8
    assert {tier.state for tier in place.cluster.stub(0).Report(pb.ReportRequest()).tiers} == {"normal"}
    assert place.serves()


def test_too_many_wants_and_too_long_frames(place: Place) -> None:
    many = pb.ReadRequest(dataset_id=place.dataset, wants=[pb.Want(length=1, size=1)] * 4097)
    assert shout(place.node, framed(many.SerializeToString())) == b""
    assert call(place.channel, READ_METHOD, many.SerializeToString()) is grpc.StatusCode.FAILED_PRECONDITION
    load = pb.LoadRequest(dataset_id=place.dataset, wants=many.wants)
    assert call(place.channel, full_name("Load"), load.SerializeToString()) is grpc.StatusCode.FAILED_PRECONDITION
    assert shout(place.node, b"\xff\xff\xff\xff" + b"x" * 1000) == b""
    assert shout(place.node, framed(b"\x0a" + b"\xff" * 4 + b"\x7f")) == b""
    long = place.cluster.stub(0).Look
    with pytest.raises(grpc.RpcError) as refused:
        long(pb.LookRequest(dataset_id=place.dataset, path=b"x" * (5 * MIB)), timeout=10)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError):
        long(pb.LookRequest(dataset_id=place.dataset), timeout=10, metadata=[("x", "y" * (64 << 10))])
    assert place.serves()


def test_fields_of_a_later_version_are_no_trouble(place: Place) -> None:
    later = bytes.fromhex("faff0703616263")
    want = pb.Want.FromString(place.file().SerializeToString() + later)
    request = pb.ReadRequest(dataset_id=place.dataset, wants=[want], hops=1)
    answers = read(place.node, pb.ReadRequest.FromString(request.SerializeToString() + later))
    assert [body for _, body in answers] == [b"open to all"]
    assert call(place.channel, full_name("Identify"), later) is grpc.StatusCode.OK


def mutated(rng: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        at = rng.randint(0, len(found))
        match rng.randrange(5):
            case 0:
                found[at:at] = rng.randbytes(rng.randint(1, 12))
            case 1:
                del found[at : at + rng.randint(1, 12)]
            case 2 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 3:
                found[at:at] = found[at : at + rng.randint(1, 40)]
            case _:
                found[at : at + 9] = b"\xff" * 9
    return bytes(found)


def any_request(rng: random.Random, place: Place, method: str) -> bytes:
    """Random, or a true one that was damaged."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randint(0, 300))
    kind = METHODS[method]
    message = kind()
    names = set(kind.DESCRIPTOR.fields_by_name)
    if "dataset_id" in names and rng.random() < 0.9:
        message.dataset_id = place.dataset
    if "path" in names:
        message.path = os.fsencode(rng.choice([*PATHS, "file", "inner", "inner/large", ""]))
    if "wants" in names:
        for _ in range(rng.randint(0, 6)):
            path = rng.choice([*PATHS, "file", "inner/large"])
            size = rng.choice([0, 1, 11, len(SECRET), MIB, 3 * MIB, 2**40, 2**63, 2**64 - 1])
            made = want_of(place.url, path, size, rng.choice(["", "x", "1-2-3-4"]))
            made.offset = rng.choice([0, 0, 0, MIB, 2 * MIB, 1, 2**63])
            made.length = rng.choice([0, 1, 11, MIB, size, 2**63])
            made.suspect = rng.random() < 0.2
            message.wants.append(made)
    if "mode" in names:
        message.mode = rng.choice([0, 1, 2])
        message.hops = rng.choice([0, 1, 3, 2**32 - 1])
    whole = message.SerializeToString()
    return whole if rng.random() < 0.3 else mutated(rng, whole)


def fuzz(place: Place, seed: int, rounds: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    assert place.serves()
    call(place.channel, full_name("Identify"), b"")
    before = footprint(place.node)
    for _ in range(rounds):
        for method in METHODS:
            message = any_request(rng, place, method)
            code = call(place.channel, full_name(method), message)
            assert code not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE), (
                method, message.hex(),
            )  # fmt: skip
            if code is grpc.StatusCode.UNKNOWN:
                raise AssertionError(f"{method} {message.hex()}: {place.node.log()[-2000:]}")
        whole = framed(any_request(rng, place, "Read"))
        got = shout(place.node, mutated(rng, whole) if rng.random() < 0.5 else whole + framed(b"") * rng.randrange(3))
        assert SECRET[:18] not in got
    assert place.serves()
    nothing_left(place.node, before)
    assert "Traceback" not in place.node.log(), place.node.log()[-5000:]


def test_any_bytes_and_messages(place: Place) -> None:
    fuzz(place, 20, 12)


@pytest.mark.soak
def test_any_bytes_and_messages_for_long(place: Place) -> None:
    fuzz(place, random.SystemRandom().randrange(1 << 30), 1500)


def test_messages_that_cannot_be_read_leave_nothing(place: Place) -> None:
    """gRPC by itself keeps a stream of each."""
    codes = {call(place.channel, full_name("Look"), b"\xff\xff\xff") for _ in range(LimitConfig().streams + 8)}
    assert codes == {grpc.StatusCode.INVALID_ARGUMENT}
    assert call(place.channel, full_name("Identify"), b"") is grpc.StatusCode.OK


def test_connections_that_say_nothing_are_counted(place: Place) -> None:
    before = footprint(place.node)
    most = CONNECTIONS_PER_STREAM * LimitConfig().streams
    quiet = [connect(place.node) for _ in range(most + 8)]
    try:
        closed: list[socket.socket] = []

        def refused() -> bool:
            for one in quiet:
                one.setblocking(False)
                if one not in closed:
                    with suppress(BlockingIOError):
                        closed.extend([one] if one.recv(1) == b"" else [])
            return len(closed) == 8

        until(refused)
        assert call(place.channel, full_name("Identify"), b"") is grpc.StatusCode.OK
    finally:
        for one in quiet:
            one.close()
    until(place.serves)
    nothing_left(place.node, before)


def test_replies_that_nobody_reads_keep_nobody_else_waiting(place: Place) -> None:
    entry = place.cluster.stub(0).Look(pb.LookRequest(dataset_id=place.dataset, path=b"inner/large")).entry
    want = want_of(place.url, "inner/large", entry.size, entry.version)
    before = footprint(place.node)
    message = framed(pb.ReadRequest(dataset_id=place.dataset, wants=[want] * 60, hops=1).SerializeToString())
    greedy = [connect(place.node) for _ in range(20)]
    try:
        for one in greedy:
            one.sendall(message)
        for _ in range(5):
            assert place.serves()
    finally:
        for one in greedy:
            one.close()
    nothing_left(place.node, before)


def test_a_frame_that_trickles_is_given_up() -> None:
    """Each byte comes in time, the whole does not."""
    ours, theirs = socket.socketpair()
    ended = threading.Event()

    def trickle() -> None:
        ours.sendall(framed(b"x" * 1000)[:4])
        while not ended.wait(0.05):
            try:
                ours.sendall(b"x")
            except OSError:
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(PeerBroken, match="too slowly"):
            Channel(theirs).receive(1 << 20, 0.3)
        assert time.monotonic() - began < 5
    finally:
        ended.set()
        theirs.close()
        thread.join()
        ours.close()


class GatedServer(RangeServer):
    """Its bytes come when the gate is open."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(count, size)
        self.gate = threading.Event()
        self.waiting = 0

    def answer(self, handler: Any) -> None:
        if "Range" in handler.headers:
            self.waiting += 1
            self.gate.wait(30)
        super().answer(handler)


def test_fetches_of_one_party_are_bounded(tmp_path: Path) -> None:
    """As many as it may have; the rest of a request waits, another request is told."""
    with closing(GatedServer(12, 200_000)) as server:
        options = dict(text.split("=", 1) for text in server.args[1::2])
        with closing(Loopback(tmp_path, 1, options, limits=LimitConfig(fills=2))) as cluster:
            dataset = cluster.attach(server.source)
            node = cluster.members[0]
            entries = [
                entry for page in cluster.stub(0).List(pb.ListRequest(dataset_id=dataset)) for entry in page.entries
            ]
            url = cluster.spec(server.source).url
            wants = [want_of(url, os.fsdecode(entry.path), entry.size, entry.version) for entry in entries]
            held: list[Any] = []
            first = threading.Thread(
                target=lambda: held.extend(read(node, pb.ReadRequest(dataset_id=dataset, wants=wants[:10], hops=1)))
            )
            first.start()
            until(lambda: server.waiting == 2)
            second = pb.ReadRequest(dataset_id=dataset, wants=wants[10:], hops=1)
            assert all("LimitReached" in header.error for header, _ in read(node, second))
            loads = list(cluster.stub(0).Load(pb.LoadRequest(dataset_id=dataset, wants=wants[10:])))
            assert all("LimitReached" in reply.error for reply in loads)
            server.gate.set()
            first.join()
            assert sorted(header.want for header, body in held if len(body) == 200_000) == list(range(10))
            assert [len(body) for _, body in read(node, second)] == [200_000] * 2
            loads = list(cluster.stub(0).Load(pb.LoadRequest(dataset_id=dataset, wants=wants)))
            assert not any(reply.error for reply in loads)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Loopback, Parties, dict[str, str]]]:
    """A worker with certificates and two datasets; by name: their ids."""
    root = tmp_path_factory.mktemp("s")
    parties = Parties.create(root / "ca")
    bundle = parties.issue("w")
    for name in ("mine", "other"):
        (root / name).mkdir()
        (root / name / "file").write_bytes(name.encode() * 100_000)
    cluster = Loopback(root / "nodes", 1, {}, tls=str(bundle))
    ids = {}
    for name in ("mine", "other"):
        spec = SourceSpec(f"file://{root / name}", {})
        ids[name] = str(cluster.members[0].client.attach(spec, list_tree=True).dataset_id)
    yield cluster, parties, ids | {"root": str(root)}
    cluster.close()


def test_a_token_is_good_for_its_dataset_alone(secured: tuple[Loopback, Parties, dict[str, str]]) -> None:
    cluster, parties, ids = secured
    root = Path(ids["root"])
    mine, other = f"file://{root / 'mine'}", f"file://{root / 'other'}"
    client = Security(parties.issue("c", Role.CLIENT))
    token = create_token(parties.folder, [mine], [Verb.READ, Verb.LIST, Verb.WARM], time.time(), 3600)
    assert client.folder is not None
    (client.folder / "token").write_text(token)
    node = cluster.members[0]
    assert node.config.cluster is not None
    with closing(Channels(client)) as channels:
        stub = channels.stub(Address(node.config.cluster.listen))
        assert stub.Find(pb.FindRequest(source=mine)).dataset_id == ids["mine"]
        foreign = (
            (stub.Find, pb.FindRequest(source=other)), (stub.Find, pb.FindRequest(dataset_id=ids["other"])),
            (stub.Find, pb.FindRequest(source=mine + "x", dataset_id=ids["other"])),
            (stub.Look, pb.LookRequest(dataset_id=ids["other"])),
            (stub.Define, pb.DefineRequest(dataset_id=ids["mine"])),
        )  # fmt: skip
        for method, request in foreign:
            with pytest.raises(grpc.RpcError) as refused:
                method(request, timeout=10)
            assert "other" not in (refused.value.details() or "").replace(ids["other"], "").replace(other, ""), request
        with pytest.raises(grpc.RpcError):  # the id counts, and it is another's
            stub.Find(pb.FindRequest(source=mine, dataset_id=ids["other"]))
        assert [held.dataset_id for held in stub.Report(pb.ReportRequest()).datasets] in ([], [ids["mine"]])
        for method in (stub.List, stub.Load):
            request = pb.ListRequest if method is stub.List else pb.LoadRequest
            with pytest.raises(grpc.RpcError):
                list(method(request(dataset_id=ids["other"]), timeout=10))
        with pytest.raises(grpc.RpcError):
            list(stub.Drain(pb.DrainRequest(), timeout=10))
        assert _read_by(client, node, ids["mine"], mine, token)[1] == b"mine" * 100_000
        entry = (root / "other" / "file").stat()
        version = f"{entry.st_mtime_ns:x}-{entry.st_ctime_ns:x}-{entry.st_ino:x}-{entry.st_size:x}"
        node.read(other, "file")  # it is cached now, under a name that anybody can work out
        content = content_id(other, "file", entry.st_size, version)
        for dataset, mode in ((ids["mine"], pb.ONLY_CACHED), (ids["mine"], pb.FETCH), (ids["other"], pb.FETCH)):
            want = pb.Want(content=content, path=b"file", size=entry.st_size, version=version, length=entry.st_size)
            header, body = _ask(client, node, pb.ReadRequest(dataset_id=dataset, wants=[want], mode=mode, token=token))
            assert header.state in (pb.MISSING, pb.FAILED)
            assert not body


def _read_by(client: Security, node: Node, dataset: str, url: str, token: str) -> tuple[pb.ReadHeader, bytes]:
    status = Path(url.removeprefix("file://"), "file").stat()
    version = f"{status.st_mtime_ns:x}-{status.st_ctime_ns:x}-{status.st_ino:x}-{status.st_size:x}"
    want = want_of(url, "file", status.st_size, version)
    return _ask(client, node, pb.ReadRequest(dataset_id=dataset, wants=[want], token=token))


def _ask(client: Security, node: Node, request: pb.ReadRequest) -> tuple[pb.ReadHeader, bytes]:
    context = client.client_context()
    assert context is not None
    plain = socket.create_connection(("127.0.0.1", data_port(node)), 10)
    with closing(Channel(context.wrap_socket(plain, server_hostname=SERVER_NAME))) as channel:
        channel.send(request.SerializeToString(), 10)
        while True:
            header = pb.ReadHeader.FromString(channel.receive(1 << 16, 10))
            if header.state != pb.COMING:
                body = bytearray(header.length)
                channel.receive_into(memoryview(body), 10)
                return header, bytes(body)
