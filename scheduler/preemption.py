"""Making room for a job: a simulation on the state, a minimal set of victims, and a decision that stands until done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forebay.scheduler.backfill import HeldNodes
from forebay.scheduler.decisions import Eviction, Shrink
from forebay.scheduler.freed import Freed
from forebay.scheduler.jobs import Job
from forebay.scheduler.live import Live
from forebay.scheduler.model import Hold
from forebay.scheduler.nodes import Ints
from forebay.scheduler.placement import Placement, Site
from forebay.scheduler.places import place_job
from forebay.scheduler.quota import Vector
from forebay.scheduler.state import State
from forebay.scheduler.supposed import Supposed
from forebay.scheduler.topology import NoRoom
from forebay.scheduler.victims import Known, Piece, Reason, Rules, lost_gpu_s, pieces_for

_DOMAINS_TRIED = 16
"""Domains whose victims are compared for a job that must be in one."""

_NODES_TRIED = 64
"""Nodes whose victims are compared for a job of one pod, those with the best candidates first."""


@dataclass(frozen=True)
class Room:
    """What has to go so that a job fits."""

    evictions: tuple[Eviction, ...]
    shrinks: tuple[Shrink, ...]


def make_room(state: State, job: Job, known: Known | None = None, borrows: bool = True) -> Room | None:
    """Decide victims for a job; None: none are needed (those that are leaving suffice), or none would do.

    The set is minimal: without any one of them the job would not fit. The decision is recorded in the state, and no
    other victims are looked for before they are gone.

    Args:
        known: what is kept between calls on one state; emptied here when victims are decided.
        borrows: whether it would be let start above its queue's min.
    """
    jobs = state.members(job)[: state.needed(job)]
    if state.missing(job) or len(jobs) < state.needed(job) or not all(one.preempts for one in jobs):
        return None
    if len({one.queue for one in jobs}) > 1:
        return None  # each would have rules of its own
    job = jobs[0]
    simulation = _Simulation(state, jobs, borrows)
    candidates = pieces_for(state, simulation.job, simulation.request, {} if known is None else known)
    if not candidates:
        return None
    taken = simulation.search(candidates)
    if not taken:
        return None
    evictions = tuple(
        Eviction(part.name, job.name, reason, lost_gpu_s(state, part.live))
        for piece, reason in taken
        if piece.whole
        for part in piece.parts
    )
    gone = {eviction.job for eviction in evictions}
    shrinks = tuple(
        Shrink(name, job.name, tuple(pod for piece, _ in taken if piece.name == name for pod in piece.pods))
        for name in dict.fromkeys(piece.name for piece, _ in taken if piece.name not in gone)
    )
    decisions: tuple[Eviction | Shrink, ...] = (*evictions, *shrinks)
    for decision in decisions:
        mark(state, decision)
    if known is not None:
        known.clear()
    state.holds[job.name] = Hold(job.name, state.now, simulation.nodes, forced=True)
    state.epoch += 1
    return Room(evictions, shrinks)


def mark(state: State, decision: Eviction | Shrink) -> None:
    """Remember who has to go, and for whom."""
    live = state.running[decision.job]
    leaving = decision.pods if isinstance(decision, Shrink) else ()
    after = decision.grow_after if isinstance(decision, Shrink) else live.running.grow_after
    live.running = replace(live.running, evicted_for=decision.for_job, leaving=leaving, grow_after=after)
    state.evicted.add(decision.job)
    if decision.for_job:
        state.victims.setdefault(decision.for_job, set()).add(decision.job)


class _Simulation:
    """Takes pieces away, looks whether the job fits, and leaves everything as it was."""

    def __init__(self, state: State, jobs: Sequence[Job], borrows: bool) -> None:
        """Args: jobs: of one queue, that start together, the first in rank first."""
        self._state = state
        self._supposed = Supposed(state)
        self._jobs = jobs
        self._may_borrow = borrows
        self.job = jobs[-1]
        """The one by whose priority victims are chosen."""
        self.request = [sum(amounts) for amounts in zip(*(state.shape(job).least for job in jobs), strict=True)]
        """Quota of all."""
        self._leaf = state.quota.leaf(self.job.queue)
        self._rules = Rules(state, self.job, self.request)
        names = {job.name for job in jobs}
        self._others = [
            state.waiting[name]
            for name, victims in sorted(state.victims.items())
            if victims and name not in names and name in state.waiting
        ]
        self._sites = [self._site(job, names | {other.name for other in self._others}) for job in jobs]
        self._initial = False
        self.nodes: tuple[str, ...] = ()
        """Where the job would run."""

    def _site(self, job: Job, ignored: set[str]) -> Site:
        state = self._state
        view = state.warm.view(job, state.shape(job).gpus)
        stall = None if view is None else view.stall_s[state.warm.domain_of]
        allowed = HeldNodes(state).allowed(job, stall, ignored)
        if (warm := state.warm.nodes(job, state.now)) is not None:
            allowed = warm if allowed is None else warm & allowed
        return Site(None if view is None else view.load_s[state.warm.domain_of], allowed)

    def search(self, candidates: Sequence[Piece]) -> list[tuple[Piece, Reason]]:
        """A minimal set of victims; empty: none are needed beside those that are leaving, or none would do."""
        state = self._state
        leaving = [(live, *state.leaving(live)) for live in (state.running[name] for name in sorted(state.evicted))]
        for live, _, freed in leaving:
            self._charge(live, freed, live.running.ending, -1)
        others = [one for other in self._others for one in state.members(other)[: state.needed(other)]]
        for other in others:
            state.quota.take(state.quota.leaf(other.queue), state.shape(other).least)
        try:
            with self._supposed.trial():
                self._supposed.move([(live, pods) for live, pods, _ in leaving], 1)
                for other in others:
                    self._place(other, Site())
                if self._fits() or self._vain(candidates):
                    return []
                for self._initial in (False, True):
                    taken = self._best_node(candidates) or self._best_domain(candidates) or self._prefix(candidates)
                    if taken:
                        return self._least(taken)
                return []
        finally:
            for other in others:
                state.quota.give(state.quota.leaf(other.queue), state.shape(other).least)
            for live, _, freed in leaving:
                self._charge(live, freed, live.running.ending, 1)

    def _place(self, job: Job, site: Site) -> Placement | None:
        """Take room for the least pods of a job, if there is any."""
        state = self._state
        with self._supposed.trial() as trial:
            counts = [pod_set.least for pod_set in job.pod_sets]
            found = place_job(state, job, state.shape(job), counts, site)
            if not isinstance(found, NoRoom):
                self._supposed.came(state.shape(job), found[0].pods, found[1])
                trial.keep()
                return found[0]
        return None

    def _is_legal(self) -> bool:
        """Whether quota allows what is asked for."""
        quota, firm = self._state.quota, not all(job.preemptible for job in self._jobs)
        if quota.excess(self._leaf, self.request, firm=firm) is not None:
            return False
        return self._may_borrow or not quota.borrows(self._leaf, self.request)

    def _fits(self) -> bool:
        if not self._is_legal():
            return False
        nodes: dict[str, None] = {}
        with self._supposed.trial():
            for job, site in zip(self._jobs, self._sites, strict=True):
                found = self._place(job, site)
                if found is None:
                    return False
                nodes |= dict.fromkeys(found.nodes)
        self.nodes = tuple(nodes)
        return True

    def _vain(self, candidates: Sequence[Piece]) -> bool:
        """Whether all candidates together leave too little room, even if elastic jobs went whole: sums over nodes tell
        so of most searches, at once."""
        table = self._state.table
        if any(self._state.shape(job).special for job in self._jobs):
            return False  # what is reserved for them is not free in the table
        ends = self._state.ends
        places = [*{place for piece in candidates for part in piece.parts for place in part.live.places}]
        with_them = Freed(table, ends.rows[places], ends.amounts[places])
        for job, site in zip(self._jobs, self._sites, strict=True):
            for pod_set, demand in zip(job.pod_sets, self._state.shape(job).demands, strict=True):
                room = np.where(table.eligible(demand), with_them.pods_at_most(demand), 0)
                if site.allowed is not None:
                    room = np.where(site.allowed, room, 0)
                if int(room.sum()) < pod_set.least:
                    return True
        return False

    def _remove(self, piece: Piece, sign: int) -> None:
        """Take a piece away (1) or put it back (-1)."""
        self._room(piece, sign)
        self._quota(piece, sign)

    def _room(self, piece: Piece, sign: int) -> None:
        self._supposed.move([(part.live, part.pods) for part in piece.parts], sign)

    def _quota(self, piece: Piece, sign: int) -> None:
        for part in piece.parts:
            self._charge(part.live, part.freed, part.whole, -sign)

    def _charge(self, live: Live, amounts: Vector, whole: bool, sign: int) -> None:
        """Quota of a job, or of some of its pods, is taken (1) or given back (-1)."""
        quota = self._state.quota
        self._rules.changed()
        if not whole:
            quota.resize(live.leaf, amounts, sign)
        elif sign > 0:
            quota.take(live.leaf, amounts)
        else:
            quota.give(live.leaf, amounts)

    def _prefix(self, candidates: Sequence[Piece]) -> list[tuple[Piece, Reason]]:
        """The least prefix of the candidates that suffices, without those in it that the job fits without.

        Rules look at quota alone, and more room never hurts: so all that may go is found first, then whether that
        suffices, then by halving how much of it does.
        """
        allowed: list[tuple[Piece, Reason]] = []
        taken: list[tuple[Piece, Reason]] = []
        for piece in candidates:
            if self._take(piece, taken, self._quota):
                allowed.append(taken[-1])
        for piece, _ in taken:
            self._room(piece, 1)
        if taken and self._fits():
            low, high = 1, len(allowed)
            while low < high:
                middle = (low + high) // 2
                taken = self._move(taken, _together(allowed[:middle]))
                if self._fits():
                    high = middle
                else:
                    low = middle + 1
            taken = self._move(taken, _together(allowed[:high]))
            taken = self._needed(taken, self._fits)
            self._move(taken, [])
            return taken
        self._move(taken, [])
        return []

    def _move(self, old: list[tuple[Piece, Reason]], new: list[tuple[Piece, Reason]]) -> list[tuple[Piece, Reason]]:
        """From one set of pieces that are away to another; returns the new one."""
        before, after = {id(piece) for piece, _ in old}, {id(piece) for piece, _ in new}
        for piece, _ in old:
            if id(piece) not in after:
                self._remove(piece, -1)
        for piece, _ in new:
            if id(piece) not in before:
                self._remove(piece, 1)
        return new

    def _least(self, taken: list[tuple[Piece, Reason]]) -> list[tuple[Piece, Reason]]:
        """Without those that are not needed after all, wherever the job would run then."""
        self._move([], taken)
        taken = self._needed(taken, self._fits)
        self._fits()
        self._move(taken, [])
        return taken

    def _best_node(self, candidates: Sequence[Piece]) -> list[tuple[Piece, Reason]]:
        """Of a job of one pod for which there is quota: the cheapest set of victims on one node."""
        state = self._state
        shape = state.shape(self.job)
        if len(self._jobs) > 1 or sum(pod_set.least for pod_set in self.job.pod_sets) != 1 or shape.special:
            return []
        if not self._is_legal():
            return []
        demand, allowed = shape.demands[0], self._sites[0].allowed
        by_node: dict[str, list[Piece]] = {}
        for piece in candidates:
            for node in dict.fromkeys(placed.node for part in piece.parts for placed in part.pods):
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
                if self._take(piece, taken, self._remove) and fits():
                    taken = self._needed(taken, fits)
                    self._move(taken, [])
                    break
            else:
                taken = self._move(taken, [])
            if taken:
                rank = (*_cost(taken), node)
                if best is None or rank < best[0]:
                    best = (rank, taken)
        return [] if best is None else best[1]

    def _best_domain(self, candidates: Sequence[Piece]) -> list[tuple[Piece, Reason]]:
        """Of jobs whose pods must be near each other: the cheapest set of victims with which they fit in one domain.

        Victims here and there would be used up without making room anywhere.
        """
        table = self._state.table
        levels = {pod_set.topology.required for job in self._jobs for pod_set in job.pod_sets} - {None}
        if not levels:
            return []
        domains = table.domain_of[min(table.depth(level) for level in levels if level)]
        inside: dict[int, list[Piece]] = {}
        for piece in candidates:
            rows = [table.index[one.node] for part in piece.parts for one in part.pods if one.node in table.index]
            for domain in {int(domains[row]) for row in rows}:
                inside.setdefault(domain, []).append(piece)
        best: tuple[tuple[float, float, int, int], list[tuple[Piece, Reason]]] | None = None
        order = sorted(inside, key=lambda domain: (sum(piece.cost for piece in inside[domain]), domain))
        sites = self._sites
        for domain in order[:_DOMAINS_TRIED]:
            mask = domains == domain
            self._sites = [
                replace(site, allowed=mask if site.allowed is None else mask & site.allowed) for site in sites
            ]
            first = {id(piece) for piece in inside[domain]}
            others = [piece for piece in candidates if id(piece) not in first]
            taken = self._prefix([*inside[domain], *others])
            if taken:
                rank = (*_cost(taken), domain)
                if best is None or rank < best[0]:
                    best = (rank, taken)
        self._sites = sites
        return [] if best is None else best[1]

    def _take(self, piece: Piece, taken: list[tuple[Piece, Reason]], remove: Callable[[Piece, int], None]) -> bool:
        """Take a piece away, if a rule allows it now; smaller pieces of it that are away become part of it."""
        before, smaller = [*taken], list[tuple[Piece, Reason]]()
        if not piece.whole or _replaces(piece):
            lives = [part.live for part in piece.parts]
            gone = [part.live for one, _ in taken if one.whole for part in one.parts]
            if any(live in gone for live in lives) and len(lives) == 1:
                return False
            if piece.whole:
                smaller = [one for one in taken if one[0].live in lives]
                for one in smaller:
                    taken.remove(one)
                    remove(one[0], -1)
        initial = self._initial and all(one.live.leaf is not piece.live.leaf for one, _ in taken)
        reason = self._rules.reason_for(piece, initial)
        if reason is None:
            for one in smaller:
                remove(one[0], 1)
            taken[:] = before
            return False
        remove(piece, 1)
        taken.append((piece, reason))
        return True

    def _needed(self, taken: list[tuple[Piece, Reason]], fits: Callable[[], bool]) -> list[tuple[Piece, Reason]]:
        """Put back, the last first, what is not needed, and return the rest: as many at once as can be spared."""
        for piece, _ in taken:
            self._remove(piece, -1)
        if fits():
            return []
        for piece, _ in taken:
            self._remove(piece, 1)
        if len(taken) == 1:
            return taken
        middle = len(taken) // 2
        late = self._needed(taken[middle:], fits)
        return [*self._needed(taken[:middle], fits), *late]


def _replaces(piece: Piece) -> bool:
    """Whether there may be smaller pieces of it: pods of an elastic job, jobs of a group."""
    return piece.whole and any(part.live.shape.elastic or part.live.job.group for part in piece.parts)


def _together(allowed: Sequence[tuple[Piece, Reason]]) -> list[tuple[Piece, Reason]]:
    """Of pieces that were taken one after the other, those that are away in the end."""
    found: list[tuple[Piece, Reason]] = []
    for piece, reason in allowed:
        if _replaces(piece):
            lives = [part.live for part in piece.parts]
            found = [one for one in found if one[0].live not in lives]
        found.append((piece, reason))
    return found


def _cost(taken: Sequence[tuple[Piece, Reason]]) -> tuple[float, float, int]:
    """Of victims: the highest priority of a job that goes whole, what is lost, and how many there are."""
    whole = [piece for piece, _ in taken if piece.whole]
    worst = max((part.live.job.priority for one in whole for part in one.parts), default=float("-inf"))
    return worst, sum(piece.cost for piece in whole), sum(len(one.parts) for one, _ in taken)
