"""The cluster as if some pods had gone and others had come, for a while.

What a pod leaves of a reservation is free for its owners alone, and what one takes of it is not there for the next:
so what is left of reservations goes along with the room in the table.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from forebay.scheduler.jobs import PlacedPods, without
from forebay.scheduler.live import Live
from forebay.scheduler.nodes import Demand, Trial
from forebay.scheduler.pending import Shape
from forebay.scheduler.reserved import NOTHING, left_over
from forebay.scheduler.state import State


class Supposed:
    """Changes of room that are undone in the end; quota is the caller's affair. Use it inside `trial`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._gone: dict[str, list[PlacedPods]] = {}
        """By job, of those that use reservations."""
        self._come: dict[str, list[tuple[PlacedPods, Demand]]] = {}
        """By reservation."""
        self._users: dict[str, list[Live]] = {}

    @contextmanager
    def trial(self) -> Iterator[Trial]:
        """As `NodeTable.trial`, with what is left of reservations."""
        left = [(held, held.demand, held.cards) for held in self._state.held.values()]
        gone = {name: [*pods] for name, pods in self._gone.items()}
        come = {name: [*pods] for name, pods in self._come.items()}
        with self._state.table.trial() as trial:
            try:
                yield trial
            finally:
                if not trial.kept:
                    self._gone, self._come = gone, come
                    for held, demand, cards in left:
                        held.demand, held.cards = demand, cards

    def move(self, parts: Iterable[tuple[Live, Sequence[PlacedPods]]], sign: int) -> None:
        """Pods of running jobs go (1), or are back (-1)."""
        names: dict[str, None] = {}
        for live, pods in parts:
            self._state.change_pods(live.shape, pods, -sign)
            if not live.running.reservations:
                continue
            names |= dict.fromkeys(live.running.reservations)
            gone = self._gone.setdefault(live.job.name, [])
            if sign > 0:
                gone += pods
            else:
                for placed in pods:
                    gone.remove(placed)
        for name in names:
            self._count(name, in_table=True)

    def came(self, shape: Shape, pods: Sequence[PlacedPods], reservations: Iterable[str]) -> None:
        """Pods have been placed, with the help of these reservations; the table knows."""
        for name in reservations:
            self._come.setdefault(name, []).extend(shape.pods(pods))
            self._count(name, in_table=False)

    def _count(self, name: str, in_table: bool) -> None:
        held = self._state.held.get(name)
        if held is None:
            return
        if not held.reservation.once:
            used = [used for live in self._users_of(name) for used in self._pods(live)]
            left = left_over(held.reservation, [*used, *self._come.get(name, ())])
        elif in_table:
            return  # its one job goes: it stays used up
        else:
            left = NOTHING
        held.leave(self._state.table if in_table else None, left)

    def _users_of(self, name: str) -> list[Live]:
        if name not in self._users:
            self._users[name] = [live for live in self._state.running.values() if name in live.running.reservations]
        return self._users[name]

    def _pods(self, live: Live) -> Iterator[tuple[PlacedPods, Demand]]:
        return live.shape.pods(without(live.running.pods, self._gone.get(live.job.name, ())))
