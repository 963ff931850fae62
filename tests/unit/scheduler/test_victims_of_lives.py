"""Victims in clusters that are full or have lived: few and enough, lenders keep their min, nobody evicts in turn."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

import pytest
from clusters import LARGE, cohort, decided, job, node, on, outcome, run
from full import full, newcomer
from lives import Life
from test_lives import SETTINGS, any_cluster, any_job

from forebay.scheduler.decide import advance, decide
from forebay.scheduler.decisions import Decisions, Eviction, Shrink
from forebay.scheduler.jobs import PlacedPods, without
from forebay.scheduler.model import CARD, Queue, Reservation, RunningJob, Snapshot
from forebay.scheduler.settings import Settings


def busy(seed: int) -> Life:
    """A cluster that has lived for a while, all bound, nobody leaving; three urgent jobs come."""
    rng = random.Random(seed)
    life = Life(any_cluster(rng), SETTINGS[seed % len(SETTINGS)])
    for step in range(6):
        life.snapshot = replace(life.snapshot, now=20.0 + 10.0 * step)
        life.carry_out(advance(life.state, life.snapshot.now))
        life.happen(rng, step, any_job(rng, 100 + step))
    running = tuple(
        replace(one, bound=True, bind_by=None, growing=(), grow_by=None)
        for one in life.snapshot.running
        if one.evicted_for is None and one.short_since is None
    )
    waiting = tuple(
        replace(any_job(rng, 200 + place), priority=3, group=None, group_size=0, data=(), submitted=50.0, preempts=True)
        for place in range(3)
    )
    snapshot = replace(life.snapshot, now=100.0, running=running, waiting=waiting, holds=())
    return Life(snapshot, life.state.settings)


def without_victims(snapshot: Snapshot, whole: Set[str], pods: Mapping[str, tuple[PlacedPods, ...]]) -> Snapshot:
    """As if these jobs and these pods of others were gone."""
    running = tuple(
        replace(one, pods=without(one.pods, pods.get(one.job.name, ())))
        for one in snapshot.running
        if one.job.name not in whole
    )
    return replace(snapshot, running=running)


def few_and_enough(snapshot: Snapshot, settings: Settings) -> int:
    """With all victims gone the job fits, and with any one of them (its group, or a single pod of a job that shrinks)
    left it does not. Returns how many there were."""
    found = decide(snapshot, settings)
    quiet = replace(settings, preemption=False, growth=False)
    groups = {one.job.name: one.job.group or one.job.name for one in snapshot.running}
    whole, pods = {one.job for one in found.evictions}, {one.job: one.pods for one in found.shrinks}
    if not whole and not pods:
        return 0

    def fits(whole: Set[str], pods: Mapping[str, tuple[PlacedPods, ...]]) -> bool:
        return bool(decide(without_victims(snapshot, whole, pods), quiet).admissions)

    assert fits(whole, pods)
    for spared in sorted({groups[name] for name in whole}):
        rest = {name for name in whole if groups[name] != spared}
        assert not fits(rest, pods), f"{spared} need not go"
    for name, leaving in pods.items():
        for place, pod in enumerate(leaving):
            less = {**pods, name: (*leaving[:place], *leaving[place + 1 :])}
            assert not fits(whole, less), f"{pod} of {name} need not go"
    return len({groups[name] for name in whole}) + sum(len(leaving) for leaving in pods.values())


def test_victims_are_few_and_enough_in_a_full_cluster() -> None:
    """Most of these need several victims, so that there is something to be minimal about."""
    counts = [few_and_enough(*full(seed)) for seed in range(150)]
    assert sum(count >= 1 for count in counts) >= 90
    assert sum(count >= 2 for count in counts) >= 50
    assert sum(count >= 4 for count in counts) >= 5


def test_both_jobs_and_pods_of_elastic_jobs_are_among_these_victims() -> None:
    found = [decide(*full(seed)) for seed in range(150)]
    assert sum(bool(one.shrinks) for one in found) >= 40
    assert sum(bool(one.shrinks and one.evictions) for one in found) >= 10


def test_victims_are_few_and_enough_in_a_life() -> None:
    """Jobs of all kinds run, some in what is reserved; one comes whose queue may have everything, and what is idle is
    not ready."""
    counts = []
    for seed in range(80):
        life = busy(seed)
        used = {placed.node for one in life.snapshot.running for placed in one.pods}
        nodes = tuple(replace(one, ready=one.ready and one.name in used) for one in life.snapshot.nodes)
        queues = (*life.snapshot.queues, Queue("d", "root", {"gpu": 3 * life.snapshot.queues[0].min["gpu"]}))
        rng = random.Random(seed)
        for _ in range(3):
            large = replace(newcomer(rng, queue="d"), priority=3, labels=rng.choice([{}, {"team": "x"}]))
            alone = replace(life.snapshot, nodes=nodes, queues=queues, waiting=(large,))
            counts.append(few_and_enough(alone, life.state.settings))
    assert sum(count >= 1 for count in counts) >= 25
    assert sum(count >= 2 for count in counts) >= 5


RESERVED = Reservation("r", "n", cards=(3,), owners={"team": "x"})
OWNER = on(job("o", "b", gpus=3, labels={"team": "x"}, max_run_s=100.0), "n", cards=[(1, 2, 3)], reservations=("r",))
LENT = [Queue("root", min={"gpu": 4000}), Queue("a", "root", min={"gpu": 4000}), Queue("b", "root")]


def test_nobody_goes_for_cards_that_are_reserved_for_others() -> None:
    """Of four cards one is reserved for the owner that runs there: without it j has three, and needs four."""
    found = outcome([node("n", 4)], LENT, [job("j", "a", gpus=4)], [OWNER], reservations=(RESERVED,))
    assert not found.evictions


def test_cards_that_are_reserved_are_there_for_another_owner_when_the_first_goes() -> None:
    another = job("j", "a", gpus=4, labels={"team": "x"})
    found = outcome([node("n", 4)], LENT, [another], [OWNER], reservations=(RESERVED,))
    assert [one.job for one in found.evictions] == ["o"]


def test_pods_of_an_elastic_job_do_not_shrink_for_what_is_reserved() -> None:
    """The pod on the reserved card would go first, but that card is for nobody else; j gets two others."""
    pods = job("o", "b", 4, gpus=1, labels={"team": "x"}, pods={"min_count": 1})
    owner = on(pods, "n", "n", "n", "n", cards=[(0,), (1,), (2,), (3,)], reservations=("r",))
    found = outcome([node("n", 4)], LENT, [job("j", "a", gpus=2)], [owner], reservations=(RESERVED,))
    gone = [cards for one in found.shrinks for pod in one.pods for cards in pod.cards]
    assert len(gone) == 2
    assert (3,) not in gone
    assert not found.evictions


def test_two_members_of_a_group_do_not_get_one_reserved_card() -> None:
    """One of them has it; for the other one v has to go."""
    members = [
        job(name, "a", gpus=1, labels={"team": "x"}, priority=1, group="g", group_size=2) for name in ("a1", "a2")
    ]
    kept = replace(RESERVED, cards=(1,))
    found = outcome([node("n", 2)], LENT, members, [on(job("v", "a", gpus=1), "n", cards=[(0,)])], reservations=(kept,))
    assert [one.job for one in found.evictions] == ["v"]


def test_no_start_is_promised_on_cards_that_are_reserved_for_others() -> None:
    """When o has ended there are three cards for j, which is first in its queue, and not four."""
    queues = [Queue("a", policy="fifo"), Queue("b")]
    for cards, starts in ((3, [100.0]), (4, [])):
        found = outcome([node("n", 4)], queues, [job("j", "a", gpus=cards)], [OWNER], reservations=(RESERVED,))
        assert [hold.start for hold in found.holds] == starts


def test_nobody_is_admitted_and_evicted_in_one_pass() -> None:
    """a1 takes all that is left, and then b1, whose share would be smaller, evicts it."""
    running = [replace(run("a0", "a", 4), evicted_for="a1")]
    waiting = [job("a1", "a", cpu=8, priority=1), job("b1", "b", cpu=6)]
    found = decided(cohort(("a", 4), ("b", 4), ("c", 4)), waiting, running)
    assert not {one.job for one in found.admissions} & {one.job for one in found.evictions}


FIRST = (Queue("root", min={"gpu": 4000}), Queue("a", "root", priority=1), Queue("b", "root"))
"""Jobs of the queue a have their turn before those of b, and may lose what they got by their share."""


def test_who_would_be_evicted_at_once_makes_way() -> None:
    waiting = [job("a1", "a", gpus=4), job("b1", "b", gpus=3)]
    found = outcome([node("n", 4)], FIRST, waiting)
    assert [one.job for one in found.admissions] == ["b1"]
    assert not found.evictions
    assert [one.reason for one in found.waits if one.job == "a1"] == ["job 'b1' may take what is left"]


def test_who_made_way_has_used_up_no_reservation() -> None:
    """It is for one job only, and a1 had it for no longer than the pass: others are still kept off it."""
    reserved = Reservation("r", "n", cards=(3,), owners={"team": "x"}, once=True)
    waiting = (job("a1", "a", gpus=4, labels={"team": "x"}), job("b1", "b", gpus=3))
    life = Life(Snapshot(10.0, (), (node("n", 4),), FIRST, waiting, reservations=(reserved,)))
    found = advance(life.state, 10.0)
    assert [one.job for one in found.admissions] == ["b1"]
    life.carry_out(found)
    life.snapshot = replace(life.snapshot, now=20.0)
    life.submit(job("a2", "a", gpus=1))
    assert not advance(life.state, 20.0, preempts=False).admissions
    life.submit(job("a3", "a", gpus=1, labels={"team": "x"}))
    found = advance(life.state, 30.0, preempts=False)
    assert [(one.job, one.reservations) for one in found.admissions] == [("a3", ("r",))]


@pytest.mark.slow
def test_nobody_is_admitted_and_evicted_in_one_pass_of_a_half_full_cluster() -> None:
    """Jobs start in what is left, and more urgent ones find victims after them."""
    ways = 0
    for seed in range(60):
        rng = random.Random(seed)
        snapshot, settings = full(seed, newcomers=4)
        stay = rng.sample(snapshot.running, len(snapshot.running) * 2 // 3)
        more = tuple(newcomer(rng, f"more{place}", rng.choice("abc")) for place in range(6))
        life = Life(replace(snapshot, running=tuple(stay), waiting=(*snapshot.waiting, *more)), settings)
        for step in range(3):
            life.snapshot = replace(life.snapshot, now=100.0 + 10.0 * step)
            found = advance(life.state, life.snapshot.now)
            assert found == decide(life.snapshot, settings)
            assert not {one.job for one in found.admissions} & {one.job for one in found.evictions}
            ways += sum("may take what is left" in one.reason for one in found.waits)
            life.carry_out(found)
            for name in [one.job.name for one in life.snapshot.running]:
                if life.running(name).evicted_for is not None:
                    life.leave(name)
    assert ways >= 10


@pytest.mark.soak
def test_victims_are_few_and_enough_in_many_clusters() -> None:
    for seed in range(1000, 6000):
        few_and_enough(*full(seed))


def cards(pods: Iterable[PlacedPods]) -> int:
    """Thousandths of cards of pods that have whole ones."""
    return sum(CARD * len(one) for placed in pods for one in placed.cards)


class Taken:
    """What jobs take from each queue, reckoned from a snapshot and decisions alone: pieces that go as a whole."""

    def __init__(self, snapshot: Snapshot, found: Decisions) -> None:
        self.queues = {queue.name: queue for queue in snapshot.queues}
        self.running = {one.job.name: one for one in snapshot.running}
        self.least = {name: sum(self._mins(name)) for name in self.queues}
        self.used = Counter(dict.fromkeys(self.queues, 0))
        for one in snapshot.running:
            self.change(one.job.queue, cards(one.pods))
        self._found = found
        self.waiting = sorted(snapshot.waiting, key=lambda job: (job.queue, -job.priority, job.submitted, job.name))
        """In the order in which victims are looked for."""

    def _mins(self, name: str) -> list[int]:
        below = [self.least_of(queue) for queue in self.queues.values() if queue.parent == name]
        return [self.queues[name].min["gpu"]] if "gpu" in self.queues[name].min else below

    def least_of(self, queue: Queue) -> int:
        return sum(self._mins(queue.name))

    def path(self, name: str) -> list[str]:
        parent = self.queues[name].parent
        return [name, *([] if parent is None else self.path(parent))]

    def change(self, queue: str, amount: int) -> None:
        for name in self.path(queue):
            self.used[name] += amount

    def pieces(self, name: str) -> list[tuple[str, int, bool]]:
        """Of the victims for a job: the queue, how much goes at once, and whether it is a whole job or group."""
        groups: Counter[tuple[str, str]] = Counter()
        for one in self._found.evictions:
            if one.for_job == name:
                victim = self.running[one.job]
                groups[victim.job.queue, victim.job.group or one.job] += cards(victim.pods)
        pods = [(self.running[one.job].job.queue, pod) for one in self._found.shrinks if one.for_job == name
                for pod in one.pods]  # fmt: skip
        whole = [(queue, amount, True) for (queue, _), amount in groups.items()]
        return [*((queue, cards((pod,)), False) for queue, pod in pods), *whole]


@pytest.mark.parametrize("elastic", [False, True])
def test_whoever_is_taken_from_by_another_queue_is_above_its_min_until_its_last_victim(elastic: bool) -> None:
    """At each level below where the trees meet, shrinks and all victims of a pass together: without the largest one
    the queue would still have more than its min."""
    count = 0
    for seed in range(150):
        snapshot, settings = full(seed, newcomers=3, elastic=elastic)
        found = decide(snapshot, settings)
        assert not found.admissions
        taken = Taken(snapshot, found)
        for wanted in taken.waiting:
            pieces, mine = taken.pieces(wanted.name), taken.path(wanted.queue)
            lost: dict[str, list[int]] = {}
            for queue, amount, _ in pieces:
                for name in taken.path(queue):
                    if name not in mine:
                        lost.setdefault(name, []).append(amount)
            for name, amounts in lost.items():
                above = taken.used[name] - taken.least[name]
                assert above - sum(amounts) + max(amounts) > 0, f"seed {seed}: {name} loses {amounts} of {above}"
            count += bool(lost)
            for queue, amount, _ in pieces:
                taken.change(queue, -amount)
            if pieces:
                gpus = wanted.pod_sets[0].gpus
                assert gpus is not None
                taken.change(wanted.queue, CARD * gpus.cards * wanted.pod_sets[0].least)
    assert count >= 100


def test_no_lender_falls_below_its_min() -> None:
    """Where all jobs have one card, not even by the last victim; in a cluster with larger ones it may."""
    count = 0
    for seed in range(100):
        snapshot, settings = full(seed, single=True)
        taken = Taken(snapshot, decide(snapshot, settings))
        (wanted,) = taken.waiting
        for queue, amount, _ in taken.pieces(wanted.name):
            taken.change(queue, -amount)
        others = [name for queue, _, _ in taken.pieces(wanted.name) for name in taken.path(queue)]
        others = [name for name in others if name not in taken.path(wanted.queue)]
        assert all(taken.used[name] >= taken.least[name] for name in others), f"seed {seed}"
        count += bool(others)
    assert count >= 45


def test_who_may_be_a_victim() -> None:
    """Nobody who is not preemptible; in its own queue, and of others where the queue says so, lower priorities only
    (pods beyond a job's least go at an equal one too)."""
    own = other = 0
    for seed in range(150):
        snapshot, settings = full(seed, newcomers=3)
        found = decide(snapshot, settings)
        jobs = {job.name: job for job in (*snapshot.waiting, *(one.job for one in snapshot.running))}
        queues = {queue.name: queue for queue in snapshot.queues}
        victims: list[tuple[Eviction | Shrink, bool]] = [(one, True) for one in found.evictions]
        victims += [(one, False) for one in found.shrinks]
        for one, whole in victims:
            victim, wanted = jobs[one.job], jobs[one.for_job]
            assert victim.preemptible
            if victim.queue == wanted.queue:
                own += 1
                assert victim.priority < wanted.priority + (not whole)
            else:
                other += 1
                assert queues[wanted.queue].reclaim == "any" or victim.priority < wanted.priority
    assert own >= 20
    assert other >= 200


def crowded(seed: int) -> Life:
    """Two nodes with room for all, and quota for those who run: all of it is used, and jobs of all queues wait.

    Some queues have no min, nor has all of a subtree now and then: what they use is borrowed.
    """
    rng = random.Random(seed)
    queues: list[Queue] = []
    total = 0
    for side, children in (("x", 2), ("y", 2), ("z", 0)):
        names = [f"{side}{place}" for place in range(children)] or [side]
        for name in names:
            least = 1000 * rng.choice([0, 0, 1, 3])
            parent = side if children else "root"
            queues.append(
                Queue(name, parent, {"cpu": least}, weight=rng.choice([1.0, 2.0, 3.0]), priority=rng.choice([0, 0, 1]))
            )
            total += least
        if children:
            queues.append(Queue(side, "root", weight=rng.choice([1.0, 2.0])))
    leaves = [queue.name for queue in queues if queue.min]
    left = (total + rng.choice([2000, 5000])) // 1000
    queues.append(Queue("root", min={"cpu": 1000 * left}))
    early = rng.sample(leaves, rng.randrange(1, 4))
    running: list[RunningJob] = []
    while left:
        one = job(f"r{len(running):02}", rng.choice(early), cpu=rng.randrange(1, 1 + min(3, left)))
        left -= one.pod_sets[0].requests["cpu"] // 1000
        running.append(on(one, rng.choice("nm"), started=float(rng.randrange(60))))
    waiting = tuple(
        job(f"{name}-{place}", name, cpu=rng.choice([1, 1, 2, 3]), submitted=50.0)
        for name in leaves
        for place in range(rng.randrange(4))
    )
    nodes = (LARGE, replace(LARGE, name="m"))
    snapshot = Snapshot(100.0, (), nodes, tuple(queues), waiting, tuple(running))
    return Life(snapshot, QUICK[seed % len(QUICK)])


QUICK = [Settings(fairness=fairness) for fairness in ("drf", "hdrf", "borrowed")]
"""Where queues have claims by their shares."""


def evictions_to_the_end(life: Life, each: int = 1) -> int:
    """Played on without arrivals: no two jobs evict each other, and it comes to an end. Returns how many there were.

    Args:
        each: victims are looked for in one of so many passes. With several, a third job may take from the first before
            that one takes from the second what this one took: then only the end counts.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    last = 0
    for step in range(60):
        life.snapshot = replace(life.snapshot, now=100.0 + 100.0 * step)
        found = advance(life.state, life.snapshot.now, preempts=step % each == 0)
        for one in found.evictions:
            pairs[one.for_job, one.job] += 1
            assert each > 1 or not pairs[one.job, one.for_job], f"{one.job} and {one.for_job} evict each other"
            last = step
        life.carry_out(found)
        for name in [one.job.name for one in life.snapshot.running]:
            if life.running(name).evicted_for is not None:
                life.leave(name)
            else:
                life.bound(name)
    assert last < 40
    return pairs.total()


@pytest.mark.parametrize("seed", range(40))
def test_nobody_evicts_in_turn(seed: int) -> None:
    evictions_to_the_end(busy(seed))


@pytest.mark.slow
@pytest.mark.parametrize("each", [1, 2])
def test_nobody_evicts_in_turn_where_quota_is_short(each: int) -> None:
    """With each=2, victims could start anew before the next look."""
    counts = [evictions_to_the_end(crowded(seed), each) for seed in range(40)]
    assert sum(count > 0 for count in counts) >= 30
