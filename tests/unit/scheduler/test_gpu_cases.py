"""Cases of go-gpuallocator, HAMi, Koordinator and Volcano about cards, rebuilt from their descriptions."""

from dataclasses import replace

import pytest
from clusters import admitted, job, links, node, on, outcome

from forebay.scheduler.gpu_sets import GpuSets, mask_of, points
from forebay.scheduler.jobs import GpuRequest
from forebay.scheduler.model import Gpu, Node, Queue
from forebay.scheduler.settings import Settings

QUEUES = [Queue("q")]

_NV2 = ((0, 3), (0, 4), (1, 2), (1, 5), (2, 3), (4, 7), (5, 6), (6, 7))
_NV1 = ((0, 1), (0, 2), (1, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7))


def volta() -> tuple[tuple[int, ...], ...]:
    """DGX-1 with Volta: a cube mesh of NVLinks; pairs of cards on one PCIe switch, four to a socket."""

    def pcie(one: int, two: int) -> str:
        if one // 2 == two // 2:
            return "PIX"
        return "PHB" if one // 4 == two // 4 else "SYS"

    pairs = {}
    for one in range(8):
        for two in range(one + 1, 8):
            nvlinks = "NV2+" if (one, two) in _NV2 else "NV1+" if (one, two) in _NV1 else ""
            pairs[one, two] = nvlinks + pcie(one, two)
    return links(8, pairs)


@pytest.mark.parametrize(
    ("free", "size", "required", "chosen"),
    [
        ((0, 2, 4, 5), 2, (), (4, 5)),
        ((0, 4, 5, 6), 2, (), (5, 6)),
        ((0, 1, 3), 2, (), (0, 3)),
        ((0, 1, 4), 2, (), (0, 4)),
        (range(8), 2, (4,), (4, 7)),
        (range(8), 4, (4,), (4, 5, 6, 7)),
        ((0, 1, 2, 3), 2, (4,), ()),
        ((0, 1), 4, (), ()),
    ],
)
def test_go_gpuallocator_best_effort_on_volta(
    free: tuple[int, ...], size: int, required: tuple[int, ...], chosen: tuple[int, ...]
) -> None:
    assert GpuSets(volta(), 8).choose(mask_of(free), size, mask_of(required)) == chosen


def test_go_gpuallocator_four_rtx8000() -> None:
    """Two pairs with NVLink: whichever pair is given out, the other stays whole."""
    sets = GpuSets(links(4, {(0, 3): "NV2+SYS", (1, 2): "NV2+SYS"}), 4)
    assert sets.choose(0b1111, 2) in {(0, 3), (1, 2)}
    assert sets.choose(mask_of((0, 1, 2)), 2) == (1, 2)


def test_answers_are_kept_by_mask() -> None:
    sets = GpuSets(volta(), 8)
    assert all(
        len(sets.choose(mask, size)) == (size if mask.bit_count() >= size else 0)
        for mask in range(256)
        for size in range(1, 9)
    )
    assert len(sets._best) == sum(mask.bit_count() for mask in range(256))


def test_many_cards_are_split_greedily() -> None:
    sets = GpuSets(links(16, {(i, i + 1): "NV2+PIX" for i in range(0, 16, 2)}), 16)
    assert sets.choose((1 << 16) - 1, 4) == (0, 1, 2, 3)


def test_links_are_checked() -> None:
    assert points("nv2+pix") == 250
    with pytest.raises(ValueError, match="link 'FOO'; known are SYS, NODE"):
        points("FOO")
    with pytest.raises(ValueError, match="links of 8 cards must be 8 rows of 8 points"):
        GpuSets(volta()[:4], 8)


def test_a_node_with_better_links_wins() -> None:
    """Both nodes have two cards left; on one of them these are linked."""
    table = volta()
    waiting = [job("two", gpus=2)]
    nodes = [node("far", 8, links=table), node("near", 8, links=table)]
    running = [
        on(job("a", gpus=6), "far", cards=[(1, 2, 3, 4, 5, 6)]),
        on(job("b", gpus=6), "near", cards=[(0, 1, 2, 4, 5, 6)]),
    ]
    found = outcome(nodes, QUEUES, waiting, running)
    (placed,) = found.admissions[0].pods
    assert (placed.node, placed.cards) == ("near", ((3, 7),))


def cards(used: dict[str, tuple[int, int]], share: GpuRequest, gpus: list[Gpu] | None = None, **more: object) -> object:
    """Where a share goes on one node; `used`: name -> (card, thousandths)."""
    one = Node("n", {}, tuple(gpus or [Gpu(memory_mib=1000), Gpu(memory_mib=1000)]))
    running = [
        on(job(name, share=GpuRequest(1, milli, milli)), "n", cards=[(card,)]) for name, (card, milli) in used.items()
    ]
    found = outcome([one], QUEUES, [job("j", share=share)], running, Settings(**more) if more else None)  # type: ignore[arg-type]
    return found.admissions[0].pods[0].cards[0] if found.admissions else None


