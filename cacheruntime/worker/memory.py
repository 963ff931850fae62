"""How much memory the worker may use for bytes on their way, and who has it.

The budget is one number (`FillConfig.memory_bytes`) with three shares:

* half for GETs under way: each holds a piece of the store's, a block, and what the HTTP client has read ahead; what the
  most of them leave of it is for small files of warm-ups (`small_files.py`);
* a quarter for bytes that no tier had room for and that the next request may want;
* a quarter for replies that carry such bytes, with their copies on the way into the socket.
"""

from dataclasses import dataclass

import trio

from forebay.cacheruntime.config import MIB, FillConfig
from forebay.cacheruntime.memory_limit import limits, ram_bytes

MOST_BYTES = 512 * MIB
"""Of the default budget: more does not make fetching faster."""

GET_BYTES = 4 * MIB
"""One GET under way: the pieces of a block (1 MiB, and what the last has of the next), and what obstore and the HTTP
client hold. Measured with blocks that were copied together, which took no less: docs/decisions/0013."""

REPLY_COPIES = 4
"""A block that goes through a reply: itself, the cut, the frame, what the socket holds."""


@dataclass(frozen=True)
class Shares:
    """What a budget comes to."""

    gets: int
    """GETs under way at once."""
    through_bytes: int
    reply_bytes: int
    bulk_bytes: int


def shares(budget_bytes: int, fill: FillConfig) -> Shares:
    """Split a budget.

    Args:
        budget_bytes: the whole.
        fill: with the bounds that hold however large the budget is.
    """
    gets = max(1, min(fill.parallel_gets, budget_bytes // 2 // GET_BYTES))
    # A small file on its way is in memory twice: as obstore has it, and as bytes.
    bulk = max(MIB, (budget_bytes // 2 - gets * GET_BYTES) // 2)
    return Shares(gets, min(fill.window_max_bytes, budget_bytes // 4), budget_bytes // 4, bulk)


def default_budget(ram_bytes: int, limit_bytes: int | None) -> int:
    """A quarter of what there is, at most `MOST_BYTES`.

    Args:
        ram_bytes: of the machine.
        limit_bytes: of the control group; None without one.
    """
    return min(ram_bytes if limit_bytes is None else min(ram_bytes, limit_bytes), 4 * MOST_BYTES) // 4


def machine_budget() -> int:
    """`default_budget` of this process where it runs."""
    return default_budget(ram_bytes(), min((limit for _, limit in limits()), default=None))


class MemoryBudget:
    """Bytes that tasks take and give back, first come first served. One event loop."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self.used_bytes = 0
        self._turn = trio.StrictFIFOLock()
        self._given_back = trio.Event()

    @property
    def is_short(self) -> bool:
        """Somebody waits."""
        return self._turn.locked()

    async def take(self, size: int) -> int:
        """Wait until there is room; returns what was taken: `size`, or all there is when it is more than that."""
        size = min(size, self._total)
        async with self._turn:
            while self.used_bytes + size > self._total:
                self._given_back = trio.Event()
                await self._given_back.wait()
            self.used_bytes += size
        return size

    def give_back(self, size: int) -> None:
        self.used_bytes -= size
        self._given_back.set()


class Lease:
    """What one reply has of a budget, until it is sent. `release` may come before, while or after it is taken."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._held = 0
        self._released = False

    @property
    def is_held(self) -> bool:
        """Whether there is something to release."""
        return self._held > 0

    async def hold(self, size: int) -> None:
        """Wait for that many bytes, unless something is held already."""
        if self._held or self._released:
            return
        taken = await self._budget.take(size)
        if self._released:
            self._budget.give_back(taken)
        else:
            self._held = taken

    def release(self) -> None:
        self._released = True
        if self._held:
            self._budget.give_back(self._held)
            self._held = 0
