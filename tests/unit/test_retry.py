"""Retries: when, how long, and that no byte comes twice or never. Time and randomness are arguments."""

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.config import RetryConfig
from forebay.cacheruntime.errors import SourceDenied, SourceNotFound, SourceStale, SourceTimeout, SourceUnavailable
from forebay.cacheruntime.understore.base import Entry, Kind
from forebay.cacheruntime.understore.retry import Retrier, RetryingStore

DATA = bytes(range(256)) * 4


class Clock:
    """A clock that sleeping advances."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds


class FlakyStore:
    """A store with one file, DATA, that fails as scripted.

    Each number in `breaks` ends one read after so many bytes; afterwards reads go through.
    """

    url = "flaky://"
    pins_version = True
    lists_in_key_order = True

    def __init__(self, clock: Clock, breaks: list[int], piece: int = 100) -> None:
        self.clock = clock
        self.breaks = breaks
        self.piece = piece
        self.calls = 0
        self.closed = 0
        self.fault: Callable[[], Exception] = lambda: SourceUnavailable("it broke at http://host")

    def _maybe_fail(self) -> None:
        self.calls += 1
        if self.breaks:
            self.breaks.pop(0)
            raise self.fault()

    def probe(self) -> None:
        self._maybe_fail()

    def list_tree(self) -> Iterator[list[Entry]]:
        self._maybe_fail()
        yield [Entry("a", Kind.FILE)]
        self._maybe_fail()
        yield [Entry("b", Kind.FILE)]

    def list_directory(self, path: str) -> list[Entry]:
        self._maybe_fail()
        return [Entry("a", Kind.FILE)]

    def stat(self, path: str) -> Entry:
        self._maybe_fail()
        return Entry(path, Kind.FILE, len(DATA))

    def read_range(self, path: str, start: int, length: int, version: str) -> Iterator[bytes]:
        self.calls += 1
        left = self.breaks.pop(0) if self.breaks else None
        end = start + length
        while start < end:
            upto = min(end, start + self.piece)
            if left is not None:
                upto = min(upto, start + left)
                left -= upto - start
            if upto > start:
                yield DATA[start:upto]
            start = upto
            if left == 0:
                raise self.fault()
        if left is not None:
            raise self.fault()

    def close(self) -> None:
        self.closed += 1


def retrying(breaks: list[int], config: RetryConfig | None = None) -> tuple[RetryingStore, FlakyStore, Clock]:
    clock = Clock()
    inner = FlakyStore(clock, breaks)
    return RetryingStore(inner, config or RetryConfig(), clock, clock.sleep, random.Random(7)), inner, clock


@given(
    st.integers(0, len(DATA)),
    st.integers(0, len(DATA)),
    st.lists(st.integers(0, 300), max_size=8),
)
def test_stream_is_whole_wherever_it_breaks(start: int, length: int, breaks: list[int]) -> None:
    length = min(length, len(DATA) - start)
    store, inner, _ = retrying(list(breaks))
    assert b"".join(bytes(p) for p in store.read_range("f", start, length, "v")) == DATA[start : start + length]
    assert inner.breaks == []
    assert inner.calls == len(breaks) + 1


def test_delays_are_jittered_below_a_growing_ceiling() -> None:
    store, _, clock = retrying([0] * 9, RetryConfig(first_delay_s=0.1, max_delay_s=1.0, deadline_s=60))
    list(store.read_range("f", 0, 10, "v"))
    ceilings = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert len(clock.slept) == len(ceilings)
    assert all(0 <= slept <= ceiling for slept, ceiling in zip(clock.slept, ceilings, strict=True))
    assert len(set(clock.slept)) == len(ceilings)


def test_deadline_is_kept_and_carries_the_last_message() -> None:
    store, inner, clock = retrying([0] * 10_000, RetryConfig(deadline_s=30))
    with pytest.raises(SourceTimeout, match=r"gave up after \d+ tries in \d+\.\d s: it broke at http://host") as caught:
        list(store.read_range("f", 0, 10, "v"))
    assert isinstance(caught.value.__cause__, SourceUnavailable)
    assert clock.now - 1000 <= 30
    assert inner.calls > 5


def test_progress_begins_a_new_deadline() -> None:
    """A long transfer over a bad link goes on; one that stands still ends."""
    store, inner, _ = retrying([1] * 99, RetryConfig(deadline_s=30))
    got = b"".join(bytes(piece) for piece in store.read_range("f", 0, 100, "v"))
    assert got == DATA[:100]
    assert inner.calls >= 100
    store, _, clock = retrying([1] * 50 + [0] * 10_000, RetryConfig(deadline_s=30))
    began = clock.now
    with pytest.raises(SourceTimeout):
        list(store.read_range("f", 0, 100, "v"))
    assert clock.now - began > 25


def test_probe_has_its_own_deadline() -> None:
    store, _, clock = retrying([0] * 10_000, RetryConfig(deadline_s=1000, probe_deadline_s=8))
    with pytest.raises(SourceTimeout):
        store.probe()
    assert clock.now - 1000 <= 8


@pytest.mark.parametrize("error", [SourceDenied, SourceNotFound, SourceStale])
def test_permanent_errors_are_raised_at_once(error: type[Exception]) -> None:
    store, inner, clock = retrying([0] * 20)
    inner.fault = lambda: error("no")
    asks: list[Callable[[], object]] = [
        store.probe,
        lambda: store.stat("f"),
        lambda: store.list_directory(""),
        lambda: list(store.list_tree()),
        lambda: list(store.read_range("f", 0, 10, "v")),
    ]
    for ask in asks:
        with pytest.raises(error, match="no"):
            ask()
    assert inner.calls == len(asks)
    assert clock.slept == []


def test_single_calls_are_repeated() -> None:
    store, inner, _ = retrying([0, 0])
    assert store.stat("f").size == len(DATA)
    assert inner.calls == 3


def test_listing_begins_anew_only_before_its_first_page() -> None:
    store, inner, _ = retrying([0])
    assert [page[0].path for page in store.list_tree()] == ["a", "b"]
    pages = store.list_tree()
    assert next(pages)[0].path == "a"
    inner.breaks = [0]
    with pytest.raises(SourceUnavailable):
        next(pages)


def test_a_fault_after_the_last_byte_has_the_end_checked_again() -> None:
    # A store that compares versions at the end may fail there, with every byte given out.
    store, inner, _ = retrying([1000])
    assert b"".join(bytes(p) for p in store.read_range("f", 0, 10, "v")) == DATA[:10]
    assert inner.calls == 2


def test_the_store_inside_shows_through() -> None:
    store, inner, _ = retrying([])
    assert (store.url, store.pins_version, store.lists_in_key_order) == ("flaky://", True, True)
    store.close()
    assert inner.closed == 1


def test_retry_call_takes_its_own_deadline() -> None:
    clock = Clock()

    def fail() -> None:
        raise SourceUnavailable("down")

    with pytest.raises(SourceTimeout):
        Retrier(RetryConfig(), clock, clock.sleep, random.Random(1)).retry_call(fail, deadline_s=2)
    assert clock.now - 1000 <= 2
