"""Tier folders: where the bytes lie, how full each tier is, and which one takes the next file.

Storage format of a tier folder
-------------------------------
``forebay-tier``: marker; the tier's uuid in hex, a newline, the cache folder that owns it, a newline.
``files/AB/ABCD...``: one sparse file per cached source file of its own, named by content id in hex; it has the
    source's full size from the start, so that reads past what is cached are caught by the index and never by size.
``packs/NNNNNNNN``: one pack, named by its number in hex.
``departed/DATASET.SHARE.SIZE.HELD.INODE``: a file or pack that was dropped while somebody had it open, with its sticky
    bit set; the numbers are in decimal: bytes that it counts for in the tier and with its dataset. It is removed when
    nobody has it open any more, by whichever worker there is then.
``trash/``: what is being removed in the background; never read.

Files are only ever filled where nothing was, or appended to, and dropped by unlink, or by a rename to ``departed``: a
descriptor that is open stays good.
"""

import errno
import os
import stat
import tempfile
import uuid
from pathlib import Path

from forebay.cacheruntime.config import TierConfig
from forebay.cacheruntime.durable import write_durably
from forebay.cacheruntime.errors import TierUnusable
from forebay.cacheruntime.index import PackNumber
from forebay.cacheruntime.keys import ContentId

_MARKER = "forebay-tier"


def file_path(tier: Path, content: ContentId) -> Path:
    """The tier file of a source file that is not in a pack."""
    name = content.hex()
    return Path(f"{tier}/files/{name[:2]}/{name}")  # in one piece: pathlib's joins cost ten times as much


def pack_path(tier: Path, pack: PackNumber) -> Path:
    return tier / "packs" / f"{pack:08x}"


def cached_path(tier: Path, content: ContentId, pack: PackNumber) -> Path:
    """The file that holds a record's bytes: its pack, or for pack 0 a tier file of its own."""
    return pack_path(tier, pack) if pack else file_path(tier, content)


def mark_dropped(descriptor: int) -> None:
    """Tell those who have a file open that it was dropped, where an unlink does not: it keeps a name, to be counted.

    Raises:
        OSError: it is as it was.
    """
    # Unlike the times, it stays when a fill that is under way goes on writing.
    os.fchmod(descriptor, stat.S_ISVTX | stat.S_IRUSR | stat.S_IWUSR)


def is_dropped(status: os.stat_result) -> bool:
    """Whether a file that is open was dropped."""
    return not status.st_nlink or bool(status.st_mode & stat.S_ISVTX)


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
        for part in ("files", "packs", "departed"):
            (path / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        if not marker.exists():
            write_durably(marker, f"{uuid.uuid4().hex}\n{owner}\n")
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


def probe(path: Path, uuid: bytes) -> None:
    """Write, sync, read and remove a small file, in the folder that has this uuid.

    Raises:
        FileNotFoundError: the folder is gone, or another one is in its place. OSError: the disk fails.
    """
    if not is_folder(path, uuid):
        raise FileNotFoundError(errno.ENOENT, "the tier's marker is gone", str(path))
    name = path / f"probe.{os.getpid()}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(name)
        os.write(descriptor, b"forebay")
        os.fsync(descriptor)
        if os.pread(descriptor, 16, 0) != b"forebay":
            raise OSError(errno.EIO, "what was written reads differently", str(path))
    finally:
        os.close(descriptor)
