"""The peers: other file systems over object stores, each with what its own documentation advises for such reads.

The data is read-only and does not change, so each is told to keep attributes and entries for long, where it has an
option for that. They run in the foreground, so that we know their processes and end them.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from forebay.bench import sheet
from forebay.bench.crew import family
from forebay.bench.sides import Dataset, SideFailed
from forebay.fuse import mounting

_MOUNT_S = 30.0
_END_S = 30.0
_COMMAND_S = 60.0
_COPIES = 4  # at once, into JuiceFS
_MIB = 1 << 20


class Peer:
    """A FUSE program in the foreground, mounted on a folder of its own."""

    name: str
    notes: str

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        """
        Args:
            folder: for the mount, its cache and its log; made here.
            dataset: what it shows.
        """
        folder.mkdir(parents=True)
        self.folder = folder
        self.directory = folder / "mount"
        self.directory.mkdir()
        self.cache_folders: Sequence[Path] = (folder / "cache",)
        self._dataset = dataset
        self._limit: tuple[str, ...] = ()
        """Flags for the size of the cache."""
        self._process: subprocess.Popen[bytes] | None = None
        self._others: list[Self] = []

    def anew(self, label: str, quota_bytes: int | None = None) -> Self:
        other = self._twin(self.folder.with_name(f"{self.folder.name}-{label}"))
        other._limit = () if quota_bytes is None else self._limits(quota_bytes)
        self._others.append(other)
        return other

    def _twin(self, folder: Path) -> Self:
        """The same in another folder."""
        raise NotImplementedError

    def _limits(self, quota_bytes: int) -> tuple[str, ...]:
        """Flags for a cache of this size.

        Raises:
            SideFailed: it cannot be told.
        """
        raise SideFailed(f"{self.name} has no option for the size of its cache")

    def command(self) -> list[str]:
        """How it is mounted."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Nothing, for those that mount a bucket as it is."""

    def mount(self) -> Path:
        self.umount()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=peer_environ(self.folder, self._dataset),
                start_new_session=True,
            )
        deadline = time.monotonic() + _MOUNT_S
        while not self._mounted():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.umount()
                raise SideFailed(f"{self.name} did not mount: {self._said()}")
            time.sleep(0.02)
        return self.directory

    def umount(self) -> None:
        while self._mounted():
            try:
                mounting.unmount(self._real)
            except mounting.MountFailed:
                mounting.unmount(self._real, lazy=True)
        if self._process is None:
            return
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def pids(self) -> list[int]:
        return family([self._process.pid]) if self._process else []

    def break_mounts(self) -> None:
        entry = mounting.mounted(self._real)
        if entry is not None:
            mounting.abort(entry.device)
        for other in self._others:
            other.break_mounts()

    def close(self) -> None:
        self.umount()
        for other in self._others:
            other.close()

    @property
    def _real(self) -> str:
        return mounting.real_directory(str(self.directory))

    def _mounted(self) -> bool:
        return mounting.mounted(self._real) is not None

    def _said(self) -> str:
        return (self.folder / "log").read_text(errors="replace").strip()[-300:]


def peer_environ(folder: Path, dataset: Dataset) -> dict[str, str]:
    """Credentials of the endpoint, and a home in which nothing is and nothing stays.

    Variables such as AWS_CA_BUNDLE are left out: this rclone does not start with it.
    """
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), **dataset.endpoint.environ}


