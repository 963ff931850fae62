"""A party that sends what it likes to a worker, and looks at what the worker has left of it."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from loopback import Node, until

from forebay.cacheruntime.cluster.peer_wire import FRAME, HEADER_BYTES, Channel
from forebay.cacheruntime.config import MIB
from forebay.cacheruntime.keys import content_id
from forebay.cacheruntime.mounts import start_time
from forebay.proto import peer_pb2 as pb

PATIENCE_S = 10.0


class Footprint(NamedTuple):
    """Of a process."""

    born: int | None
    descriptors: int
    threads: int
    resident_bytes: int


def footprint(node: Node) -> Footprint:
    folder = Path(f"/proc/{node.pid}")
    pages = int((folder / "statm").read_text().split()[1])
    counts = (len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")))
    return Footprint(start_time(node.pid), *counts, pages * os.sysconf("SC_PAGE_SIZE"))


def nothing_left(node: Node, before: Footprint, threads: int = 40, grown_bytes: int = 256 * MIB) -> None:
    """The same process, and what it had before; pools of threads are filled once, and connections may linger."""
    assert footprint(node).born == before.born, node.log()[-3000:]
    until(lambda: footprint(node).descriptors <= before.descriptors + 4)
    until(lambda: footprint(node).threads <= before.threads + threads)
    assert footprint(node).resident_bytes < before.resident_bytes + grown_bytes


def data_port(node: Node) -> int:
    return int((node.config.cache_dir / "data-port").read_text())


def connect(node: Node) -> socket.socket:
    return socket.create_connection(("127.0.0.1", data_port(node)), PATIENCE_S)


def shout(node: Node, data: bytes) -> bytes:
    """Send bytes, and take what comes until the worker closes or is silent: it may wait for the rest of a frame."""
    with connect(node) as connection, suppress(OSError):  # it may have closed already
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while piece := connection.recv(1 << 16):
            got += piece
        return got
    return b""


def framed(message: bytes) -> bytes:
    return FRAME.pack(len(message)) + message


def read(node: Node, request: pb.ReadRequest) -> list[tuple[pb.ReadHeader, bytes]]:
    """The answers to a request, without COMING, until each want has one that is not bytes, or all its bytes."""
    channel = Channel(connect(node))
    left = {number: want.length for number, want in enumerate(request.wants)}
    answers = []
    try:
        channel.send(request.SerializeToString(), PATIENCE_S)
        while left:
            header = pb.ReadHeader.FromString(channel.receive(HEADER_BYTES, PATIENCE_S))
            if header.state == pb.COMING:
                continue
            body = bytearray(header.length if header.state == pb.HIT else 0)
            channel.receive_into(memoryview(body), PATIENCE_S)
            answers.append((header, bytes(body)))
            left[header.want] -= len(body)
            if header.state != pb.HIT or left[header.want] <= 0:
                del left[header.want]
    finally:
        channel.close()
    return answers


def want_of(url: str, path: str, size: int, version: str = "", **more: Any) -> pb.Want:
    """Of a file from its start on, with the name that it must have."""
    named = {"content": content_id(url, path, size, version), "path": os.fsencode(path), "size": size}
    return pb.Want(**named | {"version": version, "length": size} | more)


def call(channel: grpc.Channel, method: str, message: bytes, timeout_s: float = PATIENCE_S) -> grpc.StatusCode:
    """Send any bytes to a method; how it ended."""
    stream = channel.unary_stream(method)(message, timeout=timeout_s)
    with suppress(grpc.RpcError):
        for _ in stream:
            pass
    code: grpc.StatusCode = stream.code()
    return code


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Each path below a folder with size and mtime."""

    def entries() -> Iterator[tuple[str, tuple[int, int]]]:
        for path in sorted(folder.rglob("*")):
            status = path.lstat()
            yield str(path), (status.st_size, status.st_mtime_ns)

    return dict(entries())
