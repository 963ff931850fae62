"""Quota in random trees of queues: what holds after each pass, whatever has been decided before."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from clusters import LARGE, evicted, job, on, run
from quota_rules import Rules

from forebay.scheduler.decide import advance, decide
from forebay.scheduler.decisions import Decisions
from forebay.scheduler.jobs import Job
from forebay.scheduler.model import Node, Queue, Snapshot
from forebay.scheduler.quota import FREE, QuotaTree
from forebay.scheduler.settings import Settings
from forebay.scheduler.state import State

FAIRNESS = [Settings(fairness=kind) for kind in ("drf", "hdrf", "borrowed", "usage", "none")]


def tree(rng: random.Random, limits: bool = True) -> tuple[Queue, ...]:
    """Two or three levels of queues with cores, in thousandths.

    Args:
        limits: some have a max, or limits of what they lend and borrow.
    """

    def queue(name: str, parent: str, least: int) -> Queue:
        def some(most: int, base: int = 0) -> dict[str, int]:
            return {"cpu": 1000 * (base + rng.randrange(most + 1))} if limits and rng.random() < 0.4 else {}

        return Queue(
            name, parent, {"cpu": 1000 * least}, some(4, least), rng.choice([1.0, 1.0, 2.0, 3.0]),
            lending_limit=some(least), borrowing_limit=some(4), reclaim=rng.choice(["any", "any", "lower-priority"]),
        )  # fmt: skip

    found: list[Queue] = []
    for side in rng.sample(["x", "y", "z"], rng.randrange(1, 4)):
        leaves = [queue(f"{side}{place}", side, rng.randrange(6)) for place in range(rng.randrange(1, 4))]
        least = sum(one.min["cpu"] for one in leaves) // 1000
        found += [queue(side, "root", least + rng.choice([0, 0, 2])), *leaves]
    found.append(queue("w", "root", rng.randrange(6)))
    total = sum(one.min["cpu"] for one in found if one.parent == "root")
    return (Queue("root", min={"cpu": total + rng.choice([0, 0, 3000])}), *found)


def use_of(snapshot: Snapshot) -> Counter[str]:
    """Cores by leaf."""
    used: Counter[str] = Counter()
    for one in snapshot.running:
        used[one.job.queue] += one.job.pod_sets[0].requests["cpu"] * sum(placed.count for placed in one.pods)
    return used


def then(snapshot: Snapshot, found: Decisions, gone: Sequence[str] = ()) -> Snapshot:
    """All of it is done; those who were evicted wait again, and some have ended."""
    jobs = {one.name: one for one in snapshot.waiting}
    back = [one.job for one in snapshot.running if one.job.name in evicted(found)]
    stay = [one for one in snapshot.running if one.job.name not in evicted(found) and one.job.name not in gone]
    started = [
        on(jobs[one.job], *(placed.node for placed in one.pods), started=snapshot.now) for one in found.admissions
    ]
    names = {one.job for one in found.admissions}
    waiting = (*(one for one in snapshot.waiting if one.name not in names), *back)
    return replace(snapshot, now=snapshot.now + 10.0, waiting=waiting, running=(*stay, *started), holds=found.holds)


def life(seed: int, steps: int = 12) -> Iterator[tuple[Snapshot, Decisions]]:
    """Each moment, and what is decided then; there is always room on the node."""
    rng = random.Random(seed)
    queues = tree(rng)
    leaves = Rules(queues, "cpu").leaves
    snapshot = Snapshot(nodes=(LARGE,), queues=queues)
    for step in range(steps):
        more = [
            job(f"j{step:02}{place}", rng.choice(leaves), cpu=rng.choice([1, 1, 2, 3]), priority=rng.randrange(2),
                submitted=snapshot.now)
            for place in range(rng.randrange(1, 6))
        ]  # fmt: skip
        snapshot = replace(snapshot, waiting=(*snapshot.waiting, *more))
        found = decide(snapshot, FAIRNESS[seed % len(FAIRNESS)])
        yield snapshot, found
        gone = [one.job.name for one in snapshot.running if rng.random() < 0.15]
        snapshot = then(snapshot, found, gone)


def test_no_queue_has_more_than_is_legal() -> None:
    """Max, what may be lent and what may be borrowed, at each queue of the tree."""
    borrowed = evictions = 0
    for seed in range(60):
        for snapshot, found in life(seed):
            rules = Rules(snapshot.queues, "cpu")
            rules.check(use_of(snapshot))
            rules.check(use_of(then(snapshot, replace(found, evictions=()))))
            evictions += len(found.evictions)
            borrowed += sum(admission.borrows for admission in found.admissions)
    assert borrowed >= 100
    assert evictions >= 100


def test_what_is_not_lent_is_there_at_once() -> None:
    """At any moment a queue can start a job in what it keeps for itself, without any victim."""
    probes = 0
    for seed in range(40):
        for snapshot, _ in life(seed):
            rules, used = Rules(snapshot.queues, "cpu"), use_of(snapshot)
            for name in rules.leaves:
                kept = rules.least(name) - rules.lends(name) - used[name]
                room = min(
                    (queue.max["cpu"] - rules.use(above, used) for above in path(rules, name)
                     if "cpu" in (queue := rules.queues[above]).max),
                    default=FREE,
                )  # fmt: skip
                if 0 < kept <= room:
                    one = job("probe", name, requests={"cpu": kept})
                    found = decide(replace(snapshot, waiting=(one,), holds=()), Settings(preemption=False))
                    assert found.admissions, f"seed {seed}: {kept} of {name}"
                    probes += 1
    assert probes >= 100


def path(rules: Rules, name: str) -> list[str]:
    parent = rules.queues[name].parent
    return [name, *([] if parent is None else path(rules, parent))]


@pytest.mark.parametrize("settings", FAIRNESS, ids=lambda settings: settings.fairness)
def test_who_asks_for_no_more_than_its_min_gets_it(settings: Settings) -> None:
    """In the end, whatever others had before: where jobs of one core may be taken back."""
    gets_its_min(settings, (LARGE,), 20)


@pytest.mark.parametrize("fairness", ["drf"])
def test_on_several_nodes_too(fairness: str) -> None:
    """The nodes that are held for the job keep nobody from the others."""
    gets_its_min(FAIRNESS[0], (LARGE, replace(LARGE, name="m")), 60)


def starts_next(snapshot: Snapshot, found: Decisions) -> list[str]:
    """Who starts once all of it is done, before victims are looked for again."""
    snapshot = then(snapshot, found)
    return [one.job for one in advance(State(snapshot), snapshot.now, preempts=False).admissions]


def test_a_victim_by_share_does_not_start_before_the_job_that_it_left_for() -> None:
    """Of 10 cores y has 6, w 4, and y counts half: y7 may have one more, and then w keeps as much as y."""
    queues = (
        Queue("root", min={"cpu": 10_000}),
        Queue("w", "root", {"cpu": 3000}),
        Queue("y", "root", {"cpu": 4000}, weight=2.0),
    )
    running = [run(f"{name}{place}", name, 1) for name, count in (("w", 4), ("y", 6)) for place in range(count)]
    waiting = (job("y7", "y", cpu=1, submitted=1.0),)
    snapshot = Snapshot(10.0, (), (LARGE, replace(LARGE, name="m")), queues, waiting, tuple(running))
    found = decide(snapshot)
    assert [(one.for_job, one.reason) for one in found.evictions] == [("y7", "fair-share")]
    assert starts_next(snapshot, found) == ["y7"]


def test_nor_before_any_job_of_a_group() -> None:
    """w's queue is served first, so that what its two victims gave back is there for the group by its claim alone."""
    queues = (
        Queue("root", min={"cpu": 9000}),
        Queue("w", "root", {"cpu": 3000}, priority=1),
        Queue("y", "root", {"cpu": 3000}, weight=2.0),
    )
    running = [run(f"{name}{place}", name, 1) for name, count in (("w", 5), ("y", 4)) for place in range(count)]
    waiting = tuple(job(name, "y", cpu=1, group="g", group_size=2) for name in ("y4", "y5"))
    snapshot = Snapshot(10.0, (), (LARGE, replace(LARGE, name="m")), queues, waiting, tuple(running))
    found = decide(snapshot)
    assert len(found.evictions) == 2
    assert starts_next(snapshot, found) == ["y4", "y5"]


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_equal_shares_are_no_claim(weight: float) -> None:
    """With one more, x would have as much for its weight as w has now; that is not less, but as floats it is."""
    queues = (
        Queue("root", min={"cpu": 11_000}),
        Queue("v", "root", {"cpu": 8000}),
        Queue("w", "root", {"cpu": 0}, weight=weight),
        Queue("x", "root", {"cpu": 1000}, weight=round(3 * weight, 1)),
    )
    running = [
        run(f"{name}{place}", name, 1) for name, count in (("v", 8), ("w", 1), ("x", 2)) for place in range(count)
    ]
    found = decide(Snapshot(10.0, (), (LARGE,), queues, (job("x3", "x", cpu=1),), tuple(running)))
    assert not found.evictions


