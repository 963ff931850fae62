"""All nodes as arrays: what is free, what a pod fits on, and taking and giving back with undo.

Rows are nodes in the order of the snapshot, sorted by name. Two nodes with one Gpu tuple and one set of links share
tables. Nothing here knows of jobs, queues or data. It is a little long, as all that changes these arrays together is in
one place.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from forebay.scheduler.card_kinds import CardKinds
from forebay.scheduler.gpu_sets import mask_of
from forebay.scheduler.jobs import GpuRequest, Match, PodSet, Toleration
from forebay.scheduler.model import CARD, Node
from forebay.scheduler.numa import NumaTable, zone_of

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

CARDS_MAX = 62
"""Cards of a node: masks are 64-bit numbers."""


@dataclass(frozen=True)
class Demand:
    """What one pod asks of a node; equal for pods that are alike, so that answers can be kept for each."""

    amounts: tuple[tuple[str, int], ...]
    gpus: GpuRequest | None
    eligible: tuple[object, ...]
    """Key of the nodes that it may run on at all."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.amounts, self.gpus, self.eligible))

    @classmethod
    def of(cls, pod_set: PodSet) -> "Demand":
        return cls(
            tuple(sorted((name, amount) for name, amount in pod_set.requests.items() if amount)),
            pod_set.gpus,
            (
                tuple(sorted(pod_set.selector.items())),
                pod_set.tolerations,
                pod_set.gpus.models if pod_set.gpus else (),
                pod_set.affinity,
            ),
        )


@dataclass
class Taken:
    """One change of a node, for undo."""

    node: int
    demand: Demand
    cards: tuple[int, ...]
    pods: int


