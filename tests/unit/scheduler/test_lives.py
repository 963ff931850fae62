"""Clusters that live for a while: what holds at each moment, whatever has happened before."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from lives import Life
from quota_rules import Rules, cards_of

from forebay.scheduler.decide import advance, decide
from forebay.scheduler.jobs import DataNeed, GpuRequest, Job, Match, PodSet, TopologyRequest, counts_of
from forebay.scheduler.model import Dataset, Gpu, Node, Queue, Reservation, ResourcePolicy, Snapshot, Store, Unit
from forebay.scheduler.settings import Settings

CARDS = tuple(Gpu(memory_mib=8000, numa=place // 2) for place in range(4))
LINKS = tuple(tuple(0 if one == two else 250 if one // 2 == two // 2 else 10 for two in range(4)) for one in range(4))
NEAR = ((50, 50, 10, 10),)


def any_job(rng: random.Random, number: int) -> Job:
    def pods(name: str) -> PodSet:
        gpus = rng.choice(
            [
                None, GpuRequest(1), GpuRequest(2), GpuRequest(4), GpuRequest(1, 300, 2000), GpuRequest(2, 250),
                GpuRequest(2, single_numa=True), GpuRequest(1, rdma="require"), GpuRequest(2, rdma="prefer"),
            ]
        )  # fmt: skip
        count = rng.choice([1, 1, 1, 2, 3, 6])
        least = rng.choice([None, None, 1])
        topology = rng.choice(
            [TopologyRequest(), TopologyRequest("rack"), TopologyRequest(None, "rack"), TopologyRequest(apart="host")]
        )
        order = rng.choice([None, None, "spread", "balanced"])
        cpu = {"cpu": rng.randrange(4)}
        affinity = rng.choice([(), (), (), ((Match("kind", "NotIn", ("spot",)),),)])
        return PodSet(name, count, least, cpu, gpus, affinity=affinity, topology=topology, placement=order)

    group = rng.choice([None, None, None, "g1", "g2"])
    need = DataNeed(rng.choice(["d1", "d2"]), 0.5, rng.choice(["require", "prefer"]), 300.0, 10)
    return Job(
        f"j{number:03}",
        "a" if group else rng.choice("abc"),
        tuple(pods(name) for name in rng.choice([("main",), ("main",), ("leader", "worker")])),
        priority=rng.randrange(3),
        submitted=float(rng.randrange(20)),
        labels=rng.choice([{}, {"team": "x"}, {"policy": "p"}, {"team": "x", "policy": "p"}]),
        data=rng.choice([(), (), (need,)]),
        group=group,
        group_size=2 if group else 0,
        max_run_s=rng.choice([None, 50.0, 500.0]),
        max_wait_s=rng.choice([None, None, 200.0]),
        preemptible=rng.random() < 0.8,
        preempts=rng.random() < 0.9,
    )


def any_cluster(rng: random.Random) -> Snapshot:
    nodes = tuple(
        Node(
            f"n{rack}{number}", {"cpu": 8}, CARDS, LINKS, NEAR if number == 0 else (), ({"cpu": 4}, {"cpu": 4}),
            (f"r{rack}",), cache_bytes=1000, labels={"kind": "spot" if rack else "demand"},
        )
        for rack in range(rng.randrange(1, 4))
        for number in range(rng.randrange(1, 4))
    )  # fmt: skip
    total = 4000 * len(nodes)
    forced = rng.random() < 0.3

    def queue(name: str) -> Queue:
        least = rng.randrange(0, total // 3 + 1)
        return Queue(
            name, "root", {"gpu": least},
            weight=rng.choice([1.0, 2.0, 0.0]),
            lending_limit=rng.choice([{}, {}, {"gpu": least // 2}]),
            borrowing_limit=rng.choice([{}, {}, {"gpu": 4000}]),
            policy=rng.choice(["best-effort", "fifo", "strict", "block"]),
            newest_first=rng.random() < 0.2,
            max_jobs=rng.choice([None, None, 3]),
            preempt=rng.choice(["lower", "lower", "later", "never"]),
            preempt_to_borrow=forced and rng.random() < 0.5,
            reclaim=rng.choice(["any", "any", "lower-priority", "never"]),
            min_runtime_s=rng.choice([0.0, 40.0]),
        )  # fmt: skip

    owned = rng.choice(["default", "aligned", "restricted"])
    reservation = Reservation("res", nodes[-1].name, {"cpu": 1}, (3,), {"team": "x"}, owned)
    units = (Unit("demand", {"kind": "demand"}, 3, 60.0), Unit("spot", {"kind": "spot"}))
    return Snapshot(
        20.0, ("rack",), nodes, (Queue("root", min={"gpu": total}), *(queue(name) for name in "abc")),
        tuple(any_job(rng, number) for number in range(rng.randrange(1, 9))),
        datasets=tuple(Dataset(name, 1000, {nodes[0].name: rng.randrange(1000)}, "s") for name in ("d1", "d2")),
        stores=(Store("s", 100),),
        reservations=(reservation,),
        policies=(ResourcePolicy("p", units, {"policy": "p"}),),
    )  # fmt: skip


SETTINGS = [
    Settings(short_s=25.0, bind_within_s=15.0, fairness=fairness, placement=placement, ageing_s=ageing)
    for fairness, placement, ageing in (
        ("drf", "binpack", None), ("hdrf", "spread", None), ("borrowed", "binpack", 60.0), ("usage", "binpack", None),
        ("none", "binpack", None),
    )
]  # fmt: skip


TOLD = ("admissions", "evictions", "shrinks", "growths", "releases", "given_up", "holds", "prefetches")


def check(snapshot: Snapshot) -> None:
    """No node or card has more than it can hold, no job more pods than it may, no domain is left that was required, and
    no queue has more than is legal."""
    nodes = {node.name: node for node in snapshot.nodes}
    cpu: Counter[str] = Counter()
    milli: Counter[tuple[str, int]] = Counter()
    memory: Counter[tuple[str, int]] = Counter()
    for one in snapshot.running:
        counts = counts_of(one.job, one.pods)
        for pod_set, count in zip(one.job.pod_sets, counts, strict=True):
            assert count <= pod_set.count
            assert count >= pod_set.least or one.short_since is not None
            used = [placed for placed in one.pods if placed.pod_set == pod_set.name]
            assert not pod_set.affinity or all(nodes[placed.node].labels["kind"] == "demand" for placed in used)
            if pod_set.topology.required:
                assert len({nodes[placed.node].topology for placed in used}) <= 1
            if pod_set.topology.apart:
                assert (
                    max(Counter(placed.node for placed in used for _ in range(placed.count)).values(), default=0) <= 1
                )
            for placed in used:
                cpu[placed.node] += pod_set.requests["cpu"] * placed.count
                assert len(placed.cards) == (placed.count if pod_set.gpus else 0)
                for cards in placed.cards:
                    _count(pod_set.gpus, placed.node, cards, milli, memory)
    assert all(used <= 8 for used in cpu.values())
    assert all(used <= 1000 for used in milli.values())
    assert all(used <= 8000 for used in memory.values())
    Rules(snapshot.queues, "gpu").check(cards_of(snapshot))


def _count(
    gpus: GpuRequest | None,
    node: str,
    cards: tuple[int, ...],
    milli: Counter[tuple[str, int]],
    memory: Counter[tuple[str, int]],
) -> None:
    assert gpus is not None
    assert len({*cards}) == gpus.cards
    if gpus.single_numa:
        assert len({card // 2 for card in cards}) == 1
    if gpus.rdma == "require":
        assert node[-1] == "0"
        assert {*cards} <= {0, 1}
    for card in cards:
        milli[node, card] += gpus.compute_milli
        memory[node, card] += 8000 if gpus.exclusive else gpus.memory_mib


def live(seed: int, steps: int) -> Counter[str]:
    """Play a cluster; how often what was decided."""
    rng = random.Random(seed)
    life = Life(any_cluster(rng), SETTINGS[seed % len(SETTINGS)])
    told: Counter[str] = Counter()
    for step in range(steps):
        life.snapshot = replace(life.snapshot, now=20.0 + 10.0 * step)
        expected = decide(life.snapshot, life.state.settings)
        explained = rng.random() < 0.5
        found = advance(life.state, life.snapshot.now, explained)
        expected = expected if explained else replace(expected, waits=())
        assert found == expected, f"step {step}: the State and the snapshot differ"
        for name in TOLD:
            told[name] += len(getattr(found, name))
        life.carry_out(found)
        check(life.snapshot)
        life.happen(rng, step, any_job(rng, 100 + step))
    return told


@pytest.mark.parametrize("seed", range(30))
def test_a_state_that_has_lived_decides_as_one_that_is_new(seed: int) -> None:
    """Restart from the cluster at any moment: the same decisions, reasons included; and nothing is overcommitted."""
    live(seed, 15)


@pytest.mark.soak
def test_many_lives() -> None:
    told: Counter[str] = Counter()
    for seed in range(1000, 2000):
        told += live(seed, 25)
    assert all(
        told[name] for name in ("admissions", "evictions", "shrinks", "growths", "releases", "given_up", "holds")
    )


def test_order_does_not_matter_in_the_middle_of_a_life() -> None:
    """Whatever the order of what the snapshot holds, and of dicts in it."""
    for seed in range(8):
        rng = random.Random(seed)
        life = Life(any_cluster(rng), SETTINGS[seed % len(SETTINGS)])
        for step in range(6):
            life.snapshot = replace(life.snapshot, now=20.0 + 10.0 * step)
            found = advance(life.state, life.snapshot.now)
            assert decide(mixed(life.snapshot, rng), life.state.settings) == found
            life.carry_out(found)
            life.happen(rng, step, any_job(rng, 100 + step))


def mixed(snapshot: Snapshot, rng: random.Random) -> Snapshot:
    def some(things: Any) -> Any:
        return tuple(rng.sample(list(things), len(things)))

    return replace(
        snapshot,
        nodes=some(snapshot.nodes), queues=some(snapshot.queues), waiting=some(snapshot.waiting),
        running=some(snapshot.running), datasets=some(snapshot.datasets), holds=some(snapshot.holds),
        reservations=some(snapshot.reservations), done=dict(some(snapshot.done.items())),
    )  # fmt: skip
