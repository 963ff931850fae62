"""Which cards of a node a pod gets: sets by links, shares by packing or fragmentation, NUMA."""

import numpy as np

from forebay.scheduler.gpu_sets import mask_of
from forebay.scheduler.gpu_sharing import Mix, share_card
from forebay.scheduler.jobs import GpuRequest
from forebay.scheduler.nodes import NodeTable


def choose_cards(table: NodeTable, node: int, gpus: GpuRequest, order: str, mix: Mix | None) -> tuple[int, ...]:
    """Cards for one pod on this node, by place; empty if there are none.

    Args:
        order: of shares: 'binpack', 'spread', or 'fgd', which needs `mix`.
    """
    if gpus.exclusive:
        return _exclusive(table, node, gpus)
    zones = table.zones(node) if gpus.single_numa else [-1]
    allowed = _of_models(table, node, gpus)
    for zone in zones:
        cards = _shared(table, node, gpus, order, mix, zone & allowed if zone >= 0 else allowed)
        if cards:
            return cards
    return ()


def _of_models(table: NodeTable, node: int, gpus: GpuRequest) -> int:
    every = table.nodes[node].gpus
    return mask_of(place for place, gpu in enumerate(every) if not gpus.models or gpu.model in gpus.models)


def _exclusive(table: NodeTable, node: int, gpus: GpuRequest) -> tuple[int, ...]:
    free = int(table.bits[node])
    if gpus.models:
        free &= _of_models(table, node, gpus)
    if gpus.memory_mib:
        free &= mask_of(np.flatnonzero(table.card_memory[node] >= gpus.memory_mib).tolist())
    sets = table.sets[int(table.kind[node])]
    if not gpus.single_numa:
        return sets.choose(free, gpus.cards)
    found = [cards for zone in table.zones(node) if (cards := sets.choose(free & zone, gpus.cards))]
    return max(found, key=lambda cards: (sets.score(cards), [-card for card in cards]), default=())


def _shared(
    table: NodeTable, node: int, gpus: GpuRequest, order: str, mix: Mix | None, allowed: int
) -> tuple[int, ...]:
    places = range(len(table.nodes[node].gpus))
    compute = [int(table.compute[node, card]) if allowed >> card & 1 else -1 for card in places]
    memory = [int(table.memory[node, card]) for card in places]
    if order != "fgd" or mix is None or not gpus.compute_milli:
        return share_card(compute, memory, gpus.compute_milli, gpus.memory_mib, order, gpus.cards)
    fitting = [card for card in places if compute[card] >= gpus.compute_milli and memory[card] >= gpus.memory_mib]
    if len(fitting) < gpus.cards:
        return ()
    change = mix.after_share(table.compute[node : node + 1], table.idle[node : node + 1], gpus.compute_milli)[0]
    fitting.sort(key=lambda card: (float(change[card]), compute[card], card))
    return tuple(sorted(fitting[: gpus.cards]))
