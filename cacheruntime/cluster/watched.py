"""Files that others replace while a process uses what is in them: certificates, keys, tokens.

They are looked at when they are used (a `stat` each), so that no thread and no signal is needed. Who replaces several
files leaves them for a moment not belonging together, and who writes them in place leaves half of one: what cannot be
parsed is not taken, the old value stays, and the next use looks again.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from forebay.cacheruntime.errors import UsageError

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_SETTLED_S = 2.0
"""What was changed less than this ago may change again without another time: file systems keep coarse ones (a tick of
the kernel, a second on some NAS). It is read again."""

_LARGEST_BYTES = 1 << 20
"""Of each file: certificates are some KiB."""

Contents = Mapping[str, bytes | None]
"""Name of a file -> what is in it; None: it is not there."""


class Watched(Generic[_T]):
    """What some files of a folder hold, as of now. Its methods may be called in any thread; each reads small files."""

    def __init__(self, folder: Path, names: tuple[str, ...], parse: Callable[[Contents], _T]) -> None:
        """
        Args:
            folder: of the files.
            names: of the files.
            parse: makes the value; raises UsageError for what it does not take.

        Raises:
            UsageError: from `parse`, or the files cannot be read.
        """
        self._folder = folder
        self._names = names
        self._parse = parse
        self._lock = threading.Lock()
        self._seen = self._look()
        self._read_at = time.time()
        self._contents = self._read()
        self._value = parse(self._contents)
        self._complained = ""
        self.generation = 0
        """How many other values there have been."""

    def get(self) -> _T:
        """The value of what is there now, or the last one that could be parsed. Never raises."""
        with self._lock:
            seen = self._look()
            if seen != self._seen or self._may_have_changed_unseen():
                self._reload(seen)
            return self._value

    def _reload(self, seen: tuple[object, ...]) -> None:
        read_at = time.time()
        try:
            contents = self._read()
            if contents != self._contents:
                self._value = self._parse(contents)
                self._contents = contents
                self.generation += 1
                _log.info("taken anew: %s in %s", ", ".join(self._names), self._folder)
        except UsageError as error:
            if str(error) != self._complained:
                _log.warning("%s; what was there before is used on", error)
                self._complained = str(error)
            return  # `_seen` stays as it was, so the next use tries again
        self._complained = ""
        self._seen, self._read_at = seen, read_at

    def _look(self) -> tuple[object, ...]:
        """What tells that a file is another one: inode, size, times. A link is followed (Kubernetes swaps links)."""
        found: list[object] = []
        for name in self._names:
            try:
                stat = os.stat(self._folder / name)
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(found)

    def _may_have_changed_unseen(self) -> bool:
        newest = max((each[3] for each in self._seen if isinstance(each, tuple)), default=0) / 1e9
        return newest <= time.time() and self._read_at - newest < _SETTLED_S

    def _read(self) -> Contents:
        found: dict[str, bytes | None] = {}
        for name in self._names:
            path = self._folder / name
            try:
                with open(path, "rb") as file:
                    found[name] = file.read(_LARGEST_BYTES + 1)
            except FileNotFoundError:
                found[name] = None
            except OSError as error:
                raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}") from error
            if len(found[name] or b"") > _LARGEST_BYTES:
                raise UsageError(f"{str(path)!r} is larger than 1 MiB: that is no certificate, key or token")
        return found