class NodeTable:
    """Free room of all nodes.

    Raises:
        ValueError: two nodes have one name, or a node has more cards than 62 or a topology that is not as deep as the
            levels.
    """

    def __init__(self, nodes: Sequence[Node], levels: Sequence[str]) -> None:
        self.nodes = sorted(nodes, key=lambda node: node.name)
        self.names = [node.name for node in self.nodes]
        self.index = {name: place for place, name in enumerate(self.names)}
        if len(self.index) != len(self.names):
            twice = next(name for place, name in enumerate(self.names) if self.index[name] != place)
            raise ValueError(f"two nodes are named {twice!r}")
        self.levels = tuple(levels)
        self._rows(self.nodes)
        self.numa = NumaTable(self.nodes)
        self._cards(self.nodes)
        self._domains(self.nodes)
        self.ready = np.array([node.ready for node in self.nodes], dtype=np.bool_)
        self._eligible: dict[tuple[object, ...], Bools] = {}
        self._room_of: dict[Demand, Ints] = {}
        self.soft = [
            (place, taint)
            for place, node in enumerate(self.nodes)
            for taint in node.taints
            if taint.effect == "PreferNoSchedule"
        ]
        """Places of nodes with taints that only the score looks at."""
        self._met: dict[Match, Bools] = {}
        self._shunned: dict[tuple[Toleration, ...], Ints] = {}
        self.grown: list[int] = []
        """Nodes whose free room grew, in order: who was refused at some length of it needs to look at the rest only."""
        self.changes: list[int] = []
        """Nodes whose free room is another, in order; what is known of a node is true from its last place in it on."""
        self.eligibility = 0
        """Grows when other nodes are eligible than before."""
        self._log: list[Taken] | None = None

    def _rows(self, nodes: Sequence[Node]) -> None:
        names = sorted({name for node in nodes for name in node.allocatable})
        self.rows = {name: row for row, name in enumerate(names)}
        self.capacity = np.zeros((len(names), len(nodes)), dtype=np.int64)
        for name, row in self.rows.items():
            self.capacity[row] = [node.allocatable.get(name, 0) for node in nodes]
        self.free = self.capacity.copy()

    def _cards(self, nodes: Sequence[Node]) -> None:
        most = max((len(node.gpus) for node in nodes), default=0)
        if most > CARDS_MAX:
            raise ValueError(f"a node has {most} cards; at most {CARDS_MAX} are possible")
        self.cards_max = most
        self.compute = np.zeros((len(nodes), most), dtype=np.int32)
        self.memory = np.zeros((len(nodes), most), dtype=np.int32)
        self.kinds = CardKinds(nodes)
        self.sets, self.kind = self.kinds.sets, self.kinds.of
        rows = [
            (
                [CARD if gpu.healthy else 0 for gpu in node.gpus],
                [gpu.memory_mib if gpu.healthy else 0 for gpu in node.gpus],
            )
            for node in self.kinds.examples
        ]
        for place, node in enumerate(nodes):
            count = len(node.gpus)
            self.compute[place, :count], self.memory[place, :count] = rows[self.kind[place]]
        self.card_memory = self.memory.copy()
        self.gpu_capacity = self.compute.sum(axis=1, dtype=np.int64)
        self.gpu_free = self.gpu_capacity.copy()
        self.bits = np.zeros(len(nodes), dtype=np.int64)
        """Mask of the wholly free cards of each node."""
        for card in range(most):
            self.bits |= (self.compute[:, card] == CARD).astype(np.int64) << card
        self.idle = (self.compute == CARD).sum(axis=1)
        self._swapped = [0] * len(nodes)
        """Masks of the cards that were taken whole while they were idle: they can be given back so."""
        self._spots: dict[tuple[int, ...], tuple[int, slice | list[int]]] = {}
        """Mask and index of cards."""
        every = [gpu for node in self.kinds.examples for gpu in node.gpus]
        self.least_memory = {
            model: min(gpu.memory_mib for gpu in every if gpu.model == model) for model in {gpu.model for gpu in every}
        }

    def _domains(self, nodes: Sequence[Node]) -> None:
        self.domain_names: list[list[str]] = []
        self.domain_of: list[Ints] = []
        for node in nodes:
            if len(node.topology) != len(self.levels):
                raise ValueError(
                    f"node {node.name!r} has the topology {node.topology}; the levels are {', '.join(self.levels)}"
                )
        for depth in range(len(self.levels)):
            paths = ["/".join(node.topology[: depth + 1]) for node in nodes]
            names = sorted({*paths})
            places = {name: place for place, name in enumerate(names)}
            self.domain_names.append(names)
            self.domain_of.append(np.array([places[path] for path in paths], dtype=np.int64))
        self.domain_names.append(self.names)
        self.domain_of.append(np.arange(len(nodes)))
        self.parents: list[Ints] = []
        """For each depth but the last, of each domain one below it, its domain at this depth."""
        for depth in range(len(self.levels)):
            found = np.zeros(len(self.domain_names[depth + 1]), dtype=np.int64)
            found[self.domain_of[depth + 1]] = self.domain_of[depth]
            self.parents.append(found)

    def __len__(self) -> int:
        return len(self.names)

    def depth(self, level: str) -> int:
        """Of a level's name, 'host' being the deepest.

        Raises:
            ValueError: there is no such level.
        """
        if level == "host":
            return len(self.levels)
        if level not in self.levels:
            raise ValueError(f"no level of the topology is named {level!r}; there are {', '.join(self.levels)}, host")
        return self.levels.index(level)

    def eligible(self, demand: Demand) -> Bools:
        """Nodes that are ready, have the labels and cards, and whose taints are tolerated; do not change it."""
        key = demand.eligible
        found = self._eligible.get(key)
        if found is None:
            selector, tolerations, models, affinity = key
            found = self.ready.copy()
            for place, node in enumerate(self.nodes):
                if found[place]:
                    found[place] = (
                        all(node.labels.get(label) == value for label, value in selector)  # type: ignore[attr-defined]
                        and all(
                            taint.effect == "PreferNoSchedule" or taint.tolerated_by(tolerations)  # type: ignore[arg-type]
                            for taint in node.taints
                        )
                        and (not models or any(gpu.model in models for gpu in node.gpus))  # type: ignore[operator]
                        and (not affinity or any(_meets(node, term) for term in affinity))  # type: ignore[attr-defined]
                    )
            self._eligible[key] = found
        return found

    def met(self, match: Match) -> Bools:
        """Nodes whose labels meet an expression; do not change it."""
        found = self._met.get(match)
        if found is None:
            found = self._met[match] = np.array([match.met_by(node.labels) for node in self.nodes], dtype=np.bool_)
        return found

    def shunned(self, demand: Demand) -> Ints | None:
        """How many `PreferNoSchedule` taints of each node the pod does not tolerate; None: no node has such taints."""
        if not self.soft:
            return None
        tolerations: tuple[Toleration, ...] = demand.eligible[1]  # type: ignore[assignment]
        found = self._shunned.get(tolerations)
        if found is None:
            found = self._shunned[tolerations] = np.zeros(len(self), dtype=np.int64)
            for place, taint in self.soft:
                found[place] += not taint.tolerated_by(tolerations)
        return found

    def fits(self, demand: Demand, among: Ints | None = None) -> Bools:
        """Whether one more pod fits, for all nodes or the rows `among`; eligibility is not looked at."""
        count = len(self.names) if among is None else len(among)
        found: Bools = np.ones(count, dtype=np.bool_)
        for name, amount in demand.amounts:
            row = self.rows.get(name)
            if row is None:
                return np.zeros(count, dtype=np.bool_)
            free = self.free[row] if among is None else self.free[row][among]
            found &= free >= amount
        if demand.gpus is not None:
            found &= self._cards_fit(demand, demand.gpus, among)
        return found

    def _cards_fit(self, demand: Demand, gpus: GpuRequest, among: Ints | None) -> Bools:
        if gpus.single_numa or self.kinds.usable(gpus) is not None:
            return self._pods_of_cards(demand, gpus, among) > 0
        if gpus.exclusive:
            if gpus.memory_mib:
                return self._pods_of_cards(demand, gpus, among) > 0
            enough: Bools = (self.idle if among is None else self.idle[among]) >= gpus.cards
            return enough
        compute = self.compute if among is None else self.compute[among]
        cards: Bools = compute >= max(gpus.compute_milli, 1)
        if gpus.memory_mib:
            memory = self.memory if among is None else self.memory[among]
            np.logical_and(cards, memory >= gpus.memory_mib, out=cards)
        enough_cards: Bools = cards.sum(axis=1) >= gpus.cards
        return enough_cards

    def ever_pods(self, demand: Demand) -> Ints:
        """How many pods would fit on each eligible node if it were empty, at most."""
        found = np.where(self.eligible(demand), self.by_amounts(demand, lambda row: self.capacity[row], len(self)), 0)
        if (gpus := demand.gpus) is not None:
            slots = (self.card_memory >= max(gpus.memory_mib, 1)).astype(np.int64)
            if (usable := self.kinds.usable(gpus)) is not None:
                slots *= usable[0][self.kind]
            if not gpus.exclusive:
                most = CARD // gpus.compute_milli if gpus.compute_milli else 1 << 20
                slots *= np.minimum(most, self.card_memory // gpus.memory_mib if gpus.memory_mib else most)
            np.minimum(found, _groups(slots, gpus.cards), out=found)
        return found

    def by_amounts(self, demand: Demand, free: Callable[[int], Ints], count: int) -> Ints:
        """How many pods the resources but cards suffice for, on so many nodes.

        Args:
            free: of a resource by its place in `rows`.
        """
        found = np.full(count, 1 << 40, dtype=np.int64)
        for name, amount in demand.amounts:
            row = self.rows.get(name)
            if row is None:
                return np.zeros(count, dtype=np.int64)
            np.minimum(found, np.maximum(free(row), 0) // amount, out=found)
        return found

    def pods(self, demand: Demand, among: Ints | None = None) -> Ints:
        """How many pods fit on each node, for all or the rows `among`; eligibility is not looked at."""
        count = len(self.names) if among is None else len(among)
        found = self.by_amounts(demand, lambda row: self.free[row] if among is None else self.free[row][among], count)
        if demand.gpus is not None:
            np.minimum(found, self._pods_of_cards(demand, demand.gpus, among), out=found)
        return found

    def _pods_of_cards(self, demand: Demand, gpus: GpuRequest, among: Ints | None) -> Ints:
        usable = self.kinds.usable(gpus)
        compute = self.compute if among is None else self.compute[among]
        memory = self.memory if among is None else self.memory[among]
        if gpus.exclusive:
            if not gpus.single_numa and not gpus.memory_mib and usable is None:
                idle: Ints = self.idle if among is None else self.idle[among]
                return np.floor_divide(idle, gpus.cards)
            slots = ((compute == CARD) & (memory >= gpus.memory_mib)).astype(np.int64)
        else:
            slots = (compute // gpus.compute_milli if gpus.compute_milli else (compute > 0) * (1 << 20)).astype(
                np.int64
            )
            if gpus.memory_mib:
                np.minimum(slots, memory // gpus.memory_mib, out=slots)
            np.maximum(slots, 0, out=slots)  # a reservation may be for cards that others still use
        if usable is not None:
            slots *= usable[0][self.kind if among is None else self.kind[among]]
        if gpus.single_numa:
            return self._numa_pods(demand, slots, gpus.cards, among)
        return _groups(slots, gpus.cards)

    def _numa_pods(self, demand: Demand, slots: Ints, cards: int, among: Ints | None) -> Ints:
        places = np.arange(len(self)) if among is None else among
        kinds = self.kind[places]
        found = np.zeros(len(slots), dtype=np.int64)
        for kind in np.unique(kinds):
            rows = np.flatnonzero(kinds == kind)
            zones = np.array([gpu.numa for gpu in self.kinds.examples[kind].gpus], dtype=np.int64)
            for zone in np.unique(zones):
                fitting = _groups(slots[np.ix_(rows, np.flatnonzero(zones == zone))], cards)
                if self.numa.any:
                    fitting = np.minimum(fitting, self.numa.pods(demand.amounts, places[rows], int(zone)))
                found[rows] += fitting
        return found

    def zones(self, node: int, demand: Demand) -> list[int]:
        """Masks of the cards of each NUMA node that has room for one pod beside its cards."""
        gpus, row = self.nodes[node].gpus, np.array([node])
        return [
            mask_of(place for place, gpu in enumerate(gpus) if gpu.numa == zone)
            for zone in sorted({gpu.numa for gpu in gpus})
            if not self.numa.any or self.numa.pods(demand.amounts, row, zone)[0]
        ]

    @property
    def kinds_of_room(self) -> int:
        """Length of `room_of`."""
        return len(self.rows) + 1

    def room_of(self, demand: Demand) -> Ints:
        """What one pod takes: of each resource in the order of `rows`, and last thousandths of cards."""
        found = self._room_of.get(demand)
        if found is None:
            found = self._room_of[demand] = np.zeros(self.kinds_of_room, dtype=np.int64)
            for name, amount in demand.amounts:
                if name in self.rows:
                    found[self.rows[name]] = amount
            if demand.gpus is not None:
                found[-1] = demand.gpus.cards * max(demand.gpus.compute_milli, 1)
        return found

    def take(self, node: int, demand: Demand, cards: tuple[int, ...], pods: int = 1) -> None:
        """Pods start: one on these cards, or several without cards."""
        self._change(node, demand, cards, pods)
        if self._log is not None:
            self._log.append(Taken(node, demand, cards, pods))

    def give(self, node: int, demand: Demand, cards: tuple[int, ...], pods: int = 1) -> None:
        """Pods have ended; inside `trial`, as if they had."""
        self._change(node, demand, cards, -pods)
        if self._log is not None:
            self._log.append(Taken(node, demand, cards, -pods))
        else:
            self.grown.append(node)

    def _change(self, node: int, demand: Demand, cards: tuple[int, ...], pods: int) -> None:
        self.changes.append(node)
        for name, amount in demand.amounts:
            row = self.rows.get(name)
            if row is not None:
                self.free[row, node] -= pods * amount
        if self.numa.any:
            self.numa.change(node, demand.amounts, zone_of(self.nodes[node], cards), pods)
        gpus = demand.gpus
        if gpus is not None and not (gpus.exclusive and self._swap(node, cards, pods > 0)):
            self._change_cards(node, gpus, cards, 1 if pods > 0 else -1)

    def _swap(self, node: int, cards: tuple[int, ...], taken: bool) -> bool:
        """Take whole cards that are all idle, or give back such as were taken so; if they are not: False."""
        spot = self._spots.get(cards)
        if spot is None:
            spot = self._spots[cards] = (mask_of(cards), _as_index(cards))
        mask, places = spot
        bits = int(self.bits[node])
        if taken:
            if bits & mask != mask:
                return False
            self.compute[node, places] = 0
            self.memory[node, places] = 0
            self.bits[node] = bits & ~mask
            self._swapped[node] |= mask
            change = -len(cards)
        else:
            if self._swapped[node] & mask != mask:
                return False
            self.compute[node, places] = CARD
            self.memory[node, places] = self.card_memory[node, places]
            self.bits[node] = bits | mask
            self._swapped[node] &= ~mask
            change = len(cards)
        self.idle[node] += change
        self.gpu_free[node] += change * CARD
        return True

    def _change_cards(self, node: int, gpus: GpuRequest, cards: tuple[int, ...], sign: int) -> None:
        compute, memory = self.compute[node], self.memory[node]
        self._swapped[node] &= ~mask_of(cards)
        for card in cards:
            mib = int(self.card_memory[node, card]) if gpus.exclusive else gpus.memory_mib
            milli = gpus.compute_milli or 1  # a share of memory alone keeps the card from those who want it whole
            before = int(compute[card])
            after = before - sign * milli
            compute[card] = after
            memory[card] -= sign * mib
            self.gpu_free[node] += after - before
            if before == CARD:
                self.bits[node] &= ~(1 << card)
                self.idle[node] -= 1
            elif after == CARD:
                self.bits[node] |= 1 << card
                self.idle[node] += 1

    @contextmanager
    def trial(self) -> Iterator["Trial"]:
        """What is taken inside is given back at the end, unless `keep` is called."""
        outer, self._log = self._log, []
        trial = Trial()
        try:
            yield trial
        finally:
            log, self._log = self._log, outer
            if not trial.kept:
                for taken in reversed(log):
                    self._change(taken.node, taken.demand, taken.cards, -taken.pods)
            elif outer is not None:
                outer.extend(log)

    def set_ready(self, node: int, ready: bool) -> None:
        """A node comes or goes; what runs there stays counted."""
        self.ready[node] = ready
        self._eligible.clear()
        self.eligibility += 1
        if ready:
            self.grown.append(node)

    def totals(self) -> Mapping[str, int]:
        """Capacity of all nodes by resource, with `gpu`."""
        found = {name: int(self.capacity[row].sum()) for name, row in self.rows.items()}
        found["gpu"] = int(self.gpu_capacity.sum())
        return found


class Trial:
    """A tentative change of the table."""

    kept = False

    def keep(self) -> None:
        self.kept = True


def _meets(node: Node, term: tuple[Match, ...]) -> bool:
    return bool(term) and all(match.met_by(node.labels) for match in term)


def _as_index(cards: tuple[int, ...]) -> slice | list[int]:
    """Of columns: a slice is several times as quick as a list."""
    first, last = cards[0], cards[-1]
    return slice(first, last + 1) if cards == tuple(range(first, last + 1)) else list(cards)


def _groups(slots: Ints, cards: int) -> Ints:
    """How many groups of so many different cards there are, where card c may be in `slots[node, c]` of them.

    The largest p with sum(min(slots, p)) >= p * cards, approached from above.
    """
    if cards == 1:
        single: Ints = slots.sum(axis=1)
        return single
    found: Ints = slots.sum(axis=1) // cards
    while True:
        fewer: Ints = np.minimum(slots, found[:, None]).sum(axis=1) // cards
        fewer = np.minimum(fewer, found)
        if (fewer == found).all():
            return found
        found = fewer
