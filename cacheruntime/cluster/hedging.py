"""Hedged requests (Dean and Barroso, "The Tail at Scale", CACM 2013): when to ask a second peer, and how often at most.

A peer answers a request with a header at once, before it fetches anything, so the time to the header speaks of the peer
and the network and never of a slow store. A request whose header takes longer than almost all do is sent to the next
source as well. The request that was overtaken runs on until its header comes or `Hedger.limit_s` is over, and only then
its outcome is known (`health.py`): a hedge that won says nothing against the other peer.

Pure: durations in seconds are passed in; no clock, no I/O, no lock.
"""

from forebay.cacheruntime.histogram import Histogram

_QUANTILE = 0.99
"""Of times to the header: so one request in a hundred would be hedged if there was no other bound."""

_TAIL_OF_MEDIAN = 10.0
"""No header is worth waiting longer for than so many medians: where one peer in four is slow, the 99th percentile is
the slow one's own time."""

_FLOOR_S = 0.02
"""A header that takes less is never worth a second request. Between idle hosts it takes 1 ms; a Python process that
parses a listing or collects garbage lets others wait for 10."""

_UNKNOWN_S = 0.1
"""Before there are enough samples."""

_FEWEST = 100
"""Samples that the 99th percentile takes."""

_GENERATION = 2000
"""Samples after which the older half of the window is forgotten."""

_REFRESH = 50
"""Samples after which the quantiles are computed anew."""

_SHORTEST_LIMIT_S, _LONGEST_LIMIT_S = 1.0, 10.0
"""To wait for a header. It is ten of what `_TAIL_OF_MEDIAN` and the percentile give: where all peers are slow, as all
are overloaded, giving up would load them more."""

_LIMIT_OF_TAIL = 10.0

_HEDGE_COST = 25
"""Requests that earn the right to one hedge, of which one is kept. So of any hundred requests that a node sends one
after the other at most 5 % are hedged, 4 of those that it earns and the one that it had. When something befalls all at
once, ten thousand nodes that had saved ten each would send a hundred thousand hedges."""


class LatencyWindow:
    """Quantiles of the last 2,000 to 4,000 durations, exact to a factor of two as `Histogram`'s are, in 500 bytes."""

    def __init__(self) -> None:
        self._older = Histogram()
        self._newer = Histogram()
        self._count = 0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._newer.add(int(seconds * 1e9))
        self._count += 1
        if self._count >= _GENERATION:
            self._older, self._newer = self._newer, Histogram()
            self._count = 0

    def quantiles_s(self, *shares: float) -> tuple[float, ...] | None:
        """The durations that these shares of all are not above; None while there are too few of them."""
        both = self._older + self._newer
        if both.count < _FEWEST:
            return None
        return tuple(both.quantile_s(share) or 0.0 for share in shares)


class HedgeBudget:
    """A token bucket for one hedge: each request puts a twenty-fifth in. At most 4 % of all requests are hedged, and 5
    % of any hundred in a row."""

    def __init__(self) -> None:
        self._earned = 0
        self.requests = 0
        self.hedges = 0

    def earn(self) -> None:
        """A request is sent that is no hedge."""
        self.requests += 1
        self._earned = min(self._earned + 1, _HEDGE_COST)

    def take(self) -> bool:
        """Whether a hedge may be sent now; if so, it is counted."""
        if self._earned < _HEDGE_COST:
            return False
        self._earned -= _HEDGE_COST
        self.hedges += 1
        return True


class Hedger:
    """When this node sends second requests, and when it gives up on a header.

    For each read: `begin`; then, for each source in turn, wait for its header for `delay_s`; if `may_hedge`, ask the
    next source too, else go on waiting, up to `limit_s`; `header` for each header that comes, that of an overtaken one
    too.
    """

    def __init__(self) -> None:
        self.budget = HedgeBudget()
        self._window = LatencyWindow()
        self._fresh = 0
        self.delay_s = _UNKNOWN_S
        """Wait so long for a header before the next source is asked as well."""
        self.limit_s = _SHORTEST_LIMIT_S
        """Wait so long for a header before the request counts as failed."""

    def begin(self) -> None:
        """A read asks its first source."""
        self.budget.earn()

    def may_hedge(self) -> bool:
        """Whether a header that is `delay_s` late allows for another request; if so, it is counted."""
        return self.budget.take()

    def header(self, seconds: float) -> None:
        """A header has come, so long after its request was sent. Failures are not counted: a dead peer says nothing
        of how long the others take."""
        self._window.add(seconds)
        self._fresh += 1
        if self._fresh < _REFRESH:
            return
        self._fresh = 0
        known = self._window.quantiles_s(0.5, _QUANTILE)
        if known is not None:
            median_s, high_s = known
            tail_s = min(high_s, _TAIL_OF_MEDIAN * median_s)
            self.delay_s = max(tail_s, _FLOOR_S)
            self.limit_s = min(max(_LIMIT_OF_TAIL * tail_s, _SHORTEST_LIMIT_S), _LONGEST_LIMIT_S)
