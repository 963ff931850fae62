"""Which peers are asked at all: each node's own opinion, from the outcomes of its own requests.

A peer is set aside when at least half of its last outcomes are failures, with enough of them, and a request that was
sent after this was known has failed as well: so many time-outs of requests that were under way together are one event,
and one event sets nobody aside. A peer that has failed is probed, so that one that is seldom asked is judged within
seconds too: among a thousand peers each is asked once in a while only. From when it is set aside it gets one probe at a
time, after a backoff that doubles from 1 s to 60 s, with jitter, so that thousands of nodes do not come back at once;
the first probe that is answered brings it back. The backoff goes on from where it was if the peer fails again soon, so
one that comes and goes is asked less and less.

A peer that left a question unanswered and has said nothing since, to anybody's question of this node, is silent: it is
asked as before, but not waited for as long (`worker/peer_source.py`), so that one that is stopped costs
a reader one long time-out and not one for each request of the window.

Nodes do not tell each other. Where their opinions differ, a slice has two owners for a while, which costs a miss.

Pure: the clock is passed in, in seconds of any monotonic clock; no I/O, no lock.
"""

import math
import random
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from forebay.cacheruntime.cluster.placement import WorkerId

_OUTCOMES = 20
"""The window. Counted in requests, so a busy peer that fails is noticed within the time that its requests take to
fail."""

_OUTCOME_AGE_S = 30.0
"""Nothing older counts."""

_FEWEST = 5
"""Outcomes to judge by."""

_FAILED_SHARE = 0.5
"""Above what a network that loses packets, or an overloaded peer, makes of requests; far below a dead one's."""

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 60.0
"""A restart takes a second. A minute is what a peer that was away for long waits at most until it is used again."""

_PROBE_S = 10.0
"""A probe of which nothing was heard for so long is given up."""


class Outcome(NamedTuple):
    """Of one request to a peer."""

    good: bool
    """It was answered within its limit, whatever the answer, and the bytes were right."""
    ended: float


class PeerHealth:
    """What this node thinks of one peer."""

    def __init__(self, rng: random.Random) -> None:
        """Args: rng: for the jitter."""
        self._rng = rng
        self._outcomes: deque[Outcome] = deque(maxlen=_OUTCOMES)
        self._bad_since: float | None = None
        """When the window came to have so many failures; None: it has not."""
        self._backoff_s = 0.0
        """The last one; 0: it was never set aside, or that is long ago."""
        self._changed = 0.0
        """Time when it was set aside, or brought back."""
        self.usable = True
        """Whether it is asked."""
        self.probe_at: float | None = None
        """Time of the next probe; None: its last outcome was good."""
        self._probing = False
        """A probe is under way, and the peer is set aside."""
        self._heard = -math.inf
        """When it answered last."""
        self.is_silent = False
        """Whether it has said nothing since it left a question unanswered."""

    def record(self, good: bool, began: float, now: float) -> bool:
        """Take note of the outcome of a request, or of a probe.

        Args:
            good: whether the peer answered, and with the right bytes. "Not cached" is an answer.
            began: when the request was sent.
            now: when its outcome was known.

        Returns:
            Whether the peer was set aside or brought back by it.
        """
        self.hear(good, began, now)
        if not self.usable:
            return self._record_aside(good, began, now)
        self._outcomes.append(Outcome(good, now))
        if good:
            self.probe_at = None
        elif self.probe_at is None:
            self.probe_at = now + self._jittered(_FIRST_BACKOFF_S)
        if not self._is_bad(now):
            self._bad_since = None
        elif self._bad_since is None:
            self._bad_since = now
        elif not good and began > self._bad_since:
            self._set_aside(now)
            return True
        return False

    def hear(self, answered: bool, began: float, now: float) -> None:
        """Take note that a question of any kind was answered or not; it counts for `is_silent` alone. Arguments as
        `record`'s."""
        if answered:
            self._heard, self.is_silent = now, False
        elif began > self._heard:
            self.is_silent = True

    def take_probe(self, now: float) -> bool:
        """Whether the caller is to probe the peer now; it says so once for each backoff.

        A probe is any small request. Its outcome comes by `record`.
        """
        if self.probe_at is None or now < self.probe_at:
            return False
        self._probing = not self.usable
        self.probe_at = now + (self._jittered(_FIRST_BACKOFF_S) if self.usable else _PROBE_S)
        return True

    def _jittered(self, backoff_s: float) -> float:
        return backoff_s * self._rng.uniform(0.5, 1.0)

    def _is_bad(self, now: float) -> bool:
        outcomes = self._outcomes
        while outcomes[0].ended < now - _OUTCOME_AGE_S:
            outcomes.popleft()
        failures = sum(not outcome.good for outcome in outcomes)
        return len(outcomes) >= _FEWEST and failures >= _FAILED_SHARE * len(outcomes)

    def _record_aside(self, good: bool, began: float, now: float) -> bool:
        if began < self._changed:
            return False  # a request from before says nothing new
        if good:
            self.usable, self.probe_at, self._probing, self._changed = True, None, False, now
            self._outcomes.clear()
            self._bad_since = None
            return True
        if self._probing:
            self._set_aside(now)
        return False

    def _set_aside(self, now: float) -> None:
        if self.usable and now - self._changed > _LONGEST_BACKOFF_S:
            self._backoff_s = 0.0
        self._backoff_s = min(max(2 * self._backoff_s, _FIRST_BACKOFF_S), _LONGEST_BACKOFF_S)
        self.probe_at = now + self._jittered(self._backoff_s)
        self.usable = self._probing = False
        self._changed = now


