"""The test vectors of the reference (scheduling.md, section 2.11), one test each.

Three of them divide what is above the mins by weight. `water_fill` does so, and `explain` tells its result; who is
admitted is decided job by job. By borrowed share that comes to the same. By dominant share, the default, it does not,
on purpose: DRF levels all that a queue uses, its min included, so who has a large min gets less of what is left.
"""

import pytest
from clusters import (
    admitted,
    divided,
    evicted,
    job,
    links,
    node,
    on,
    outcome,
    preferred,
    racks,
    required,
    stage,
    used_racks,
)

from forebay.scheduler.fair_share import Claim, borrowed_share, decay_factor, dominant_share, water_fill
from forebay.scheduler.gang import backoff_s
from forebay.scheduler.gpu_sets import GpuSets, mask_of
from forebay.scheduler.gpu_sharing import Mix, share_card
from forebay.scheduler.jobs import GpuRequest, TopologyRequest
from forebay.scheduler.model import Node, Queue
from forebay.scheduler.quota import QuotaTree
from forebay.scheduler.settings import Settings
from forebay.scheduler.warmth import throughput


def test_koordinator_water_fill() -> None:
    claims = [Claim(80, 40, weight=40), Claim(10, 30, weight=30), Claim(60, 20, weight=60)]
    assert water_fill(100, claims) == [52, 10, 38]
    queues = [
        Queue(name, min={"x": least}, weight=weight)
        for name, least, weight in (("a", 40, 40.0), ("b", 30, 30.0), ("c", 20, 60.0))
    ]
    assert divided(100, queues, [80, 10, 60], "borrowed") == [52, 10, 38]
    for fairness in ("drf", "hdrf"):
        assert divided(100, queues, [80, 10, 60], fairness) == [40, 10, 50], "c, of weight 60, has less for it than a"


def test_koordinator_water_fill_in_integers() -> None:
    claims = [Claim(45, 40), Claim(80, 30), Claim(80, 20)]
    assert water_fill(100, claims) == [44, 33, 23]
    queues = [Queue(name, min={"x": least}) for name, least in (("a", 40), ("b", 30), ("c", 20))]
    assert divided(100, queues, [45, 80, 80], "borrowed") == [44, 33, 23]
    for fairness in ("drf", "hdrf"):
        assert divided(100, queues, [45, 80, 80], fairness) == [40, 30, 30], "c has least until it has as much as b"


def test_kai_surplus_by_weight() -> None:
    """The last unit has equal remainders: KAI gives it to the older queue. Ours have no age: it goes to the first by
    name, or by borrowed share to the one that would have the least with it (6/12/2, which KAI's rule allows too)."""
    claims = [Claim(15, 4, weight=1), Claim(15, 4, weight=3), Claim(2, 8)]
    assert water_fill(20, claims) == [7, 11, 2]
    queues = [
        Queue(name, min={"x": least}, weight=weight)
        for name, least, weight in (("a", 4, 1.0), ("b", 4, 3.0), ("c", 8, 1.0))
    ]
    assert divided(20, queues, [15, 15, 2], "borrowed") == [6, 12, 2]
    for fairness in ("drf", "hdrf"):
        assert divided(20, queues, [15, 15, 2], fairness) == [5, 13, 2], "b has three times as much as a, mins included"


def test_kueue_borrowed_share() -> None:
    shares = [borrowed_share([used], [10], [30], weight) for used, weight in ((16, 2.0), (13, 1.0), (0, 1.0))]
    assert shares == [100.0, 100.0, 0.0]


@pytest.mark.parametrize(
    ("a", "b", "order"),
    [((0, 1.0), (0, 2.0), "cab"), ((0, 2.0), (0, 1.0), "cba"), ((0, 1.0), (1, 2.0), "cba")],
)
def test_order_by_kueues_borrowed_share(a: tuple[int, float], b: tuple[int, float], order: str) -> None:
    """c is first, then a and b by priority and time. As Kueue does, we rank by the share after admission: with one
    more each, a and b have the 16 and 13 of the vector."""
    queues = [Queue("cohort"), *(Queue(name, "cohort", min={"x": 10}, weight=1.0 + (name == "a")) for name in "abc")]
    nodes = [Node("n", {"x": 100})]
    running = [on(job(f"{name}0", name, requests={"x": used}), "n") for name, used in (("a", 15), ("b", 12))]
    waiting = [
        job(name, name, requests={"x": 1}, priority=priority, submitted=submitted)
        for name, (priority, submitted) in (("a", a), ("b", b), ("c", (0, 9.0)))
    ]
    settings = Settings(fairness="borrowed", preemption=False)
    assert admitted(outcome(nodes, queues, waiting, running, settings)) == [*order]


