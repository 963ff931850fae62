"""Running jobs that get further pods: first those that have lost some, then elastic ones, while there is room.

A gang that lacks pods computes nothing, so what it lost goes before all that waits (else a stranger takes the room, and
the rest of the gang holds its own for ever: volcano #5805). Elastic jobs come last: they get what no waiting job could
use in this pass, one pod after the other, in the order in which queues have their turns. Such pods are the first to be
given up (`victims`), so growing delays nobody for longer than it takes them to leave.
"""

import heapq
from dataclasses import replace

import numpy as np

from forebay.scheduler.backfill import HeldNodes
from forebay.scheduler.claims import Claims
from forebay.scheduler.decisions import Growth
from forebay.scheduler.jobs import PlacedPods, counts_of, joined
from forebay.scheduler.live import Live
from forebay.scheduler.nodes import Bools
from forebay.scheduler.placement import Placement, Site
from forebay.scheduler.quota import Vector
from forebay.scheduler.resource_policies import place_by_policy
from forebay.scheduler.state import State
from forebay.scheduler.topology import NoRoom

Key = tuple[bool, int, float, int, float, str]


def repair(state: State) -> list[Growth]:
    """What jobs lack to their least, all of it or nothing."""
    found = []
    lives = [state.running[name] for name in state.short]
    lives = [live for live in lives if live.running.short_since is not None and _may_grow(state, live)]
    for live in sorted(lives, key=lambda live: (-live.job.priority, live.job.submitted, live.job.name)):
        counts = counts_of(live.job, live.running.pods)
        lacking = [max(0, one.least - count) for one, count in zip(live.job.pod_sets, counts, strict=True)]
        if state.quota.excess(live.leaf, _more(state, live, counts, lacking), runs=True) is not None:
            continue
        pods: tuple[PlacedPods, ...] = ()
        with state.table.trial() as trial:
            for place, amount in enumerate(lacking):
                placed = _place(state, live, place, amount, pods, pods, None) if amount else ()
                if placed is None:
                    break
                pods = joined(pods, placed)
            else:
                trial.keep()
                found.append(_grown(state, live, pods))
    return found


def grow(state: State, blocked: set[str]) -> list[Growth]:
    """Further pods for elastic jobs, up to their count.

    Args:
        blocked: roots of trees in which nobody borrows now.
    """
    lives = [state.running[name] for name in state.short]
    lives = [live for live in lives if live.running.short_since is None and _may_grow(state, live)]
    if not lives:
        return []
    grower = _Grower(state, blocked)
    for live in lives:
        if not grower.claims.awaited(live.leaf):
            grower.offer(live)
    return grower.run()


class _Grower:
    def __init__(self, state: State, blocked: set[str]) -> None:
        self._state = state
        self._blocked = blocked
        self._held = HeldNodes(state)
        self.claims = Claims(state)
        self._heap: list[tuple[Key, int]] = []
        self._offers: list[tuple[Live, int]] = []
        self._pods: dict[str, tuple[PlacedPods, ...]] = {}

    def offer(self, live: Live) -> None:
        counts = counts_of(live.job, live.running.pods)
        for place, (pod_set, count) in enumerate(zip(live.job.pod_sets, counts, strict=True)):
            if count < pod_set.count:
                self._offers.append((live, place))
                heapq.heappush(self._heap, (self._key(live, place), len(self._offers) - 1))

    def run(self) -> list[Growth]:
        state = self._state
        while self._heap:
            _, number = heapq.heappop(self._heap)
            live, place = self._offers[number]
            key = self._key(live, place)
            if self._heap and key > self._heap[0][0]:
                heapq.heappush(self._heap, (key, number))
            elif self._one(live, place):
                heapq.heappush(self._heap, (self._key(live, place), number))
        for name, pods in self._pods.items():
            live = state.running[name]
            state.resize(live, self._charged(live, pods), -1)  # `grow` takes all of it
        return [_grown(state, state.running[name], pods) for name, pods in sorted(self._pods.items())]

    def _charged(self, live: Live, pods: tuple[PlacedPods, ...]) -> Vector:
        counts = counts_of(live.job, live.running.pods)
        return _more(self._state, live, counts, counts_of(live.job, pods))

    def _request(self, live: Live, place: int) -> tuple[list[int], Vector]:
        pods = joined(live.running.pods, self._pods.get(live.job.name, ()))
        counts = counts_of(live.job, pods)
        lacking = [_step(live, place) if one == place else 0 for one in range(len(counts))]
        return counts, _more(self._state, live, counts, lacking)

    def _key(self, live: Live, place: int) -> Key:
        request = self._request(live, place)[1]
        leaf, job = live.leaf, live.job
        share = self._state.quota.share(leaf)
        return (not leaf.within_min(request), -leaf.queue.priority, share, -job.priority, job.submitted, job.name)

    def _one(self, live: Live, place: int) -> bool:
        """One pod (or slice) more for a job; its room and quota are taken."""
        state, job = self._state, live.job
        counts, request = self._request(live, place)
        if counts[place] + _step(live, place) > job.pod_sets[place].count:
            return False
        root = [*live.leaf.path()][-1].name
        if root in self._blocked and state.quota.borrows(live.leaf, request):
            return False
        if self.claims.excess(job, live.leaf, request, runs=True) is not None:
            return False
        before = self._pods.get(job.name, ())
        with state.table.trial() as trial:
            allowed = self._held.allowed(job, None)
            placed = _place(state, live, place, _step(live, place), before, self._granted(live), allowed)
            if placed is None:
                return False
            trial.keep()
        state.resize(live, request, 1)
        self._pods[job.name] = joined(before, placed)
        return True

    def _granted(self, live: Live) -> tuple[PlacedPods, ...]:
        """Pods that jobs of the same policy have got so far."""
        if live.shape.policy is None:
            return ()
        found = ((self._state.running[name], pods) for name, pods in self._pods.items())
        return tuple(one for other, pods in found if other.shape.policy is live.shape.policy for one in pods)