class Rclone(Peer):
    """rclone mount: `rclone mount --help`, chapters VFS File Caching, Fingerprinting, VFS Performance."""

    name = sheet.RCLONE
    _FLAGS = (
        "--vfs-cache-mode=full", "--read-only", "--no-modtime", "--no-checksum", "--vfs-fast-fingerprint",
        "--vfs-read-ahead=128M", "--buffer-size=32M", "--dir-cache-time=24h", "--attr-timeout=1h", "--poll-interval=0",
    )  # fmt: skip

    def __init__(self, program: str, folder: Path, dataset: Dataset) -> None:
        super().__init__(folder, dataset)
        self._program = program
        self.notes = f"{_first_line([program, 'version'])}, mount {' '.join(self._FLAGS)}"

    def _twin(self, folder: Path) -> Self:
        return type(self)(self._program, folder, self._dataset)

    def _limits(self, quota_bytes: int) -> tuple[str, ...]:
        return (f"--vfs-cache-max-size={quota_bytes // _MIB}M", "--vfs-cache-poll-interval=1s")

    def command(self) -> list[str]:
        endpoint = self._dataset.endpoint
        remote = f":s3,provider=Other,env_auth=true,region={endpoint.region},endpoint='{endpoint.url}':"
        return [
            self._program, "mount", f"{remote}{self._dataset.name}", str(self.directory), "--config=",
            f"--cache-dir={self.folder}/cache", *self._FLAGS, *self._limit,
        ]  # fmt: skip


class S3fs(Peer):
    """s3fs-fuse: s3fs(1), and fuse(8) for the kernel's caches."""

    name = sheet.S3FS
    _OPTIONS = (
        "ro,use_path_request_style,complement_stat,enable_noobj_cache,stat_cache_expire=86400,"
        "max_stat_cache_size=1000000,multireq_max=100,parallel_count=20,kernel_cache,attr_timeout=3600,entry_timeout=3600"
    )

    def __init__(self, program: str, folder: Path, dataset: Dataset) -> None:
        super().__init__(folder, dataset)
        self._program = program
        self.notes = f"{_first_line([program, '--version'])}, -o use_cache,{self._OPTIONS}"

    def _twin(self, folder: Path) -> Self:
        return type(self)(self._program, folder, self._dataset)

    def command(self) -> list[str]:
        endpoint = self._dataset.endpoint
        options = f"url={endpoint.url},use_cache={self.folder}/cache,{self._OPTIONS}"
        return [self._program, self._dataset.name, str(self.directory), "-f", "-o", options]


class JuiceVolume:
    """A JuiceFS volume with a copy of the dataset: metadata in sqlite, objects in files or in the same endpoint."""

    def __init__(self, program: str, folder: Path, dataset: Dataset, bucket_at: str | None) -> None:
        """
        Args:
            program: juicefs.
            folder: made here.
            dataset: is copied in.
            bucket_at: URL of the endpoint for the copying; None: objects are files below `folder`.
        """
        folder.mkdir(parents=True)
        self.program, self.folder, self.dataset = program, folder, dataset
        self.meta = f"sqlite3://{folder}/meta.db"
        self.bucket = f"{dataset.name}-juicefs"
        self._bucket_at = bucket_at
        self._filled = False

    def fill(self) -> None:
        """Format and copy, once.

        Raises:
            SideFailed: with what juicefs said.
        """
        if self._filled:
            return
        at = ["--storage", "file", "--bucket", f"{self.folder}/objects/"]
        if self._bucket_at is not None:
            at = ["--storage", "s3", "--bucket", f"{self._bucket_at}/{self.bucket}"]
            keys = self.dataset.endpoint.environ
            at += ["--access-key", keys["AWS_ACCESS_KEY_ID"], "--secret-key", keys["AWS_SECRET_ACCESS_KEY"]]
        command = [self.program, "format", *at, "--trash-days", "0", self.meta, "forebay-bench"]
        environ = peer_environ(self.folder, self.dataset)
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, env=environ, check=False)
        if done.returncode:
            raise SideFailed(f"juicefs format: {done.stderr.strip()[-300:]}")
        writer = JuiceFS(self, self.folder / "writer", sheet.JUICEFS, write=True)
        try:
            _copy_all(self.dataset, writer.mount())
        finally:
            writer.close()
            shutil.rmtree(self.folder / "writer")
        self._filled = True


