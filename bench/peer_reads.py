"""What a read from another worker costs: `python -m forebay.bench.peer_reads [--mib N] [--rounds N]`.

One stream of cached data over loopback, in messages of 1 MiB, with the CPU of both sides. Beside it stand what the same
machine does without Forebay: `os.sendfile` into a bare TCP connection, and a bare gRPC stream of bytes. The sides take
turns; each is a process that serves and one that reads. Forebay's also compares each block with its checksum.
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
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import grpc

from forebay.cacheruntime.client import KEEP_MEMORY
from forebay.cacheruntime.cluster.certs import SERVER_NAME, Role, create_authority, issue
from forebay.cacheruntime.cluster.channels import Channels
from forebay.cacheruntime.cluster.membership import Address, Known
from forebay.cacheruntime.cluster.peer_client import PeerClient, body_of
from forebay.cacheruntime.cluster.placement import WorkerId
from forebay.cacheruntime.cluster.security import INSECURE, Security
from forebay.cacheruntime.config import MIB, RetryConfig
from forebay.cacheruntime.keys import content_id
from forebay.cacheruntime.understore.factory import open_store
from forebay.cacheruntime.worker.peer_gate import client_side
from forebay.proto import peer_pb2 as pb

_METHOD = "/bench/Stream"
_WANT_BYTES = 8 * MIB
"""As the filler asks: one part."""

SIDES = ("sendfile", "gRPC bytes", "data port", "data port TLS", "by gRPC")


def _serve_sendfile(path: str) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    connection, _ = listening.accept()
    with open(path, "rb") as file:
        while request := connection.recv(8):
            offset, position = int.from_bytes(request, "little"), 0
            while position < _WANT_BYTES:
                position += os.sendfile(connection.fileno(), file.fileno(), offset + position, _WANT_BYTES - position)


def _serve_grpc(path: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        offset = int.from_bytes(request, "little")
        for position in range(offset, offset + _WANT_BYTES, MIB):
            yield os.pread(descriptor, MIB, position)

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> object:
            return grpc.unary_stream_rpc_method_handler(stream)

    descriptor = os.open(path, os.O_RDONLY)
    server = grpc.server(ThreadPoolExecutor(4), handlers=[Handler()])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
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


def _read_grpc(port: int, size: int) -> Reading:
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
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
            exchange = client.begin(pb.ReadRequest(dataset_id=found.dataset_id, wants=[want], hops=1))
            got = 0
            while got < _WANT_BYTES:
                header = exchange.header(30.0)
                assert header.state in (pb.HIT, pb.COMING), header
                for piece in body_of(exchange, header) if header.state == pb.HIT else ():
                    got += len(piece)
            exchange.finished()

    return read


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _server(side: str, path: str) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "forebay.bench.peer_reads", "--serve", side, "--path", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def _worker(folder: Path, source: Path, tls: str) -> Iterator[tuple[int, int]]:
    """A `forebay worker` that has all of `source` cached."""
    from forebay.cacheruntime.client import WorkerClient, start_worker, worker_pid
    from forebay.cacheruntime.config import CacheConfig, ClusterConfig, Medium, TierConfig
    from forebay.cacheruntime.dataset_source import SourceSpec
    from forebay.proto import worker_pb2 as worker_pb

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    own = f"127.0.0.1:{port}"
    config = CacheConfig(
        folder / "cache", (TierConfig(Medium.SSD, folder / "tier", 1 << 40),), folder / "run",
        cluster=ClusterConfig(listen=own, peers=f"static:{own}", advertise=own, tls=tls),
    )  # fmt: skip
    start_worker(config)
    client = WorkerClient(config)
    pid = worker_pid(config)
    assert pid is not None
    try:
        reply = client.attach(SourceSpec(str(source), {}), list_tree=True)
        for _ in client.warmup(worker_pb.WarmupRequest(dataset_id=reply.dataset_id)):
            pass
        yield pid, port
    finally:
        client.close()
        os.kill(pid, 15)
        while worker_pid(config) is not None:
            time.sleep(0.05)


def _turn(server_pid: int, arguments: list[str], size: int) -> tuple[float, float]:
    """GB/s, and CPU seconds of both sides for a GiB."""
    before = _cpu_s(server_pid)
    command = [sys.executable, "-m", "forebay.bench.peer_reads", *arguments, "--mib", str(size // MIB)]
    done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | KEEP_MEMORY).stdout)
    return size / done["seconds"] / 1e9, (_cpu_s(server_pid) - before + done["cpu_s"]) / (size / 2**30)


def measured(size: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Of each side and round: GB/s and CPU seconds a GiB."""
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        path = str(source / "data")
        with open(path, "wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
        authority, bundle = Path(scratch) / "ca", Path(scratch) / "bundle"
        _make_bundle(authority, bundle)
        with (
            _server("sendfile", path) as sendfile,
            _server("grpc", path) as bare,
            _worker(Path(scratch) / "plain", source, "") as plain,
            _worker(Path(scratch) / "tls", source, str(bundle)) as tls,
        ):
            turns: dict[str, Callable[[], tuple[float, float]]] = {
                "gRPC bytes": lambda: _turn(bare[0], ["--read", "grpc", "--port", str(bare[1])], size),
                "data port": lambda: _turn(plain[0], ["--read", "port", "--port", str(plain[1]), "--path", path], size),
                "data port TLS": lambda: _turn(
                    tls[0], ["--read", "port", "--port", str(tls[1]), "--path", path, "--tls", str(bundle)], size
                ),
                "by gRPC": lambda: _turn(plain[0], ["--read", "raw", "--port", str(plain[1]), "--path", path], size),
            }
            for number in range(rounds):
                if number:
                    with _server("sendfile", path) as again:
                        found["sendfile"].append(_turn(again[0], ["--read", "sendfile", "--port", str(again[1])], size))
                else:
                    found["sendfile"].append(
                        _turn(sendfile[0], ["--read", "sendfile", "--port", str(sendfile[1])], size)
                    )
                for side, turn in turns.items():
                    found[side].append(turn())
    return found


def _make_bundle(authority: Path, bundle: Path) -> None:
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    create_authority(authority, now)
    issue(authority, bundle, (Role.WORKER, "bench"), now, hosts=["localhost"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    for name in ("--serve", "--read", "--path", "--tls"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = given.mib * MIB
    if given.serve:
        (_serve_sendfile if given.serve == "sendfile" else _serve_grpc)(given.path)
    elif given.read:
        if given.read == "sendfile":
            read = _read_sendfile(given.port, size)
        elif given.read == "grpc":
            read = _read_grpc(given.port, size)
        else:
            read = _read_peer(given.port, size, given.tls, given.path, by_grpc=given.read == "raw")
        began, cpu = time.monotonic(), time.process_time()
        read()
        print(json.dumps({"seconds": time.monotonic() - began, "cpu_s": time.process_time() - cpu}))
    else:
        found = measured(size, given.rounds)
        print(f"{'side':<15}{'GB/s':>8}{'of gRPC':>9}{'CPU s/GiB':>11}")
        for side, values in found.items():
            ratio = median(mine[0] / bare[0] for mine, bare in zip(values, found["gRPC bytes"], strict=True))
            print(f"{side:<15}{median(v[0] for v in values):8.2f}{ratio:9.2f}{median(v[1] for v in values):11.2f}")


if __name__ == "__main__":
    main()