class TestHamiDevicesFit:
    def test_memory_short(self) -> None:
        assert cards({"a": (0, 700), "b": (1, 700)}, GpuRequest(1, 100, 400)) is None

    def test_core_short(self) -> None:
        assert cards({"a": (0, 700), "b": (1, 700)}, GpuRequest(1, 400, 100)) is None

    def test_type_mismatch(self) -> None:
        gpus = [Gpu("T4", 1000), Gpu("T4", 1000)]
        assert cards({}, GpuRequest(1, 100, 100, ("A100",)), gpus) is None
        assert cards({}, GpuRequest(1, 100, 100, ("T4", "A100")), gpus) is not None

    def test_card_of_another_model_on_the_node(self) -> None:
        assert cards({}, GpuRequest(1, 100, 100, ("A100",)), [Gpu("T4", 1000), Gpu("A100", 1000)]) == (1,)

    def test_exclusive_card_is_not_shared(self) -> None:
        assert cards({"a": (0, 1000)}, GpuRequest(1, 100, 100)) == (1,)

    def test_a_shared_card_is_not_given_whole(self) -> None:
        assert cards({"a": (0, 100), "b": (1, 100)}, GpuRequest(1)) is None
        assert cards({"a": (0, 100)}, GpuRequest(1)) == (1,)

    def test_partial_multi_card(self) -> None:
        assert cards({"a": (0, 700)}, GpuRequest(2, 400, 400)) is None
        assert cards({"a": (0, 300)}, GpuRequest(2, 400, 400)) == (0, 1)

    def test_unhealthy(self) -> None:
        gpus = [Gpu(memory_mib=1000, healthy=False), Gpu(memory_mib=1000)]
        assert cards({}, GpuRequest(1, 100, 100), gpus) == (1,)
        assert cards({}, GpuRequest(2), gpus) is None

    def test_cordon(self) -> None:
        one = replace(node("n", 1), ready=False)
        assert not outcome([one], QUEUES, [job("j", gpus=1)]).admissions

    @pytest.mark.parametrize(("order", "card"), [("binpack", (0,)), ("spread", (1,))])
    def test_order_of_cards(self, order: str, card: tuple[int]) -> None:
        assert cards({"a": (0, 300)}, GpuRequest(1, 300, 300), shared_cards=order) == card


def test_fgd_leaves_the_card_that_others_need() -> None:
    """Best fit would take the card with 0.5 free; it is then of no use to any of the many that ask for 0.3."""
    waiting = [job("j", share=GpuRequest(1, 300))]
    one = Node("n", {}, (Gpu(), Gpu()))
    running = [
        on(job("a", share=GpuRequest(1, 500)), "n", cards=[(0,)]),
        on(job("b", share=GpuRequest(1, 400)), "n", cards=[(1,)]),
    ]

    def card(order: str) -> tuple[int, ...]:
        more = [job(f"w{i}", share=GpuRequest(1, 300), not_before=1.0) for i in range(60)]
        found = outcome([one], QUEUES, [*waiting, *more], running, Settings(shared_cards=order))  # type: ignore[arg-type]
        return found.admissions[0].pods[0].cards[0]

    assert card("binpack") == (0,)
    assert card("fgd") == (1,), "0.6 free is two of them"


def test_koordinator_numa_scope() -> None:
    """Four cards of one NUMA node, or not at all if so asked."""
    gpus = tuple(Gpu(numa=place // 4) for place in range(8))
    one = Node("n", {}, gpus)
    running = [on(job("a", gpus=1), "n", cards=[(0,)])]
    share = GpuRequest(4, single_numa=True)
    found = outcome([one], QUEUES, [job("j", share=share)], running)
    assert found.admissions[0].pods[0].cards == ((4, 5, 6, 7),)
    running.append(on(job("b", gpus=1), "n", cards=[(7,)]))
    assert not outcome([one], QUEUES, [job("j", share=share)], running).admissions
    assert outcome([one], QUEUES, [job("j", share=GpuRequest(4))], running).admissions


def test_kai_memory_shares_are_charged() -> None:
    """A job that asks for half of a card's memory is charged half a card (KAI #1369)."""
    queues = [Queue("root", min={"gpu": 1000}), Queue("q", "root")]
    waiting = [job(f"j{i}", share=GpuRequest(1, 0, 40960)) for i in range(3)]
    assert len(admitted(outcome([node("n", 4)], queues, waiting))) == 2


def test_kueue_aggregate_is_not_enough() -> None:
    """Eight cards are free, but not on one node (kueue #1476, volcano #665)."""
    nodes = [node("a", 8), node("b", 8)]
    running = [on(job("x", gpus=4), "a", cards=[(0, 1, 2, 3)]), on(job("y", gpus=4), "b", cards=[(0, 1, 2, 3)])]
    found = outcome(nodes, QUEUES, [job("j", gpus=8)], running)
    assert not found.admissions
    assert found.waits[0].reason == "room for 0 of 1 pods of 'main' on 2 nodes; 2 lack cards"