class JuiceFS(Peer):
    """JuiceFS CE with its defaults, or tuned.

    Tuned as its guide says under Cache ("for read intensive scenarios, such as AI model training, it is recommended to
    set --open-cache"; larger buffer and read-ahead for sequential reads), with the longest times that constant data
    allows and the largest FUSE request.
    """

    _TUNED = (
        "--open-cache=24h", "--open-cache-limit=0", "--attr-cache=24h", "--entry-cache=24h", "--dir-entry-cache=24h",
        "--readdir-cache", "--buffer-size=1024", "--max-readahead=256", "--max-fuse-io=1M",
    )  # fmt: skip
    _ALWAYS = (
        "--no-usage-report", "--no-syslog", "--hide-internal", "--backup-meta=0",
        "--free-space-ratio=0.01", "--metrics=127.0.0.1:0",
    )  # fmt: skip

    def __init__(self, volume: JuiceVolume, folder: Path, name: str, write: bool = False, bucket: str = "") -> None:
        """
        Args:
            volume: with the data.
            folder: for the mount.
            name: `sheet.JUICEFS` or `sheet.TUNED`.
            write: mount it for writing.
            bucket: URL of the bucket to read from, where it is not the one of the format.
        """
        super().__init__(folder, volume.dataset)
        self.name, self._volume, self._write = name, volume, write
        self._flags = (*(self._TUNED if name == sheet.TUNED else ()), *(() if write else ("--read-only",)))
        self._bucket_url = bucket
        self.cache_folders = (folder / "cache", volume.folder / "objects")
        self.notes = f"{_first_line([volume.program, 'version'])}, sqlite, mount {' '.join(self._flags)}"

    def prepare(self) -> None:
        self._volume.fill()

    def _twin(self, folder: Path) -> Self:
        return type(self)(self._volume, folder, self.name, self._write, self._bucket_url)

    def _limits(self, quota_bytes: int) -> tuple[str, ...]:
        return (f"--cache-size={quota_bytes // _MIB}",)

    def command(self) -> list[str]:
        bucket = (f"--bucket={self._bucket_url}",) if self._bucket_url else ()
        return [
            self._volume.program, "mount", self._volume.meta, str(self.directory),
            f"--cache-dir={self.folder}/cache", *self._ALWAYS, *bucket, *self._flags, *self._limit,
        ]  # fmt: skip


def _copy_all(dataset: Dataset, directory: Path) -> None:
    for folder in sorted({Path(key).parent for key in dataset.keys}):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_COPIES) as pool:
        for _ in pool.map(lambda sample: shutil.copyfile(sample.path, directory / sample.key), dataset.samples):
            pass


def _first_line(command: list[str]) -> str:
    said = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=False).stdout
    return said.partition("\n")[0].strip()


def find_program(name: str) -> str | None:
    """Where a peer's program is: beside our Python or on the PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def bucket_sides(dataset: Dataset, folder: Path, wanted: Sequence[str]) -> list[Peer]:
    """The peers that mount the dataset's bucket as it is, as far as they are installed."""
    kinds: Mapping[str, type[Rclone] | type[S3fs]] = {sheet.RCLONE: Rclone, sheet.S3FS: S3fs}
    return [
        kind(program, folder / name, dataset)
        for name, kind in kinds.items()
        if name in wanted and (program := find_program(name))
    ]


def juice_sides(dataset: Dataset, folder: Path, wanted: Sequence[str], near: str | None = None) -> list[Peer]:
    """JuiceFS as it comes and tuned, over one volume, if it is installed.

    Args:
        dataset: is copied in.
        folder: for the volume and the mounts.
        wanted: names of sides.
        near: URL of the endpoint without latency; with it, objects are there and are read through the dataset's own.
    """
    program, names = find_program("juicefs"), [name for name in (sheet.JUICEFS, sheet.TUNED) if name in wanted]
    if program is None or not names:
        return []
    volume = JuiceVolume(program, folder / "juicefs-volume", dataset, near)
    bucket = f"{dataset.endpoint.url}/{volume.bucket}" if near else ""
    return [JuiceFS(volume, folder / name.replace(" ", "-"), name, bucket=bucket) for name in names]
