"""Waiting for bytes that are on their way into the index, without asking the worker for them.

A look at the index costs some microseconds, a call to the worker a millisecond on both sides. One of those who wait
looks for all of them.
"""

from collections.abc import Callable

import trio

from forebay.cacheruntime.index import Cached
from forebay.cacheruntime.keys import ContentId

_LOOK_S = 0.001
"""Between looks. With pauses that grew to 16 ms a sequential reader lost a third of its time to them."""


class _Waiter:
    __slots__ = ("end", "here", "start", "woken")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.here = False
        self.woken = trio.Event()


class Arrivals:
    """Those who wait for bytes, by file. One event loop.

    Bound: as many as the kernel has requests under way (its max_background and one for each blocked reader).
    """

    def __init__(
        self, find: Callable[[ContentId], Cached | None], has: Callable[[ContentId, Cached, int, int], bool]
    ) -> None:
        """
        Args:
            find: the index's record of a file.
            has: whether it has a range of it; see `Index.has`.
        """
        self._find = find
        self._has = has
        self._waiting: dict[ContentId, list[_Waiter]] = {}
        self._looking = False

    async def wait(self, content: ContentId, start: int, end: int, patience_s: float) -> bool:
        """Wait until [start, end) of a file is in the index; False when it has not come after `patience_s`.

        Cancellation: safe; another of those who wait goes on looking.
        """
        waiter = _Waiter(start, end)
        self._waiting.setdefault(content, []).append(waiter)
        try:
            with trio.move_on_after(patience_s):
                while not waiter.here:
                    if self._looking:
                        await waiter.woken.wait()
                        waiter.woken = trio.Event()
                    else:
                        await self._look_until(waiter)
        finally:
            waiters = self._waiting[content]
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[content]
        return waiter.here

    async def _look_until(self, waiter: _Waiter) -> None:
        self._looking = True
        try:
            while not waiter.here:
                await trio.sleep(_LOOK_S)
                self._look()
        finally:
            self._looking = False
            heir = next((w for ws in self._waiting.values() for w in ws if w is not waiter and not w.here), None)
            if heir is not None:
                heir.woken.set()

    def _look(self) -> None:
        for content, waiters in self._waiting.items():
            cached = self._find(content)
            if cached is None:
                continue
            for waiter in waiters:
                if not waiter.here and self._has(content, cached, waiter.start, waiter.end):
                    waiter.here = True
                    waiter.woken.set()
