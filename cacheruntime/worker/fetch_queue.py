"""Which fetch goes next: readers who wait come before read-ahead. Pure bookkeeping."""

import time
from dataclasses import dataclass, field

from forebay.cacheruntime import tracing
from forebay.cacheruntime.blocks import BLOCK_BYTES, Span
from forebay.cacheruntime.config import Medium
from forebay.cacheruntime.index import Cached
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.worker.fetch import SourceFile


@dataclass(eq=False)
class Part:
    """One GET: a run of blocks or pieces of one file. `demand` may turn true at any time, never false again."""

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


class FetchQueue:
    """Parts that wait for a slot, and those that have one.

    Bound: what waits is at most a window for each reader, as each asks for no more than that ahead.
    """

    def __init__(self, slots: int, demand_slots: int) -> None:
        """
        Args:
            slots: GETs under way at once.
            demand_slots: how many of them read-ahead leaves free, at least one slot being its own.
        """
        self._slots = slots
        self._ahead_slots = max(1, slots - demand_slots)
        self._demand: dict[Part, None] = {}  # in the order of coming
        self._ahead: dict[Part, None] = {}
        self._running: set[Part] = set()

    @property
    def free(self) -> int:
        """Slots that nothing has or waits for."""
        return max(0, self._slots - len(self._running) - len(self._demand) - len(self._ahead))

    def push(self, part: Part) -> None:
        (self._demand if part.demand else self._ahead)[part] = None

    def promote(self, part: Part) -> None:
        """A reader waits for this part now."""
        part.demand = True
        if part in self._ahead:
            del self._ahead[part]
            self._demand[part] = None

    def start_next(self) -> Part | None:
        """The part to fetch now, which has a slot from here on; None when it is nobody's turn."""
        if len(self._running) >= self._slots:
            return None
        if self._demand:
            part = next(iter(self._demand))
            del self._demand[part]
        elif self._ahead and sum(not part.demand for part in self._running) < self._ahead_slots:
            part = next(iter(self._ahead))
            del self._ahead[part]
        else:
            return None
        self._running.add(part)
        return part

    def ended(self, part: Part) -> None:
        """Give a slot back."""
        self._running.discard(part)
