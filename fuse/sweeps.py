"""Epochs over small files that nobody announced: the rest of a directory that is read in no order is made ready.

A reader of small files waits for one round trip after the other: to the source while the files are not cached, to a
handler while they are not in the page cache. Who reads files of one directory at random usually reads all of it, once
in an epoch; so behind those who wait, the rest of it is fetched, and what is cached already is put into the page cache.

What that may cost is bounded by what it brings. A sweep starts with a few files, earns one more with each file that was
not ready, and several with each that was foreseen. A file that was fetched ahead is seen when it is asked for. A file
that was put into the page cache is read without a request, so every eighth is left out, as a witness for the others.
A job that picks a few files of many directories has at most about twice as much made ready as it reads; one that reads
everything has the rest of it after a fraction of its reads. In an order of names it is `directory_runs.py`'s.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

from forebay.cacheruntime.catalogue import Node
from forebay.cacheruntime.keys import NodeId

_SURE = 4
"""Requests for files of one directory that were not ready which make it likely that all of it will be read."""

_START = 8
"""Files that a sweep may make ready before it has proved right."""

_EARNED = 4
"""Files for each that was foreseen."""

_WITNESS = 8
"""Of so many files that could be put into the page cache one is left out; a request for it speaks for all of them."""

_AT_ONCE = 12
"""Files being fetched; the worker fetches that many ahead at once by default."""

_LOOKED_AT = 64
"""Siblings looked at in one go: ready ones are passed over, but not a million of them between two replies."""

_FAILURES = 4
"""So many files in a row that did not come end a sweep: no tier has room, or the source fails."""

_AGAIN = 64
"""Files that were not ready after which a sweep that was over begins anew: they were evicted, or there is room."""

_DIRECTORIES = 256
_SLOTS = 1 << 21
_FETCHED, _LEFT_OUT = 1, 2


class Means(Protocol):
    """How files are made ready."""

    def siblings(self, after: NodeId, count: int) -> list[Node]:
        """The next small files of a directory behind a node, up to `count`; behind the directory itself, its first."""

    def is_cached(self, node: Node) -> bool:
        """It is in a tier."""

    def is_ready(self, node: Node) -> bool:
        """It is in a tier, and the page cache has it or cannot be given it."""

    def fetch(self, node: Node, done: Callable[[bool], None]) -> None:
        """Bring it into a tier behind all readers who wait, then say whether it is there."""

    def push(self, node: Node) -> bool:
        """Have it put into the page cache; False: not now."""


class _Sweep:
    """One directory."""

    __slots__ = (
        "asked", "coming", "credit", "directory", "failures", "frontier", "over", "passed", "to_miss", "wrapped",
    )  # fmt: skip

    def __init__(self, directory: NodeId, to_miss: int) -> None:
        self.directory = directory
        self.to_miss = to_miss
        """Requests before it begins."""
        self.asked = directory
        """The file that was asked for last; a file may be asked for in several requests."""
        self.credit = 0
        self.coming: deque[Node] = deque()
        self.frontier = directory
        """The last sibling taken into `coming`."""
        self.wrapped = False
        self.passed = 0
        """Files that could be put into the page cache so far."""
        self.failures = 0
        self.over = False


class Sweeps:
    """Notices such readers and has files made ready. One event loop."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._sweeps: OrderedDict[NodeId, _Sweep] = OrderedDict()
        self._under_way = 0
        self._foreseen = bytearray(_SLOTS)
        """What was done with a file that was not asked for since, by hash of the node. A collision costs some files."""

    def observe(self, node: Node) -> None:
        """Note a request for a small file that was not ready, or had been fetched ahead."""
        slot = node.node % _SLOTS
        foreseen, self._foreseen[slot] = self._foreseen[slot], 0
        sweep = self._sweeps.get(node.parent)
        if sweep is None or sweep.over:
            sweep = self._sweeps[node.parent] = _Sweep(node.parent, _SURE if sweep is None else _AGAIN)
            if len(self._sweeps) > _DIRECTORIES:
                self._sweeps.popitem(last=False)
        else:
            self._sweeps.move_to_end(node.parent)
        if sweep.asked == node.node:
            return
        sweep.asked = node.node
        if foreseen:
            sweep.credit += _EARNED if foreseen == _FETCHED else _EARNED * _WITNESS
        elif sweep.to_miss:
            sweep.to_miss -= 1
            if not sweep.to_miss:
                sweep.credit += _START
                sweep.frontier = node.node
        else:
            sweep.credit += 1
        if not sweep.to_miss:
            self._go_on(sweep)

    def forget(self) -> None:
        """Another snapshot is served from now on: what was to come of the last one may be gone."""
        for sweep in self._sweeps.values():
            sweep.over = True
        self._sweeps.clear()

    def _go_on(self, sweep: _Sweep) -> None:
        """Spend the credit, from where the sweep began to the end of the directory and then from its begin."""
        for _ in range(_LOOKED_AT):
            if not sweep.credit or sweep.over:
                return
            node = self._next(sweep)
            if node is None:
                sweep.over = True
                return
            if self._means.is_ready(node):
                sweep.coming.popleft()
            elif self._means.is_cached(node):
                sweep.passed += 1
                if not sweep.passed % _WITNESS:
                    self._foreseen[node.node % _SLOTS] = _LEFT_OUT
                elif not self._means.push(node):
                    sweep.passed -= 1
                    return
                sweep.coming.popleft()
                sweep.credit -= 1
            elif self._under_way < _AT_ONCE:
                sweep.coming.popleft()
                sweep.credit -= 1
                self._fetch(sweep, node)
            else:
                return

    def _next(self, sweep: _Sweep) -> Node | None:
        """The next sibling, ready or not; None when all were looked at."""
        if not sweep.coming:
            sweep.coming.extend(self._means.siblings(sweep.frontier, _LOOKED_AT))
            if not sweep.coming and not sweep.wrapped:
                sweep.wrapped = True
                sweep.coming.extend(self._means.siblings(sweep.directory, _LOOKED_AT))
            if not sweep.coming:
                return None
            sweep.frontier = sweep.coming[-1].node
        return sweep.coming[0]

    def _fetch(self, sweep: _Sweep, node: Node) -> None:
        slot = node.node % _SLOTS

        def arrived(cached: bool) -> None:
            self._under_way -= 1
            if cached:
                sweep.failures = 0
            else:
                self._foreseen[slot] = 0
                sweep.failures += 1
                sweep.over = sweep.over or sweep.failures >= _FAILURES
            self._go_on(sweep)

        self._under_way += 1
        self._foreseen[slot] = _FETCHED
        self._means.fetch(node, arrived)
