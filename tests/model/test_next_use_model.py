"""The policy `next-use` against its definition written down plainly, and against the best that any policy could do."""

import math
from functools import lru_cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from forebay.cacheruntime.policies import NextUse, next_use
from forebay.cacheruntime.policies.posted import NOBODY, PostedOrder
from forebay.cacheruntime.simulation import Workload, simulate

ITEMS = st.integers(0, 11)
READERS = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=18), st.integers(1, 4), st.none() | st.just(1))
def test_as_many_hits_as_any_policy_could_have(items: list[int], capacity: int, readers: int | None) -> None:
    """Items of one size, everything posted, readers in the order in which they came: Belady's rule is the best."""

    @lru_cache(None)
    def best(index: int, inside: frozenset[int]) -> int:
        if index == len(items):
            return 0
        item = items[index]
        if item in inside:
            return 1 + best(index + 1, inside)
        choices = [inside]
        if len(inside) < capacity:
            choices.append(inside | {item})
        choices += [inside - {victim} | {item} for victim in inside]
        return max(best(index + 1, choice) for choice in choices)

    workload = Workload(np.array(items, dtype=np.int64), np.ones(7, dtype=np.int64))
    assert simulate(workload, "next-use", capacity).hits == best(0, frozenset())


class NextUseMachine(RuleBasedStateMachine):
    """Everything that can be done to the policy, and to dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = NextUse[int]()
        self.sizes: dict[int, int] = {}
        self.access: dict[int, int] = {}
        self.clock = 0
        self.orders: dict[str, dict[int, int]] = {}
        self.positions: dict[str, int | None] = {}
        self.asked: dict[str, int] = {}
        self.moved: dict[str, float] = {}
        self.speeds: dict[str, float] = {}

    # What the policy is told

    @rule(item=ITEMS, size=st.integers(1, 5))
    def insert(self, item: int, size: int) -> None:
        self.policy.inserted(item, size)
        if item not in self.sizes:
            self._touch(item)
        self.sizes[item] = size

    @rule(item=ITEMS)
    def access_one(self, item: int) -> None:
        self.policy.accessed(item)
        if item in self.sizes:
            self._touch(item)

    @rule(item=ITEMS)
    def remove(self, item: int) -> None:
        self.policy.removed(item)
        self.sizes.pop(item, None)

    @rule(reader=READERS, first=st.integers(0, 40), items=st.lists(ITEMS, max_size=30))
    def post(self, reader: str, first: int, items: list[int]) -> None:
        """Near the reader: behind, overlapping, with a gap."""
        self._know(reader)
        at = self.positions[reader]
        first = first if at is None else max(0, at - 10 + first)
        self.policy.post(reader, first, items)
        if at is None:
            at = self.positions[reader] = first
        self.orders[reader] |= {p: item for p, item in enumerate(items, first) if p >= at}

    @rule(reader=READERS, by=st.integers(-2, 8) | st.integers(300, 3000), more=st.integers(-2, 8))
    def advance(self, reader: str, by: int, more: int) -> None:
        self._know(reader)
        at = self.positions[reader]
        to = max(0, by if at is None else at + by)
        self.policy.advance(reader, to, to + more)
        self.asked[reader] = max(self.asked[reader], to + more)
        steps = 0 if at is None else max(0, to - at)
        order = self.orders[reader]
        for position in sorted(p for p in order if p < to):
            item = order.pop(position)
            if item in self.sizes:
                self._touch(item)
        self.positions[reader] = to if at is None else max(at, to)
        self.moved[reader] += steps
        if sum(self.moved.values()) >= next_use._WINDOW * len(self.moved):
            mean = sum(self.moved.values()) / len(self.moved)
            for name, moved in self.moved.items():
                close = abs(moved / mean - 1) <= next_use._ALIKE
                self.speeds[name] = 1.0 if close else max(moved / mean, next_use._SLOWEST)
                self.moved[name] /= 2

    @rule(reader=READERS, ahead=st.integers(-2, 8))
    def read(self, reader: str, ahead: int) -> None:
        position = (self.positions.get(reader) or 0) + ahead
        self.policy.read(reader, position)
        item = self.orders.get(reader, {}).pop(position, None)
        if item in self.sizes:
            self._touch(item)

    @rule(reader=READERS)
    def leave(self, reader: str) -> None:
        self.policy.leave(reader)
        for table in (self.orders, self.positions, self.asked, self.moved, self.speeds):
            table.pop(reader, None)  # type: ignore[attr-defined]

    @rule(dropped=st.integers(0, 4))
    def evict(self, dropped: int) -> None:
        for victim, _ in zip(self.policy.victims(), range(dropped), strict=False):
            self.policy.removed(victim)
            del self.sizes[victim]

    def _touch(self, item: int) -> None:
        self.clock += 1
        self.access[item] = self.clock

    def _know(self, reader: str) -> None:
        if reader not in self.orders:
            self.moved[reader] = sum(self.moved.values()) / len(self.moved) if self.moved else 0.0
            self.orders[reader], self.positions[reader], self.speeds[reader] = {}, None, 1.0
            self.asked[reader] = 0

    # What it must say

    def rank(self, item: int, *, coming: bool = False) -> tuple[float, int]:
        """The larger, the sooner it goes; of what comes only uses that nobody asks for yet count."""
        found = [
            (position - (self.positions[reader] or 0)) / self.speeds[reader]
            for reader, order in self.orders.items()
            for position, posted in order.items()
            if posted == item and not (coming and position < self.asked[reader])
        ]
        return (min(found), 0) if found else (math.inf, self.access.get(item, 0))

    @invariant()
    def victims_by_rank(self) -> None:
        order = list(self.policy.victims())
        assert sorted(order) == sorted(self.sizes)
        assert len(self.policy) == len(order)
        ranks = [self.rank(item) for item in order]
        assert ranks == sorted(ranks, reverse=True)

    @rule(item=ITEMS, size=st.integers(1, 12))
    def admit(self, item: int, size: int) -> None:
        own = self.rank(item, coming=True)[0]
        freed, worth = 0, True
        for victim in self.policy.victims(item):
            if freed >= size:
                break
            worth = worth and self.rank(victim)[0] > own
            freed += self.sizes[victim]
        assert self.policy.admits(item, size) == (worth and freed >= size and own < math.inf)

    @invariant()
    def nothing_is_kept_of_what_is_neither_cached_nor_posted(self) -> None:
        known = set(self.sizes).union(*(order.values() for order in self.orders.values()))
        assert set(self.policy._number) == known


TestNextUse = NextUseMachine.TestCase


_POSTS = st.tuples(st.integers(-5, 12), st.lists(st.integers(0, 2), max_size=8))
"""Where a post begins, against the reader's position, and the numbers in it: few, so that each is read many times."""


