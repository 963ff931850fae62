"""What is known of all nodes for a kind of pod, and kept while they change, is what is found out anew."""

import random

import numpy as np
import pytest

from forebay.scheduler.cards import choose_cards
from forebay.scheduler.jobs import GpuRequest, PodSet
from forebay.scheduler.losses import LossTable
from forebay.scheduler.model import Gpu, Node
from forebay.scheduler.nodes import Demand, NodeTable
from forebay.scheduler.settings import Settings

KINDS = [
    PodSet(requests={"cpu": 2000}),
    PodSet(requests={"cpu": 1000}, gpus=GpuRequest(1)),
    PodSet(requests={"cpu": 1000}, gpus=GpuRequest(4)),
    PodSet(requests={"cpu": 500}, gpus=GpuRequest(1, 300)),
    PodSet(requests={"cpu": 500}, gpus=GpuRequest(1, 700)),
    PodSet(gpus=GpuRequest(2, 400)),
    PodSet(gpus=GpuRequest(1, 200, memory_mib=9000)),
    PodSet(gpus=GpuRequest(1, 0, memory_mib=9000)),
]


@pytest.mark.parametrize("seed", range(30))
def test_standing_is_what_is_found_anew(seed: int) -> None:
    dice = random.Random(seed)
    nodes = [
        Node(
            f"n{number}",
            {"cpu": dice.choice([4000, 16_000])},
            tuple(Gpu(memory_mib=dice.choice([16_000, 40_000]), healthy=dice.random() > 0.1) for _ in range(cards)),
        )
        for number in range(12)
        for cards in [dice.choice([0, 1, 4, 8])]
    ]
    table, settings = NodeTable(nodes, ()), Settings()
    kept = LossTable(table, settings)
    taken: list[tuple[int, Demand, tuple[int, ...]]] = []
    compared = 0
    for _ in range(200):
        kind, least = dice.choice(KINDS), dice.choice([1, 1, 3])
        demand = Demand.of(kind)
        if dice.random() < 0.15:
            kept.set_mix({(1, 300): dice.random(), (1, 1000): dice.random(), (dice.choice([2, 8]), 1000): 0.5})
        fresh = LossTable(table, settings)
        fresh.mix = kept.mix
        there = int((table.eligible(demand) * table.pods(demand)).sum())
        if dice.random() < 0.5:
            assert (kept.room(kind, demand, least) >= least) == (there >= least)
        if dice.random() < 0.5:
            found, anew = kept.standing(kind, demand, least > 1), fresh.standing(kind, demand, least > 1)
            assert np.array_equal(found.room, anew.room)
            assert np.array_equal(found.loss, anew.loss)
            assert found.total == anew.total == (there if least > 1 else np.count_nonzero(anew.room))
            compared += there > 0
        if taken and dice.random() < 0.4:
            table.give(*taken.pop(dice.randrange(len(taken))))
            continue
        rows = np.flatnonzero(table.eligible(demand) * table.fits(demand))
        if len(rows):
            row = int(dice.choice(list(rows)))
            cards = choose_cards(table, row, demand, "fgd", kept.mix) if demand.gpus is not None else ()
            if demand.gpus is None or cards:
                table.take(row, demand, cards)
                taken.append((row, demand, cards))
    assert compared > 10


@pytest.mark.parametrize("seed", range(10))
def test_fragments_are_the_least_that_a_card_leaves(seed: int) -> None:
    dice = random.Random(seed)
    nodes = [Node(f"n{number:02}", {}, (Gpu(),) * dice.choice([1, 4, 8])) for number in range(20)]
    table, settings = NodeTable(nodes, ()), Settings()
    losses = LossTable(table, settings)
    losses.set_mix({(1, 300): dice.random(), (1, 500): dice.random(), (1, 1000): dice.random(), (4, 1000): 0.5})
    assert losses.mix is not None
    for row, node in enumerate(nodes):
        for card in range(len(node.gpus)):
            if dice.random() < 0.6:
                share = dice.choice([200, 500, 1000])
                table.take(row, Demand.of(PodSet(gpus=GpuRequest(1, share))), (card,))
    for milli in (300, 500, 700):
        kind = PodSet(gpus=GpuRequest(1, milli))
        demand = Demand.of(kind)
        rows = np.flatnonzero(table.fits(demand))
        found = losses.of(kind, demand, rows, None).fragment
        expected = []
        for row in rows:
            free = [int(milli) for milli in table.compute[row]]
            each = [
                losses.mix.fragments([*free[:card], free[card] - milli, *free[card + 1 :]])
                for card in range(len(free))
                if free[card] >= milli
            ]
            expected.append((min(each) - losses.mix.fragments(free)) / 1000 * settings.weights.fragment)
        assert found == pytest.approx(np.array(expected))
