"""The worker's memory budget: how large it is, how it is split, and who waits for it."""

from pathlib import Path

import pytest
import trio
import trio.testing

from forebay.cacheruntime.config import GIB, MIB, FillConfig
from forebay.cacheruntime.memory_limit import limit_files
from forebay.cacheruntime.worker.memory import Lease, MemoryBudget, default_budget, shares

V1_GROUPS = "9:name=systemd:/\n4:cpu,memory:/jobs/one\n2:cpuset:/\n0::/\n"
V1_MOUNTS = (
    "30 23 0:26 / /sys/fs/cgroup/cpu,memory rw,nosuid shared:9 - cgroup cgroup rw,cpu,memory\n"
    "31 23 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "32 23 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


@pytest.mark.parametrize(
    ("ram", "limit", "expected"),
    [
        (64 * GIB, None, 512 * MIB),
        (2 * GIB, None, 512 * MIB),
        (1 * GIB, None, 256 * MIB),
        (64 * GIB, 512 * MIB, 128 * MIB),
        (256 * MIB, 512 * MIB, 64 * MIB),
        (64 * GIB, 32 * GIB, 512 * MIB),
    ],
)
def test_default_is_a_quarter_of_what_there_is(ram: int, limit: int | None, expected: int) -> None:
    assert default_budget(ram, limit) == expected


@pytest.mark.parametrize(
    ("budget", "gets", "through", "replies"),
    [
        (512 * MIB, 16, 64 * MIB, 128 * MIB),
        (128 * MIB, 16, 32 * MIB, 32 * MIB),
        (32 * MIB, 4, 8 * MIB, 8 * MIB),
        (MIB, 1, MIB // 4, MIB // 4),
    ],
)
def test_shares(budget: int, gets: int, through: int, replies: int) -> None:
    found = shares(budget, FillConfig())
    assert (found.gets, found.through_bytes, found.reply_bytes) == (gets, through, replies)


def test_limits_of_v1_are_those_of_the_group_and_all_above_it() -> None:
    base = Path("/sys/fs/cgroup/cpu,memory")
    v1 = [base / part / "memory.limit_in_bytes" for part in ("jobs/one", "jobs", "")]
    assert limit_files(V1_GROUPS, V1_MOUNTS) == [*v1, Path("/sys/fs/cgroup/unified/memory.max")]


def test_limits_of_v2() -> None:
    mounts = "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
    names = ("user.slice/a.scope", "user.slice", "")
    assert limit_files("0::/user.slice/a.scope\n", mounts) == [
        Path("/sys/fs/cgroup") / name / "memory.max" for name in names
    ]


def test_a_container_sees_its_own_group_at_the_top() -> None:
    mounts = r"25 20 0:22 /docker/abc /sys/fs/my\040cgroup rw - cgroup cgroup rw,memory"
    assert limit_files("4:memory:/docker/abc\n", mounts) == [Path("/sys/fs/my cgroup/memory.limit_in_bytes")]
    assert limit_files("4:memory:/elsewhere\n", mounts) == [Path("/sys/fs/my cgroup/memory.limit_in_bytes")]


def test_nothing_is_mounted() -> None:
    assert limit_files(V1_GROUPS, "25 20 0:22 / /proc rw - proc proc rw\n") == []


def test_budget_is_first_come_first_served() -> None:
    async def main() -> None:
        budget, order = MemoryBudget(10), []

        async def taker(name: str, size: int) -> None:
            await budget.take(size)
            order.append(name)

        assert await budget.take(8) == 8
        async with trio.open_nursery() as nursery:
            nursery.start_soon(taker, "large", 9)
            await trio.testing.wait_all_tasks_blocked()
            assert budget.is_short
            nursery.start_soon(taker, "small", 1)
            await trio.testing.wait_all_tasks_blocked()
            assert order == [], "small would have had room, but large was first"
            budget.give_back(8)
        assert order == ["large", "small"]
        assert budget.used_bytes == 10
        assert not budget.is_short

    trio.run(main)


def test_more_than_there_is_gets_all_there_is() -> None:
    async def main() -> None:
        budget = MemoryBudget(10)
        assert await budget.take(99) == 10
        budget.give_back(10)
        assert budget.used_bytes == 0

    trio.run(main)


def test_one_who_leaves_the_queue_lets_the_next_one_through() -> None:
    async def main() -> None:
        budget = MemoryBudget(10)
        await budget.take(8)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(budget.take, 1)
                scope.cancel()
                await budget.take(9)
        assert budget.used_bytes == 9

    trio.run(main)


def test_lease_is_held_once_and_given_back_once() -> None:
    async def main() -> None:
        budget = MemoryBudget(10)
        lease = Lease(budget)
        await lease.hold(6)
        await lease.hold(6)
        assert (lease.is_held, budget.used_bytes) == (True, 6)
        lease.release()
        lease.release()
        assert (lease.is_held, budget.used_bytes) == (False, 0)
        await lease.hold(6)
        assert budget.used_bytes == 0, "the reply is gone"

    trio.run(main)


def test_lease_released_while_it_waits_holds_nothing() -> None:
    async def main() -> None:
        budget = MemoryBudget(10)
        await budget.take(10)
        lease = Lease(budget)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease.hold, 6)
            await trio.testing.wait_all_tasks_blocked()
            lease.release()
            budget.give_back(10)
        assert budget.used_bytes == 0

    trio.run(main)
