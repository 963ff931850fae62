"""A TCP proxy that flips bits of what it passes back. A program.

``python flip_proxy.py LISTEN UPSTREAM EVERY`` (HOST:PORT twice; EVERY: one bit of so many bytes, 0: of none) prints
its number of flipped bits for each line of its standard input, and ends with that. Standard library only.
"""

import asyncio
import random
import sys
from contextlib import suppress

_PIECE_BYTES = 64 << 10


class Flipper:
    """Passes connections on."""

    def __init__(self, upstream: str, every: int) -> None:
        self._upstream, self._every = upstream, every
        self._rng = random.Random(upstream)
        self.flipped = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._upstream.rpartition(":")
        try:
            upstream, to_upstream = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, to_upstream, False), self._pass(upstream, writer, True))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: bool) -> None:
        with suppress(OSError):
            while data := bytearray(await reader.read(_PIECE_BYTES)):
                if back and self._every and self._rng.random() < len(data) / self._every:
                    data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
                    self.flipped += 1
                writer.write(data)
                await writer.drain()
        writer.close()


async def _main(listen: str, upstream: str, every: str) -> None:
    flipper = Flipper(upstream, int(every))
    host, _, port = listen.rpartition(":")
    server = await asyncio.start_server(flipper.serve, host, int(port))
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(flipper.flipped, flush=True)
    server.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
