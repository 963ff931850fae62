"""Where the pods of a job go: filters, then the least joint loss; all of its pods or none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forebay.scheduler.cards import choose_cards
from forebay.scheduler.decisions import Score
from forebay.scheduler.jobs import PlacedPods, PodSet, TopologyRequest
from forebay.scheduler.losses import Floats, LossTable, gpus_of
from forebay.scheduler.nodes import Bools, Demand, Ints, NodeTable
from forebay.scheduler.settings import Settings
from forebay.scheduler.topology import Apart, Gathering, NoRoom

_GROUP_TRIES = 16
"""Domains that are tried for a group of pod sets, the cheapest first."""


@dataclass(frozen=True)
class Placement:
    """Pods with their nodes and cards. Their room is taken in the table."""

    pods: tuple[PlacedPods, ...]
    score: Score

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(placed.node for placed in self.pods))


@dataclass(frozen=True)
class Site:
    """What is particular to a job when its pods are placed."""

    cold_s: Floats | None = None
    """Seconds of its share of the under-store that the job's cold bytes take, by node."""
    allowed: Bools | None = None
    """Nodes that it may use, beside all filters; None: any."""
    there: tuple[PlacedPods, ...] = ()
    """Pods that it has already: they count where pods are to be apart."""


class Placer:
    """Places pods on a table as it is now."""

    def __init__(self, table: NodeTable, losses: LossTable, settings: Settings) -> None:
        self._table = table
        self._losses = losses
        self._settings = settings
        self.explains = True
        """Whether refusals are counted out by reason, which costs as much as a placement."""

    def place(
        self, pod_sets: Sequence[PodSet], demands: Sequence[Demand], counts: Sequence[int], site: Site
    ) -> Placement | NoRoom:
        """Put `counts` pods of each set somewhere.

        Their room is taken even if NoRoom is returned: call it inside `NodeTable.trial`, and keep what succeeds.
        """
        pods: list[PlacedPods] = []
        score = Score()
        for places in together_sets(pod_sets):
            found: Placement | NoRoom
            if len(places) == 1:
                place = places[0]
                found = self._pod_set(pod_sets[place], demands[place], counts[place], site)
            else:
                found = self._group([(pod_sets[place], demands[place], counts[place]) for place in places], site)
            if isinstance(found, NoRoom):
                return replace(found, lasting=found.lasting and not pods)
            pods += found.pods
            score = added(score, found.score)
        return Placement(tuple(pods), score)

    def crowded(self, pod_sets: Sequence[PodSet], demands: Sequence[Demand]) -> NoRoom | None:
        """Whether not even the least pods of some set find nodes; it depends on what is free, and on nothing else."""
        for pod_set, demand in zip(pod_sets, demands, strict=True):
            fitting = self._losses.room(pod_set, demand, pod_set.least)
            if fitting < pod_set.least:
                reason = self._shortage(pod_set, demand, pod_set.least, fitting, Site())
                return NoRoom("gang", reason, pod_set.least - fitting)
        return None

    def fitting(self, pod_set: PodSet, demand: Demand, site: Site) -> int:
        """How many pods of a set there is room for, wherever they are."""
        room, apart = self._room(demand, site), self._apart(pod_set, site)
        return int(room.sum() if apart is None else apart.summed(room, apart.depth).sum())

    def _group(self, members: Sequence[tuple[PodSet, Demand, int]], site: Site) -> Placement | NoRoom:
        """Pod sets that share one domain of the first one's required level."""
        table = self._table
        depth = table.depth(members[0][0].topology.required or "host")
        domains = table.domain_of[depth]
        rooms = [self._room(demand, site) for _, demand, _ in members]
        enough = np.ones(len(table.domain_names[depth]), dtype=np.bool_)
        slack = np.zeros(len(enough), dtype=np.int64)
        for room, (pod_set, _, count) in zip(rooms, members, strict=True):
            apart = self._apart(pod_set, site)
            inside = np.bincount(domains, room, len(enough)).astype(np.int64)
            if apart is not None:
                inside = apart.summed(room, depth)
            enough &= inside >= count
            slack += inside
        candidates = np.flatnonzero(enough)
        for domain in candidates[np.lexsort((candidates, slack[candidates]))][:_GROUP_TRIES]:
            allowed = domains == domain
            inside_site = replace(site, allowed=allowed if site.allowed is None else site.allowed & allowed)
            with table.trial() as trial:
                pods: list[PlacedPods] = []
                score = Score()
                for pod_set, demand, count in members:
                    found = self._pod_set(pod_set, demand, count, inside_site)
                    if isinstance(found, NoRoom):
                        break
                    pods += found.pods
                    score = added(score, found.score)
                else:
                    trial.keep()
                    return Placement(tuple(pods), score)
        level = members[0][0].topology.required
        return NoRoom(
            "topology", f"no {level} takes {' and '.join(pod_set.name for pod_set, _, _ in members)}", lasting=False
        )

    def _mask(self, demand: Demand, site: Site) -> Bools:
        eligible = self._table.eligible(demand)
        return eligible if site.allowed is None else eligible & site.allowed

    def _room(self, demand: Demand, site: Site) -> Ints:
        return np.where(self._mask(demand, site), self._table.pods(demand), 0)

    def _apart(self, pod_set: PodSet, site: Site) -> Apart | None:
        """How many more pods of the set each domain may get; None: as many as there is room for."""
        table, request = self._table, pod_set.topology
        if request.apart is None:
            return None
        depth = table.depth(request.apart)
        left = np.full(len(table.domain_names[depth]), request.apart_pods, dtype=np.int64)
        for placed in site.there:
            if placed.pod_set == pod_set.name and placed.node in table.index:
                left[table.domain_of[depth][table.index[placed.node]]] -= placed.count
        return Apart(table, depth, np.maximum(left, 0))

    def _pod_set(self, pod_set: PodSet, demand: Demand, count: int, site: Site) -> Placement | NoRoom:
        apart = self._apart(pod_set, site)
        if apart is None:
            return self._near(pod_set, demand, count, site, None)
        open_nodes = apart.at(len(self._table.levels)) > 0
        site = replace(site, allowed=open_nodes if site.allowed is None else site.allowed & open_nodes)
        found = self._near(pod_set, demand, count, site, apart)
        if isinstance(found, NoRoom):
            topology = pod_set.topology
            why = f"at most {topology.apart_pods} of them in one {topology.apart}"
            return replace(found, reason=f"{found.reason}; {why}")
        return found

    def _near(self, pod_set: PodSet, demand: Demand, count: int, site: Site, apart: Apart | None) -> Placement | NoRoom:
        if count == 1:
            return self._one(pod_set, demand, site)
        standing = self._losses.standing(pod_set, demand, counted=True)
        room = standing.room if site.allowed is None else np.where(site.allowed, standing.room, 0)
        rows = np.flatnonzero(room)
        fitting = int(room.sum() if apart is None else apart.summed(room, apart.depth).sum())
        if fitting < count:
            return NoRoom("gang", self._shortage(pod_set, demand, count, fitting, site), count - fitting)
        cards = gpus_of(pod_set)
        total = np.zeros(len(self._table))
        total[rows] = standing.loss[rows]
        if site.cold_s is not None:
            total[rows] += site.cold_s[rows] * (cards * self._settings.weights.cold)
        pieces = self._pieces(pod_set, room, rows, total, count, apart)
        if isinstance(pieces, NoRoom):
            return pieces
        used = np.array([row for row, _ in pieces], dtype=np.int64)
        losses = self._losses.of(pod_set, demand, used, self._cold(site, used, cards))
        score = losses.summed(np.array([amount for _, amount in pieces]))
        pods = self._take(pod_set, demand, pieces)
        if pods is None:
            return NoRoom("gang", "no node has cards of one kind for it", lasting=False)
        return Placement(pods, added(score, Score(domain=self._spanned([row for row, _ in pieces], cards * count))))

    def _one(self, pod_set: PodSet, demand: Demand, site: Site) -> Placement | NoRoom:
        loss = self._losses.standing(pod_set, demand).loss
        if site.cold_s is not None:
            loss = loss + site.cold_s * (gpus_of(pod_set) * self._settings.weights.cold)
        if site.allowed is not None:
            loss = np.where(site.allowed, loss, np.inf)
        row = int(np.argmin(loss)) if len(loss) else -1
        if row < 0 or not math.isfinite(loss[row]):
            return NoRoom("gang", self._shortage(pod_set, demand, 1, 0, site))
        one = np.array([row])
        losses = self._losses.of(pod_set, demand, one, self._cold(site, one, gpus_of(pod_set)))
        pods = self._take(pod_set, demand, [(row, 1)])
        if pods is None:
            return NoRoom("gang", "no node has cards of one kind for it", lasting=False)
        return Placement(pods, losses.score(0))

    def _cold(self, site: Site, rows: Ints, cards: float) -> Floats | None:
        return None if site.cold_s is None else site.cold_s[rows] * cards

    def _pieces(
        self, pod_set: PodSet, room: Ints, rows: Ints, loss: Floats, count: int, apart: Apart | None
    ) -> list[tuple[int, int]] | NoRoom:
        """Rows of nodes and how many pods each gets."""
        request = pod_set.topology
        asked = request.required or request.preferred or request.slice_level
        if asked is None and apart is None and (not self._settings.weights.domain or not self._table.levels):
            return filled(room, rows[np.lexsort((rows, loss[rows]))], count)
        if asked is None and self._table.levels:
            request = TopologyRequest(preferred=self._table.levels[-1])
        order = pod_set.placement or self._settings.placement
        slack = self._settings.weights.pack * gpus_of(pod_set)
        return Gathering(self._table, room, loss, request, slack, order, apart).place(count, request)

    def _take(
        self, pod_set: PodSet, demand: Demand, pieces: Sequence[tuple[int, int]]
    ) -> tuple[PlacedPods, ...] | None:
        table, gpus = self._table, demand.gpus
        placed: list[PlacedPods] = []
        for row, amount in pieces:
            if gpus is None:
                table.take(row, demand, (), amount)
                placed.append(PlacedPods(pod_set.name, table.names[row], (), amount))
                continue
            taken: list[tuple[int, ...]] = []
            for _ in range(amount):
                cards = choose_cards(table, row, demand, self._settings.shared_cards, self._losses.mix)
                if not cards:
                    return None
                table.take(row, demand, cards)
                taken.append(cards)
            placed.append(PlacedPods(pod_set.name, table.names[row], tuple(taken), amount))
        return tuple(placed)

    def _spanned(self, rows: Sequence[int], gpus: float) -> float:
        if not self._table.levels:
            return 0.0
        domains = {int(self._table.domain_of[-2][row]) for row in rows}
        return (len(domains) - 1) * gpus * self._settings.weights.domain

    def _shortage(self, pod_set: PodSet, demand: Demand, count: int, fits: int, site: Site) -> str:
        """What keeps the pods off the nodes, with counts as in Kueue's messages."""
        if not self.explains:
            return f"room for {fits} of {count} pods of {pod_set.name!r}"
        mask = self._mask(demand, site)
        nodes, eligible = len(self._table), int(self._table.eligible(demand).sum())
        parts = [f"room for {fits} of {count} pods of {pod_set.name!r} on {nodes} nodes"]
        if eligible < nodes:
            parts.append(f"{nodes - eligible} are not ready, or excluded by label, taint or kind of card")
        if int(mask.sum()) < eligible:
            parts.append(f"{eligible - int(mask.sum())} are not allowed for it")
        for name, amount in demand.amounts:
            short = mask & ~self._table.fits(replace(demand, amounts=((name, amount),), gpus=None))
            if short.any():
                parts.append(f"{int(short.sum())} lack {name}")
        if demand.gpus is not None:
            short = mask & ~self._table.fits(replace(demand, amounts=()))
            if short.any():
                parts.append(f"{int(short.sum())} lack cards")
        return "; ".join(parts)


def together_sets(pod_sets: Sequence[PodSet]) -> list[list[int]]:
    """Places of the pod sets, those of one group in one list: they go to one domain."""
    groups: dict[str, list[int]] = {}
    for place, pod_set in enumerate(pod_sets):
        group = pod_set.topology.group if pod_set.topology.required else None
        groups.setdefault(f"group {group}" if group else f"set {place}", []).append(place)
    return [*groups.values()]


def filled(room: Ints, order: Ints, count: int) -> list[tuple[int, int]]:
    """The first nodes of `order`, each as full as it gets."""
    sums = np.cumsum(room[order])
    last = int(np.searchsorted(sums, count))
    pieces = [(int(row), int(room[row])) for row in order[: last + 1]]
    row, amount = pieces[-1]
    pieces[-1] = (row, amount - (int(sums[last]) - count))
    return pieces


def added(one: Score, other: Score, times: int = 1) -> Score:
    return Score(
        one.cold + other.cold * times,
        one.link + other.link * times,
        one.pack + other.pack * times,
        one.fragment + other.fragment * times,
        one.affinity + other.affinity * times,
        one.domain + other.domain * times,
    )
