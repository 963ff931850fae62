"""Every scheme that has no store of its own, through fsspec: HDFS, FTP, SFTP, SMB, memory and the rest.

fsspec gives many stores one face, but not one promise: what `info` tells differs, no read is conditional, and errors
are whatever the library below raises. So versions are made of what there is, and are compared before and after.
"""

import contextlib
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
from fsspec.registry import known_implementations

from forebay.cacheruntime.errors import (
    SourceDenied,
    SourceError,
    SourceNotFound,
    SourceStale,
    SourceUnavailable,
    UsageError,
)
from forebay.cacheruntime.understore.address import Address, without_userinfo
from forebay.cacheruntime.understore.base import Entry, Kind
from forebay.cacheruntime.understore.options import parsed
from forebay.cacheruntime.understore.retry import Retrier

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_PIECE_BYTES = 1 << 20

# What to install for a scheme whose package is missing; Forebay itself brings aiohttp, pyarrow and requests.
_PACKAGES = {"sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol", "hf": "huggingface_hub",
             "hdfs": "pyarrow", "webhdfs": "requests", "github": "requests", "http": "aiohttp"}  # fmt: skip

log = logging.getLogger(__name__)


class GenericStore:
    """The tree below one root of an fsspec file system, or one file."""

    def __init__(self, address: Address, source: str, options: Mapping[str, str], retrier: Retrier) -> None:
        self._address = address
        self._source = source
        self._storage_options = parsed(options)
        self._retrier = retrier
        self._lock = threading.Lock()
        self._opened: tuple[Any, str] | None = None
        self._root_is_file: bool | None = None
        _require(address.scheme)

    @property
    def url(self) -> str:
        """See `UnderStore.url`."""
        return self._address.url

    @property
    def pins_version(self) -> bool:
        """No: fsspec has no conditional reads; a look before and after tells."""
        return False

    @property
    def lists_in_key_order(self) -> bool:
        """No: directory by directory."""
        return False

    def probe(self) -> None:
        """See `UnderStore.probe`."""
        fs, root = self._fs_and_root()
        if self._is_directory(root):
            self._asked(lambda: fs.ls(root, detail=False), self.url)

    def list_tree(self) -> Iterator[list[Entry]]:
        """See `UnderStore.list_tree`. Breadth first, a directory to a page: the first names come at once."""
        _, root = self._fs_and_root()
        if not self._retrier.retry_call(lambda: self._is_directory(root)):
            yield [self.stat(_base_name(root))]
            return
        pending = deque([""])
        while pending:
            folder = pending.popleft()
            page = self._retrier.retry_call(lambda folder=folder: self.list_directory(folder))  # type: ignore[misc]
            pending.extend(entry.path for entry in page if entry.kind is Kind.DIRECTORY)
            if page:
                yield page

    def list_directory(self, path: str) -> list[Entry]:
        """See `UnderStore.list_directory`."""
        fs, root = self._fs_and_root()
        folder = self._full(path)
        if not path and not self._is_directory(root):
            return [self.stat(_base_name(root))]
        infos = self._asked(lambda: fs.ls(folder, detail=True, refresh=True), f"directory {path!r} of {self.url}")
        found = []
        for info in infos:
            name = str(info["name"]).rstrip("/")
            if name == folder.rstrip("/"):
                # Object stores list a directory's marker in itself, and a file lists as itself.
                if info.get("type") == "file" and not info["name"].endswith("/"):
                    raise SourceNotFound(f"{path!r} of {self.url} is a file, not a directory")
                continue
            base = _base_name(name)
            if entry := self._entry(f"{path}/{base}" if path else base, info):
                found.append(entry)
        return found

    def stat(self, path: str) -> Entry:
        """See `UnderStore.stat`."""
        entry = self._entry(path, self._info(path))
        if entry is None:
            raise SourceNotFound(f"{path!r} of {self.url} is not a file of known size")
        return entry

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """See `UnderStore.read_range`; the version is compared before the first and after the last byte."""
        fs, _ = self._fs_and_root()
        self._compare(path, version)
        full = self._full(path)
        what = f"{path!r} of {self.url}"
        offset, end = start, start + length
        while offset < end:
            upto = min(end, offset + _PIECE_BYTES)
            piece = self._asked(lambda upto=upto, at=offset: fs.cat_file(full, start=at, end=upto), what)  # type: ignore[misc]
            if len(piece) != upto - offset:
                raise SourceStale(
                    f"{what} gave {len(piece)} of {upto - offset} bytes at {offset}; its size has changed"
                )
            offset = upto
            yield piece
        self._compare(path, version)

    def close(self) -> None:
        """See `UnderStore.close`."""
        with self._lock:
            fs, self._opened = self._opened, None
        closer = getattr(fs[0], "close", None) if fs else None
        if callable(closer):
            with contextlib.suppress(OSError):  # a connection that is already gone
                closer()

    def _compare(self, path: str, version: str) -> None:
        try:
            now = self.stat(path).version
        except SourceNotFound as error:
            raise SourceStale(f"{path!r} of {self.url} is gone since it was listed") from error
        if version and now != version:
            raise SourceStale(f"{path!r} of {self.url} has changed since it was listed")

    def _info(self, path: str) -> Mapping[str, Any]:
        fs, _ = self._fs_and_root()
        full = self._full(path)
        # Not every file system takes refresh; those that cache listings were told not to.
        info: Mapping[str, Any] = self._asked(lambda: fs.info(full), f"{path!r} of {self.url}")
        return info

    def _is_directory(self, root: str) -> bool:
        if self._root_is_file is None:
            fs, _ = self._fs_and_root()
            info = self._asked(lambda: fs.info(root), self.url)
            self._root_is_file = info["type"] == "file"
        return not self._root_is_file

    def _full(self, path: str) -> str:
        _, root = self._fs_and_root()
        if not path or (path == _base_name(root) and not self._is_directory(root)):
            return root
        return f"{root.rstrip('/')}/{path}"

    def _entry(self, path: str, info: Mapping[str, Any]) -> Entry | None:
        kind = info.get("type")
        if kind == "directory":
            return Entry(path, Kind.DIRECTORY, 0, modified_ns(info))
        if kind == "link" and isinstance(info.get("destination"), (str, bytes)):
            raw = info["destination"]
            target = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
            return Entry(
                path, Kind.SYMLINK, len(target.encode("utf-8", "surrogateescape")), modified_ns(info), "", target
            )
        if kind != "file":
            return None
        size = info.get("size")
        if size is None:
            log.warning("left out: %r of %s has no known size", path, self.url)
            return None
        return Entry(path, Kind.FILE, int(size), modified_ns(info), version_of(info))

    def _fs_and_root(self) -> tuple[Any, str]:
        with self._lock:
            if self._opened is None:
                self._opened = self._asked(self._open, self.url)
            return self._opened

    def _open(self) -> tuple[Any, str]:
        fs, root = fsspec.core.url_to_fs(
            self._source, skip_instance_cache=True, use_listings_cache=False, **self._storage_options
        )
        return fs, str(root)

    def _asked(self, call: Callable[[], T], what: str) -> T:
        try:
            return call()
        except SourceError:
            raise
        except Exception as error:  # each library below has its own; every one is mapped and raised
            raise self._mapped(error, what) from error

    def _mapped(self, error: Exception, what: str) -> SourceError | UsageError:
        return mapped_any_error(error, what)


