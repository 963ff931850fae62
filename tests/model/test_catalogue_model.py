"""The catalogue against a plain dict, by random operations."""

import tempfile
from pathlib import Path
from typing import Any

from cache_box import MEMORY
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.keys import ROOT_NODE
from forebay.cacheruntime.understore.base import Entry, Kind

_NAMES = st.sampled_from(["a", "b", "c", "a.b", "\udcff"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_BAD_PATHS = st.sampled_from(["", "a//b", "..", "a/../b", "x" * 300])
_FILES = st.builds(
    Entry, _PATHS, st.just(Kind.FILE), st.sampled_from([0, 5, 1 << 20]), st.integers(0, 9), st.sampled_from(["1", "2"])
)
_LINKS = st.builds(Entry, _PATHS, st.just(Kind.SYMLINK), st.just(1), st.integers(0, 9), target=_NAMES)
_DIRECTORIES = st.builds(Entry, _PATHS, st.just(Kind.DIRECTORY))
_BAD = st.builds(Entry, _BAD_PATHS, st.just(Kind.FILE), st.just(3))


class CatalogueMachine(RuleBasedStateMachine):
    """Leaves and directories by path; directories win over leaves of the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.writer = CatalogueWriter(Path(self.folder.name) / "1", "fake://model")
        self.leaves: dict[str, Entry] = {}
        self.directories: set[str] = {""}
        self.skipped: set[str] = set()
        self.listed: set[str] = set()
        self.seen: dict[int, Any] = {}
        self.times: dict[str, int] = {}
        self.complete = False

    @initialize()
    def root(self) -> None:
        assert list(self.writer.reader().children(ROOT_NODE)) == []

    @rule(page=st.lists(st.one_of(_FILES, _LINKS, _DIRECTORIES, _BAD), max_size=6))
    def add(self, page: list[Entry]) -> None:
        self.writer.add(page)
        for entry in page:
            self._model_add(entry)

    @rule(path=st.one_of(st.just(""), _PATHS), entries=st.lists(st.one_of(_FILES, _DIRECTORIES), max_size=4))
    def replace_directory(self, path: str, entries: list[Entry]) -> None:
        inside = [
            Entry(f"{path}/{e.path.split('/')[0]}".lstrip("/"), e.kind, e.size, e.mtime_ns, e.version) for e in entries
        ]
        self.writer.replace_directory(path.encode("utf-8", "surrogateescape"), inside)
        self._model_directory(path)
        for entry in inside:
            self._model_add(entry)
        self.listed.add(path)

    @rule(path=_PATHS)
    def remove(self, path: str) -> None:
        self.writer.remove(path.encode("utf-8", "surrogateescape"))
        self.leaves.pop(path, None)

    @rule()
    def finish(self) -> None:
        self.writer.finish()
        self.complete = True

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.writer = CatalogueWriter(Path(self.folder.name) / "1", "fake://model")

    def _model_directory(self, path: str) -> None:
        parts = path.split("/") if path else []
        for depth in range(1, len(parts) + 1):
            at = "/".join(parts[:depth])
            self.directories.add(at)
            if self.leaves.pop(at, None) is not None:
                self.skipped.add(at)

    def _model_add(self, entry: Entry) -> None:
        parts = entry.path.split("/")
        if any(part in ("", ".", "..") or len(part) > 255 for part in parts):
            self.skipped.add(entry.path)
        elif entry.kind is Kind.DIRECTORY:
            self._model_directory(entry.path)
        else:
            self._model_directory("/".join(parts[:-1]))
            if entry.path in self.directories:
                self.skipped.add(entry.path)
                return
            self.leaves[entry.path] = entry
            for depth in range(len(parts)):
                above = "/".join(parts[:depth])
                self.times[above] = max(self.times.get(above, 0), entry.mtime_ns)

    @invariant()
    def names_agree(self) -> None:
        reader = self.writer.reader()
        expected = dict.fromkeys(self.directories, Kind.DIRECTORY) | {p: e.kind for p, e in self.leaves.items()}
        found: dict[str, Kind] = {}
        self._walk(reader, "", ROOT_NODE, found)
        assert found == expected

    def _walk(self, reader: Catalogue, path: str, node: Any, found: dict[str, Kind]) -> None:
        shown = reader.node(node)
        assert shown is not None
        found[path] = shown.kind
        assert shown.mtime_ns == self.times.get(path, 0)
        assert reader.is_settled(node) == (self.complete or path in self.listed)
        children = list(reader.children(node))
        assert [c.name for c in children] == sorted(c.name for c in children)
        assert shown.subdirectories == sum(c.kind is Kind.DIRECTORY for c in children)
        for position, child in enumerate(children):
            assert list(reader.children(node, child.node)) == children[position + 1 :]
            assert reader.child(node, child.name) == child
            name = child.name.decode("utf-8", "surrogateescape")
            below = f"{path}/{name}" if path else name
            assert reader.path_of(child.node) == below.encode("utf-8", "surrogateescape")
            if child.kind is Kind.DIRECTORY:
                self._walk(reader, below, child.node, found)
            else:
                found[below] = child.kind
                entry = self.leaves[below]
                assert (child.size, child.mtime_ns, child.version) == (entry.size, entry.mtime_ns, entry.version)
                self.seen[child.node] = (child.name, child.content, child.size, child.version)

    @invariant()
    def totals_agree(self) -> None:
        files = [entry for entry in self.leaves.values() if entry.kind is Kind.FILE]
        totals = self.writer.reader().totals()
        assert (totals.files, totals.bytes) == (len(files), sum(f.size for f in files))
        assert totals.small_bytes == sum(f.size for f in files if f.size < 1 << 20)
        assert totals.skipped == len(self.skipped)
        assert totals.complete == self.complete

    @invariant()
    def older_versions_stay(self) -> None:
        for number, expected in self.seen.items():
            node = self.writer.reader().node(number)  # type: ignore[arg-type]
            assert node is not None
            assert (node.name, node.content, node.size, node.version) == expected

    def teardown(self) -> None:
        self.writer.close()
        self.folder.cleanup()


TestCatalogue = CatalogueMachine.TestCase
