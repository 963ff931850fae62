"""Requests to other workers that a second one has overtaken: what becomes of them is still learnt.

A worker that was slow for once says so by a late header, and one that is stopped by none. Were these closed unseen, the
times that hedges are timed by would lack the slow ones, and a stopped worker would never be set aside by its hedges.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from forebay.cacheruntime import tracing
from forebay.cacheruntime.cluster.peer_client import Exchange, PeerClient
from forebay.cacheruntime.cluster.peer_wire import PeerBroken

_MOST = 256
"""At once. Hedges are few; what is beyond that is closed unseen."""

_LOOK_S = 0.01
"""Times are that much too long, at most."""


@dataclass
class UnderWay:
    """A request that was sent, and has not been answered yet."""

    client: PeerClient
    exchange: Exchange
    began: float
    """By the clock of `PeerSource`."""
    span: tracing.Span = tracing.NO_SPAN

    def end(self, outcome: str) -> None:
        """Close it; `outcome` is for the trace."""
        self.exchange.close()
        self.span.set(outcome=outcome)
        self.span.end()


class Overtaken:
    """Looks at them until their header comes, or is due. Safe to use from many threads.

    Resources: it has a thread while there are any, which closes the exchanges.
    """

    def __init__(
        self,
        answered: Callable[[UnderWay], None],
        broken: Callable[[UnderWay], None],
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            answered: told of one whose header has come.
            broken: told of one without.
            clock: seconds.
        """
        self._answered = answered
        self._broken = broken
        self._clock = clock
        self._lock = threading.Lock()
        self._left: list[tuple[UnderWay, float]] = []
        self._looking = False

    def add(self, under_way: UnderWay, limit_s: float) -> None:
        """Take one over; it counts as broken `limit_s` after it began."""
        with self._lock:
            full = len(self._left) >= _MOST
            if not full:
                self._left.append((under_way, under_way.began + limit_s))
                if not self._looking:
                    self._looking = True
                    threading.Thread(target=self._look, name="overtaken", daemon=True).start()
        if full:
            under_way.end("overtaken")

    def _look(self) -> None:
        while True:
            with self._lock:
                left = list(self._left)
                if not left:
                    self._looking = False
                    return
            ended = [one for one in left if self._has_ended(*one)]
            with self._lock:
                self._left = [one for one in self._left if one not in ended]
            time.sleep(_LOOK_S)

    def _has_ended(self, under_way: UnderWay, until: float) -> bool:
        try:
            if under_way.exchange.wait(0):
                under_way.exchange.header(_LOOK_S)
                self._answered(under_way)
            elif self._clock() < until:
                return False
            else:
                self._broken(under_way)
        except PeerBroken:
            self._broken(under_way)
        under_way.end("overtaken")
        return True
