"""Whether a tier's disk can be relied on: a small state machine, fed with errors and probes. Pure but for its clock.

The states are those of JuiceFS's cache disks: a disk that fails now and then is given nothing new (unstable), one that
goes on failing, or is gone, is not asked any more (down), and comes back after a time without any error.
"""

import time
from collections import deque
from collections.abc import Callable
from enum import Enum

ERRORS = 3
"""So many within `WINDOW_S` make a disk unstable."""

WINDOW_S = 60.0
"""Also: that long without an error, with probes that went well, makes it normal again."""

DOWN_AFTER_S = 300.0
"""Of being unstable with errors still coming."""


class Health(Enum):
    NORMAL = "normal"
    UNSTABLE = "unstable"
    DOWN = "down"


class DiskHealth:
    """One tier folder."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._errors: deque[float] = deque()
        self._since = clock()
        self._good_since: float | None = None
        self.state = Health.NORMAL
        self.errors = 0
        """Since the start."""

    def failed(self) -> None:
        """A read, a write or a probe failed."""
        now = self._clock()
        self.errors += 1
        self._good_since = None
        self._errors.append(now)
        while self._errors and now - self._errors[0] > WINDOW_S:
            self._errors.popleft()
        if self.state is Health.NORMAL and len(self._errors) >= ERRORS:
            self._become(Health.UNSTABLE, now)
        elif self.state is Health.UNSTABLE and now - self._since >= DOWN_AFTER_S:
            self._become(Health.DOWN, now)

    def gone(self) -> None:
        """The folder is not there any more, or another one is in its place."""
        self.failed()
        if self.state is not Health.DOWN:
            self._become(Health.DOWN, self._clock())

    def probed_well(self) -> None:
        """A small file was written, read and removed."""
        now = self._clock()
        if self.state is Health.NORMAL:
            return
        if self._good_since is None:
            self._good_since = now
        elif now - self._good_since >= WINDOW_S:
            self._errors.clear()
            self._become(Health.NORMAL, now)

    def _become(self, state: Health, now: float) -> None:
        self.state, self._since, self._good_since = state, now, None
