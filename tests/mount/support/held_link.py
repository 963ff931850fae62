"""A TCP link to a server that can be held up after so many bytes: makes "in the middle of a read" a fact."""

import socket
import threading
from contextlib import suppress

_CHUNK_BYTES = 64 << 10


class HeldLink:
    """A proxy on loopback. Resources: `close` ends its threads."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._state = threading.Condition()
        self._left: int | None = None
        self._held = 0
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def hold_after(self, size: int) -> None:
        """Let this many more bytes of answers through, then none."""
        with self._state:
            self._left = size

    def let_others_pass(self, size: int) -> None:
        """What is held up stays so; other answers may pass that many bytes."""
        with self._state:
            self._left = size

    def wait_held(self, timeout_s: float = 20.0) -> None:
        """Until an answer is held up."""
        with self._state:
            assert self._state.wait_for(lambda: self._held > 0, timeout_s), "nothing came to the hold"

    def release(self) -> None:
        with self._state:
            self._left = None
            self._state.notify_all()

    def close(self) -> None:
        with self._state:
            self._closed, self._left = True, None
            self._state.notify_all()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            for source, sink, bounded in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._pump, args=(source, sink, bounded))
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, bounded: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                if bounded:
                    self._pass(len(data))
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        if bounded:  # the reply's pump outlives the request's
            source.close()

    def _pass(self, size: int) -> None:
        with self._state:
            if self._left is None:
                return
            if self._left >= size:
                self._left -= size
                return
            self._held += 1
            self._state.notify_all()
            self._state.wait_for(lambda: self._left is None)  # not for a new bound: see let_others_pass
            self._held -= 1
