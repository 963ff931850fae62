"""Several under-stores under one tree, each at a path of its own (docs/decisions/0024).

The tree answers for names: it lists its stores in turn and puts their paths below their places. Bytes are asked of the
store they belong to (`locate`), by the path that it knows them by: so what is cached of a file has the same name
whichever dataset shows it, and each store's own version goes with its requests.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from forebay.cacheruntime.errors import ForebayError, SourceNotFound
from forebay.cacheruntime.understore.base import Entry, Kind, UnderStore

if TYPE_CHECKING:
    from typing_extensions import Buffer

_T = TypeVar("_T")


@dataclass(frozen=True)
class Child:
    """One store in a tree."""

    path: str
    """Below the tree's root, no slashes at its ends; '' for a single store. No two lie in each other."""
    store: UnderStore
    owner: str = ""
    """The dataset that what is cached of it belongs to; '' for the one whose tree it is."""
    owner_path: str = ""
    """Where the store's root is in the owner."""


@dataclass(frozen=True)
class Place:
    """A path of a tree, as its store knows it."""

    store: UnderStore
    path: str
    owner: str
    """As in `Child`."""
    owner_path: str
    """The path in the owner."""


def in_order(path: str) -> bytes:
    """By which a tree sorts its stores: they are listed in this order."""
    return (path + "/").encode("utf-8", "surrogateescape")


class CompositeStore:
    """See `UnderStore`. Stores are expected to try again by themselves (`retry.py`).

    *Resources*: closing it closes its stores.
    """

    def __init__(self, url: str, children: Sequence[Child]) -> None:
        """
        Args:
            url: names the dataset, in messages.
            children: at least one.
        """
        self._url = url
        # A listing of them one after the other is in key order when each is: all keys of one begin with its path, and
        # what decides between two paths is where the slash behind them goes.
        self._children = sorted(children, key=lambda child: in_order(child.path))
        self._implied = _above(child.path for child in self._children)

    @property
    def url(self) -> str:
        """Of the dataset. Content is named by the stores' own URLs (`roots`)."""
        return self._url

    @property
    def pins_version(self) -> bool:
        """Whether all stores do."""
        return all(child.store.pins_version for child in self._children)

    @property
    def lists_in_key_order(self) -> bool:
        """Whether all stores do."""
        return all(child.store.lists_in_key_order for child in self._children)

    def roots(self) -> list[tuple[str, str]]:
        """For `keys.Roots`: path and URL of each store that serves bytes."""
        found = []
        for child in self._children:
            inner = child.store.roots() if isinstance(child.store, CompositeStore) else [("", child.store.url)]
            found += [(_joined(child.path, path), url) for path, url in inner]
        return found

    def locate(self, path: str) -> Place:
        """The store of a file, and its path there.

        Raises:
            SourceNotFound: the path is in none of them.
        """
        child, below = self._of(path)
        if child is None:
            raise SourceNotFound(f"{self._url}: there is no file {path!r}: no store is mounted there")
        if isinstance(child.store, CompositeStore):
            place = child.store.locate(below)
            return replace(place, owner=place.owner or child.owner)  # such a store is the owner's own tree
        return Place(child.store, below, child.owner, _joined(child.owner_path, below) if child.owner else path)

    def probe(self) -> None:
        """All stores at once, for a person waits; the first that fails is named."""
        if len(self._children) == 1:
            return self._children[0].store.probe()
        pool = ThreadPoolExecutor(len(self._children), thread_name_prefix="probe")
        try:
            probes = [(child, pool.submit(child.store.probe)) for child in self._children]
            for child, probe in probes:
                self._naming(child, probe.result)
        finally:
            pool.shutdown(wait=False)
        return None

    def list_tree(self) -> Iterator[list[Entry]]:
        """See `UnderStore.list_tree`: one store after the other, each behind the directories above it."""
        shown: set[str] = set()
        for child in self._children:
            above = [path for path in (*_ancestors(child.path), child.path) if path and path not in shown]
            shown.update(above)
            # With the first page, for whoever waits for that wants to see files.
            ahead = [Entry(path, Kind.DIRECTORY) for path in above]
            pages = self._naming(child, child.store.list_tree)
            while (page := self._naming(child, lambda pages=pages: next(pages, None))) is not None:  # type: ignore[misc]
                yield [*ahead, *_below(page, child.path)]
                ahead = []
            if ahead:
                yield ahead

    def list_directory(self, path: str) -> list[Entry]:
        """See `UnderStore.list_directory`."""
        child, below = self._of(path)
        if child is not None:
            found = self._naming(child, lambda: child.store.list_directory(below))
            return _below(found, child.path)
        names = self._implied.get(path)
        if names is None:
            raise SourceNotFound(f"{self._url}: there is no directory {path!r}")
        return [Entry(_joined(path, name), Kind.DIRECTORY) for name in sorted(names)]

    def stat(self, path: str) -> Entry:
        """See `UnderStore.stat`."""
        child, below = self._of(path)
        if child is None:
            raise SourceNotFound(f"{self._url}: there is no file {path!r}")
        return _below([self._naming(child, lambda: child.store.stat(below))], child.path)[0]

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """See `UnderStore.read_range`."""
        place = self.locate(path)
        return place.store.read_range(place.path, start, length, version)

    def close(self) -> None:
        """See `UnderStore.close`."""
        for child in self._children:
            child.store.close()

    def _of(self, path: str) -> tuple[Child | None, str]:
        for child in self._children:
            if not child.path:
                return child, path
            if path == child.path or path.startswith(child.path + "/"):
                return child, path[len(child.path) + 1 :]
        return None, path

    def _naming(self, child: Child, ask: Callable[[], _T]) -> _T:
        """Ask one store; its errors say which one it was."""
        try:
            return ask()
        except ForebayError as error:
            if len(self._children) == 1:
                raise
            raise type(error)(f"mount /{child.path} ({child.store.url}): {error}") from error


def _joined(above: str, path: str) -> str:
    return f"{above}/{path}" if above and path else above or path


def _below(entries: list[Entry], path: str) -> list[Entry]:
    """The entries with their paths put below another one."""
    if not path:
        return entries
    inside = f"{path}/"
    return [Entry(inside + e.path, e.kind, e.size, e.mtime_ns, e.version, e.target, e.mode) for e in entries]


def _ancestors(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _above(paths: Iterator[str]) -> dict[str, set[str]]:
    """Directories above stores -> names in them."""
    found: dict[str, set[str]] = {}
    for path in paths:
        while path:
            directory, _, name = path.rpartition("/")
            found.setdefault(directory, set()).add(name)
            path = directory
    return found
