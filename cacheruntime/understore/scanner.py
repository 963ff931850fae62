"""A second process that scans a large tree, so that the worker's own core is left to write the catalogue.

Threads would not do: both are Python's work, and a thread that gives up the interpreter lock for each `stat` gets it
back only after the other's 5 ms. Measured on 1 million files: docs/decisions/0026.

The tree's folders that are still to be listed go to its standard input; what comes back are frames: a length (8 bytes,
big endian) and as many bytes of a marshalled tuple, a word and what belongs to it: "page" and entries as tuples, "log"
and a message, "error" with the class and the message of a `ForebayError`, and "end". Started by `PosixStore` alone.
"""

import logging
import marshal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any

from forebay.cacheruntime.errors import ForebayError, SourceUnavailable, by_name
from forebay.cacheruntime.understore.base import Entry, Kind

_KINDS = (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}

_FORMAT = 2
"""Of marshal: the last one without references, whose look-up for each object takes longer than what it saves."""

_FRAME_ENTRIES = 1000

log = logging.getLogger(__name__)


def pages_of_scanner(root: str, pending: list[str], deadline_s: float) -> Iterator[list[Entry]]:
    """What is below some folders, as `PosixStore.list_tree` gives it.

    Args:
        root: of the store.
        pending: paths of folders below it.
        deadline_s: for how long the scanner tries a folder again that fails.

    Raises:
        ForebayError: what the scanner met, or SourceUnavailable when it was killed.

    *Resources*: the process ends with the iterator.
    """
    program = [sys.executable, "-P", "-m", "forebay.cacheruntime.understore.scanner"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            marshal.dump((root, pending, deadline_s), process.stdin, _FORMAT)
            process.stdin.close()
            yield from _pages(process.stdout, root)
        finally:
            process.kill()


def _pages(frames: IO[bytes], root: str) -> Iterator[list[Entry]]:
    kinds = _KINDS
    while True:
        try:
            # Not marshal.load, which asks a pipe for each object by itself: 2 us for each entry instead of 0.7.
            word, *rest = marshal.loads(frames.read(int.from_bytes(frames.read(8), "big")))
        except (EOFError, ValueError) as error:
            raise SourceUnavailable(f"the process that scans {root!r} was ended before it was done") from error
        if word == "page":
            yield [
                Entry(path, kinds[code], size, mtime_ns, version, target, mode)
                for path, code, size, mtime_ns, version, target, mode in rest[0]
            ]
        elif word == "log":
            log.warning("%s", rest[0])
        elif word == "error":
            raise by_name(rest[0])(rest[1])
        else:
            return


def _send(out: IO[bytes], frame: tuple[Any, ...]) -> None:
    data = marshal.dumps(frame, _FORMAT)
    out.write(len(data).to_bytes(8, "big"))
    out.write(data)


class _Frames(logging.Handler):
    """Messages for the worker's log."""

    def __init__(self, out: IO[bytes]) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        _send(self._out, ("log", record.getMessage()))


def scan(given: IO[bytes], out: IO[bytes]) -> None:
    """The scanner's side."""
    from forebay.cacheruntime.config import RetryConfig
    from forebay.cacheruntime.understore.posix import PosixStore
    from forebay.cacheruntime.understore.retry import Retrier

    root, pending, deadline_s = marshal.load(given)
    logging.getLogger("forebay").addHandler(_Frames(out))
    store = PosixStore(root, f"file://{root}", Retrier(RetryConfig(deadline_s=deadline_s)))
    frame: list[tuple[Any, ...]] = []
    try:
        for page in store.walk(pending):
            frame += [(e.path, _CODES[e.kind], e.size, e.mtime_ns, e.version, e.target, e.mode) for e in page]
            if len(frame) >= _FRAME_ENTRIES:
                _send(out, ("page", frame))
                frame = []
        _send(out, ("page", frame))
        _send(out, ("end",))
    except ForebayError as error:
        _send(out, ("page", frame))
        _send(out, ("error", type(error).__name__, str(error)))
    out.flush()


if __name__ == "__main__":
    try:
        scan(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:  # the worker has had enough
        sys.exit(1)
