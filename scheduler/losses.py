"""The joint score: what a pod on each node is expected to lose, in GPU-seconds. Lower is better.

Links, packing, fragmentation, preferences and cold bytes are in one unit, so that none outvotes the others whatever its
size: a warm node with bad links wins exactly when loading would idle the GPUs for longer than the links cost.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forebay.scheduler.decisions import Score
from forebay.scheduler.gpu_sharing import Mix
from forebay.scheduler.jobs import GpuRequest, Match, PodSet
from forebay.scheduler.model import CARD
from forebay.scheduler.nodes import Demand, Ints, NodeTable
from forebay.scheduler.settings import Settings

Floats = NDArray[np.float64]

_STANDINGS = 512
"""Kinds of pods whose standing is kept, some 24 bytes a node each; then all are reckoned anew."""

_WITNESS_CHANGES = 256
"""Among so many changes a node is looked for rather than all of them counted."""

_NO_CARD = 0.1
"""GPUs that a pod without cards counts as: it must not outweigh those with."""


@dataclass(frozen=True)
class Losses:
    """Loss of one more pod, by reason, for the rows that were asked for."""

    cold: Floats
    link: Floats
    pack: Floats
    fragment: Floats
    affinity: Floats

    @property
    def unmixed(self) -> Floats:
        """All but fragments, by which alone what others ask for counts."""
        unmixed: Floats = self.cold + self.link + self.pack + self.affinity
        return unmixed

    def score(self, place: int) -> Score:
        return Score(
            float(self.cold[place]),
            float(self.link[place]),
            float(self.pack[place]),
            float(self.fragment[place]),
            float(self.affinity[place]),
        )

    def summed(self, pods: Ints) -> Score:
        """Over so many pods on each of the rows."""
        parts = (self.cold, self.link, self.pack, self.fragment, self.affinity)
        cold, link, pack, fragment, affinity = (float(part @ pods) for part in parts)
        return Score(cold, link, pack, fragment, affinity)


def gpus_of(pod_set: PodSet) -> float:
    """Cards that one pod uses, as a number for weighing."""
    gpus = pod_set.gpus
    if gpus is None:
        return _NO_CARD
    return gpus.cards * max(gpus.compute_milli, 100) / CARD


@dataclass(eq=False)
class Standing:
    """The room for pods of a kind on each node, and what one more would lose there; each is brought up to date when it
    is asked for."""

    pod_set: PodSet
    demand: Demand
    counts: bool
    """How many pods fit is asked for, not only whether one does."""
    room: Ints
    """How many fit on each node; without `counts` 1 for any."""
    unmixed: Floats
    """Part of `loss`, see `Losses.unmixed`."""
    loss: Floats
    """Without cold bytes; infinite where it does not fit."""
    mix: Mix | None
    """By which fragments were measured."""
    total: int = 0
    """Of `room`."""
    witness: int = 0
    """A node with room, if any has."""
    counted: int = -1
    """So much of `NodeTable.changes` is in `room`; -1: nothing is known yet."""
    weighed: int = -1
    """And in `loss`, never more."""


class LossTable:
    """Losses over the nodes of a table as they are now."""

    def __init__(self, table: NodeTable, settings: Settings) -> None:
        self._table = table
        self._settings = settings
        self.mix: Mix | None = None
        self._classes: dict[tuple[int, int], float] = {}
        self._standings: dict[tuple[object, ...], Standing] = {}
        self._eligibility = table.eligibility

    def set_mix(self, classes: dict[tuple[int, int], float]) -> None:
        """The requests by which fragments are measured: weights by (cards, thousandths of each)."""
        if classes != self._classes:
            self._classes = classes
            self.mix = Mix.of(classes, self._table.cards_max) if classes else None

    def room(self, pod_set: PodSet, demand: Demand, least: int) -> int:
        """How many pods fit on all nodes; it need not be more than `least`."""
        found = self._standing(pod_set, demand, least > 1)
        if least == 1 and self._has_room(found):
            return 1
        rows = self._changed(found.counted)
        if rows is not None:
            self._count(found, rows)
        return found.total

    def _has_room(self, found: Standing) -> bool:
        """Whether a node that had room is as it was: quick to know."""
        changes = self._table.changes
        if found.counted < 0 or len(changes) - found.counted > _WITNESS_CHANGES or not found.total:
            return False
        return found.witness not in changes[found.counted :]

    def standing(self, pod_set: PodSet, demand: Demand, counted: bool = False) -> Standing:
        """Losses of one more pod on each node, and with `counted` how many fit; do not change the arrays.

        Only nodes that have changed since the last time are looked at.
        """
        found = self._standing(pod_set, demand, counted)
        rows = self._changed(found.weighed)
        if rows is not None:
            self._count(found, rows)
            self._weigh(found, rows)
        if found.mix is not self.mix:
            self._mix_anew(found)
        return found

    def _standing(self, pod_set: PodSet, demand: Demand, counted: bool) -> Standing:
        table = self._table
        if table.eligibility != self._eligibility:
            self._standings.clear()
            self._eligibility = table.eligibility
        key = (demand, pod_set.preferences, pod_set.placement, counted)
        found = self._standings.get(key)
        if found is None:
            if len(self._standings) >= _STANDINGS:
                self._standings.clear()
            count = len(table)
            room, unmixed, loss = np.zeros(count, dtype=np.int64), np.zeros(count), np.full(count, np.inf)
            found = self._standings[key] = Standing(pod_set, demand, counted, room, unmixed, loss, self.mix)
        return found

    def _count(self, found: Standing, rows: Ints) -> None:
        table = self._table
        found.counted = len(table.changes)
        room = (table.pods if found.counts else table.fits)(found.demand, rows) * table.eligible(found.demand)[rows]
        found.total += int((room - found.room[rows]).sum())
        found.room[rows] = room
        if found.total and not found.room[found.witness]:
            found.witness = int(found.room.argmax())

    def _weigh(self, found: Standing, rows: Ints) -> None:
        found.weighed = len(self._table.changes)
        found.loss[rows] = np.inf
        rows = rows[found.room[rows] > 0]
        if len(rows):
            losses = self.of(found.pod_set, found.demand, rows, None)
            unmixed = losses.unmixed
            found.unmixed[rows], found.loss[rows] = unmixed, unmixed + losses.fragment

    def _mix_anew(self, found: Standing) -> None:
        """Others ask for something else than before: only fragments are another loss by that."""
        found.mix = self.mix
        if self._breaks(found.demand.gpus):
            rows = np.flatnonzero(found.room)
            found.loss[rows] = found.unmixed[rows] + self._fragments(found.demand, rows)

    def _changed(self, since: int) -> Ints | None:
        """Nodes that have changed since so many changes; None: none has."""
        changes = self._table.changes
        if since == len(changes):
            return None
        if since < 0 or len(changes) - since > len(self._table) // 4:
            return np.arange(len(self._table))
        return np.array([*{*changes[since:]}], dtype=np.int64)

    def of(self, pod_set: PodSet, demand: Demand, rows: Ints, cold: Floats | None) -> Losses:
        """Args: cold: GPU-seconds that one pod would wait for data, for each of `rows`; None: nothing is read."""
        none = np.zeros(len(rows))
        weights = self._settings.weights
        cards = gpus_of(pod_set)
        return Losses(
            cold=none if cold is None else cold * weights.cold,
            link=self._links(demand, rows, cards * weights.link) + self._rdma(demand.gpus, rows, cards * weights.rdma),
            pack=self._pack(pod_set, demand, rows, cards * weights.pack) if weights.pack else none,
            fragment=self._fragments(demand, rows),
            affinity=self._affinity(pod_set, demand, rows) if pod_set.preferences or self._table.soft else none,
        )

    def _links(self, demand: Demand, rows: Ints, weight: float) -> Floats:
        gpus, table = demand.gpus, self._table
        if gpus is None or not gpus.exclusive or gpus.cards < 2 or not weight:
            return np.zeros(len(rows))
        kinds, bits = table.kind[rows], self._free(gpus, rows)
        if len(table.sets) == 1:
            lost: Floats = (1.0 - table.sets[0].quality(bits, gpus.cards)) * weight
            return lost
        found = np.zeros(len(rows))
        for kind in np.unique(kinds):
            where = np.flatnonzero(kinds == kind)
            found[where] = 1.0 - table.sets[kind].quality(bits[where], gpus.cards)
        return found * weight

    def _free(self, gpus: GpuRequest, rows: Ints) -> Ints:
        """Masks of the wholly free cards of each row from which those of the request are chosen."""
        table = self._table
        kinds, usable = table.kind[rows], table.kinds.usable(gpus)
        free: Ints = table.bits[rows] if usable is None else table.bits[rows] & usable[1][kinds]
        if gpus.rdma == "prefer":
            enough = table.kinds.near_parts(kinds, free, gpus.cards) == 1.0
            free = np.where(enough, free & table.kinds.near[kinds], free)
        return free

    def _rdma(self, gpus: GpuRequest | None, rows: Ints, weight: float) -> Floats:
        """Cards without an RDMA device near, of a request that prefers one."""
        if gpus is None or gpus.rdma != "prefer" or not weight:
            return np.zeros(len(rows))
        found: Floats = 1.0 - self._table.kinds.near_parts(self._table.kind[rows], self._free(gpus, rows), gpus.cards)
        return found * weight

    def _pack(self, pod_set: PodSet, demand: Demand, rows: Ints, weight: float) -> Floats:
        table = self._table
        capacity = np.maximum(table.gpu_capacity[rows], 1)
        free = table.gpu_free[rows] / capacity
        if demand.gpus is None and demand.amounts:
            name = "cpu" if any(name == "cpu" for name, _ in demand.amounts) else demand.amounts[0][0]
            row = table.rows[name]
            free = 0.5 * free + 0.5 * table.free[row][rows] / np.maximum(table.capacity[row][rows], 1)
        if (pod_set.placement or self._settings.placement) == "spread":
            free = 1.0 - free
        found: Floats = free * weight
        return found

    def _breaks(self, gpus: GpuRequest | None) -> bool:
        """Whether such pods are weighed by what they leave to others."""
        weighed = self._settings.weights.fragment and self._settings.shared_cards == "fgd"
        return bool(weighed) and gpus is not None and bool(gpus.compute_milli)

    def _fragments(self, demand: Demand, rows: Ints) -> Floats:
        gpus, table, mix = demand.gpus, self._table, self.mix
        weight = self._settings.weights.fragment / CARD
        if gpus is None or mix is None or not self._breaks(gpus):
            return np.zeros(len(rows))
        if gpus.exclusive:
            taken: Floats = mix.after_whole(table.idle[rows], gpus.cards) * weight
            return taken
        if gpus.cards > 1 or gpus.memory_mib:
            return self._least(gpus, mix, rows) * weight
        # Of many nodes, few have a card that is in use in part and fits: for the others their idle cards tell all.
        compute = table.compute[rows]
        least: Floats = mix.after_breaking(gpus.compute_milli)[table.idle[rows]]
        partly = np.flatnonzero((compute >= gpus.compute_milli) & (compute < CARD)) // table.cards_max
        if len(partly):
            partly = np.unique(partly)
            least[partly] = self._least(gpus, mix, rows[partly])
        return least * weight

    def _least(self, gpus: GpuRequest, mix: Mix, rows: Ints) -> Floats:
        """What a share leaves unusable at least, on the cards of each row that suit that best."""
        table = self._table
        compute = table.compute[rows]
        fitting = compute >= gpus.compute_milli
        if gpus.memory_mib:
            fitting &= table.memory[rows] >= gpus.memory_mib
        change = np.where(fitting, mix.after_share(compute, table.idle[rows], gpus.compute_milli), np.inf)
        found: Floats = np.sort(change, axis=1)[:, : gpus.cards].sum(axis=1)
        return found

    def _affinity(self, pod_set: PodSet, demand: Demand, rows: Ints) -> Floats:
        """Preferences that a node does not meet, and taints that would rather keep the pod off it."""
        weights, lost = self._settings.weights, np.zeros(len(rows))
        for preference in pod_set.preferences:
            match = preference[0] if len(preference) == 2 else Match(preference[0], "In", (preference[1],))
            lost += ~self._table.met(match)[rows] * (preference[-1] * weights.affinity)
        if (shunned := self._table.shunned(demand)) is not None:
            lost += shunned[rows] * weights.taint
        return lost
