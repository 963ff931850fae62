"""An HTTP/1.1 proxy that does to answers what it is told: the middle of all proxies that make faults.

It passes bodies on as they come, and remembers every exchange. Who decides about faults is no affair of its own.
Standard library only.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

_PIECE_BYTES = 64 << 10
_HEAD_BYTES = 256 << 10
_NOT_PASSED = {"connection", "transfer-encoding", "keep-alive", "content-length", "expect"}
_PACES_PER_S = 20


@dataclass
class Fault:
    """What happens to one answer; parts go together."""

    latency_s: float = 0.0
    """Waits before anything else."""
    instead: str = ""
    """Not passed on: "reset" (the connection), "silent" (never an answer), or a status as a number."""
    body: str = ""
    """"half": its first half, then the end of the stream, while the connection stays open the other way. "stall": its
    first half, then nothing more. "flip": one bit is another. "length": `amount` more or fewer bytes, and
    Content-Length true to it."""
    amount: int = -1
    """For "length", in bytes."""
    at: float = 0.5
    """For "flip": where, as a share of the body."""
    rate: float = 0.0
    """The body goes no faster, in bytes per second; 0: as fast as it can."""

    @property
    def names(self) -> list[str]:
        parts = {"latency": self.latency_s, self.instead: self.instead, self.body: self.body, "rate": self.rate}
        return [name for name, there in parts.items() if there]


@dataclass
class Exchange:
    """A request and what came of it."""

    method: str
    target: str
    """As it was sent: path and query, quoted."""
    headers: list[tuple[str, str]] = field(repr=False)
    status: int = 0
    """Of the answer; 0: none."""
    sent: int = 0
    """Bytes of the body that were sent."""
    faults: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Without query, not quoted."""
        return unquote(urlsplit(self.target).path, errors="surrogateescape")

    @property
    def query(self) -> str:
        return urlsplit(self.target).query

    def header(self, name: str) -> str:
        """The first of that name in lower case, or ''."""
        return next((value for key, value in self.headers if key.lower() == name), "")


Decide = Callable[[Exchange, int | None], Fault]
"""Asked twice for each exchange: with None before it is passed on (for `latency_s` and `instead`), and with the size of
the body, if there is one, before that is sent (for the rest)."""


