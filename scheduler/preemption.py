"""Making room for a job: a simulation on the state, a minimal set of victims, and a decision that stands until done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forebay.scheduler.backfill import HeldNodes
from forebay.scheduler.decisions import Eviction, Shrink
from forebay.scheduler.jobs import Job, PlacedPods
from forebay.scheduler.model import Hold
from forebay.scheduler.nodes import Ints
from forebay.scheduler.placement import Placement, Site
from forebay.scheduler.quota import Vector
from forebay.scheduler.state import Live, State
from forebay.scheduler.victims import Piece, Reason, pieces_for, reason_for

_NODES_TRIED = 64
"""Nodes whose victims are compared for a job of one pod, those with the best candidates first."""


@dataclass(frozen=True)
class Room:
    """What has to go so that a job fits."""

    evictions: tuple[Eviction, ...]
    shrinks: tuple[Shrink, ...]


def make_room(state: State, job: Job) -> Room | None:
    """Decide victims for a job; None: none are needed (those that are leaving suffice), or none would do.

    The set is minimal: without any one of them the job would not fit. The decision is recorded in the state, and no
    other victims are looked for before they are gone.
    """
    if job.group is not None or not job.preempts:
        return None
    candidates = pieces_for(state, job)
    if not candidates:
        return None
    simulation = _Simulation(state, job)
    taken = simulation.search(candidates)
    if not taken:
        return None
    evictions = tuple(Eviction(piece.name, job.name, reason, piece.cost) for piece, reason in taken if piece.whole)
    gone = {eviction.job for eviction in evictions}
    shrinks = tuple(
        Shrink(name, job.name, tuple(pod for piece, _ in taken if piece.name == name for pod in piece.pods))
        for name in dict.fromkeys(piece.name for piece, _ in taken if piece.name not in gone)
    )
    for eviction in evictions:
        _mark(state, eviction.job, job, ())
    for shrink in shrinks:
        _mark(state, shrink.job, job, shrink.pods)
    state.holds[job.name] = Hold(job.name, state.now, simulation.nodes)
    state.epoch += 1
    return Room(evictions, shrinks)


def _mark(state: State, name: str, job: Job, pods: tuple[PlacedPods, ...]) -> None:
    live = state.running[name]
    live.running = replace(live.running, evicted_for=job.name, leaving=pods)
    state.victims.setdefault(job.name, set()).add(name)


class _Simulation:
    """Takes pieces away, looks whether the job fits, and leaves everything as it was."""

    def __init__(self, state: State, job: Job) -> None:
        self._state = state
        self._job = job
        self._shape = state.shape(job)
        self._leaf = state.quota.leaf(job.queue)
        view = state.warm.view(job, self._shape.gpus, state.now)
        stall = None if view is None else view.stall_s[state.warm.domain_of]
        self._others = [
            state.waiting[name]
            for name, victims in sorted(state.victims.items())
            if victims and name != job.name and name in state.waiting
        ]
        allowed = HeldNodes(state).allowed(job, stall, {other.name for other in self._others})
        if view is not None and view.warm is not None:
            warm = view.warm[state.warm.domain_of]
            allowed = warm if allowed is None else warm & allowed
        self._site = Site(None if view is None else view.load_s[state.warm.domain_of], allowed)
        self._initial = False
        self.nodes: tuple[str, ...] = ()
        """Where the job would run."""

    def search(self, candidates: Sequence[Piece]) -> list[tuple[Piece, Reason]]:
        """A minimal set of victims; empty: none are needed beside those that are leaving, or none would do."""
        state = self._state
        leaving = [
            (live, *state.leaving(live)) for live in state.running.values() if live.running.evicted_for is not None
        ]
        for live, _, freed in leaving:
            self._charge(live, freed, live.running.ending, -1)
        for other in self._others:
            state.quota.take(state.quota.leaf(other.queue), state.shape(other).least)
        try:
            with state.table.trial():
                for live, pods, _ in leaving:
                    state.change_pods(live.shape, pods, -1)
                for other in self._others:
                    self._place(other, Site())
                if self._fits():
                    return []
                for self._initial in (False, True):
                    taken = self._best_node(candidates) or self._prefix(candidates)
                    if taken:
                        return taken
                return []
        finally:
            for other in self._others:
                state.quota.give(state.quota.leaf(other.queue), state.shape(other).least)
            for live, _, freed in leaving:
                self._charge(live, freed, live.running.ending, 1)

    def _place(self, job: Job, site: Site) -> Placement | None:
        """Take room for the least pods of a job, if there is any."""
        state = self._state
        with state.table.trial() as trial:
            counts = [pod_set.least for pod_set in job.pod_sets]
            found = state.placer.place(job.pod_sets, state.shape(job).demands, counts, site)
            if isinstance(found, Placement):
                trial.keep()
                return found
        return None

    def _fits(self) -> bool:
        state = self._state
        if state.quota.excess(self._leaf, self._shape.least) is not None:
            return False
        with state.table.trial():
            found = self._place(self._job, self._site)
        if found is None:
            return False
        self.nodes = tuple(dict.fromkeys(placed.node for placed in found.pods))
        return True

    def _remove(self, piece: Piece, sign: int) -> None:
        """Take a piece away (1) or put it back (-1)."""
        self._state.change_pods(piece.live.shape, piece.pods, -sign)
        self._charge(piece.live, piece.freed, piece.whole, -sign)

    def _charge(self, live: Live, amounts: Vector, whole: bool, sign: int) -> None:
        """Quota of a job, or of some of its pods, is taken (1) or given back (-1)."""
        quota = self._state.quota
        if not whole:
            quota.resize(live.leaf, amounts, sign)
        elif sign > 0:
            quota.take(live.leaf, amounts)
        else:
            quota.give(live.leaf, amounts)

    def _prefix(self, candidates: Sequence[Piece]) -> list[tuple[Piece, Reason]]:
        """Candidates in order until the job fits; then those that it fits without are given back, the last first."""
        taken: list[tuple[Piece, Reason]] = []
        fitting = False
        for piece in candidates:
            if not self._take(piece, taken):
                continue
            # A look costs as much as a placement: after the first few, only every eighth victim is followed by one.
            if (len(taken) <= 8 or len(taken) % 8 == 0) and self._fits():
                fitting = True
                break
        if fitting or self._fits():
            self._give_back(taken, self._fits)
            self._fits()
        else:
            self._give_back(taken, lambda: True)
        self._undo(taken)
        return taken

    def _best_node(self, candidates: Sequence[Piece]) -> list[tuple[Piece, Reason]]:
        """Of a job of one pod for which there is quota: the cheapest set of victims on one node."""
        state = self._state
        if sum(pod_set.least for pod_set in self._job.pod_sets) != 1:
            return []
        if state.quota.excess(self._leaf, self._shape.least) is not None:
            return []
        demand, allowed = self._shape.demands[0], self._site.allowed
        by_node: dict[str, list[Piece]] = {}
        for piece in candidates:
            for node in {placed.node for placed in piece.pods}:
                by_node.setdefault(node, []).append(piece)
        best: tuple[tuple[float, float, int, str], list[tuple[Piece, Reason]]] | None = None
        for node, pieces in list(by_node.items())[:_NODES_TRIED]:
            row = state.table.index.get(node)
            if row is None or not state.table.eligible(demand)[row] or (allowed is not None and not allowed[row]):
                continue
            among = np.array([row])

            def fits(among: Ints = among) -> bool:
                return bool(state.table.fits(demand, among)[0])

            taken: list[tuple[Piece, Reason]] = []
            for piece in pieces:
                if self._take(piece, taken) and fits():
                    self._give_back(taken, fits)
                    break
            else:
                self._give_back(taken, lambda: True)
            self._undo(taken)
            if taken:
                whole = [piece for piece, _ in taken if piece.whole]
                worst = max((piece.live.job.priority for piece in whole), default=float("-inf"))
                rank = (worst, sum(piece.cost for piece in whole), len(taken), node)
                if best is None or rank < best[0]:
                    best = (rank, taken)
        if best is None:
            return []
        self.nodes = (best[0][3],)
        return best[1]

    def _take(self, piece: Piece, taken: list[tuple[Piece, Reason]]) -> bool:
        """Take a piece away, if a rule allows it now."""
        if piece.whole:
            for one in [one for one in taken if one[0].live is piece.live]:
                taken.remove(one)
                self._remove(one[0], -1)
        initial = self._initial and all(one.live.leaf is not piece.live.leaf for one, _ in taken)
        reason = reason_for(self._state, self._job, self._shape.least, piece, initial)
        if reason is None:
            return False
        self._remove(piece, 1)
        taken.append((piece, reason))
        return True

    def _give_back(self, taken: list[tuple[Piece, Reason]], fits: Callable[[], bool]) -> None:
        """Put back, the last first, what is not needed."""
        for one in list(reversed(taken)):
            self._remove(one[0], -1)
            if fits():
                taken.remove(one)
            else:
                self._remove(one[0], 1)

    def _undo(self, taken: list[tuple[Piece, Reason]]) -> None:
        for piece, _ in taken:
            self._remove(piece, -1)
