"""Jobs that own reservations: the reserved room is theirs, in the way that the reservation says."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from forebay.scheduler.jobs import GpuRequest, Job, joined
from forebay.scheduler.model import ResourcePolicy
from forebay.scheduler.nodes import Demand
from forebay.scheduler.pending import Shape
from forebay.scheduler.placement import Placement, Site, added
from forebay.scheduler.reserved import NOTHING, Held, left_over
from forebay.scheduler.resource_policies import fill, place_by_policy
from forebay.scheduler.state import State
from forebay.scheduler.topology import NoRoom


class ReservedRoom:
    """The reservations that a job owns."""

    def __init__(self, state: State, job: Job) -> None:
        self._state = state
        self._held = [held for held in state.held.values() if held.reservation.owned_by(job)]

    @property
    def any(self) -> bool:
        return bool(self._held)

    def place(
        self, job: Job, shape: Shape, counts: Sequence[int], site: Site
    ) -> tuple[Placement, tuple[str, ...], str | None] | NoRoom:
        """Place the job with its reservations open; call it inside `NodeTable.trial`.

        Returns: pods, the reservations that they use, and the unit of its policy.
        """
        if (policy := shape.policy) is not None:
            return self._by_policy(policy, job, shape, counts, site)
        table, placer = self._state.table, self._state.placer
        restricted = [held for held in self._held if held.reservation.policy == "restricted"]
        shut = [self._shut(held) for held in restricted]
        for held in self._held:
            table.give(held.row, held.demand, held.cards)
        own = self._own(site)
        found: Placement | NoRoom
        if restricted or any(held.reservation.policy == "aligned" for held in self._held):
            with table.trial() as trial:
                found = placer.place(job.pod_sets, shape.demands, counts, own)
                if isinstance(found, Placement):
                    trial.keep()
            if isinstance(found, NoRoom) and not restricted:
                found = placer.place(job.pod_sets, shape.demands, counts, site)
        else:
            found = placer.place(job.pod_sets, shape.demands, counts, site)
        for held, (demand, cards) in zip(restricted, shut, strict=True):
            table.give(held.row, demand, cards)
        if isinstance(found, NoRoom):
            return found
        return found, self._close(found, shape), None

    def _by_policy(
        self, policy: ResourcePolicy, job: Job, shape: Shape, counts: Sequence[int], site: Site
    ) -> tuple[Placement, tuple[str, ...], str | None] | NoRoom:
        """As many pods as the reservations take, and the others by the units of its policy."""
        state, left = self._state, list(counts)
        shut = [self._shut(held) for held in self._held]
        for held in self._held:
            state.table.give(held.row, held.demand, held.cards)
        found = fill(state, job, shape, left, sum(left), self._own(site))
        for held, (demand, cards) in zip(self._held, shut, strict=True):
            state.table.give(held.row, demand, cards)
        unit = None
        if any(left):
            if any(held.reservation.policy == "restricted" for held in self._held):
                return NoRoom("gang", f"room for {sum(counts) - sum(left)} of {sum(counts)} pods in its reservations")
            beside = replace(site, there=(*site.there, *found.pods))
            rest = place_by_policy(state, policy, job, shape, left, beside, found.pods)
            if isinstance(rest, NoRoom):
                return rest
            unit = rest[2]
            found = Placement(joined(found.pods, rest[0].pods), added(found.score, rest[0].score))
        return found, self._close(found, shape), unit

    def _own(self, site: Site) -> Site:
        """The nodes of its reservations."""
        mine = np.zeros(len(self._state.table), dtype=np.bool_)
        mine[[held.row for held in self._held]] = True
        return replace(site, allowed=mine if site.allowed is None else mine & site.allowed)

    def _shut(self, held: Held) -> tuple[Demand, tuple[int, ...]]:
        """Take all of the reserved kinds that is free beside the reservation, so that nothing else can be used."""
        table = self._state.table
        amounts = tuple(
            (name, int(table.free[table.rows[name], held.row]))
            for name in held.reservation.amounts
            if name in table.rows
        )
        idle = tuple(card for card in range(len(table.nodes[held.row].gpus)) if int(table.bits[held.row]) >> card & 1)
        cards = idle if held.reservation.cards else ()
        demand = Demand(amounts, GpuRequest(cards=len(cards)) if cards else None, ())
        table.take(held.row, demand, cards)
        return demand, cards

    def _close(self, placement: Placement, shape: Shape) -> tuple[str, ...]:
        """Take what is left of each reservation again; the names of those that are in use now."""
        state, names = self._state, []
        for held in self._held:
            demand, cards = held.demand, held.cards
            on_node = [used for used in shape.pods(placement.pods) if used[0].node == held.reservation.node]
            if on_node:
                names.append(held.reservation.name)
                left = replace(held.reservation, amounts=dict(held.demand.amounts), cards=held.cards)
                demand, cards = left_over(left, on_node)
                if held.reservation.once:
                    demand, cards = NOTHING
            state.table.take(held.row, demand, cards)
        return tuple(names)
