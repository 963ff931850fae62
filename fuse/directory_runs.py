"""Readers that go through a directory in the order of its listing: what they will read next. Pure.

Files that were put into the page cache ahead are read without a request, so nobody sees them being read. As the
kernel's own read-ahead does (mm/readahead.c, the page marked PG_readahead), each window therefore leaves out one file
in its middle: the request for that one tells how far the reader has come, and has the next window begin.
"""

from collections import OrderedDict
from collections.abc import Callable

from forebay.cacheruntime.catalogue import Node
from forebay.cacheruntime.keys import NodeId

Siblings = Callable[[NodeId, int], list[Node]]
"""The next files of a directory behind a node, up to that many."""

_NEAR = 4
"""So many files may be passed over, as by several loaders that share a directory."""

_SURE = 3
"""Steps in order that make a run."""

_WINDOW_MIN, _WINDOW_MAX = 16, 256
_RUNS = 64
_PATIENCE = 64
"""Requests out of order after which a run is over."""


class _Run:
    """One directory's reader."""

    __slots__ = ("expected", "frontier", "last", "misses", "skip", "steps", "window")

    def __init__(self, last: NodeId) -> None:
        self.last = last
        self.steps = 0
        self.misses = 0
        self.skip = 0
        """Requests that are not looked at: looking costs, and a random reader is not worth it."""
        self.window = 0
        self.expected: set[NodeId] = set()
        """Requests for these show that the reader goes on."""
        self.frontier = last
        """The last file that was put ahead."""


class DirectoryRuns:
    """Notices runs and says what to put into memory."""

    def __init__(self, siblings: Siblings) -> None:
        self._siblings = siblings
        self._runs: OrderedDict[NodeId, _Run] = OrderedDict()

    def observe(self, node: Node) -> list[Node]:
        """Note the first request for a small file; returns the files to put ahead, in order."""
        run = self._runs.get(node.parent)
        if run is None:
            self._runs[node.parent] = _Run(node.node)
            if len(self._runs) > _RUNS:
                self._runs.popitem(last=False)
            return []
        if not run.window:
            return self._look_for_run(run, node)
        if node.node in run.expected:
            run.misses = 0
            return self._extend(run, node)
        run.misses += 1
        if run.misses > _PATIENCE:
            self._runs[node.parent] = _Run(node.node)
        return []

    def follows(self, directory: NodeId) -> bool:
        """Whether a reader goes through a directory in order."""
        run = self._runs.get(directory)
        return run is not None and bool(run.window)

    def _look_for_run(self, run: _Run, node: Node) -> list[Node]:
        if run.skip:
            run.skip -= 1
        elif any(near.node == node.node for near in self._siblings(run.last, _NEAR)):
            run.steps += 1
            run.misses = 0
        else:
            run.steps = 0
            run.misses = min(run.misses + 1, 6)
            run.skip = (1 << run.misses) - 1
        run.last = run.frontier = node.node
        return self._extend(run, node) if run.steps >= _SURE else []

    def _extend(self, run: _Run, node: Node) -> list[Node]:
        run.window = min(max(2 * run.window, _WINDOW_MIN), _WINDOW_MAX)
        coming = self._siblings(run.frontier, run.window)
        if not coming:
            return []
        middle = coming[len(coming) // 2]
        run.frontier = coming[-1].node
        run.expected = {middle.node, *(near.node for near in self._siblings(run.frontier, _NEAR))}
        return [file for file in coming if file is not middle]