def _may_grow(state: State, live: Live) -> bool:
    running = live.running
    return running.evicted_for is None and running.bound and not running.growing and running.grow_after <= state.now


def _step(live: Live, place: int) -> int:
    topology = live.job.pod_sets[place].topology
    return topology.slice_size if topology.slice_level else 1


def _more(state: State, live: Live, counts: list[int], lacking: list[int]) -> Vector:
    """Quota of so many further pods of each set."""
    before = state.charge(live.job, counts)
    after = state.charge(live.job, [count + more for count, more in zip(counts, lacking, strict=True)])
    return [new - old for new, old in zip(after, before, strict=True)]


def _place(
    state: State,
    live: Live,
    place: int,
    amount: int,
    before: tuple[PlacedPods, ...],
    granted: tuple[PlacedPods, ...],
    allowed: Bools | None,
) -> tuple[PlacedPods, ...] | None:
    """Room for further pods of one set, near those that it has; call it inside `NodeTable.trial`.

    Args:
        before: pods that the job has got in this pass.
        granted: pods that jobs of its policy have got in this pass.
    """
    job, shape = live.job, live.shape
    pod_set, demand = job.pod_sets[place], shape.demands[place]
    pods = joined(live.running.pods, before)
    required = _near(state, live, place, pods, pod_set.topology.required)
    if required is not None:
        allowed = required if allowed is None else required & allowed
    view = state.warm.view(job, shape.gpus)
    cold = None if view is None else view.load_s[state.warm.domain_of]
    level = pod_set.topology.preferred or (state.table.levels[-1] if state.table.levels else None)
    near = _near(state, live, place, pods, level)
    tries = [allowed] if near is None else [near if allowed is None else near & allowed, allowed]
    for nodes in tries:
        with state.table.trial() as trial:
            found: Placement | NoRoom
            if (policy := shape.policy) is not None:
                counts = [amount if one == place else 0 for one in range(len(job.pod_sets))]
                by_unit = place_by_policy(state, policy, job, shape, counts, Site(cold, nodes, pods), granted)
                found = by_unit if isinstance(by_unit, NoRoom) else by_unit[0]
            else:
                one = replace(pod_set, min_count=None)
                found = state.placer.place([one], [demand], [amount], Site(cold, nodes, pods))
            if isinstance(found, Placement):
                trial.keep()
                return found.pods
    return None


def _near(state: State, live: Live, place: int, pods: tuple[PlacedPods, ...], level: str | None) -> Bools | None:
    """Nodes in the domains of a level where pods of the set (or of its group) are; None: anywhere."""
    if level is None:
        return None
    pod_set = live.job.pod_sets[place]
    group = pod_set.topology.group
    names = {one.name for one in live.job.pod_sets if one is pod_set or (group and one.topology.group == group)}
    rows = [state.table.index[one.node] for one in pods if one.pod_set in names and one.node in state.table.index]
    if not rows:
        return None
    domains = state.table.domain_of[state.table.depth(level)]
    near: Bools = np.isin(domains, domains[rows])
    return near


def _grown(state: State, live: Live, pods: tuple[PlacedPods, ...]) -> Growth:
    bind_by = state.now + state.settings.bind_within_s
    state.grow(live.job.name, pods, bind_by)
    return Growth(live.job.name, pods, bind_by)
