"""Which fetch goes next."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_store import FakeStore
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.blocks import block_span
from forebay.cacheruntime.cluster.routing import MAX_HOPS
from forebay.cacheruntime.keys import dataset_id
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fetch_queue import FetchQueue, Part

_STORE = FakeStore()
_FILE = SourceFile(dataset_id(_STORE.url), _STORE, "a", 1 << 30, "v1")


_RELAYS = SimpleNamespace(relays=lambda file, offset: True)
"""A cluster in which another worker owns everything."""


def _part(number: int, demand: bool = False, hops: int | None = None) -> Part:
    """Of the store, or of another worker for a request that was passed on `hops` times."""
    file = _FILE if hops is None else replace(_FILE, peers=_RELAYS, hops=hops)
    return Part(file, file.content, [block_span(file.size, number)], None, demand)


def _drain(queue: FetchQueue) -> list[int]:
    started = []
    while (part := queue.start_next()) is not None:
        started.append(part.run[0].block)
    return started


def test_who_waits_goes_first() -> None:
    queue = FetchQueue(8, 2)
    for number, demand in enumerate((False, True, False, True)):
        queue.push(_part(number, demand))
    assert _drain(queue) == [1, 3, 0, 2]


def test_read_ahead_leaves_slots_free() -> None:
    queue = FetchQueue(4, 2)
    for number in range(4):
        queue.push(_part(number))
    assert _drain(queue) == [0, 1]
    queue.push(_part(9, demand=True))
    assert _drain(queue) == [9]


def test_who_begins_to_wait_overtakes_what_was_queued_before() -> None:
    queue = FetchQueue(2, 1)
    parts = [_part(number) for number in range(4)]
    for part in parts:
        queue.push(part)
    assert _drain(queue) == [0]
    queue.promote(parts[3])
    assert _drain(queue) == [3]
    queue.ended(parts[0])
    assert _drain(queue) == [1]


def test_a_running_part_that_is_waited_for_frees_its_place_among_read_ahead() -> None:
    queue = FetchQueue(3, 2)
    parts = [_part(number) for number in range(3)]
    for part in parts:
        queue.push(part)
    assert _drain(queue) == [0]
    queue.promote(parts[0])
    assert _drain(queue) == [1]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_few_slots_still_serve_read_ahead(slots: int) -> None:
    queue = FetchQueue(slots, 4)
    queue.push(_part(0))
    assert _drain(queue) == [0]


def test_free_counts_what_runs_and_what_waits() -> None:
    queue = FetchQueue(3, 1)
    assert queue.free == 3
    parts = [_part(number) for number in range(5)]
    queue.push(parts[0])
    assert queue.free == 2
    assert _drain(queue) == [0]
    assert queue.free == 2
    for part in parts[1:]:
        queue.push(part)
    assert queue.free == 0
    queue.ended(parts[0])
    assert queue.free == 0


def test_what_waits_for_other_workers_leaves_slots_to_the_store() -> None:
    queue = FetchQueue(8, 2)
    parts = [_part(number, demand=True, hops=0 if number < 10 else None) for number in range(14)]
    for part in parts:
        queue.push(part)
    assert _drain(queue) == [0, 1, 2, 3, 4, 5, 10, 11]
    queue.ended(parts[10])
    assert _drain(queue) == [12]
    queue.ended(parts[0])
    assert _drain(queue) == [6]


@pytest.mark.parametrize("slots", [1, 3, 16])
def test_of_each_kind_one_runs_though_no_slot_is_free(slots: int) -> None:
    """Else two workers could wait for each other with all they have."""
    queue = FetchQueue(slots, 0)
    for number in range(slots):
        queue.push(_part(number, demand=True))
    assert _drain(queue) == list(range(slots))
    queue.push(_part(99, demand=True))
    for hops in range(MAX_HOPS):
        queue.push(_part(100 + hops, demand=True, hops=hops))
        queue.push(_part(200 + hops, demand=True, hops=hops))
    assert _drain(queue) == [100, 101, 102]


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.booleans(), st.sampled_from([None, *range(MAX_HOPS)])), max_size=40),
    st.randoms(use_true_random=False),
)
def test_no_kind_waits_while_none_of_it_runs(slots: int, kinds: list[tuple[bool, int | None]], chance: object) -> None:
    queue, running = FetchQueue(slots, 2), []
    waiting = [_part(number, demand, hops) for number, (demand, hops) in enumerate(kinds)]
    for part in waiting:
        queue.push(part)
    while waiting or running:
        while (part := queue.start_next()) is not None:
            waiting.remove(part)
            running.append(part)
        assert len(running) <= queue.most
        assert {part.hops for part in waiting if part.demand} <= {part.hops for part in running}
        queue.ended(running.pop(chance.randrange(len(running))))  # type: ignore[attr-defined]


@given(
    st.integers(1, 6),
    st.integers(0, 6),
    st.lists(st.sampled_from(["ahead", "demand", "start", "end", "promote"]), max_size=80),
    st.randoms(use_true_random=False),
)
def test_each_part_runs_once_and_slots_hold(slots: int, reserve: int, steps: list[str], chance: object) -> None:
    queue, numbers = FetchQueue(slots, reserve), itertools.count()
    pushed: list[Part] = []
    running: list[Part] = []
    started: list[Part] = []
    for step in steps:
        if step in ("ahead", "demand"):
            pushed.append(_part(next(numbers), step == "demand"))
            queue.push(pushed[-1])
        elif step == "start" and (part := queue.start_next()) is not None:
            waiting = [p for p in pushed if p not in started]
            assert part.demand or not any(p.demand for p in waiting)
            started.append(part)
            running.append(part)
        elif step == "end" and running:
            queue.ended(running.pop(0))
        elif step == "promote" and pushed:
            queue.promote(pushed[chance.randrange(len(pushed))])  # type: ignore[attr-defined]
        assert len(running) <= slots
    while len(started) < len(pushed):
        part = queue.start_next()
        if part is None:
            assert running, "parts wait, slots are free, and nothing starts"
            queue.ended(running.pop())
        else:
            started.append(part)
            running.append(part)
    assert len(set(map(id, started))) == len(started)
