"""Which cards of a node a pod gets: sets by links, shares by packing or fragmentation, NUMA."""

from collections.abc import Sequence

import numpy as np

from forebay.scheduler.gpu_sets import GpuSets, mask_of
from forebay.scheduler.gpu_sharing import Mix, share_card
from forebay.scheduler.jobs import GpuRequest
from forebay.scheduler.nodes import Demand, NodeTable


def choose_cards(table: NodeTable, node: int, demand: Demand, order: str, mix: Mix | None) -> tuple[int, ...]:
    """Cards for one pod on this node, by place; empty if there are none, or it asks for none.

    Args:
        order: of shares: 'binpack', 'spread', or 'fgd', which needs `mix`.
    """
    gpus = demand.gpus
    if gpus is None:
        return ()
    kind = int(table.kind[node])
    usable = table.kinds.usable(gpus)
    allowed = (1 << len(table.nodes[node].gpus)) - 1 if usable is None else int(usable[1][kind])
    near = int(table.kinds.near[kind]) if gpus.rdma == "prefer" else 0
    zones = table.zones(node, demand) if gpus.single_numa else [allowed]
    for some in (allowed & near, allowed) if near else (allowed,):
        if gpus.exclusive:
            cards = _exclusive(table, node, gpus, [zone & some for zone in zones])
        else:
            found = (_shared(table, node, gpus, order, mix, zone & some) for zone in zones)
            cards = next((cards for cards in found if cards), ())
        if cards:
            return cards
    return ()


def _exclusive(table: NodeTable, node: int, gpus: GpuRequest, zones: Sequence[int]) -> tuple[int, ...]:
    free = int(table.bits[node])
    if gpus.memory_mib:
        free &= mask_of(np.flatnonzero(table.card_memory[node] >= gpus.memory_mib).tolist())
    kind = int(table.kind[node])
    sets = table.sets[kind]
    if len(zones) > 1:
        return _of_one_zone(sets, [free & zone for zone in zones], gpus.cards)
    allowed = free & zones[0] if zones else 0
    near = _of_one_zone(sets, [allowed & zone for zone in table.kinds.zones[kind]], gpus.cards)
    return near or sets.choose(allowed, gpus.cards)


def _of_one_zone(sets: GpuSets, zones: Sequence[int], cards: int) -> tuple[int, ...]:
    """Cards of the NUMA node with the best links between them; of equals, the one with the fewest free cards."""
    found = [(chosen, zone.bit_count()) for zone in zones if (chosen := sets.choose(zone, cards))]
    best = max(found, key=lambda one: (sets.score(one[0]), -one[1], [-card for card in one[0]]), default=None)
    return () if best is None else best[0]


def _shared(
    table: NodeTable, node: int, gpus: GpuRequest, order: str, mix: Mix | None, allowed: int
) -> tuple[int, ...]:
    places = range(len(table.nodes[node].gpus))
    free: list[int] = table.compute[node].tolist()
    compute = [free[card] if allowed >> card & 1 else -1 for card in places]
    memory: list[int] = table.memory[node, : len(places)].tolist()
    if order != "fgd" or mix is None or not gpus.compute_milli:
        return share_card(compute, memory, gpus.compute_milli, gpus.memory_mib, order, gpus.cards)
    fitting = [card for card in places if compute[card] >= gpus.compute_milli and memory[card] >= gpus.memory_mib]
    if len(fitting) < gpus.cards:
        return ()
    change = mix.after_share(table.compute[node : node + 1], table.idle[node : node + 1], gpus.compute_milli)[0]
    lost: list[float] = change.tolist()
    fitting.sort(key=lambda card: (lost[card], compute[card], card))
    return tuple(sorted(fitting[: gpus.cards]))
