"""Tier folders: where the bytes lie, how full each tier is, and which one takes the next file.

Storage format of a tier folder
-------------------------------
``forebay-tier``: marker; the tier's uuid in hex, a newline, the cache folder that owns it, a newline.
``files/AB/ABCD...``: one sparse file per cached source file of its own, named by content id in hex; it has the
    source's full size from the start, so that reads past what is cached are caught by the index and never by size.
``packs/NNNNNNNN``: one pack, named by its number in hex.

Files are only ever grown by whole blocks or appended to, and removed by unlink: a descriptor that is open stays good.
"""

import errno
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from forebay.cacheruntime.config import TierConfig
from forebay.cacheruntime.errors import TierUnusable
from forebay.cacheruntime.index import PackNumber, TierNumber
from forebay.cacheruntime.keys import ContentId

_MARKER = "forebay-tier"

FULL_PAUSE_S = 10.0
"""After the file system said that it is full, nothing is put there for this long: somebody may make room."""


def file_path(tier: Path, content: ContentId) -> Path:
    """The tier file of a source file that is not in a pack."""
    name = content.hex()
    return Path(f"{tier}/files/{name[:2]}/{name}")  # in one piece: pathlib's joins cost ten times as much


def pack_path(tier: Path, pack: PackNumber) -> Path:
    return tier / "packs" / f"{pack:08x}"


def cached_path(tier: Path, content: ContentId, pack: PackNumber) -> Path:
    """The file that holds a record's bytes: its pack, or for pack 0 a tier file of its own."""
    return pack_path(tier, pack) if pack else file_path(tier, content)


class Tier:
    """One open tier folder of the worker. Used from the worker's event loop alone.

    `used_bytes` counts what is cached plus what is reserved for fills under way, so the quota is a hard bound.
    """

    def __init__(self, config: TierConfig, number: TierNumber, used_bytes: int, reserve_ratio: float,
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self.config = config
        self.number = number
        self.used_bytes = used_bytes
        self._reserve_ratio = reserve_ratio
        self._clock = clock
        self._full_until = -FULL_PAUSE_S

    @property
    def paused(self) -> bool:
        """Left alone for a while, as a write to it failed."""
        return self._clock() < self._full_until

    @property
    def state(self) -> str:
        """'normal', or 'full' while its file system has no room."""
        return "full" if self.paused or self._free_bytes() <= 0 else "normal"

    def room_bytes(self) -> int:
        """How much may still be put here, by quota and by what the file system has free above the reserve."""
        if self.paused:
            return 0
        return max(0, min(self.config.quota_bytes - self.used_bytes, self._free_bytes()))

    def take(self, size: int) -> None:
        """Reserve room; the caller has checked `room_bytes`, with no checkpoint in between."""
        self.used_bytes += size

    def give_back(self, size: int) -> None:
        self.used_bytes -= size

    def file_system_is_full(self) -> None:
        """A write failed for want of space."""
        self._full_until = self._clock() + FULL_PAUSE_S

    def _free_bytes(self) -> int:
        try:
            stats = os.statvfs(self.config.path)
        except OSError:
            return 0
        reserve = int(stats.f_blocks * self._reserve_ratio)
        if stats.f_files and stats.f_favail == 0:
            return 0
        return (stats.f_bavail - reserve) * stats.f_frsize


def open_folder(config: TierConfig, owner: Path) -> bytes:
    """Make or check a tier folder and try it out; returns its uuid.

    Args:
        config: the tier.
        owner: cache folder whose index knows what is in the tier.

    Raises:
        TierUnusable: cannot be made or written, lies on no local file system, or belongs to another cache.
    """
    path = config.path
    marker = path / _MARKER
    try:
        for part in ("files", "packs"):
            (path / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        if not marker.exists():
            draft = path / f"{_MARKER}.{os.getpid()}"
            draft.write_text(f"{uuid.uuid4().hex}\n{owner}\n")
            draft.rename(marker)
        text = marker.read_text().splitlines()
        probe = path / f"probe.{os.getpid()}"
        probe.write_bytes(b"forebay")
        probe.unlink()
    except OSError as error:
        raise TierUnusable(f"tier {config.medium.value}:{path} cannot be used: {_reason(error)}") from error
    if len(text) != 2 or len(text[0]) != 32:
        raise TierUnusable(
            f"tier {config.medium.value}:{path}: {marker} is damaged; empty the folder or name another one"
        )
    if text[1] != str(owner):
        raise TierUnusable(
            f"tier {config.medium.value}:{path} belongs to the cache in {text[1]};"
            " give each --cache-dir tier folders of its own"
        )
    return bytes.fromhex(text[0])


def is_folder(path: Path, uuid: bytes) -> bool:
    """Whether that is the tier folder with this uuid, and not another one in its place."""
    try:
        return (path / _MARKER).read_text().startswith(uuid.hex())
    except OSError:
        return False


def check_writable(config: TierConfig) -> None:
    """See whether a tier folder could be used, without making anything that stays.

    Raises:
        TierUnusable: why not.
    """
    path = config.path
    existing = next(p for p in (path, *path.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"forebay")
    except OSError as error:
        raise TierUnusable(f"tier {config.medium.value}:{path} cannot be used: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    cures = {
        errno.EACCES: "no permission; run as its owner or name a folder of yours",
        errno.EROFS: "its file system is read-only; name another folder",
        errno.ENOSPC: "its file system is full; make room or name another folder",
        errno.ENOTDIR: "something in its path is a file, not a folder",
        errno.EEXIST: "something in its path is a file, not a folder",
    }
    return cures.get(error.errno or 0, f"{error.strerror}; name another folder")
