"""What is compared: the local file system, and Forebay as its users run it. The peers are in `peers`."""

import ctypes
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from forebay.bench import sheet
from forebay.bench.crew import cpu_seconds, family, spent
from forebay.bench.dataset import Sample
from forebay.bench.node import CommandFailed, Node
from forebay.bench.reader import READ_BYTES
from forebay.bench.sendfile_endpoint import FolderEndpoint
from forebay.cacheruntime.counters import Counts, read_counts
from forebay.cacheruntime.mounts import registered
from forebay.cacheruntime.version import VERSION

_LISTED_S = 60.0
_SETTLED_S = 60.0
_ENDED_S = 60.0
_SETTLING_S = 0.3
_IDLE_SHARE = 0.1
"""Of one core: watching for the next thing to do takes some."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Dataset:
    """The files that all sides read."""

    name: str
    folder: Path
    """Holds the local copies, under their keys."""
    samples: Sequence[Sample]
    endpoint: FolderEndpoint
    """Holds them as a bucket of that name."""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(sample.key for sample in self.samples)


class SideFailed(Exception):
    """A side does not work here; the text says why. The others go on."""


class Side(Protocol):
    """Something that shows a dataset as a folder.

    *Resources*: `close` unmounts and leaves no process; files stay until the folder goes.
    """

    name: str
    """A column of the table: one of `sheet.SIDES`."""
    notes: str
    """Version and flags."""
    directory: Path
    """Where the files are while it is mounted."""
    cache_folders: Sequence[Path]
    """What it keeps on the disk; the first one is its cache."""

    def prepare(self) -> None:
        """What has to be done once, before the first mount."""

    def mount(self) -> Path:
        """Mount, or mount anew; what is cached on the disk stays. Returns `directory`."""

    def umount(self) -> None:
        """Take the mount away, so that the kernel holds nothing of it."""

    def anew(self, label: str, quota_bytes: int | None = None) -> Self:
        """The same side with an empty cache of its own, not mounted.

        Args:
            label: another one for each.
            quota_bytes: of the cache, whole MiB; None: what it is without being told.

        *Resources*: it is closed with this side, or before. Its files stay until the folder of the group goes.
        """

    def pids(self) -> list[int]:
        """Its daemons."""

    def break_mounts(self) -> None:
        """Free whoever hangs on it; called from another thread."""

    def close(self) -> None:
        """Leave nothing mounted and no process."""


class Local:
    """The file system that the caches of the other sides are on: the limit."""

    name = sheet.LOCAL

    def __init__(self, dataset: Dataset) -> None:
        self.directory = dataset.folder
        self.cache_folders: Sequence[Path] = (dataset.folder,)
        self.notes = "the published files themselves, on the file system that all caches are on"

    def prepare(self) -> None:
        """Nothing."""

    def mount(self) -> Path:
        return self.directory

    def umount(self) -> None:
        """Nothing: `shed` drops what the kernel holds."""

    def anew(self, label: str, quota_bytes: int | None = None) -> Self:
        return self  # there is no cache

    def pids(self) -> list[int]:
        return []

    def break_mounts(self) -> None:
        """Nothing hangs here."""

    def close(self) -> None:
        """Nothing."""


class Forebay:
    """Forebay through its command line, with a cache of its own."""

    def __init__(
        self, dataset: Dataset, folder: Path, environ: Mapping[str, str], name: str = sheet.OURS, *flags: str
    ) -> None:
        """
        Args:
            dataset: what it mounts.
            folder: a new one is made here.
            environ: for the commands.
            name: the side's.
            flags: for `forebay mount`.
        """
        self.name = name
        self.notes = f"{VERSION}, forebay mount {' '.join(flags)}".strip()
        self.node = Node(folder, {**environ, **dataset.endpoint.environ})
        self.cache_folders: Sequence[Path] = (self.node.cache_dir,)
        self.directory = folder / "mount"
        self.open_mode = ""
        """What `auto` has picked; empty before the first mount."""
        self._dataset, self._environ, self._flags = dataset, environ, flags
        self._others: list[Self] = []

    def anew(self, label: str, quota_bytes: int | None = None) -> Self:
        folder = self.node.folder.with_name(f"{self.node.folder.name}-{label}")
        limit = () if quota_bytes is None else ("--tier", f"SSD:{folder}/cache:{quota_bytes}")
        other = type(self)(self._dataset, folder, self._environ, self.name, *self._flags, *limit)
        self._others.append(other)
        return other

    def prepare(self) -> None:
        """Nothing: it mounts the bucket."""

    def mount(self) -> Path:
        self.umount()
        endpoint = self._dataset.endpoint
        try:
            self.node.mount("mount", endpoint.source(self._dataset.name), endpoint.options(), *self._flags)
        except CommandFailed as error:
            raise SideFailed(str(error)) from error
        if not self.open_mode:
            self.open_mode = str(self.node.mounted(self.directory)["open_mode"])
        return self.directory

    def umount(self) -> None:
        if self.directory in self.node.directories:
            try:
                self.node.umount(self.directory)
            except CommandFailed as error:
                raise SideFailed(str(error)) from error

    def pids(self) -> list[int]:
        return family(self.node.living())

    def listed(self) -> None:
        """Wait until the worker has listed the source; its work is no part of what is measured next."""
        deadline = time.monotonic() + _LISTED_S
        while any(row["listing"] == "under way" for row in self.node.status()["datasets"]):
            if time.monotonic() > deadline:
                raise SideFailed(f"{self.name} has not listed the source in {_LISTED_S:g} s")
            time.sleep(0.2)

    def ended(self) -> None:
        """Wait until the worker has ended too, some seconds after the last mount: what it had in memory is gone."""
        deadline = time.monotonic() + _ENDED_S
        while self.node.living():
            if time.monotonic() > deadline:
                raise SideFailed(f"the worker of {self.name} has not ended in {_ENDED_S:g} s")
            time.sleep(0.1)

    def counts(self) -> Counts:
        """What the handlers of the mount have counted.

        From shared memory: a command would take a second of the machine's two cores, before and after each reading.
        """
        (folder,) = [folder for folder, _ in registered(self.node.folder / "run")]
        return read_counts(folder)

    def break_mounts(self) -> None:
        self.node.break_mounts()
        for other in self._others:
            other.break_mounts()

    def close(self) -> None:
        self.node.__exit__(None, None, None)
        for other in self._others:
            other.close()


def shed(side: Side) -> None:
    """Unmount a side and have the kernel forget all of it: the mount's pages and those of what it keeps on the disk."""
    side.umount()
    for folder in side.cache_folders:
        if folder.exists():
            sync_file_system(folder)
        for path in _files(folder):
            drop_pages(path)


