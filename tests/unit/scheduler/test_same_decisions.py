"""What makes the scheduler quicker must not make it decide otherwise."""

import hashlib
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clusters import evicted, job, node, on, outcome

from forebay.scheduler import decide
from forebay.scheduler.cards import choose_cards
from forebay.scheduler.decide import advance
from forebay.scheduler.decisions import Decisions
from forebay.scheduler.freed import Freed
from forebay.scheduler.jobs import GpuRequest, PodSet
from forebay.scheduler.model import Queue, Reservation, Snapshot
from forebay.scheduler.nodes import Demand, NodeTable
from forebay.scheduler.simulation import run
from forebay.scheduler.simulation.arms import arm_named
from forebay.scheduler.simulation.run import simulate
from forebay.scheduler.simulation.workload import Plan, make
from forebay.scheduler.state import State

PLAN = Plan(nodes=60, jobs=600, seed=3, load=1.1, datasets=20, nodes_per_rack=12, racks_per_spine=2)
"""Small, and so full that jobs are evicted in all arms but one."""

DIGESTS = {
    "fifo": "e729fb8ef0a5",
    "label": "cbbb94b1d503",
    "topology": "fb817b971c9b",
    "joint": "1899f433ac6e",
    "gate": "8c7f68013f8d",
    "prefetch": "7842a377fc5c",
    "ordered": "ede1f1468f80",
    "backfill": "0af9585798df",
}
"""Of what each arm decides on it. Who means to decide otherwise puts the new ones here; who means to be quicker must
not have to."""


@pytest.mark.slow
@pytest.mark.parametrize("arm", DIGESTS)
def test_decisions_are_those_that_they_were(arm: str) -> None:
    report = simulate(make(PLAN), arm_named(arm))
    digest = hashlib.sha256()
    for record in report.records:
        digest.update(f"{record.name} {record.started} {record.finished:.3f} {record.preemptions}\n".encode())
    assert report.preemptions > 0 or arm == "gate"
    assert digest.hexdigest()[:12] == DIGESTS[arm]


@pytest.mark.slow
@pytest.mark.parametrize("arm", DIGESTS)
@pytest.mark.parametrize("seed", [1, 4])
def test_what_is_remembered_of_refusals_changes_no_decision(arm: str, seed: int, monkeypatch: Any) -> None:
    """A pass that explains its refusals finds each of them out anew."""
    plan = replace(PLAN, seed=seed, jobs=300)

    def decisions(explained: bool) -> list[Decisions]:
        found = []

        def advance(state: State, now: float, **options: Any) -> Decisions:
            made = decide.advance(state, now, **{**options, "explained": explained})
            found.append(replace(made, waits=()))
            return made

        monkeypatch.setattr(run, "advance", advance)
        simulate(make(plan), arm_named(arm))
        return found

    assert decisions(False) == decisions(True)


def test_what_a_group_gives_back_is_there_for_others() -> None:
    """One of the group finds no room beside the other: that says nothing about jobs that come alone."""
    members = [job(name, gpus=2, group="g", group_size=2) for name in ("a", "b")]
    waiting = [*members, job("c", gpus=2, submitted=1.0)]
    state = State(Snapshot(nodes=(node("n", 2),), queues=(Queue("q"),), waiting=tuple(waiting)))
    assert [one.job for one in advance(state, 0.0, explained=False).admissions] == ["c"]


def test_refused_room_is_another_for_the_owner_of_a_reservation() -> None:
    owner = replace(job("mine", gpus=2, submitted=1.0), labels={"owner": "me"})
    kept = Reservation("r", "n", cards=(0, 1), owners={"owner": "me"})
    snapshot = Snapshot(
        nodes=(node("n", 2),), queues=(Queue("q"),), waiting=(job("other", gpus=2), owner), reservations=(kept,)
    )
    assert [one.job for one in advance(State(snapshot), 0.0, explained=False).admissions] == ["mine"]


def test_a_reservation_ends_in_a_state_too() -> None:
    kept = Reservation("r", "n", cards=(0, 1), expires=10.0)
    state = State(
        Snapshot(nodes=(node("n", 2),), queues=(Queue("q"),), waiting=(job("j", gpus=2),), reservations=(kept,))
    )
    assert not advance(state, 9.0, explained=False).admissions
    assert [one.job for one in advance(state, 10.0, explained=False).admissions] == ["j"]


def test_victims_do_not_depend_on_the_order_of_a_set() -> None:
    """The nodes of one large victim are all as good, and only some of them are looked at: the first ones.

    They were taken from a set of names, whose order is another one in each process.
    """
    nodes = [node(f"n{number:03}", gpus=1) for number in range(400)]
    gang = on(job("gang", "q", 400, 1), *(one.name for one in nodes), cards=[(0,)] * 400)
    found = outcome(nodes, [Queue("q")], [job("urgent", gpus=1, priority=1)], [gang])
    assert evicted(found) == {"gang"}
    assert [hold.nodes for hold in found.holds] == [("n000",)]


def test_no_more_pods_fit_than_sums_over_nodes_say() -> None:
    """A search for victims ends where this bound is too small: it must never be smaller than what there is."""
    rng = random.Random(1)
    demands = [
        Demand.of(PodSet(requests={"cpu": 4000}, gpus=gpus))
        for gpus in (None, GpuRequest(2), GpuRequest(1, 300), GpuRequest(1, 0, 20_000))
    ]
    table = NodeTable([node(f"n{number}", gpus=4, cpu=32) for number in range(30)], ())
    there = []
    for _ in range(150):
        row, demand = rng.randrange(30), rng.choice(demands)
        if table.fits(demand, np.array([row]))[0]:
            cards = () if demand.gpus is None else choose_cards(table, row, demand, "binpack", None)
            table.take(row, demand, cards)
            there.append((row, demand, cards))
    gone = rng.sample(there, 40)
    freed = Freed(
        table, np.array([row for row, _, _ in gone]), np.array([table.room_of(demand) for _, demand, _ in gone])
    )
    bounds = [freed.pods_at_most(demand) for demand in demands]
    for row, demand, cards in gone:
        table.give(row, demand, cards)
    for demand, bound in zip(demands, bounds, strict=True):
        assert (bound >= table.pods(demand)).all()
    assert (bounds[1] == table.pods(demands[1])).any()