class HttpProxy:
    """Between clients and one server, in an event loop of the caller's."""

    def __init__(self, upstream: str, decide: Decide) -> None:
        """
        Args:
            upstream: HOST:PORT.
            decide: called from the event loop.
        """
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._decide = decide
        self.exchanges: list[Exchange] = []
        """In the order in which requests came; they go on changing until the answer is sent."""

    async def serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """One connection of a client; a callback for `asyncio.start_server`."""
        try:
            while head := await _head(client):
                first, headers = head
                method, target, _ = first.split(" ", 2)
                exchange = Exchange(method, target, headers)
                self.exchanges.append(exchange)
                if exchange.header("expect"):
                    answer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await client.readexactly(int(exchange.header("content-length") or 0))
                fault = self._decide(exchange, None)
                exchange.faults += fault.names
                await asyncio.sleep(fault.latency_s)
                if fault.instead:
                    goes_on = await self._instead(exchange, fault.instead, client, answer)
                else:
                    goes_on = await self._pass_on(exchange, body, client, answer)
                if not goes_on:
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass  # one of both sides has gone: so does the other's connection
        finally:
            answer.close()

    async def _instead(
        self, exchange: Exchange, what: str, client: asyncio.StreamReader, answer: asyncio.StreamWriter
    ) -> bool:
        """Returns whether the connection goes on."""
        if what == "reset":
            _reset(answer)
            return False
        if what == "silent":
            await client.read()
            return False
        exchange.status = int(what)
        text = b"" if exchange.method == "HEAD" else b"fault"
        answer.write(f"HTTP/1.1 {what} fault\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n".encode() + text)
        await answer.drain()
        return True

    async def _pass_on(
        self, exchange: Exchange, body: bytes, client: asyncio.StreamReader, answer: asyncio.StreamWriter
    ) -> bool:
        """Returns whether the connection goes on."""
        server, request = await asyncio.open_connection(*self._upstream, limit=_HEAD_BYTES)
        try:
            lines = [f"{exchange.method} {exchange.target} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in exchange.headers if name.lower() not in _NOT_PASSED]
            if body or exchange.header("content-length"):
                lines.append(f"Content-Length: {len(body)}")
            request.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)
            await request.drain()
            return await self._answer(exchange, server, client, answer)
        finally:
            request.close()

    async def _answer(
        self,
        exchange: Exchange,
        server: asyncio.StreamReader,
        client: asyncio.StreamReader,
        answer: asyncio.StreamWriter,
    ) -> bool:
        head = await _head(server)
        if head is None:
            _reset(answer)  # as the server did
            return False
        first, headers = head
        named = {name.lower(): value for name, value in headers}
        exchange.status = int(first.split(" ", 2)[1])
        length = int(named["content-length"]) if "content-length" in named else -1
        ahead = b""
        if exchange.method == "HEAD" or exchange.status in (204, 304):
            size = 0
        elif length < 0:
            ahead = await _whole(server, named.get("transfer-encoding", ""))
            size = length = len(ahead)
        else:
            size = length
        fault = self._decide(exchange, size) if size else Fault()
        exchange.faults += fault.names
        sent = size + (fault.amount if fault.body == "length" else 0)
        if fault.body == "length":
            length = sent = max(sent, 0)
        elif fault.body in ("half", "stall"):
            sent = size // 2
        lines = ["HTTP/1.1 " + first.partition(" ")[2]]  # a server that knows 1.0 only would end our connections
        lines += [f"{name}: {value}" for name, value in headers if name.lower() not in _NOT_PASSED]
        lines += [f"Content-Length: {length}"] if length >= 0 else []
        answer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        flip = int(size * fault.at) if fault.body == "flip" else -1
        await self._send(exchange, server, ahead, answer, (size, sent, flip), fault.rate)
        if fault.body == "half":
            answer.write_eof()
        if fault.body in ("half", "stall"):
            await client.read()
        return fault.body not in ("half", "stall")

    async def _send(
        self,
        exchange: Exchange,
        server: asyncio.StreamReader,
        ahead: bytes,
        answer: asyncio.StreamWriter,
        shape: tuple[int, int, int],
        rate: float,
    ) -> None:
        """Send a body.

        Args:
            ahead: what of it is there already.
            shape: how many bytes come, how many leave, and where a bit is changed (-1: nowhere).
            rate: see `Fault`.
        """
        size, leave, flip = shape
        piece_bytes = min(_PIECE_BYTES, max(int(rate / _PACES_PER_S), 1)) if rate else _PIECE_BYTES
        loop = asyncio.get_running_loop()
        begun, at = loop.time(), 0
        while at < max(size, leave):
            if at >= size:
                piece = bytes(min(leave - at, piece_bytes))
            elif ahead:
                piece, ahead = ahead[:piece_bytes], ahead[piece_bytes:]
            else:
                piece = await server.read(min(size - at, piece_bytes))
                if not piece:
                    raise ConnectionResetError("the server broke off")
            if at <= flip < at + len(piece):
                changed = bytearray(piece)
                changed[flip - at] ^= 0x10
                piece = bytes(changed)
            kept = piece[: max(leave - at, 0)]
            at += len(piece)
            if kept:
                answer.write(kept)
                await answer.drain()
                exchange.sent += len(kept)
                if rate:
                    await asyncio.sleep(begun + exchange.sent / rate - loop.time())
        await answer.drain()


async def _head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]] | None:
    """The first line and the headers; None at the end of the stream."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError as cut:
        if cut.partial:
            raise
        return None
    first, *lines = text.split("\r\n")[:-2]
    return first, [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]


async def _whole(reader: asyncio.StreamReader, encoding: str) -> bytes:
    """A body without Content-Length: chunked, or up to the end of the stream."""
    if encoding.lower() != "chunked":
        return await reader.read()
    found = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        found += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return found


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST."""
    found: socket.socket = writer.get_extra_info("socket")
    with suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
