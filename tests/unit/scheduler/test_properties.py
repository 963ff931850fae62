"""What holds for every cluster: random snapshots, decided and played on."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clusters import evicted
from hypothesis import given, settings
from hypothesis import strategies as st
from quota_rules import Rules, cards_of

from forebay.scheduler.decide import advance, decide
from forebay.scheduler.decisions import Decisions
from forebay.scheduler.fair_share import Claim, water_fill
from forebay.scheduler.gpu_sharing import Mix
from forebay.scheduler.jobs import DataNeed, GpuRequest, Job, PodSet, TopologyRequest, joined, without
from forebay.scheduler.model import Dataset, Gpu, Node, Queue, RunningJob, Snapshot, Store
from forebay.scheduler.quota import QuotaTree
from forebay.scheduler.state import State

FEW = settings(max_examples=max(8, settings.default.max_examples // 8) if settings.default else 8)
"""Of clusters: each is decided several times."""

CLAIMS = st.lists(
    st.builds(
        Claim,
        request=st.integers(0, 60),
        min=st.integers(0, 20),
        weight=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
        priority=st.sampled_from([0, 0, 1]),
    ),
    min_size=1,
    max_size=6,
)


@given(CLAIMS, st.integers(0, 200))
def test_shares_fit_the_capacity_and_nobody_gets_more_than_asked(claims: list[Claim], capacity: int) -> None:
    shares = water_fill(capacity, claims)
    assert sum(shares) <= capacity
    assert all(share <= claim.request for share, claim in zip(shares, claims, strict=True))
    if sum(claim.request for claim in claims) >= capacity:
        assert sum(shares) == capacity


@given(CLAIMS, st.integers(0, 200))
def test_requests_within_min_are_granted(claims: list[Claim], capacity: int) -> None:
    if sum(claim.min for claim in claims) > capacity:
        return
    for share, claim in zip(water_fill(capacity, claims), claims, strict=True):
        assert share >= min(claim.request, claim.min)


@given(CLAIMS, st.integers(0, 200), st.integers(0, 5), st.sampled_from([1.5, 2.0, 10.0]))
def test_shares_are_monotone_in_weight(claims: list[Claim], capacity: int, place: int, factor: float) -> None:
    place %= len(claims)
    before = water_fill(capacity, claims)[place]
    claims[place] = replace(claims[place], weight=claims[place].weight * factor)
    assert water_fill(capacity, claims)[place] >= before


CLASSES = st.dictionaries(
    st.one_of(
        st.tuples(st.just(1), st.sampled_from([100, 250, 300, 500])),
        st.tuples(st.integers(1, 4), st.just(1000)),
    ),
    st.integers(1, 9).map(float),
    min_size=1,
)
FREE_PARTS = st.lists(st.sampled_from([0, 100, 250, 400, 500, 700, 900, 1000, 1000]), min_size=4, max_size=4)


@given(CLASSES, FREE_PARTS, st.sampled_from([100, 250, 500, 999]))
def test_what_a_share_makes_unusable_is_the_difference_of_fragments(
    classes: dict[tuple[int, int], float], free: list[int], milli: int
) -> None:
    mix = Mix.of(classes, 4)
    change = mix.after_share(np.array([free], dtype=np.int32), np.array([free.count(1000)]), milli)
    for card, amount in enumerate(free):
        if amount >= milli:
            after = [*free[:card], amount - milli, *free[card + 1 :]]
            assert change[0, card] == pytest.approx(mix.fragments(after) - mix.fragments(free), abs=1e-6)


@given(CLASSES, FREE_PARTS, st.integers(1, 4))
def test_what_whole_cards_make_unusable_is_the_difference_of_fragments(
    classes: dict[tuple[int, int], float], free: list[int], cards: int
) -> None:
    idle = [card for card, amount in enumerate(free) if amount == 1000]
    if len(idle) < cards:
        return
    mix = Mix.of(classes, 4)
    after = [0 if card in idle[:cards] else amount for card, amount in enumerate(free)]
    (change,) = mix.after_whole(np.array([len(idle)]), cards)
    assert change == pytest.approx(mix.fragments(after) - mix.fragments(free), abs=1e-6)


@st.composite
def job_of(draw: Any, number: int, reads: bool = True) -> Job:
    gpus = draw(
        st.sampled_from(
            [None, GpuRequest(1), GpuRequest(2), GpuRequest(4), GpuRequest(1, 300, 2000), GpuRequest(2, 250)]
        )
    )
    count = draw(st.sampled_from([1, 1, 1, 2, 3]))
    topology = draw(
        st.sampled_from([TopologyRequest(), TopologyRequest(), TopologyRequest("rack"), TopologyRequest(None, "rack")])
    )
    least = draw(st.sampled_from([None, None, 1]))
    pods = PodSet("main", count, least, {"cpu": draw(st.integers(0, 3))}, gpus, topology=topology)
    mode = draw(st.sampled_from(["require", "prefer"]))
    data = (
        (DataNeed(draw(st.sampled_from(["d1", "d2"])), 0.5, mode, None, 10),) if reads and draw(st.booleans()) else ()
    )
    return Job(
        f"j{number:02}",
        draw(st.sampled_from(["a", "b", "c"])),
        (pods,),
        priority=draw(st.integers(0, 2)),
        submitted=float(draw(st.integers(0, 20))),
        data=data,
        max_run_s=draw(st.sampled_from([None, 50.0, 500.0])),
        preemptible=draw(st.sampled_from([True, True, False])),
    )


@st.composite
def snapshots(draw: Any) -> Snapshot:
    cards = (Gpu(memory_mib=8000),) * 4
    racks = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    nodes = tuple(
        Node(f"n{rack}{number}", {"cpu": 8}, cards, topology=(f"r{rack}",), cache_bytes=1000)
        for rack, size in enumerate(racks)
        for number in range(size)
    )
    total = 4000 * len(nodes)
    policies = st.sampled_from(["best-effort", "fifo", "strict", "block"])
    queues = (
        Queue("root", min={"gpu": total}),
        *(
            Queue(
                name,
                "root",
                min={"gpu": (least := draw(st.integers(0, total // 3)))},
                max=draw(st.sampled_from([{}, {}, {"gpu": least + 3000}])),
                lending_limit=draw(st.sampled_from([{}, {}, {"gpu": least // 2}])),
                borrowing_limit=draw(st.sampled_from([{}, {}, {"gpu": 2000}])),
                weight=draw(st.sampled_from([1.0, 2.0])),
                policy=draw(policies),
            )
            for name in "abc"
        ),
    )
    waiting = tuple(draw(job_of(number)) for number in range(draw(st.integers(1, 10))))
    datasets = tuple(
        Dataset(name, 1000, {node.name: draw(st.integers(0, 1000)) for node in nodes[:2]}, "s") for name in ("d1", "d2")
    )
    return Snapshot(20.0, ("rack",), nodes, queues, waiting, datasets=datasets, stores=(Store("s", 100),))


def after(snapshot: Snapshot, decisions: Decisions, now: float) -> Snapshot:
    """The cluster once all decisions are carried out at once, except that victims stay to be seen."""
    jobs = {job.name: job for job in snapshot.waiting}
    started = tuple(
        RunningJob(jobs[one.job], snapshot.now, one.pods, bound=False, bind_by=one.bind_by, load_s=one.load_s)
        for one in decisions.admissions
    )
    names = {one.job.name for one in started} | {one.job for one in decisions.given_up}
    marked = {one.job: one for one in decisions.evictions}
    shrunk = {one.job: one for one in decisions.shrinks}
    grown = {one.job: one for one in decisions.growths}
    running = []
    for one in (*snapshot.running, *started):
        if one.job.name in marked:
            one = replace(one, evicted_for=marked[one.job.name].for_job)
        elif one.job.name in shrunk:
            one = replace(one, evicted_for=shrunk[one.job.name].for_job, leaving=shrunk[one.job.name].pods)
        if one.job.name in grown:
            more = grown[one.job.name]
            one = replace(one, pods=joined(one.pods, more.pods), growing=more.pods, grow_by=more.bind_by)
        running.append(one)
    waiting = tuple(job for job in snapshot.waiting if job.name not in names)
    return replace(snapshot, now=now, running=tuple(running), waiting=waiting, holds=decisions.holds)


def check(snapshot: Snapshot) -> None:
    """No node or card has more than it can hold, no queue more than is legal, no gang less than its least."""
    cpu: Counter[str] = Counter()
    milli: Counter[tuple[str, int]] = Counter()
    memory: Counter[tuple[str, int]] = Counter()
    for one in snapshot.running:
        (pods,) = one.job.pod_sets
        count = sum(placed.count for placed in one.pods)
        assert pods.least <= count <= pods.count
        if pods.topology.required:
            assert len({placed.node[:2] for placed in one.pods}) == 1
        for placed in one.pods:
            cpu[placed.node] += pods.requests["cpu"] * placed.count
            if pods.gpus is not None:
                assert len(placed.cards) == placed.count
                for cards in placed.cards:
                    assert len({*cards}) == pods.gpus.cards
                    for card in cards:
                        milli[placed.node, card] += pods.gpus.compute_milli
                        memory[placed.node, card] += 8000 if pods.gpus.exclusive else pods.gpus.memory_mib
    assert all(used <= 8 for used in cpu.values())
    assert all(used <= 1000 for used in milli.values())
    assert all(used <= 8000 for used in memory.values())
    Rules(snapshot.queues, "gpu").check(cards_of(snapshot))


@FEW
@given(snapshots())
def test_nothing_is_overcommitted(snapshot: Snapshot) -> None:
    decisions = decide(snapshot)
    check(after(snapshot, decisions, 21.0))
    names = [job.name for job in snapshot.waiting]
    told = [one.job for one in decisions.admissions] + [one.job for one in decisions.waits if one.stage != "bind"]
    assert sorted(told) == sorted(names), "each job is admitted, or has a reason to wait"


@FEW
@given(snapshots(), st.randoms(use_true_random=False))
def test_the_order_of_a_snapshot_does_not_matter(snapshot: Snapshot, rng: random.Random) -> None:
    def mixed(things: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(rng.sample(things, len(things)))

    other = replace(
        snapshot, nodes=mixed(snapshot.nodes), queues=mixed(snapshot.queues), waiting=mixed(snapshot.waiting),
        datasets=tuple(
            replace(one, warm=dict(mixed(tuple(one.warm.items())))) for one in mixed(snapshot.datasets)
        ),
    )  # fmt: skip
    assert decide(other) == decide(snapshot)


@FEW
@given(snapshots(), st.data())
def test_restart_from_the_cluster_gives_the_same_decisions(snapshot: Snapshot, data: Any) -> None:
    """A State that has seen what happened decides as one that is made from the cluster as it is now."""
    state = State(snapshot)
    first = advance(state, snapshot.now)
    then = after(snapshot, first, 30.0)
    gone = data.draw(st.sets(st.sampled_from([one.job.name for one in then.running]))) if then.running else set()
    more = data.draw(job_of(90))
    then = replace(
        then,
        running=tuple(one for one in then.running if one.job.name not in gone),
        waiting=(*then.waiting, more),
    )
    for name in sorted(gone):
        state.finish(name)
    state.now = 30.0
    state.submit(more)
    assert advance(state, 30.0) == decide(then)


def with_victims(snapshot: Snapshot, waiting: list[Job]) -> tuple[Snapshot, Decisions]:
    """The cluster full of what it admits, and what is decided when further jobs come."""
    full = after(snapshot, decide(snapshot), 400.0)
    full = replace(
        full,
        waiting=tuple(waiting),
        holds=(),
        running=tuple(replace(one, bound=True, bind_by=None) for one in full.running),
    )
    return full, decide(full)


NEWCOMERS = st.lists(st.integers(50, 59), min_size=1, max_size=3, unique=True).flatmap(
    lambda numbers: st.tuples(*(job_of(number, reads=False) for number in numbers))
)


@FEW
@given(snapshots(), NEWCOMERS)
def test_jobs_do_not_evict_each_other_in_turn(snapshot: Snapshot, newcomers: tuple[Job, ...]) -> None:
    """A job that took the place of others does not lose it to them; nor does anything go on for ever."""
    now, decisions = with_victims(snapshot, [newcomers[0]])
    by_pair: Counter[tuple[str, str]] = Counter()
    for step in range(12):
        gone = evicted(decisions)
        for one in decisions.evictions:
            by_pair[one.for_job, one.job] += 1
            assert not by_pair[one.job, one.for_job], f"{one.job} and {one.for_job} evict each other"
        jobs = {one.job.name: one.job for one in now.running}
        now = after(now, decisions, 400.0 + 1000.0 * (step + 1))
        now = replace(
            now,
            running=tuple(
                replace(
                    one,
                    bound=True,
                    bind_by=None,
                    growing=(),
                    grow_by=None,
                    leaving=(),
                    evicted_for=None,
                    pods=_left(one),
                )
                for one in now.running
                if one.job.name not in gone
            ),
            waiting=(*now.waiting, *(jobs[name] for name in sorted(gone))),
        )
        decisions = decide(now)
        if not (decisions.evictions or decisions.admissions or decisions.shrinks or decisions.growths):
            return
    raise AssertionError("it never ends")


def _left(running: RunningJob) -> Any:
    return without(running.pods, running.leaving)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.booleans()), max_size=30), st.integers(0, 9))
def test_quota_is_given_back(changes: list[tuple[str, int, bool]], lending: int) -> None:
    """What is taken within what is available never breaks a rule, and all is as before when all is given back."""
    tree = QuotaTree(
        [
            Queue("root"),
            Queue("left", "root", borrowing_limit={"gpu": 5}),
            Queue("a", "left", min={"gpu": 10}, lending_limit={"gpu": lending}),
            Queue("b", "left", min={"gpu": 5}),
            Queue("c", "root", min={"gpu": 8}, max={"gpu": 12}),
        ]
    )
    before = {name: tree.available(node) for name, node in tree.nodes.items()}
    taken: list[tuple[str, int]] = []
    for queue, amount, back in changes:
        if back and taken:
            tree.give(tree.leaf(taken[-1][0]), [taken.pop()[1]])
        elif tree.excess(tree.leaf(queue), [amount]) is None:
            assert tree.available(tree.leaf(queue))[0] >= amount
            tree.take(tree.leaf(queue), [amount])
            taken.append((queue, amount))
        used = {name: node.used[0] for name, node in tree.nodes.items()}
        assert used["root"] <= 23
        assert used["c"] <= 12
        assert used["b"] <= 5 + min(lending, 10) + 5
        assert tree.available(tree.leaf("a"))[0] >= max(0, 10 - lending - used["a"]), "what is not lent stays its own"
    for queue, amount in taken:
        tree.give(tree.leaf(queue), [amount])
    assert {name: tree.available(node) for name, node in tree.nodes.items()} == before