def test_fair_preemption_to_the_final_share() -> None:
    """P1 has all 8 GPUs as four jobs of 2, nobody has a min. P2 may have 4 of them, but not 5."""
    nodes = [node("n", 8)]
    queues = [Queue("root", min={"gpu": 8000}), Queue("p1", "root"), Queue("p2", "root")]
    running = [on(job(f"a{i}", "p1", gpus=2), "n", cards=[(2 * i, 2 * i + 1)]) for i in range(4)]
    found = outcome(nodes, queues, [job("b", "p2", gpus=4)], running)
    assert len(evicted(found)) == 2
    assert {eviction.reason for eviction in found.evictions} == {"fair-share"}
    assert not outcome(nodes, queues, [job("b", "p2", gpus=5)], running).evictions


@pytest.mark.parametrize(("lending", "legal"), [(0, 0), (1, 1)])
def test_hierarchical_legality(lending: int, legal: int) -> None:
    tree = QuotaTree(
        [
            Queue("cohort"),
            Queue("lender", "cohort", min={"cpu": 10}, lending_limit={"cpu": lending}),
            Queue("sibling", "cohort", min={"cpu": 10}),
        ]
    )
    tree.take(tree.leaf("lender"), [9])
    tree.take(tree.leaf("sibling"), [10])
    assert tree.available(tree.leaf("sibling")) == [legal]
    assert tree.excess(tree.leaf("sibling"), [3]) is not None
    assert (tree.excess(tree.leaf("sibling"), [1]) is None) == bool(legal)


def test_capacity_plugin_reclaims_when_all_is_used() -> None:
    """Users of the capacity plugin see B pending (scheduler-plugins #683)."""
    queues = [
        Queue("root", min={"gpu": 5000}),
        Queue("a", "root", min={"gpu": 4000}, max={"gpu": 5000}),
        Queue("b", "root", min={"gpu": 1000}, max={"gpu": 5000}),
    ]
    running = [on(job(f"a{i}", "a", gpus=1), "n", cards=[(i,)]) for i in range(5)]
    found = outcome([node("n", 5)], queues, [job("b0", "b", gpus=1)], running)
    assert len(evicted(found)) == 1
    assert found.evictions[0].reason == "reclaim"


def test_quorum_with_gated_pods() -> None:
    """Six jobs of a group that needs five; the gates of two keep the others waiting, those of one do not."""
    nodes, queues = [node("n", cpu=6)], [Queue("q")]

    def members(gated: int) -> list[object]:
        return [job(f"p{i}", cpu=1, group="g", group_size=5, gates=("x",) if i < gated else ()) for i in range(6)]

    assert admitted(outcome(nodes, queues, members(2))) == []  # type: ignore[arg-type]
    assert len(admitted(outcome(nodes, queues, members(1)))) == 5  # type: ignore[arg-type]


def test_topology_best_fit() -> None:
    nodes, queues = racks(3, 5, 8, 4), [Queue("q")]

    def place(count: int, pods: dict[str, object]) -> dict[str, int] | str:
        found = outcome(nodes, queues, [job("j", count=count, gpus=1, pods=pods)])
        return used_racks(found, "j") if found.admissions else stage(found, "j")

    assert place(7, required("rack")) == {"r2": 7}
    assert place(4, required("rack")) == {"r3": 4}
    assert place(9, required("rack")) == "topology"
    assert place(10, preferred("rack")) == {"r2": 8, "r0": 2}


def test_topology_slices() -> None:
    """A rack that takes 7 pods takes one slice of 4: two racks two slices, and not three."""
    nodes, queues = racks(7, 7), [Queue("q")]
    sliced = {"topology": TopologyRequest(required="block", slice_size=4, slice_level="rack")}
    assert used_racks(outcome(nodes, queues, [job("j", count=8, gpus=1, pods=sliced)]), "j") == {"r0": 4, "r1": 4}
    assert stage(outcome(nodes, queues, [job("j", count=12, gpus=1, pods=sliced)]), "j") == "gang"
    assert used_racks(outcome(racks(7), queues, [job("j", count=4, gpus=1, pods=sliced)]), "j") == {"r0": 4}
    assert stage(outcome(racks(7), queues, [job("j", count=8, gpus=1, pods=sliced)]), "j") == "gang"