class Health:
    """What this node thinks of all its peers."""

    def __init__(self, rng: random.Random) -> None:
        """Args: rng: for the jitter of backoffs; seeded differently on each node."""
        self._rng = rng
        self._peers: dict[WorkerId, PeerHealth] = {}
        self.aside: set[WorkerId] = set()
        """Who is set aside. Not to be changed from outside."""
        self._failing: set[WorkerId] = set()
        """Who is to be probed."""
        self.changed: float | None = None
        """When a peer was set aside or brought back last."""

    def record(self, peer: WorkerId, good: bool, began: float, now: float) -> None:
        """As `PeerHealth.record`."""
        health = self._of(peer)
        if health.record(good, began, now):
            self.changed = now
            (self.aside.discard if health.usable else self.aside.add)(peer)
        (self._failing.discard if health.probe_at is None else self._failing.add)(peer)

    def hear(self, peer: WorkerId, answered: bool, began: float, now: float) -> None:
        """As `PeerHealth.hear`."""
        self._of(peer).hear(answered, began, now)

    def is_silent(self, peer: WorkerId) -> bool:
        """Whether it has said nothing since it left a question unanswered."""
        health = self._peers.get(peer)
        return health is not None and health.is_silent

    def usable(self, peer: WorkerId) -> bool:
        """Whether it is asked; true of one that nothing is known of."""
        return peer not in self.aside

    def take_probes(self, now: float) -> list[WorkerId]:
        """Peers to probe now, each named once for each backoff; the outcome comes by `record`."""
        return [peer for peer in sorted(self._failing) if self._peers[peer].take_probe(now)]

    def next_probe(self) -> float | None:
        """When `take_probes` will name somebody; None: nobody has failed."""
        times = [self._peers[peer].probe_at for peer in self._failing]
        return min((at for at in times if at is not None), default=None)

    def _of(self, peer: WorkerId) -> PeerHealth:
        health = self._peers.get(peer)
        if health is None:
            health = self._peers[peer] = PeerHealth(self._rng)
        return health

    def keep(self, peers: Collection[WorkerId]) -> None:
        """Forget all others: they are in no view any more."""
        for peer in self._peers.keys() - set(peers):
            del self._peers[peer]
            self.aside.discard(peer)
            self._failing.discard(peer)
