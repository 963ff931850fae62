"""Which fetch goes next: readers who wait come before read-ahead. Pure bookkeeping.

A fetch from another worker has its slot for as long as it waits in that worker's own queue. Two workers whose slots all
wait for each other would wait until they give up. So the store keeps a share of the slots; and of each kind of fetch
(from the store, and from other workers for a request that was passed on 0, 1 or 2 times) one runs even when no slot is
free. A kind waits only for those that were passed on more often, or for the store (`cluster/routing.py`), so all have
their turn.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from forebay.cacheruntime import tracing
from forebay.cacheruntime.blocks import BLOCK_BYTES, Span
from forebay.cacheruntime.cluster.routing import MAX_HOPS
from forebay.cacheruntime.config import Medium
from forebay.cacheruntime.index import Cached
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.worker.fetch import SourceFile

_STORE_SHARE = 4
"""One slot in so many is the store's alone."""


@dataclass(eq=False)
class Part:
    """One GET: a run of blocks or pieces of one slice of a file. `demand` may turn true at any time, never false
    again."""

    file: SourceFile
    content: ContentId
    run: list[Span]
    target: Cached | None
    """The tier file's record; None: into memory, as no tier has room."""
    demand: bool
    """A reader waits for it."""
    medium: Medium | None = None
    """Of the tier that a small file is to come into."""
    left: set[Span] = field(init=False)
    """What has not come yet."""
    memory_ahead_bytes: int = field(init=False)
    """Memory that nobody had asked for when it was started."""
    trace: str = field(default_factory=tracing.current)
    """`traceparent` of the span that has begun it."""
    queued_ns: int = field(default_factory=time.monotonic_ns)
    """When it was made (monotonic)."""

    def __post_init__(self) -> None:
        self.left = set(self.run)
        ahead = self.target is None and not self.demand and self.file.size > BLOCK_BYTES
        self.memory_ahead_bytes = sum(span.size for span in self.run) if ahead else 0

    @cached_property
    def hops(self) -> int | None:
        """How often the request was passed on for which another worker is asked; None: the store is."""
        return self.file.hops if self.file.is_relayed(self.run[0].start) else None


_Waiting = defaultdict[int | None, dict[Part, None]]
"""By kind (`Part.hops`), in the order of coming."""


class FetchQueue:
    """Parts that wait for a slot, and those that have one.

    Bound: what waits is at most a window for each reader, as each asks for no more than that ahead.
    """

    def __init__(self, slots: int, demand_slots: int) -> None:
        """
        Args:
            slots: GETs and requests to other workers under way at once, but for one of each kind.
            demand_slots: how many of them read-ahead leaves free, at least one slot being its own.
        """
        self._slots = slots
        self._ahead_slots = max(1, slots - demand_slots)
        self._relay_slots = slots - slots // _STORE_SHARE
        self._demand: _Waiting = defaultdict(dict)
        self._ahead: _Waiting = defaultdict(dict)
        self._running: set[Part] = set()
        self._kinds: Counter[int | None] = Counter()
        """Of those that run."""

    @property
    def most(self) -> int:
        """GETs and requests to other workers that ever run at once."""
        return self._slots + MAX_HOPS + 1

    @property
    def free(self) -> int:
        """Slots that nothing has or waits for."""
        waiting = sum(map(len, (*self._demand.values(), *self._ahead.values())))
        return max(0, self._slots - len(self._running) - waiting)

    def push(self, part: Part) -> None:
        (self._demand if part.demand else self._ahead)[part.hops][part] = None

    def promote(self, part: Part) -> None:
        """A reader waits for this part now."""
        part.demand = True
        if part in self._ahead[part.hops]:
            del self._ahead[part.hops][part]
            self._demand[part.hops][part] = None

    def start_next(self) -> Part | None:
        """The part to fetch now, which has a slot from here on; None when it is nobody's turn."""
        part = _first(self._demand, lambda hops: self._has_slot(hops) or not self._kinds[hops])
        if part is None and sum(not running.demand for running in self._running) < self._ahead_slots:
            part = _first(self._ahead, self._has_slot)
        if part is not None:
            self._running.add(part)
            self._kinds[part.hops] += 1
        return part

    def _has_slot(self, hops: int | None) -> bool:
        running = len(self._running)
        return running < self._slots and (hops is None or running - self._kinds[None] < self._relay_slots)

    def ended(self, part: Part) -> None:
        """Give a slot back."""
        self._running.remove(part)
        self._kinds[part.hops] -= 1


def _first(waiting: _Waiting, may_run: Callable[[int | None], bool]) -> Part | None:
    """What came first of the kinds that may run, and is taken out."""
    heads = [next(iter(parts)) for hops, parts in waiting.items() if parts and may_run(hops)]
    part = min(heads, key=lambda head: head.queued_ns, default=None)
    if part is not None:
        del waiting[part.hops][part]
    return part
