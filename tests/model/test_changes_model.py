"""The changes between two random trees against two plain dicts, and the way over several syncs."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from cache_box import MEMORY
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.catalogue import CARRIED_SYNCS_MAX, Catalogue, Node, unpack_record
from forebay.cacheruntime.catalogue_changes import changes_path, read_changes, record_changes
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.keys import ROOT_NODE, NodeId, node_id
from forebay.cacheruntime.understore.base import Entry, Kind

_NAMES = st.sampled_from(["a", "b", "a.b", "\udcff"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_TIMES = st.integers(0, 2)
_MODES = st.sampled_from([None, 0o644, 0o600])
_ENTRIES = st.one_of(
    st.builds(Entry, _PATHS, st.just(Kind.FILE), st.integers(0, 1), _TIMES, st.sampled_from(["1", "2"]), mode=_MODES),
    st.builds(Entry, _PATHS, st.just(Kind.SYMLINK), st.just(1), _TIMES, target=st.sampled_from(["x", "y"])),
    st.builds(Entry, _PATHS, st.just(Kind.DIRECTORY), st.just(0), _TIMES, mode=_MODES),
)
_TREES = st.lists(_ENTRIES, max_size=8)

Tree = dict[bytes, Node]
"""Visible nodes by path."""


def _tree(reader: Catalogue) -> Tree:
    """All that is visible, by asking for one directory after the other."""
    root = reader.node(ROOT_NODE)
    assert root is not None
    found = {b"": root}
    pending = [b""]
    while pending:
        path = pending.pop()
        for node in reader.children(found[path].node):
            below = path + b"/" + node.name if path else node.name
            found[below] = node
            if node.kind is Kind.DIRECTORY:
                pending.append(below)
    return found


def _names(tree: Tree, directory: bytes) -> dict[bytes, NodeId]:
    return {n.name: n.node for path, n in tree.items() if path and path.rpartition(b"/")[0] == directory}


def _look(node: Node) -> tuple[object, ...]:
    return node.node, node.size, node.mtime_ns, node.mode


def _expected(old: Tree, new: Tree, known: set[int]) -> set[tuple[int, bytes, str]]:
    """Changes from one tree to the next; `known`: node ids that readers of the old one may hold."""
    found: set[tuple[int, bytes, str]] = set()
    for path in (old.keys() | new.keys()) - {b""}:
        was, now = old.get(path), new.get(path)
        above, _, name = path.rpartition(b"/")
        parent = node_id(above, b"")
        if was is None or now is None:
            found.add((parent, name, "ADDED" if was is None else "REMOVED"))
        elif was.node != now.node or (now.kind is not Kind.DIRECTORY and _look(was) != _look(now)):
            found.add((parent, name, "CHANGED"))
    for path in old.keys() | new.keys():
        was, now = (tree.get(path) for tree in (old, new))
        was, now = (node if node is not None and node.kind is Kind.DIRECTORY else None for node in (was, now))
        number = node_id(path, b"")
        listing = (was is not None or now is not None) and _names(old, path) != _names(new, path)
        alone = was is not None and now is not None and (_look(was), was.subdirectories) != (
            _look(now), now.subdirectories,
        )  # fmt: skip
        came_back = was is None and now is not None and number in known
        if listing or alone or came_back:
            found.add((number, b"", "DIRECTORY"))
    return found


@given(st.lists(_TREES, min_size=2, max_size=CARRIED_SYNCS_MAX + 3))
def test_syncs_of_random_trees(trees: list[list[Entry]]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as root, ExitStack() as closing:
        last_seen: dict[int, tuple[int, bytes]] = {}
        before: Catalogue | None = None
        for number, entries in enumerate(trees, 1):
            writer = CatalogueWriter(Path(root) / str(number), "fake://model")
            closing.callback(writer.close)
            writer.add(entries)
            writer.finish()
            reader = writer.reader()
            new, recorded = _tree(reader), _recorded(reader)
            if before is not None:
                known = {n for n, (seen, _) in last_seen.items() if number - 1 - seen <= CARRIED_SYNCS_MAX}
                expected = _expected(_tree(before), new, known)
                record_changes(before, number - 1, writer)
                found = [(c.parent, c.name, c.kind.name) for c in read_changes(changes_path(writer.folder, number - 1))]
                assert len(found) == len(set(found))
                assert set(found) == expected
                assert _tree(reader) == new, "carrying over shows nothing"
            last_seen |= {node: (number, path) for node, path in recorded.items()}
            _check_carried(reader, last_seen, number)
            before = reader


def _recorded(reader: Catalogue) -> dict[int, bytes]:
    """Every node that a reader may have seen; what came before a directory of its name was there for a moment."""
    with reader.view() as view:
        nodes = [unpack_record(NodeId(int.from_bytes(key, "big")), raw).node for key, raw in view.records()]
    return {node: reader.path_of(node) for node in nodes}


def _check_carried(reader: Catalogue, last_seen: dict[int, tuple[int, bytes]], number: int) -> None:
    for each, (seen, path) in last_seen.items():
        node = reader.node(NodeId(each))
        if number - seen > CARRIED_SYNCS_MAX:
            assert node is None
        else:
            assert node is not None
            assert node.carried == number - seen
            assert reader.path_of(node.node) == path
            if node.carried and node.kind is Kind.DIRECTORY:
                assert list(reader.children(node.node)) == []