@given(st.lists(_POSTS | st.integers(0, 5) | st.integers(-2, 12).map(str), max_size=25))
def test_an_order_knows_where_each_is_read_next(steps: list[tuple[int, list[int]] | int | str]) -> None:
    """A number goes on by so much; one in a string has what is so far ahead read at once."""
    order, plain, position = PostedOrder(3), dict[int, int](), 0
    order.pass_to(0)
    for step in steps:
        if isinstance(step, str):
            assert order.forget(position + int(step)) == plain.pop(position + int(step), NOBODY)
        elif isinstance(step, int):
            position += step
            passed = order.pass_to(position)
            assert passed == [plain.pop(p) for p in sorted(plain) if p < position]
        else:
            first = max(0, position + step[0])
            posted = {p: number for p, number in enumerate(step[1], first) if p >= position}
            added, gone = order.post(first, step[1])
            assert added == list(posted.values())
            assert gone == [plain[p] for p in posted if p in plain]
            plain |= posted
        assert sorted(order.pending()) == sorted(plain.values())
        for number in range(3):
            assert order.next[number] == min((p for p, n in plain.items() if n == number), default=NOBODY)
            later = (p for p, n in plain.items() if n == number and p >= position + 3)
            assert order.next_from(number, position + 3) == min(later, default=NOBODY)