def sync_file_system(folder: Path) -> None:
    """syncfs(2): write out the file system that a folder is on.

    Not sync(2), which waits for every mount of the machine, also for one that hangs; and not fdatasync(2) of each file,
    which flushes the disk for each, also when there is nothing to write.

    Raises:
        OSError: of writing.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def load_pages(folder: Path) -> None:
    """Read all files of a folder, so that the page cache has them."""
    buffer = (bytearray(READ_BYTES),)
    for path in _files(folder):
        if path.is_file():
            with path.open("rb", buffering=0) as opened:
                while os.readv(opened.fileno(), buffer):
                    pass


def drop_names() -> bool:
    """Have the kernel forget all names and inodes that nobody uses, on every mount of the machine; False without root.

    proc(5), drop_caches: 2 takes dentries and inodes and leaves pages.
    """
    try:
        Path("/proc/sys/vm/drop_caches").write_text("2\n")
    except PermissionError:
        return False
    return True


def settle(side: Side) -> None:
    """Wait until a side's daemons do nothing, such as taking note of the inodes that the kernel has forgotten.

    Raises:
        SideFailed: they do not come to rest.
    """
    deadline = time.monotonic() + _SETTLED_S
    used = cpu_seconds(side.pids())
    while True:
        time.sleep(_SETTLING_S)
        before, used = used, cpu_seconds(side.pids())
        if spent(before, used) <= _IDLE_SHARE * _SETTLING_S:
            return
        if time.monotonic() > deadline:
            raise SideFailed(f"{side.name} does not come to rest in {_SETTLED_S:g} s")


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def drop_pages(path: Path) -> None:
    """Ask the kernel to forget the cached pages of one file that is not a link; dirty ones it keeps."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return  # a socket, or gone since the folder was read
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
