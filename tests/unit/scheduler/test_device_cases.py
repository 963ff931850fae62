"""Koordinator's device allocator, scheduler-plugins' NUMA plugin, go-gpuallocator, HAMi, gpushare: what is near.

Left out on purpose: of Koordinator's AutopilotAllocator the PCIe scope (links are weighed, only NUMA and RDMA can be
required) and tables of partitions (sets are found by links); MIG and DRA, as cards are whole or shared by amounts.
"""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from clusters import admitted, job, links, node, on, outcome, stage

from forebay.scheduler.gpu_sets import POINTS, GpuSets
from forebay.scheduler.gpu_sharing import share_card
from forebay.scheduler.jobs import GpuRequest, Job, PodSet
from forebay.scheduler.model import Gpu, Node, Queue, Reservation, Snapshot
from forebay.scheduler.settings import Settings, Weights
from forebay.scheduler.state import State

QUEUES = [Queue("q")]
TWO_ZONES = tuple(Gpu(numa=place // 4) for place in range(8))


def wide(cpu: tuple[int, int] = (32, 32), **more: Any) -> Node:
    """Eight cards, four and so many cores at each of two NUMA nodes."""
    zones = tuple({"cpu": cores * 1000} for cores in cpu)
    return Node("n", {"cpu": sum(cpu) * 1000}, TWO_ZONES, numa=zones, **more)


def aligned(cards: int, cpu: int, name: str = "j", **more: Any) -> Job:
    return job(name, share=GpuRequest(cards, single_numa=True), requests={"cpu": cpu * 1000}, **more)


class TestNumaOfCores:
    """Cores beside the cards: Koordinator's NUMA scope, scheduler-plugins' single-numa-node, Volcano's numaaware."""

    def test_cores_and_cards_of_one_numa_node(self) -> None:
        """There are 12 cores and 8 cards, but never 8 cores beside 4 cards."""
        assert stage(outcome([wide((6, 6))], QUEUES, [aligned(4, 8)]), "j") == "gang"
        assert admitted(outcome([wide((6, 8))], QUEUES, [aligned(4, 8)])) == ["j"]
        unaligned = job("j", gpus=4, requests={"cpu": 8000})
        assert admitted(outcome([wide((6, 6))], QUEUES, [unaligned])) == ["j"]

    def test_the_cards_are_those_beside_the_cores(self) -> None:
        found = outcome([wide((6, 8))], QUEUES, [aligned(2, 8)])
        (cards,) = found.admissions[0].pods[0].cards
        assert {card // 4 for card in cards} == {1}

    def test_pods_that_run_count_where_their_cards_are(self) -> None:
        running = [on(job("r", gpus=2, requests={"cpu": 30_000}), "n", cards=[(0, 1)])]
        found = outcome([wide()], QUEUES, [aligned(2, 8)], running)
        assert found.admissions[0].pods[0].cards == ((4, 5),)

    def test_pods_without_cards_count_in_proportion(self) -> None:
        """32 cores are used somewhere: 16 of each 32, as far as is known."""
        running = [on(job("r", requests={"cpu": 32_000}), "n")]
        assert admitted(outcome([wide()], QUEUES, [aligned(2, 16)], running)) == ["j"]
        assert admitted(outcome([wide()], QUEUES, [aligned(2, 17)], running)) == []

    def test_many_pods(self) -> None:
        """Two pods of 2 cards at one NUMA node; at the other one for want of cores."""
        assert admitted(outcome([wide((32, 16))], QUEUES, [aligned(2, 16, count=3)])) == ["j"]
        assert admitted(outcome([wide((32, 16))], QUEUES, [aligned(2, 16, count=4)])) == []

    def test_all_is_given_back(self) -> None:
        """In whatever order pods come and go, the same is free as if the cluster were looked at anew."""
        state = State(Snapshot(nodes=(wide(),), queues=tuple(QUEUES)))
        one = on(job("a", gpus=2, requests={"cpu": 30_000}), "n", cards=[(0, 1)])
        other = on(job("b", requests={"cpu": 2000}), "n")
        for running in (one, other):
            state.start(running)
        state.finish("a")
        again = State(Snapshot(nodes=(wide(),), queues=tuple(QUEUES), running=(other,)))
        demand = state.shape(aligned(2, 8)).demands[0]
        assert state.table.pods(demand).tolist() == again.table.pods(demand).tolist() == [4]

    def test_where_nothing_is_known_cards_alone_count(self) -> None:
        plain = Node("n", {"cpu": 12_000}, TWO_ZONES)
        assert admitted(outcome([plain], QUEUES, [aligned(4, 8)])) == ["j"]

    def test_more_than_the_node_has(self) -> None:
        wrong = replace(wide(), allocatable={"cpu": 63_000})
        with pytest.raises(ValueError, match="node 'n': its NUMA nodes have 64000 cpu, it has 63000"):
            outcome([wrong], QUEUES, [])


PIX, NODE, SYS = POINTS["PIX"], POINTS["NODE"], POINTS["SYS"]


class TestRdma:
    """Koordinator's allocateRDMA: cards and devices on one PCIe tree (device-joint-allocate SamePCIe)."""

    NEAR_TWO = ((PIX, PIX, NODE, NODE),)
    """One device, next to cards 0 and 1."""

    def one(self, name: str, rdma: tuple[tuple[int, ...], ...]) -> Node:
        return node(name, 4, rdma=rdma)

    def cards(self, nodes: list[Node], request: GpuRequest, **more: Any) -> tuple[str, tuple[int, ...]] | None:
        found = outcome(nodes, QUEUES, [job("j", share=request)], **more)
        if not found.admissions:
            return None
        (placed,) = found.admissions[0].pods
        return placed.node, placed.cards[0]

    def test_required(self) -> None:
        nodes = [self.one("a", ()), self.one("b", self.NEAR_TWO)]
        assert self.cards(nodes, GpuRequest(2, rdma="require")) == ("b", (0, 1))
        assert self.cards(nodes, GpuRequest(3, rdma="require")) is None
        far = [self.one("a", ((NODE, NODE, SYS, SYS),))]
        assert self.cards(far, GpuRequest(1, rdma="require")) is None

    def test_required_cards_in_use(self) -> None:
        running = [on(job("r", gpus=1), "b", cards=[(0,)])]
        nodes = [self.one("b", self.NEAR_TWO)]
        assert self.cards(nodes, GpuRequest(2, rdma="require"), running=running) is None
        assert self.cards(nodes, GpuRequest(1, rdma="require"), running=running) == ("b", (1,))

    def test_preferred(self) -> None:
        """The node with a device wins, and on it the cards that are near."""
        nodes = [self.one("a", ()), self.one("b", ((NODE, NODE, PIX, PIX),))]
        assert self.cards(nodes, GpuRequest(2, rdma="prefer")) == ("b", (2, 3))
        assert self.cards(nodes[:1], GpuRequest(2, rdma="prefer")) == ("a", (0, 1))
        assert self.cards(nodes, GpuRequest(2)) == ("a", (0, 1))

    def test_it_is_weighed_against_links(self) -> None:
        table = links(4, {(0, 1): "NV2+PIX"})
        nodes = [node("a", 4, links=table), node("b", 4, links=table, rdma=((SYS, SYS, PIX, PIX),))]
        for rdma, where in ((1000.0, ("b", (2, 3))), (10.0, ("a", (0, 1)))):
            settings = Settings(weights=Weights(rdma=rdma))
            assert self.cards(nodes, GpuRequest(2, rdma="prefer"), settings=settings) == where

    def test_shares_of_cards(self) -> None:
        nodes = [self.one("b", ((NODE, PIX, NODE, NODE),))]
        assert self.cards(nodes, GpuRequest(1, 300, rdma="require")) == ("b", (1,))
        assert self.cards(nodes, GpuRequest(2, 300, rdma="require")) is None

    def test_a_device_serves_so_many_pods(self) -> None:
        """How many is a resource of the node, as the cluster counts it."""
        nodes = [replace(self.one("b", self.NEAR_TWO), allocatable={"rdma": 1})]
        sets = (PodSet("main", 2, requests={"rdma": 1}, gpus=GpuRequest(1, rdma="require")),)
        assert not outcome(nodes, QUEUES, [Job("j", "q", sets)]).admissions

    def test_links_are_checked(self) -> None:
        with pytest.raises(ValueError, match="node 'b': an RDMA device must have a link to each of its cards"):
            outcome([self.one("b", ((PIX,),))], QUEUES, [])


class TestMixedNodes:
    """Nodes with cards of several models (gpushare #219, #184: mis-reported, wrong card)."""

    MIXED = (Gpu("T4", 16_000), Gpu("A100", 80_000))

    def test_regression_idle_cards_of_another_model_are_no_room(self) -> None:
        """On a the one A100 is in use and the T4 idle: the job goes to b."""
        nodes = [Node("a", {}, self.MIXED), Node("b", {}, (Gpu("A100", 80_000),))]
        running = [on(job("r", share=GpuRequest(1, models=("A100",))), "a", cards=[(1,)])]
        found = outcome(nodes, QUEUES, [job("j", share=GpuRequest(1, models=("A100",)))], running)
        assert (found.admissions[0].pods[0].node, found.admissions[0].pods[0].cards) == ("b", ((0,),))

    def test_as_many_pods_as_there_are_cards_of_the_model(self) -> None:
        nodes = [Node("a", {}, (*self.MIXED, Gpu("A100", 80_000)))]
        wanted = GpuRequest(1, 500, models=("A100",))
        assert admitted(outcome(nodes, QUEUES, [job("j", count=4, share=wanted)])) == ["j"]
        assert admitted(outcome(nodes, QUEUES, [job("j", count=5, share=wanted)])) == []

    def test_what_no_node_has_is_told(self) -> None:
        nodes = [Node("a", {}, self.MIXED)]
        found = outcome(nodes, QUEUES, [job("j", share=GpuRequest(2, models=("A100",)))])
        assert "even if it were empty" in found.waits[0].reason


class TestGoGpuallocator:
    def partitions(self, free: tuple[int, ...], size: int) -> list[tuple[tuple[int, ...], ...]]:
        """All splits into sets of the size, of which one may be incomplete: its iterator, written out."""
        if not free:
            return [()]
        first, others = free[0], free[1:]
        found = []
        for width in {min(size, len(free)), len(free) % size} - {0}:
            for more in combinations(others, width - 1):
                rest = tuple(card for card in others if card not in more)
                found += [((first, *more), *split) for split in self.partitions(rest, size)]
        return found

    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_the_best_of_all_partitions(self, size: int) -> None:
        """What is chosen is a set of the split with the largest total, of all that there are."""
        table = links(6, {(0, 3): "NV2+PIX", (1, 2): "NV1+PHB", (4, 5): "NV2", (0, 1): "PIX", (2, 5): "NV1"})
        sets = GpuSets(table, 6)
        for mask in range(1, 64):
            free = tuple(card for card in range(6) if mask >> card & 1)
            if len(free) < size:
                continue
            splits = self.partitions(free, size)
            best = max(sum(sets.score(part) for part in split) for split in splits)
            chosen = sets.choose(mask, size)
            with_it = [split for split in splits if chosen in split]
            assert max(sum(sets.score(part) for part in split) for split in with_it) == best


class TestHamiDevicesFit:
    def test_card_overused(self) -> None:
        """A card of which more is in use than it has takes nothing more, and its neighbour is counted for itself."""
        one = Node("n", {}, (Gpu(memory_mib=1000), Gpu(memory_mib=1000)))
        running = [on(job(name, share=GpuRequest(1, 700, 700)), "n", cards=[(0,)]) for name in "ab"]
        third = GpuRequest(1, 500, 500)
        assert admitted(outcome([one], QUEUES, [job("j", count=2, share=third)], running)) == ["j"]
        assert admitted(outcome([one], QUEUES, [job("j", count=3, share=third)], running)) == []

    def test_uuid_allow_and_deny(self) -> None:
        """Cards are named by their place here, and kept for somebody by a reservation, not by a list of ids."""
        reservation = Reservation("r", "n", cards=(1,), owners={"team": "x"}, policy="restricted")
        one = node("n", 2)
        owner = job("j", share=GpuRequest(1, 100), labels={"team": "x"})
        found = outcome([one], QUEUES, [owner], reservations=(reservation,))
        assert found.admissions[0].pods[0].cards == ((1,),)
        other = [job(f"k{i}", share=GpuRequest(1, 600)) for i in range(2)]
        found = outcome([one], QUEUES, other, reservations=(reservation,))
        assert [placed.cards for one in found.admissions for placed in one.pods] == [((0,),)]

    def test_gpushare_one_card_is_never_split_over_two(self) -> None:
        """gpushare #228: more than one card's memory is a request for several cards, said so."""
        assert share_card([1000] * 2, [10, 10], 0, 12, "binpack") == ()
        assert share_card([1000] * 2, [10, 10], 0, 6, "binpack", 2) == (0, 1)


class TestPreAllocation:
    """Koordinator's reservations that are made while their room is still in use."""

    RESERVED = Reservation("r", "n", cards=(0, 1), owners={"team": "x"})

    def test_it_takes_what_comes_free(self) -> None:
        running = [on(job("u", gpus=2), "n", cards=[(0, 1)])]
        found = outcome([node("n", 4)], QUEUES, [job("j", gpus=3)], running, reservations=(self.RESERVED,))
        assert admitted(found) == []
        state = State(
            Snapshot(
                nodes=(node("n", 4),), queues=tuple(QUEUES), running=tuple(running), reservations=(self.RESERVED,)
            )
        )  # fmt: skip
        state.finish("u")
        assert int(state.table.idle[0]) == 2, "the other two are the reservation's"

    def test_regression_shares_beside_it_are_counted(self) -> None:
        """Its cards count as less than nothing until those who use them are gone: not at the cost of other cards."""
        running = [on(job("u", gpus=2), "n", cards=[(0, 1)])]
        waiting = [job("j", count=6, share=GpuRequest(1, 300))]
        found = outcome([node("n", 4)], QUEUES, waiting, running, reservations=(self.RESERVED,))
        assert admitted(found) == ["j"]

    def test_owners_wait_for_it(self) -> None:
        running = [on(job("u", gpus=2), "n", cards=[(0, 1)])]
        owner = job("j", gpus=4, labels={"team": "x"})
        assert admitted(outcome([node("n", 4)], QUEUES, [owner], running, reservations=(self.RESERVED,))) == []
        assert admitted(outcome([node("n", 4)], QUEUES, [owner], reservations=(self.RESERVED,))) == ["j"]