def test_borrowed_shares_below_a_queue_that_has_no_min() -> None:
    """x has borrowed both cores from the root for x0; x1 may have one of them, and not the other."""
    queues = (Queue("root", min={"cpu": 2000}), Queue("x", "root"), Queue("x0", "x"), Queue("x1", "x"))
    running = (run("x00", "x0", 1), run("x01", "x0", 1))
    waiting = (job("x10", "x1", cpu=1), job("x11", "x1", cpu=1))
    found = decide(Snapshot(10.0, (), (LARGE,), queues, waiting, running), Settings(fairness="borrowed"))
    assert len(found.evictions) == 1


def gets_its_min(settings: Settings, nodes: tuple[Node, ...], seeds: int) -> None:
    taken_back = 0
    for seed in range(seeds):
        rng = random.Random(seed)
        queues = tuple(replace(one, reclaim="any") for one in tree(rng, limits=False))
        rules = Rules(queues, "cpu")
        early = rng.sample(rules.leaves, max(1, len(rules.leaves) // 2))
        snapshot = Snapshot(nodes=nodes, queues=queues, waiting=tuple(ones(early, rng, 12)))
        snapshot = then(snapshot, decide(snapshot, settings))
        late = [name for name in rules.leaves if name not in early]
        snapshot = replace(snapshot, waiting=(*snapshot.waiting, *ones(late, rng, 8)))
        demand = use_of(snapshot)
        for one in snapshot.waiting:
            demand[one.queue] += 1000
        for _ in range(40):
            found = decide(snapshot, settings)
            taken_back += len(found.evictions)
            snapshot = then(snapshot, found)
            if not found.admissions and not found.evictions:
                break
        else:
            raise AssertionError("it never ends")
        used = use_of(snapshot)
        for name in rules.leaves:
            assert used[name] >= min(demand[name], rules.least(name)), f"seed {seed}: {name}"
    assert taken_back >= 10


def ones(names: Sequence[str], rng: random.Random, most: int) -> list[Job]:
    return [job(f"{name}-{place}", name, cpu=1) for name in names for place in range(rng.randrange(1, most))]


@pytest.mark.parametrize("lending", [False, True])
def test_fair_shares_of_a_tree(lending: bool) -> None:
    """Nobody who asks for no more than its min gets less; the shares of siblings fit their parent's; and none is beyond
    its max.

    Args:
        lending: some keep what they do not use.
    """
    for seed in range(100):
        rng = random.Random(seed)
        queues = tuple(one if lending else replace(one, lending_limit={}) for one in tree(rng))
        quota, rules = QuotaTree(queues), Rules(queues, "cpu")
        wanted = {name: [rng.randrange(12_000)] for name in rules.leaves}
        shares = {name: share[0] for name, share in quota.fair_shares(wanted).items()}
        for name in rules.leaves:
            assert shares[name] >= min(wanted[name][0], rules.least(name)), f"seed {seed}: {name}"
        for name, queue in rules.queues.items():
            assert shares[name] <= queue.max.get("cpu", FREE)
            if rules.children.get(name):
                assert sum(shares[child] for child in rules.children[name]) <= shares[name]


def test_fair_shares_of_a_tree_are_monotone_in_weight() -> None:
    """A larger weight of one leaf never gives it less."""
    more = 0
    for seed in range(100):
        rng = random.Random(seed)
        queues = tree(rng)
        leaf = rng.choice(Rules(queues, "cpu").leaves)
        heavier = tuple(replace(one, weight=one.weight * 3) if one.name == leaf else one for one in queues)
        wanted = {name: [rng.randrange(20_000)] for name in Rules(queues, "cpu").leaves}
        before, after = (QuotaTree(some).fair_shares(wanted)[leaf][0] for some in (queues, heavier))
        assert after >= before
        more += after > before
    assert more >= 10


def test_nobody_gets_a_share_for_children_that_may_not_have_it() -> None:
    queues = (Queue("root", min={"cpu": 10}), Queue("x", "root"), Queue("x0", "x", max={"cpu": 2}), Queue("y", "root"))
    shares = QuotaTree(queues).fair_shares({"x0": [10], "y": [10]})
    assert (shares["x"], shares["x0"], shares["y"]) == ([2], [2], [8])
