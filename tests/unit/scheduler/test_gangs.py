"""Gangs and groups of gangs: cases of scheduler-plugins' coscheduling, Koordinator, KAI and Volcano."""

from dataclasses import replace
from typing import Any

import pytest
from clusters import admitted, evicted, job, node, on, outcome, stage

from forebay.scheduler.decide import advance, decide
from forebay.scheduler.jobs import Job
from forebay.scheduler.model import Queue, RunningJob, Snapshot
from forebay.scheduler.state import State

QUEUES = [Queue("q")]
ROOM_FOR = {count: [node("n", cpu=count)] for count in range(1, 13)}


def gang(name: str, members: int, size: int | None = None, **more: Any) -> list[Job]:
    """Jobs of one pod and one core, as a pod group of scheduler-plugins is."""
    return [
        job(f"{name}{i}", cpu=1, group=name, group_size=members if size is None else size, **more)
        for i in range(members)
    ]


def started(jobs: list[Job], **more: Any) -> list[RunningJob]:
    return [on(one, "n", **more) for one in jobs]


class TestCoscheduling:
    """scheduler-plugins' coscheduling tests. Its pods are jobs of one pod here, its pod groups are groups of gangs."""

    @pytest.mark.parametrize("first", ["pg1", "pg2", "regular"])
    @pytest.mark.parametrize("same", [True, False])
    @pytest.mark.parametrize("scarce", [True, False])
    def test_orderings_of_two_groups_and_regular_pods(self, first: str, same: bool, scarce: bool) -> None:
        """Whoever comes first (or has the higher priority) starts whole; of a group all start or none."""
        names = {"pg1": 3, "pg2": 3, "regular": 2}
        waiting: list[Job] = []
        for name, count in names.items():
            more = {"submitted": 0.0 if name == first else 5.0, "priority": 1 if name == first and not same else 0}
            waiting += (
                gang(name, count, **more)
                if name != "regular"
                else [job(f"regular{i}", cpu=1, **more) for i in range(count)]
            )
        found = admitted(outcome(ROOM_FOR[4 if scarce else 8], QUEUES, waiting))
        counts = {name: sum(one.startswith(name) for one in found) for name in names}
        assert counts["pg1"] in (0, 3)
        assert counts["pg2"] in (0, 3)
        assert counts[first] == names[first]
        assert sum(counts.values()) == (8 if not scarce else 4 if first != "regular" else 2)

    def test_completed_pods_count(self) -> None:
        """Two of three have ended well: the third, which was evicted, does not wait for them."""
        (last,) = gang("pg", 3)[2:]
        queues, nodes = tuple(QUEUES), tuple(ROOM_FOR[3])
        assert not decide(Snapshot(nodes=nodes, queues=queues, waiting=(last,))).admissions
        done = Snapshot(nodes=nodes, queues=queues, waiting=(last,), done={"pg": ("pg0", "pg1")})
        assert admitted(decide(done)) == ["pg2"]
        state = State(Snapshot(nodes=nodes, queues=queues, running=tuple(started(gang("pg", 3)))))
        for name in ("pg0", "pg1"):
            state.finish(name, done=True)
        state.requeue("pg2")
        assert admitted(advance(state, 1.0)) == ["pg2"]

    def test_unschedulable_group_does_not_block_another(self) -> None:
        waiting = [*gang("pg1", 5), *gang("pg2", 3, submitted=1.0)]
        assert admitted(outcome(ROOM_FOR[4], QUEUES, waiting)) == ["pg20", "pg21", "pg22"]

    def test_gated_pods_still_meeting_quorum(self) -> None:
        waiting = gang("pg", 4, 3)
        waiting[0] = replace(waiting[0], gates=("x",))
        assert admitted(outcome(ROOM_FOR[4], QUEUES, waiting)) == ["pg1", "pg2", "pg3"]

    def test_gated_pods_push_below_quorum(self) -> None:
        waiting = [replace(one, gates=("x",)) if one.name != "pg3" else one for one in gang("pg", 4, 3)]
        found = outcome(ROOM_FOR[4], QUEUES, waiting)
        assert admitted(found) == []
        assert next(one.reason for one in found.waits if one.job == "pg3") == "1 of 3 jobs of group 'pg' are there"

    def test_all_siblings_gated(self) -> None:
        found = outcome(ROOM_FOR[4], QUEUES, gang("pg", 3, gates=("x",)))
        assert admitted(found) == []
        assert {one.stage for one in found.waits} == {"bind"}

    @pytest.mark.parametrize(("cores", "starts"), [(4, True), (2, False)])
    def test_min_resources(self, cores: int, starts: bool) -> None:
        """A group says what it needs by its members: quota and room are looked at for all of them."""
        assert bool(admitted(outcome(ROOM_FOR[cores], QUEUES, gang("pg", 3)))) == starts

    def test_more_members_than_it_needs(self) -> None:
        """Room for four of six, three are needed: four start (the others when there is room), not none."""
        waiting = gang("pg", 6, 3)
        found = outcome(ROOM_FOR[4], QUEUES, waiting)
        assert admitted(found) == ["pg0", "pg1", "pg2", "pg3"]
        later = outcome(ROOM_FOR[5], QUEUES, waiting[4:], started(waiting[:4]))
        assert admitted(later) == ["pg4"]

    def test_any_unreserve_rejects_the_whole_group(self) -> None:
        """One of them does not bind in time: the others do not hold their room for it."""
        running = [on(one, "n", started=10.0, bound=one.name != "pg1", bind_by=70.0) for one in gang("pg", 3)]
        found = outcome(ROOM_FOR[3], QUEUES, [job("j", cpu=3, submitted=1.0)], running, now=70.0)
        assert [one.job for one in found.releases] == ["pg0", "pg1", "pg2"]
        assert admitted(found) == ["j"]


