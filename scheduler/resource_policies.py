"""Resource policies: units of nodes in order, with caps and waits, and the order in which they are left."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from forebay.scheduler.decisions import Score
from forebay.scheduler.jobs import Job, PlacedPods
from forebay.scheduler.model import ResourcePolicy, Unit
from forebay.scheduler.nodes import Bools, NodeTable
from forebay.scheduler.pending import Shape
from forebay.scheduler.placement import Placement, Site, added, together_sets
from forebay.scheduler.state import State
from forebay.scheduler.topology import NoRoom


def units_open(policy: ResourcePolicy, waited_s: float) -> tuple[Unit, ...]:
    """The units that a job may use after it has waited so long."""
    found, needed = [], 0.0
    for unit in policy.units:
        if waited_s < needed:
            break
        found.append(unit)
        needed += unit.max_wait_s or 0.0
    return tuple(found)


def nodes_of(table: NodeTable, unit: Unit) -> Bools:
    return np.array(
        [all(node.labels.get(label) == value for label, value in unit.selector.items()) for node in table.nodes],
        dtype=np.bool_,
    )


def pods_in(state: State, policy: ResourcePolicy, nodes: Bools, granted: Iterable[PlacedPods] = ()) -> int:
    """Pods of all jobs of the policy on these nodes.

    Args:
        granted: pods of such jobs that are not recorded yet.
    """
    table = state.table
    running = (placed for live in state.running.values() if live.shape.policy is policy for placed in live.running.pods)
    return sum(
        placed.count
        for placed in chain(running, granted)
        if placed.node in table.index and nodes[table.index[placed.node]]
    )


def place_by_policy(
    state: State,
    policy: ResourcePolicy,
    job: Job,
    shape: Shape,
    counts: Sequence[int],
    site: Site,
    granted: Sequence[PlacedPods] = (),
) -> tuple[Placement, tuple[str, ...], str | None] | NoRoom:
    """Fill the units in order, each up to its cap. Pods that must be near each other go to one unit together, sets of
    one group too.

    Call it inside `NodeTable.trial`.

    Args:
        granted: as for `pods_in`.
    """
    units = [(unit, nodes_of(state.table, unit)) for unit in units_open(policy, max(0.0, state.now - job.submitted))]
    units = _warm_first(state, units, shape, site)
    left = list(counts)
    pods: list[PlacedPods] = []
    score, names = Score(), []
    for unit, nodes in units:
        cap = sum(left)
        if unit.max_pods is not None:
            cap = min(cap, unit.max_pods - pods_in(state, policy, nodes, (*granted, *pods)))
        allowed = nodes if site.allowed is None else nodes & site.allowed
        found = fill(state, job, shape, left, cap, replace(site, allowed=allowed, there=(*site.there, *pods)))
        if found.pods:
            pods += found.pods
            score = added(score, found.score)
            names.append(unit.name)
        if not any(left):
            return Placement(tuple(pods), score), (), "+".join(dict.fromkeys(names))
    waits = "" if len(units) == len(policy.units) else f"; {policy.units[len(units)].name} is not open yet"
    return NoRoom("gang", f"room for {sum(counts) - sum(left)} of {sum(counts)} pods{waits}")


def fill(state: State, job: Job, shape: Shape, left: list[int], cap: int, site: Site) -> Placement:
    """As many of the pods that are left as fit on the nodes of a site, and no more than `cap`; they are not left any
    more."""
    together = any(
        pod_set.topology.required or pod_set.topology.preferred or pod_set.topology.slice_level
        for pod_set in job.pod_sets
    )
    pods: list[PlacedPods] = []
    score = Score()
    if cap <= 0 or (together and cap < sum(left)):
        return Placement((), score)
    for places in together_sets(job.pod_sets):
        amounts = [
            min(left[place], cap, state.placer.fitting(job.pod_sets[place], shape.demands[place], site))
            for place in places
        ]
        if not any(amounts) or (together and amounts != [left[place] for place in places]):
            continue
        found = _placed(state, job, shape, dict(zip(places, amounts, strict=True)), site)
        if isinstance(found, Placement):
            pods += found.pods
            score = added(score, found.score)
            for place, amount in zip(places, amounts, strict=True):
                left[place] -= amount
                cap -= amount
    return Placement(tuple(pods), score)


def _placed(state: State, job: Job, shape: Shape, amounts: Mapping[int, int], site: Site) -> Placement | NoRoom:
    """Room for so many pods of each set, by its place; nothing is taken if there is none."""
    sets = [place for place, amount in amounts.items() if amount]
    with state.table.trial() as trial:
        found = state.placer.place(
            [replace(job.pod_sets[place], min_count=None) for place in sets],
            [shape.demands[place] for place in sets],
            [amounts[place] for place in sets],
            site,
        )
        if isinstance(found, Placement):
            trial.keep()
        return found


def _warm_first(state: State, units: list[tuple[Unit, Bools]], shape: Shape, site: Site) -> list[tuple[Unit, Bools]]:
    """A unit where the job need not wait for data goes before one where it must."""
    if site.cold_s is None:
        return units
    cold = site.cold_s

    def waits(nodes: Bools) -> bool:
        fitting = nodes & state.table.eligible(shape.demands[0]) & state.table.fits(shape.demands[0])
        return not fitting.any() or float(cold[fitting].min()) > 0

    return sorted(units, key=lambda unit: waits(unit[1]))


def scale_in(state: State, policy: ResourcePolicy | None, pods: Sequence[PlacedPods]) -> list[PlacedPods]:
    """Pods in the order in which they are given up: those of the last unit first, and the last placed of each."""
    last_first = list(reversed(pods))
    if policy is None:
        return last_first
    units = [nodes_of(state.table, unit) for unit in policy.units]

    def unit_of(placed: PlacedPods) -> int:
        row = state.table.index.get(placed.node)
        return next((place for place, nodes in enumerate(units) if row is not None and nodes[row]), len(units))

    return sorted(last_first, key=lambda placed: -unit_of(placed))