PAIRS = links(4, {(0, 1): "NV2+PIX", (2, 3): "NV2+PIX"})


def test_best_effort_sets() -> None:
    sets = GpuSets(PAIRS, 4)
    assert sets.score((0, 1)) == 250
    assert sets.choose(0b1111, 2) in {(0, 1), (2, 3)}
    assert sets.choose(mask_of((0, 2, 3)), 2) == (2, 3)
    assert sets.choose(0b1111, 2, required=mask_of((0,))) == (0, 1)


def test_hami_single_card() -> None:
    sets = GpuSets(PAIRS, 4)
    assert sets.choose(0b1111, 1) == (0,), "a tie goes to the first"
    assert sets.choose(mask_of((1, 2, 3)), 1) == (1,), "the pair 2-3 stays whole"


def test_gpushare_takes_the_tightest_card() -> None:
    def card(asked: int) -> tuple[int, ...]:
        return share_card([1000] * 3, [6, 3, 10], 0, asked, "binpack")

    assert [card(3), card(7), card(11)] == [(1,), (2,), ()]


def test_memory_over_several_cards() -> None:
    request = GpuRequest.over(8, 2)
    assert share_card([1000] * 3, [6, 3, 10], 0, request.memory_mib, "binpack", request.cards) == (0, 2)
    with pytest.raises(ValueError, match="8 MiB over 3 cards are not whole MiB a card"):
        GpuRequest.over(8, 3)


def test_fragmentation() -> None:
    mix = Mix.of({(1, 500): 0.5, (1, 250): 0.5}, 1)
    assert mix.fragments([400]) == pytest.approx(200)
    assert mix.fragments([150]) == pytest.approx(150)


def test_dominant_resource_fairness() -> None:
    """9 CPU and 18 GB: A with <1, 4> runs 3 tasks and B with <3, 1> runs 2, each at two thirds."""
    queues = [Queue("root", min={"cpu": 9, "memory": 18}), Queue("a", "root"), Queue("b", "root")]
    waiting = [
        job(f"{queue}{i}", queue, requests=requests)
        for queue, requests in (("a", {"cpu": 1, "memory": 4}), ("b", {"cpu": 3, "memory": 1}))
        for i in range(9)
    ]
    big = node("n")
    big = type(big)("n", {"cpu": 9, "memory": 18})
    found = outcome([big], queues, waiting, settings=Settings(preemption=False))
    counts = {queue: sum(name.startswith(queue) for name in admitted(found)) for queue in "ab"}
    assert counts == {"a": 3, "b": 2}
    assert dominant_share([3, 12], [9, 18]) == dominant_share([6, 2], [9, 18]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("cached", "rate"), [(0.0, 200), (0.5, 400), (0.9, 1000)])
def test_silod_throughput(cached: float, rate: float) -> None:
    assert throughput(1000, 200, cached, 1.0) == pytest.approx(rate)


def test_requeue_backoff() -> None:
    """Without jitter: the core has no randomness. Whoever carries a release out may add some."""
    assert [backoff_s(60, retries, 200) for retries in (1, 2, 3, 4)] == [60, 120, 200, 200]


def test_decay_of_historic_use() -> None:
    assert decay_factor(300, 600) == pytest.approx(0.2929, abs=1e-4)


def easy(bound: float, settings: Settings | None = None, cards: int = 8) -> list[str]:
    """A head that asks for 8 of 8 cards, of which 3 are free at 60, and a job of 4 behind it."""
    queues = [Queue("q", policy="fifo")]
    running = [on(job("r", gpus=3, max_run_s=60), "n0", cards=[(0, 1, 2)])]
    nodes = [node("n0", 8), *([node("n1", cards - 8)] if cards > 8 else [])]
    waiting = [job("head", gpus=8, max_run_s=100), job("x", gpus=4, max_run_s=bound, submitted=1.0)]
    return admitted(outcome(nodes, queues, waiting, running, settings))


def test_easy_backfill() -> None:
    assert easy(50) == ["x"], "it ends before the head can start"
    assert easy(90) == [], "it would delay the head"
    assert easy(90, cards=12) == ["x"], "it keeps off the nodes that the head has reserved"
    assert easy(50, Settings(backfill=False)) == []
