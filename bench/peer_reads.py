"""What a read from another worker costs: `python -m forebay.bench.peer_reads [--mib N] [--rounds N]`.

One stream of cached data over loopback, in messages of 1 MiB, with the CPU of both sides. Beside it stand what the same
machine does without Forebay: `os.sendfile` into a bare TCP connection, and bare gRPC streams of bytes. The sides take
turns; each is a process that serves and one that reads. Forebay's also compares each block with its checksum.

`make bench` has these as lines of its group `cluster`.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

import grpc

from forebay.bench.cluster_nodes import Origin, cluster
from forebay.bench.crew import cpu_seconds, spent
from forebay.bench.dataset import make_large
from forebay.cacheruntime.client import KEEP_MEMORY
from forebay.cacheruntime.cluster.certs import SERVER_NAME, Role, create_authority, issue
from forebay.cacheruntime.cluster.channels import Channels
from forebay.cacheruntime.cluster.membership import Address, Known
from forebay.cacheruntime.cluster.peer_client import PeerClient, body_of
from forebay.cacheruntime.cluster.placement import WorkerId
from forebay.cacheruntime.cluster.security import INSECURE, Security
from forebay.cacheruntime.config import GIB, MIB, RetryConfig
from forebay.cacheruntime.keys import content_id
from forebay.cacheruntime.understore.factory import open_store
from forebay.cacheruntime.worker.peer_gate import client_side
from forebay.proto import peer_pb2 as pb

_METHOD = "/bench/Stream"
_WANT_BYTES = 8 * MIB
"""As the filler asks: one part."""

SENDFILE, BARE, BARE_TLS = "sendfile", "gRPC bytes", "gRPC bytes TLS"
PORT, PORT_TLS, BY_GRPC = "data port", "data port TLS", "by gRPC"

SIDES = (SENDFILE, BARE, BARE_TLS, PORT, PORT_TLS, BY_GRPC)


class Cost(NamedTuple):
    """Of one turn of one side."""

    gb_s: float
    cpu_s: float
    """For a GiB, of the side that serves and the one that reads together."""


def _serve_sendfile(path: str) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    with open(path, "rb") as file:
        while True:
            connection, _ = listening.accept()
            with connection:
                while request := connection.recv(8):
                    offset, position = int.from_bytes(request, "little"), 0
                    while position < _WANT_BYTES:
                        position += os.sendfile(
                            connection.fileno(), file.fileno(), offset + position, _WANT_BYTES - position
                        )


def _serve_grpc(path: str, tls: str) -> None:
    def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        offset = int.from_bytes(request, "little")
        for position in range(offset, offset + _WANT_BYTES, MIB):
            yield os.pread(descriptor, MIB, position)

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> object:
            return grpc.unary_stream_rpc_method_handler(stream)

    descriptor = os.open(path, os.O_RDONLY)
    server = grpc.server(ThreadPoolExecutor(4), handlers=[Handler()])
    print(Security.from_setting(tls or INSECURE).bind(server, "127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


Reading = Callable[[], None]
"""One read of everything; what is made ready before is not measured."""


def _read_sendfile(port: int, size: int) -> Reading:
    connection = socket.create_connection(("127.0.0.1", port))
    target = memoryview(bytearray(MIB))

    def read() -> None:
        for offset in range(0, size, _WANT_BYTES):
            connection.sendall(offset.to_bytes(8, "little"))
            for _ in range(_WANT_BYTES // MIB):
                have = 0
                while have < MIB:
                    have += connection.recv_into(target[have:])

    return read


def _read_grpc(port: int, size: int, tls: str) -> Reading:
    channel = Security.from_setting(tls or INSECURE).open_channel(f"127.0.0.1:{port}")
    grpc.channel_ready_future(channel).result(timeout=10)

    def read() -> None:
        method = channel.unary_stream(_METHOD)
        for offset in range(0, size, _WANT_BYTES):
            for _ in method(offset.to_bytes(8, "little")):
                pass

    return read


def _read_peer(port: int, size: int, tls: str, path: str, *, by_grpc: bool) -> Reading:
    security = Security.from_setting(tls or INSECURE)
    channels = Channels(security)
    store = open_store(os.path.dirname(path), {}, RetryConfig())
    entry = store.stat(os.path.basename(path))
    address = Address(f"127.0.0.1:{port}")
    reply = channels.stub(address).Identify(pb.IdentifyRequest())
    known = Known(WorkerId(reply.id), address, 0 if by_grpc else reply.data_port, 1, "serving")
    client = PeerClient(known, channels.get, client_side(security, SERVER_NAME), lambda: security.token() or "")
    found = channels.stub(address).Find(pb.FindRequest(source=store.url))
    content = content_id(store.url, entry.path, entry.size, entry.version)

    def read() -> None:
        for offset in range(0, size, _WANT_BYTES):
            want = pb.Want(
                content=content, path=os.fsencode(entry.path), size=entry.size, version=entry.version, offset=offset,
                length=_WANT_BYTES,
            )  # fmt: skip
            client.take_turn(30.0)
            exchange = client.begin(pb.ReadRequest(dataset_id=found.dataset_id, wants=[want], hops=1))
            got = 0
            while got < _WANT_BYTES:
                header = exchange.header(30.0)
                assert header.state in (pb.HIT, pb.COMING), header
                for piece in body_of(exchange, header) if header.state == pb.HIT else ():
                    got += len(piece)
            exchange.finished()

    return read


@contextmanager
def _server(side: str, path: str, tls: str = "") -> Iterator[tuple[int, int]]:
    """Process id and port of a side that serves without Forebay."""
    command = [sys.executable, "-m", "forebay.bench.peer_reads", "--serve", side, "--path", path, "--tls", tls]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def _worker(folder: Path, source: Path, tls: str) -> Iterator[tuple[int, int]]:
    """Process id and port of a worker that has all of `source` cached."""
    with cluster(folder, 1, tls) as (member,):
        member.attach(Origin(str(source)))
        member.warmup()
        yield member.pid, int(member.address.rpartition(":")[2])


_TURN_S = 120.0
"""Of one side in one round, at most."""


def _turn(server: tuple[int, int], size: int, read: str, *words: str) -> Cost:
    pid, port = server
    before = cpu_seconds([pid])
    command = [sys.executable, "-m", "forebay.bench.peer_reads", "--read", read, "--port", str(port), *words]
    command += ["--mib", str(size // MIB)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | KEEP_MEMORY, timeout=_TURN_S)
    done = json.loads(ran.stdout)
    used = spent(before, cpu_seconds([pid])) + done["cpu_s"]
    return Cost(size / done["seconds"] / 1e9, used / (size / GIB))


def measured(folder: Path, size: int, rounds: int, step: Callable[[str], None]) -> dict[str, list[Cost]]:
    """Of each side and round.

    Args:
        folder: an empty one, for everything that is made; what ran has ended afterwards, files stay.
        size: bytes of the stream.
        rounds: in which the sides take turns, another one beginning each.
        step: told what is done next.
    """
    source = folder / "source"
    source.mkdir()
    path, bundle = str(make_large(source, "data", size, 0).path), str(folder / "bundle")
    _make_bundle(folder / "ca", Path(bundle))
    found: dict[str, list[Cost]] = {side: [] for side in SIDES}
    with (
        _server("sendfile", path) as sendfile,
        _server("grpc", path) as bare,
        _server("grpc", path, bundle) as bare_tls,
        _worker(folder / "plain", source, "") as plain,
        _worker(folder / "tls", source, bundle) as tls,
    ):
        turns: dict[str, Callable[[], Cost]] = {
            SENDFILE: lambda: _turn(sendfile, size, "sendfile"),
            BARE: lambda: _turn(bare, size, "grpc"),
            BARE_TLS: lambda: _turn(bare_tls, size, "grpc", "--tls", bundle),
            PORT: lambda: _turn(plain, size, "port", "--path", path),
            PORT_TLS: lambda: _turn(tls, size, "port", "--path", path, "--tls", bundle),
            BY_GRPC: lambda: _turn(plain, size, "raw", "--path", path),
        }
        for number in range(rounds):
            step(f"one stream between workers, round {number + 1}")
            first = number % len(SIDES)
            for side in (*SIDES[first:], *SIDES[:first]):
                found[side].append(turns[side]())
    return found


def _make_bundle(authority: Path, bundle: Path) -> None:
    now = datetime.now(UTC)
    create_authority(authority, now)
    issue(authority, bundle, (Role.WORKER, "bench"), now, hosts=["localhost"])


def main() -> None:
    """Command line; `--serve` and `--read` are the processes of one side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    for name in ("--serve", "--read", "--path", "--tls"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = given.mib * MIB
    if given.serve == "sendfile":
        _serve_sendfile(given.path)
    elif given.serve:
        _serve_grpc(given.path, given.tls)
    elif given.read:
        if given.read == "sendfile":
            read = _read_sendfile(given.port, size)
        elif given.read == "grpc":
            read = _read_grpc(given.port, size, given.tls)
        else:
            read = _read_peer(given.port, size, given.tls, given.path, by_grpc=given.read == "raw")
        began, cpu = time.monotonic(), time.process_time()
        read()
        print(json.dumps({"seconds": time.monotonic() - began, "cpu_s": time.process_time() - cpu}), flush=True)
        os._exit(0)  # the end of an interpreter may wait for a thread of gRPC's that has gone with it
    else:
        with tempfile.TemporaryDirectory(prefix="forebay-bench-") as scratch:
            found = measured(Path(scratch), size, given.rounds, lambda words: None)
        print(f"{'side':<15}{'GB/s':>8}{'of gRPC':>9}{'CPU s/GiB':>11}{'of gRPC':>9}")
        for side, costs in found.items():
            bare = found[BARE_TLS if side in (BARE_TLS, PORT_TLS) else BARE]
            faster = median(mine.gb_s / other.gb_s for mine, other in zip(costs, bare, strict=True))
            dearer = median(mine.cpu_s / other.cpu_s for mine, other in zip(costs, bare, strict=True))
            gb_s, cpu_s = median(cost.gb_s for cost in costs), median(cost.cpu_s for cost in costs)
            print(f"{side:<15}{gb_s:8.2f}{faster:9.2f}{cpu_s:11.2f}{dearer:9.2f}")


if __name__ == "__main__":
    main()
