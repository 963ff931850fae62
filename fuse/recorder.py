"""Recording what the kernel says to a mount, and playing it to the codec.

Storage format of a recording: `_MAGIC`, then for each message of the kernel when it came (milliseconds on the monotonic
clock) and its length (`_FRAME`), and the raw message. Handlers write one file each, ``INCARNATION.fuse``, in the folder
that the file ``record`` in the mount's runtime folder names; they look for that file a few times a second. Names of
files are in a recording, their content is not.
"""

import logging
import os
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from forebay.fuse import wire
from forebay.fuse.roster import now_ms

log = logging.getLogger(__name__)

_MAGIC = b"forebay recording 1\n"
_FRAME = struct.Struct("=QI")
_WISH = "record"


class Recorder:
    """A handler's side. Resources: `close` ends the file."""

    def __init__(self, mount_folder: Path, incarnation: int) -> None:
        self._wish = mount_folder / _WISH
        self._name = f"{incarnation}.fuse"
        self._descriptor = -1

    @property
    def active(self) -> bool:
        return self._descriptor >= 0

    def look(self) -> None:
        """Begin or end as wished."""
        try:
            folder = self._wish.read_text()
        except OSError:
            self.close()
            return
        if not self.active:
            try:
                self._descriptor = os.open(
                    os.path.join(folder, self._name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
                )
                if os.fstat(self._descriptor).st_size == 0:
                    os.write(self._descriptor, _MAGIC)
            except OSError as error:
                log.warning("nothing is recorded in %s: %s", folder, error.strerror)
                with suppress(OSError):
                    self._wish.unlink()
                self.close()

    def record(self, message: bytes) -> None:
        """Note one message; a disk that is full ends the recording, never the mount."""
        try:
            os.write(self._descriptor, _FRAME.pack(now_ms(), len(message)) + message)
        except OSError as error:
            log.warning("the recording ends: %s", error.strerror)
            with suppress(OSError):
                self._wish.unlink()
            self.close()

    def close(self) -> None:
        if self.active:
            os.close(self._descriptor)
            self._descriptor = -1


def begin(mount_folder: Path, folder: Path) -> None:
    """Have the handlers of a mount record into a folder."""
    draft = mount_folder / f"{_WISH}.{os.getpid()}"
    draft.write_text(str(folder))
    draft.rename(mount_folder / _WISH)


def end(mount_folder: Path) -> None:
    (mount_folder / _WISH).unlink(missing_ok=True)


def messages(recording: Path) -> Iterator[tuple[int, bytes]]:
    """When each message came (ms) and the message; one that was cut short by a crash at the end is left out.

    Raises:
        ValueError: it is no recording.
    """
    with recording.open("rb") as source:
        if source.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{recording} is no recording of a mount")
        while len(frame := source.read(_FRAME.size)) == _FRAME.size:
            when, length = _FRAME.unpack(frame)
            message = source.read(length)
            if len(message) < length:
                return
            yield when, message


@dataclass
class Replayed:
    """What the codec made of recordings."""

    requests: Counter[str] = field(default_factory=Counter)
    """By name."""
    malformed: list[str] = field(default_factory=list)


def replay(recordings: list[Path]) -> Replayed:
    """Feed every message to the codec."""
    found = Replayed()
    for recording in recordings:
        for _, message in messages(recording):
            try:
                _, request = wire.parse(message)
            except wire.MalformedMessage as error:
                found.malformed.append(f"{recording.name}: {error}")
            else:
                found.requests[type(request).__name__] += 1
    return found