class TestKoordinator:
    def test_a_second_gang_that_fails_takes_the_first_ones_decisions_back(self) -> None:
        """Victims and nodes that were decided for the first of a group stay so when the group does not fit yet."""
        waiting = [job("a", cpu=2, group="g", group_size=2), job("b", cpu=2, group="g", group_size=2)]
        running = [on(job(name, cpu=2, priority=-1), "n") for name in ("r0", "r1")]
        first = outcome(ROOM_FOR[4], QUEUES, waiting, running)
        assert evicted(first) == {"r0", "r1"}
        assert {one.for_job for one in first.evictions} == {"a"}
        left = [replace(running[0], evicted_for="a")]
        second = outcome(ROOM_FOR[4], QUEUES, waiting, left, holds=first.holds)
        assert (admitted(second), evicted(second)) == ([], set())
        assert second.holds == first.holds
        assert admitted(outcome(ROOM_FOR[4], QUEUES, waiting, [], holds=second.holds)) == ["a", "b"]


class TestGangsAsVictims:
    """Volcano's gangevict, KAI's preempt and reclaim of gangs: what would not run without a part goes whole."""

    def test_a_group_goes_whole(self) -> None:
        running = started(gang("pg", 3, priority=-1))
        found = outcome(ROOM_FOR[3], QUEUES, [job("j", cpu=1)], running)
        assert evicted(found) == {"pg0", "pg1", "pg2"}

    def test_one_beyond_what_the_group_needs_goes_alone(self) -> None:
        running = started(gang("pg", 4, 3, priority=-1))
        assert len(evicted(outcome(ROOM_FOR[4], QUEUES, [job("j", cpu=1)], running))) == 1

    def test_two_beyond_are_one_too_many(self) -> None:
        running = started(gang("pg", 4, 3, priority=-1))
        assert len(evicted(outcome(ROOM_FOR[4], QUEUES, [job("j", cpu=2)], running))) == 4

    def test_another_job_is_preferred_to_a_group(self) -> None:
        running = [*started(gang("pg", 3, priority=-1)), on(job("r", cpu=1, priority=-1), "n")]
        assert evicted(outcome(ROOM_FOR[4], QUEUES, [job("j", cpu=1)], running)) == {"r"}

    def test_not_if_one_of_it_must_not_be(self) -> None:
        running = started(gang("pg", 3, priority=-1))
        running[1] = replace(running[1], job=replace(running[1].job, preemptible=False))
        assert not evicted(outcome(ROOM_FOR[3], QUEUES, [job("j", cpu=1)], running))

    def test_below_its_least_a_job_goes_whole(self) -> None:
        """Two pods can be spared, three are asked for."""
        elastic = on(job("e", count=4, cpu=1, pods={"min_count": 2}, priority=-1), "n", "n", "n", "n")
        found = outcome(ROOM_FOR[4], QUEUES, [job("j", cpu=3)], [elastic])
        assert (evicted(found), found.shrinks) == ({"e"}, ())
        assert outcome(ROOM_FOR[4], QUEUES, [job("j", cpu=2)], [elastic]).evictions == ()

    def test_a_group_preempts_as_a_whole(self) -> None:
        """Room for all of it, or nobody goes for it."""
        running = [on(job(f"r{i}", cpu=1, priority=-1), "n") for i in range(3)]
        found = outcome(ROOM_FOR[3], QUEUES, gang("pg", 3), running)
        assert evicted(found) == {"r0", "r1", "r2"}
        assert stage(found, "pg0") == "gang"
        assert not evicted(outcome(ROOM_FOR[3], QUEUES, gang("pg", 4), running))

    def test_regression_a_member_that_is_shrinking_is_not_taken_twice(self) -> None:
        """Pods of it leave already; the group is not counted as room a second time before they are gone."""
        pods = {"min_count": 1}
        members = [job(f"pg{i}", count=2, cpu=1, group="pg", group_size=2, priority=-1, pods=pods) for i in (0, 1)]
        running = [on(one, "n", "n") for one in members]
        running[0] = replace(running[0], evicted_for="other", leaving=running[0].pods[1:])
        assert not evicted(outcome(ROOM_FOR[4], QUEUES, [job("j", cpu=4)], running))
