"""Names by content: how files, directories and datasets are identified.

All are BLAKE2b hashes, so every process and every node computes the same ones without asking anybody.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import NewType

ContentId = NewType("ContentId", bytes)
"""16 bytes naming one version of one source file. Never reused: another version is another id."""

NodeId = NewType("NodeId", int)
"""FUSE node id: one *version* of a path. A replaced file is another node, so the kernel's page cache and
the I/O mode of the old one stay its own, and nothing has to be invalidated."""

InodeNumber = NewType("InodeNumber", int)
"""What stat() shows: one *path*. The same across snapshots, mounts and machines."""

DatasetId = NewType("DatasetId", str)
"""16 hex digits naming a source URL together with what decides its content (such as the endpoint)."""

ROOT_NODE = NodeId(1)
"""FUSE_ROOT_ID of the kernel's fuse.h."""

_SEPARATOR = b"\0"  # cannot occur in a URL or a path, so joined fields cannot run into each other
_CONTENT, _NODE, _INODE = b"forebay-content", b"forebay-node", b"forebay-inode"


def content_id(url: str, path: str, size: int, version: str) -> ContentId:
    """Name one version of a source file.

    Args:
        url: canonical URL of the under-store's root (`UnderStore.url`).
        path: the file's path below it. Only url and path together count, not where the one ends.
        size: in bytes.
        version: ETag, or a stand-in made of the modification time (`Entry.version`).
    """
    # One URL, however it is split: a mount of s3://b/a and a reader of s3://b share what they cache.
    whole = url + path if url.endswith("/") else f"{url}/{path}"
    fields = (whole, str(size), version)
    joined = _SEPARATOR.join(_encoded(field) for field in fields)
    return ContentId(blake2b(joined, digest_size=16, person=_CONTENT).digest())


def node_id(path: bytes, version: bytes) -> NodeId:
    """Name one version of a path below a dataset's root; `version` is a content id, or empty for a directory.

    63 bits: with ten million files the chance of any collision is 5e-6; the catalogue refuses a second path
    under a taken id and the later file is left out, counted and reported.
    """
    if not path:
        return ROOT_NODE
    return NodeId(_hash63(path + _SEPARATOR + version, _NODE))


def inode_number(path: bytes) -> InodeNumber:
    """The inode number that stat() shows for a path below a dataset's root."""
    return InodeNumber(1 if not path else _hash63(path, _INODE))


def dataset_id(url: str) -> DatasetId:
    """Name a dataset by the canonical URL of its under-store."""
    return DatasetId(blake2b(_encoded(url), digest_size=8, person=b"forebay-dataset").hexdigest())


class FileNames:
    """`content_id`, `node_id` and `inode_number` for many files of one source, in half the time.

    Each hash goes on from a copy of what all have in common.
    """

    def __init__(self, url: str) -> None:
        """Args: url: canonical URL of the under-store's root."""
        root = url if url.endswith("/") else f"{url}/"
        self._content = blake2b(_encoded(root), digest_size=16, person=_CONTENT)
        self._node = blake2b(digest_size=8, person=_NODE)
        self._inode = blake2b(digest_size=8, person=_INODE)

    def content(self, path: bytes, size: int, version: bytes) -> ContentId:
        """Path and version in UTF-8 with surrogate escapes."""
        state = self._content.copy()
        state.update(b"%b\0%d\0%b" % (path, size, version))
        return ContentId(state.digest())

    def of_file(self, path: bytes, in_utf8: bytes, size: int, version: bytes) -> tuple[ContentId, NodeId, InodeNumber]:
        """All three of a file.

        Args:
            path: as the file's name is here, not empty.
            in_utf8: the same in UTF-8 with surrogate escapes, whatever the encoding of names is here.
            size: in bytes.
            version: in UTF-8 with surrogate escapes.
        """
        # In one go: a call more for each of a million files takes a tenth of a second.
        state = self._content.copy()
        state.update(b"%b\0%d\0%b" % (in_utf8, size, version))
        content = state.digest()
        state = self._node.copy()
        state.update(b"%b\0%b" % (path, content))
        node = int.from_bytes(state.digest(), "little") >> 1
        state = self._inode.copy()
        state.update(path)
        inode = int.from_bytes(state.digest(), "little") >> 1
        return (  # as _as_63
            ContentId(content),
            NodeId(node if node > 2 else node + 3),
            InodeNumber(inode if inode > 2 else inode + 3),
        )


class TreeNames(FileNames):
    """The same for a dataset whose files come from several stores."""

    def __init__(self, roots: "Roots") -> None:
        super().__init__(roots.url)
        self._by_path = [(path + b"/" if path else b"", FileNames(url)) for path, url in roots.by_path]

    def content(self, path: bytes, size: int, version: bytes) -> ContentId:
        """Of the store's own path, so that each dataset finds what another has cached."""
        for inside, names in self._by_path:
            if path.startswith(inside):
                return names.content(path[len(inside) :], size, version)
        return super().content(path, size, version)

    def of_file(self, path: bytes, in_utf8: bytes, size: int, version: bytes) -> tuple[ContentId, NodeId, InodeNumber]:
        """As of one store."""
        content = self.content(in_utf8, size, version)
        return content, node_id(path, content), inode_number(path)


class Roots:
    """Which store each path of a dataset belongs to."""

    def __init__(self, url: str, stores: Sequence[tuple[str, str]] = ()) -> None:
        """
        Args:
            url: of the dataset, for what belongs to no store: the directories above these.
            stores: paths below the dataset's root, of which none lies in another, and the canonical URL of the store
                there; without any, the dataset is the store with that `url`.
        """
        self.url = url
        self.by_path = sorted((_encoded(path), store) for path, store in (stores or (("", url),)))

    def names(self) -> FileNames:
        """Names for the files of the dataset."""
        alone = self.by_path[0] if len(self.by_path) == 1 else None
        return FileNames(alone[1]) if alone is not None and not alone[0] else TreeNames(self)

    def below(self, path: str) -> list[tuple[str, str]]:
        """The stores at and below a path, at paths relative to it."""
        found = []
        for raw, url in self.by_path:
            root = raw.decode("utf-8", "surrogateescape")
            if not path or root.startswith(path + "/"):
                found.append((root[len(path) :].lstrip("/"), url))
            elif not root or path == root or path.startswith(root + "/"):
                rest = path[len(root) :].lstrip("/")
                found.append(("", f"{url.rstrip('/')}/{rest}" if rest else url))
        return found

    def url_of(self, path: bytes) -> bytes:
        """The URL of a path below the dataset's root."""
        for root, url in self.by_path:
            if not root or path == root or path.startswith(root + b"/"):
                below = path[len(root) :].strip(b"/")
                return _encoded(url) + (b"/" + below if below else b"")
        return _encoded(self.url) + (b"/" + path if path else b"")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _hash63(data: bytes, person: bytes) -> int:
    return _as_63(blake2b(data, digest_size=8, person=person).digest())


def _as_63(digest: bytes) -> int:
    value = int.from_bytes(digest, "little") >> 1
    return value if value > 2 else value + 3  # 0 is no node, 1 the root; 1 and 2 are readdir cookies of . and ..
