"""Handing a mount's descriptors from one supervisor to the next, over a Unix socket in the mount's folder.

The successor connects and gets one message with the descriptors (SCM_RIGHTS). It goes on from what the mount's folder
says, answers ``taken``, and the old one leaves. Until then the old one goes on: a successor that dies changes nothing.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path

_NAME = "control.sock"
_CONFIRM_S = 10.0
_DESCRIPTORS = 2


class Listener:
    """The old supervisor's side."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def give(self, descriptors: list[int]) -> bool:
        """Answer who has connected; True when it has taken over."""
        with suppress(OSError):
            connection, _ = self._socket.accept()
            with connection:
                connection.settimeout(_CONFIRM_S)
                socket.send_fds(connection, [b"mount"], descriptors)
                return connection.recv(16) == b"taken"
        return False


class Handed:
    """The successor's side."""

    def __init__(self, connection: socket.socket, descriptors: list[int]) -> None:
        self._connection = connection
        self.descriptors = descriptors

    def confirm(self) -> None:
        """The old supervisor may leave."""
        self._connection.sendall(b"taken")
        self._connection.close()


def listen(folder: Path) -> Listener:
    """Wait for successors; takes the place of a supervisor that was there before."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with _short(folder) as path:
        # Made aside and renamed: the name always leads to somebody.
        draft = f"{path}.{os.getpid()}"
        sock.bind(draft)
        os.chmod(draft, 0o600)
        sock.listen(4)
        os.rename(draft, path)
    return Listener(sock)


def ask(folder: Path) -> Handed:
    """Ask the living supervisor for its descriptors.

    Raises:
        OSError: there is none, or it does not answer.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    connection.settimeout(_CONFIRM_S)
    with _short(folder) as path:
        connection.connect(path)
    _, descriptors, _, _ = socket.recv_fds(connection, 16, _DESCRIPTORS)
    if len(descriptors) != _DESCRIPTORS:
        raise OSError("the supervisor handed over nothing")
    return Handed(connection, descriptors)


class _short:
    """The socket's path by way of a descriptor of its folder: a socket's own path holds 107 bytes at most."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> str:
        self._descriptor = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._descriptor}/{_NAME}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
