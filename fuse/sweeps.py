"""Epochs over small files that nobody announced: a directory whose files are read in no order is fetched as a whole.

A reader of uncached small files waits for one round trip after the other, while most GETs that may be under way are
not. Who reads files of one directory at random usually reads all of it, once in an epoch; so behind those who wait, the
rest of it is fetched too. What that may cost is bounded by what it brings: a sweep starts with a few files, earns one
more with each file that was missing, and several with each that was asked for after it had been fetched ahead. A job
that picks a few files of many directories has at most twice as much fetched as it reads, and a few files each; one that
reads everything has the rest of it after a fraction of its reads. In an order of names it is `directory_runs.py`'s.
"""

from collections import OrderedDict, deque
from collections.abc import Callable

from forebay.cacheruntime.catalogue import Node
from forebay.cacheruntime.keys import NodeId

Siblings = Callable[[NodeId, int], list[Node]]
"""The next small files of a directory behind a node, up to that many; behind the directory itself, the first."""

Bring = Callable[[Node, Callable[[bool], None]], None]
"""Fetches a file behind all readers who wait, then says whether it is cached."""

_SURE = 4
"""Missing files of one directory that make it likely that all of it will be read."""

_START = 8
"""Files that a sweep may fetch before it has proved right."""

_EARNED = 4
"""Files for each that was fetched ahead and then asked for."""

_AT_ONCE = 12
"""Files under way; the worker fetches that many ahead at once by default."""

_LOOKED_AT = 64
"""Siblings looked at in one go: cached ones are passed over, but not a million of them between two replies."""

_FAILURES = 4
"""So many files in a row that did not come end a sweep: no tier has room, or the source fails."""

_AGAIN = 64
"""Missing files after which a sweep that was over begins anew: its files were evicted, or there is room again."""

_DIRECTORIES = 256
_AHEAD_SLOTS = 1 << 21


class _Sweep:
    """One directory."""

    __slots__ = ("coming", "credit", "directory", "failures", "frontier", "over", "to_miss", "wrapped")

    def __init__(self, directory: NodeId, to_miss: int) -> None:
        self.directory = directory
        self.to_miss = to_miss
        """Files that have to be missing before it begins."""
        self.credit = 0
        self.coming: deque[Node] = deque()
        self.frontier = directory
        """The last sibling taken into `coming`."""
        self.wrapped = False
        self.failures = 0
        self.over = False


class Sweeps:
    """Notices such readers and has files fetched. One event loop."""

    def __init__(self, siblings: Siblings, is_cached: Callable[[Node], bool], bring: Bring) -> None:
        self._siblings = siblings
        self._is_cached = is_cached
        self._bring = bring
        self._sweeps: OrderedDict[NodeId, _Sweep] = OrderedDict()
        self._under_way = 0
        self._ahead = bytearray(_AHEAD_SLOTS)
        """Whether a file was fetched ahead and not asked for yet, by hash of the node. A collision costs some files."""

    def observe(self, node: Node, missing: bool) -> None:
        """Note the first request for a small file.

        Args:
            node: the file.
            missing: it is not cached.
        """
        slot = node.node % _AHEAD_SLOTS
        useful = self._ahead[slot]
        if not useful and not missing:
            return
        self._ahead[slot] = 0
        sweep = self._sweeps.get(node.parent)
        if sweep is None:
            sweep = self._sweeps[node.parent] = _Sweep(node.parent, _SURE)
            if len(self._sweeps) > _DIRECTORIES:
                self._sweeps.popitem(last=False)
        if sweep.over:
            sweep = self._sweeps[node.parent] = _Sweep(node.parent, _AGAIN)
        if useful:
            sweep.credit += _EARNED
        elif sweep.to_miss:
            sweep.to_miss -= 1
            if not sweep.to_miss:
                sweep.credit += _START
                sweep.frontier = node.node
        else:
            sweep.credit += 1
        if not sweep.to_miss:
            self._go_on(sweep)

    def _go_on(self, sweep: _Sweep) -> None:
        while sweep.credit and not sweep.over and self._under_way < _AT_ONCE:
            node = self._next(sweep)
            if node is None:
                return
            sweep.credit -= 1
            self._under_way += 1
            self._ahead[node.node % _AHEAD_SLOTS] = 1

            def arrived(cached: bool, node: Node = node) -> None:
                self._under_way -= 1
                if cached:
                    sweep.failures = 0
                else:
                    self._ahead[node.node % _AHEAD_SLOTS] = 0
                    sweep.failures += 1
                    sweep.over = sweep.over or sweep.failures >= _FAILURES
                self._go_on(sweep)

            self._bring(node, arrived)

    def _next(self, sweep: _Sweep) -> Node | None:
        """The next sibling that is not cached, from where the sweep began to the end and then from the begin."""
        for _ in range(_LOOKED_AT):
            if not sweep.coming:
                sweep.coming.extend(self._siblings(sweep.frontier, _LOOKED_AT))
                if not sweep.coming and not sweep.wrapped:
                    sweep.wrapped = True
                    sweep.coming.extend(self._siblings(sweep.directory, _LOOKED_AT))
                if not sweep.coming:
                    sweep.over = True
                    return None
                sweep.frontier = sweep.coming[-1].node
            node = sweep.coming.popleft()
            if not self._is_cached(node):
                return node
        return None
