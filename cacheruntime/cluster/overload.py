"""Hot files, seen from the worker that serves them: over how many others its readers should spread.

A worker counts what each content costs it. When one takes more than a share of what the worker can serve, the worker
says `spread=k` in the headers of its replies: the readers then ask the first k in the order of each slice, which get
the blocks from the owner, or from one another, and keep them as replicas (`routing.py`). k is the power of two that
brings the content below the share, and doubles again where that was too little; it halves while the content takes less
than a quarter, so that one step down does not lead to a step up.

A replica knows from its place in the order that at least so many are asked, and goes on from there. So whoever is asked
says the same.

Pure: the clock is passed in, in seconds of any monotonic clock; no I/O, no lock.
"""

from collections.abc import Callable

from forebay.cacheruntime.keys import ContentId

MOST_SPREAD = 64
"""Copies of one content at most. With every one of them overloaded, readers queue."""

SHARE_BYTES_PER_S = 256 << 20
"""Of one content: about a quarter of what one worker sends over 10 Gbit/s."""

_REQUEST_BYTES = 128 << 10
"""What a request costs besides its bytes, as bytes: some 0.1 ms of a core."""

_PERIOD_S = 1.0
"""Costs are added up over this. A content that is above the share before a period has ended is spread at once."""

_CONTENTS = 4096
"""Counted in one period at most. More than a worker serves requests; a hot one is among the first of them anyway."""


class Overload:
    """Counts what this worker serves, and says how far it is to be spread."""

    def __init__(self, share_bytes_per_s: float = SHARE_BYTES_PER_S) -> None:
        """Args: share_bytes_per_s: what one content may take of this worker."""
        self._share = share_bytes_per_s * _PERIOD_S
        self._began = 0.0
        self._costs: dict[ContentId, float] = {}
        """Of the running period."""
        self._spreads: dict[ContentId, int] = {}
        """How far each warm content was spread when the period began."""
        self._positions: dict[ContentId, int] = {}
        """Of this worker, where that is not 0: the furthest in the order of a slice that was asked for."""

    def record(self, content: ContentId, position: Callable[[], int], served_bytes: int, now: float) -> int:
        """Count a request of a reader, and say how far readers should spread.

        Args:
            content: that is asked for.
            position: says this worker's in the order of the slice, from 0 (`Router.position`); asked only if it counts.
            served_bytes: of the reply.
            now: the time.

        Returns:
            For the reply's header: the first so many in the order of each slice are to be asked; 1: only the owner.
        """
        periods = int((now - self._began) / _PERIOD_S)
        if periods > 0:
            self._turn(periods)
            self._began = now
        costs = self._costs
        if content not in costs and len(costs) >= _CONTENTS:
            return 1
        costs[content] = cost = costs.get(content, 0.0) + served_bytes + _REQUEST_BYTES
        if cost < self._share / 4 and content not in self._spreads:
            return 1
        place = position()
        if place > self._positions.get(content, 0):
            self._positions[content] = place
        return self._spread(content, cost)

    def _spread(self, content: ContentId, cost: float) -> int:
        base = max(self._spreads.get(content, 1), _power_of_two(self._positions.get(content, 0) + 1))
        return min(base * _power_of_two(cost / self._share), MOST_SPREAD)

    def _turn(self, periods: int) -> None:
        """A period has ended, and so many in all since the last one began."""
        spreads = {}
        for content in self._spreads.keys() | self._costs.keys():
            cost = self._costs.get(content, 0.0) if periods == 1 else 0.0
            if cost >= self._share / 4:
                spreads[content] = self._spread(content, cost)
            else:
                spreads[content] = self._spreads.get(content, 1) >> min(periods, MOST_SPREAD)
        self._spreads = {content: spread for content, spread in spreads.items() if spread > 1}
        self._costs.clear()
        self._positions.clear()


def _power_of_two(number: float) -> int:
    """The smallest that is not below `number`, from 1 on."""
    return 1 << max(int(-(-number // 1)) - 1, 0).bit_length()
