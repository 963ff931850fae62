"""How many handlers a mount has: pure, from the time that each did not wait for requests.

Not from CPU time: on a machine whose cores are all taken, a handler that never waits gets only a part of one.
"""

_GROW_LOAD, _SHRINK_LOAD = 0.6, 0.3
"""Of the time: all handlers above the first, and the mean after one less below the second."""

_GROW_LOOKS, _SHRINK_LOOKS = 1, 30
"""Looks (twice a second) that must agree: quick to help, slow to leave."""


class Scaling:
    """Decides, one handler at a time."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self.wanted = least
        """How many there are to be now."""
        self._used: dict[int, float] = {}
        self._at_s = 0.0
        self._busy = self._idle = 0

    def observe(self, used: dict[int, float], now_s: float) -> int:
        """Look at the load; +1 for one more handler, -1 for one less.

        Args:
            used: life of a handler -> seconds since its start in which it did not wait.
            now_s: on the monotonic clock.
        """
        elapsed = now_s - self._at_s
        loads = [(s - self._used[who]) / elapsed for who, s in used.items() if who in self._used and elapsed > 0]
        self._used, self._at_s = dict(used), now_s
        if len(loads) < self.wanted:
            self._busy = self._idle = 0
            return 0
        self._busy = self._busy + 1 if min(loads) >= _GROW_LOAD else 0
        self._idle = self._idle + 1 if sum(loads) <= _SHRINK_LOAD * (len(loads) - 1) else 0
        if self._busy >= _GROW_LOOKS and self.wanted < self._most:
            self._busy = 0
            self.wanted += 1
            return 1
        if self._idle >= _SHRINK_LOOKS and self.wanted > self._least:
            self._idle = 0
            self.wanted -= 1
            return -1
        return 0