def mapped_any_error(error: Exception, what: str) -> SourceError | UsageError:
    """An exception of some library as ours, in one line.

    The class decides where there is one, then an HTTP status or S3-like code that most libraries attach. What is
    none of these is taken to be permanent: its repetition would only hide it.
    """
    status = next((s for name in ("status", "status_code") if isinstance(s := getattr(error, name, None), int)), 0)
    reply = getattr(error, "response", None)
    if not status and isinstance(code := getattr(reply, "status_code", None), int):
        status = code
    name = type(error).__name__
    words = without_userinfo(" ".join(str(error).split()))[:160]
    reason = f"HTTP {status}" if status else f"{name}: {words}" if words else name
    if isinstance(error, (ImportError, TypeError)):
        return UsageError(f"{what} cannot be opened ({reason}); check the options and the packages of its scheme")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) or status in (404, 410):
        return SourceNotFound(f"{what} does not exist ({reason})")
    if isinstance(error, PermissionError) or status in (401, 403) or "Auth" in name or "Denied" in name:
        return SourceDenied(f"{what}: access denied ({reason}); check the credentials")
    if status in (412, 416):
        return SourceStale(f"{what} has changed since it was listed ({reason})")
    if re.search(r"libjvm|libhdfs", words):
        return UsageError(
            f"{what} needs a client of HDFS: pip install hdfs-native, or set JAVA_HOME, HADOOP_HOME and CLASSPATH "
            f"(hadoop classpath --glob) for the worker so that libhdfs is found, or use webhdfs://"
        )
    passing = (ConnectionError, TimeoutError, EOFError, OSError)
    if status in (408, 425, 429) or status >= 500 or (not status and isinstance(error, passing)):
        return SourceUnavailable(f"{what} cannot be reached ({reason})")
    return SourceError(f"{what} cannot be read ({reason})")


def version_of(info: Mapping[str, Any]) -> str:
    """What tells one version of a file from another, the strongest that `info` has."""
    for name in ("ETag", "etag", "e_tag", "checksum", "content_hash", "md5", "sha", "mtime_ns"):
        if value := info.get(name):
            return str(value)
    return f"{modified_ns(info):x}-{int(info.get('size') or 0):x}"


def modified_ns(info: Mapping[str, Any]) -> int:
    """The time of the last change under whichever name and type the file system has it; 0 if none."""
    for name in ("mtime", "LastModified", "last_modified", "modified", "modificationTime", "modification_time",
                 "created"):  # fmt: skip
        value = info.get(name)
        if isinstance(value, datetime):
            value = value.timestamp()  # some tell a float in listings and a datetime in info: both must agree
        if isinstance(value, (int, float)) and value > 0:
            # HDFS counts milliseconds; no file of 1970 is meant. Microseconds are what a float holds today.
            return int(value) * 10**6 if value > 10**11 else round(value * 10**6) * 10**3
    return 0


def _base_name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _require(scheme: str) -> None:
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        hint = str(known_implementations.get(scheme, {}).get("err", "")).strip()
        package = _PACKAGES.get(scheme)
        cure = f"pip install {package}" if package else hint or "install the fsspec package for it"
        raise UsageError(f"{scheme}:// needs a package that is not installed: {cure}") from error
