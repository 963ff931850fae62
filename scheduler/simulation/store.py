"""The under-store and the caches of racks, as fluids: loads share bandwidth equally, caches keep what was used last."""

import heapq
import math
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(eq=False)
class Load:
    """Bytes of one dataset on their way into one domain."""

    dataset: str
    domain: int
    total: float
    at: float
    """Where the shared clock of its class stands when it is done."""
    ahead: bool = False
    """A prefetch: it takes only the bandwidth of its class."""
    done: bool = False
    cached: bool = True
    """It stays; if not, there was no room for it."""
    waiters: list[str] = field(default_factory=list)
    """Jobs that read it."""
    slot: int = -1
    """Among `LoadTable`."""


class _Class:
    """Loads that are served alike: each gets as much per second as the others, up to a cap.

    All are known by one number, the bytes that a load since the beginning would have got; so an event costs O(log n).
    """

    def __init__(self, cap: float) -> None:
        self._cap = cap
        self.served = 0.0
        self.queue: list[tuple[float, int, Load]] = []
        self.count = 0

    def rate(self, bandwidth: float) -> float:
        return min(self._cap, bandwidth / self.count) if self.count else 0.0

    def trim(self) -> None:
        while self.queue and self.queue[0][2].done:
            heapq.heappop(self.queue)


class UnderStore:
    """One store: loads that jobs wait for, and prefetches, which have at least their share and what others leave."""

    def __init__(self, bandwidth: float, flow: float, prefetch_share: float) -> None:
        cap = flow or math.inf
        self.bandwidth = bandwidth
        self._share = prefetch_share
        self._urgent, self._ahead = _Class(cap), _Class(cap)
        self._now = 0.0
        self._numbers = 0
        self.delivered = 0.0

    @property
    def loads(self) -> int:
        return self._urgent.count + self._ahead.count

    @property
    def served(self) -> tuple[float, float]:
        """Where the shared clocks stand: of loads that jobs wait for, and of prefetches."""
        return self._urgent.served, self._ahead.served

    def _rates(self) -> tuple[float, float]:
        reserved = self.bandwidth * self._share if self._ahead.count else 0.0
        urgent = self._urgent.rate(self.bandwidth - reserved)
        ahead = self._ahead.rate(self.bandwidth - urgent * self._urgent.count)
        if self._ahead.count:
            urgent = self._urgent.rate(self.bandwidth - ahead * self._ahead.count)
        return urgent, ahead

    def advance(self, now: float) -> None:
        """Bytes flow until `now`; nothing may end in between, see `next_end`."""
        urgent, ahead = self._rates()
        elapsed = now - self._now
        self._urgent.served += urgent * elapsed
        self._ahead.served += ahead * elapsed
        self.delivered += (urgent * self._urgent.count + ahead * self._ahead.count) * elapsed
        self._now = now

    def start(self, dataset: str, domain: int, amount: float, ahead: bool) -> Load:
        """Begin at the time of the last `advance`."""
        one = self._ahead if ahead else self._urgent
        load = Load(dataset, domain, amount, one.served + amount, ahead)
        self._push(one, load)
        return load

    def _push(self, one: _Class, load: Load) -> None:
        self._numbers += 1
        one.count += 1
        heapq.heappush(one.queue, (load.at, self._numbers, load))

    def left(self, load: Load) -> float:
        """Bytes that are still missing."""
        one = self._ahead if load.ahead else self._urgent
        return 0.0 if load.done else max(0.0, load.at - one.served)

    def hurry(self, load: Load, more: float = 0.0) -> Load:
        """A prefetch that a job waits for by now becomes urgent, and gets so many more bytes."""
        if not load.ahead or load.done:
            return load
        left = self.left(load) + more
        self._end(self._ahead, load)
        fresh = Load(load.dataset, load.domain, load.total + more, self._urgent.served + left)
        fresh.cached, fresh.waiters, fresh.slot = load.cached, load.waiters, load.slot
        self._push(self._urgent, fresh)
        return fresh

    def cancel(self, load: Load) -> None:
        if not load.done:
            self._end(self._ahead if load.ahead else self._urgent, load)

    @staticmethod
    def _end(one: _Class, load: Load) -> None:
        load.done = True
        one.count -= 1

    def next_end(self) -> float:
        """When the next load is done if nothing changes; infinite if there is none."""
        found = math.inf
        for one, rate in zip((self._urgent, self._ahead), self._rates(), strict=True):
            one.trim()
            if one.queue and rate > 0:
                found = min(found, self._now + max(0.0, one.queue[0][0] - one.served) / rate)
        return found

    def ended(self) -> list[Load]:
        """Loads that are done at the time of the last `advance`."""
        found = []
        for one in (self._urgent, self._ahead):
            one.trim()
            while one.queue and one.queue[0][0] <= one.served * (1 + 1e-12) + 1.0:
                load = heapq.heappop(one.queue)[2]
                if not load.done:
                    self._end(one, load)
                    found.append(load)
                one.trim()
        return found


class LoadTable:
    """How far loads are, as arrays; those that will not stay in a cache are left out."""

    def __init__(self) -> None:
        self._where = np.zeros((2, 64), dtype=np.int64)
        self._base = np.zeros(64)
        self._total = np.zeros(64)
        self._at = np.zeros(64)
        self._ahead = np.zeros(64, dtype=np.int64)
        self._used = np.zeros(64, dtype=np.bool_)
        self._free = [*range(64)]

    def add(self, load: Load, dataset: int, held: int) -> None:
        """Args: held: bytes that were cached before."""
        if not self._free:
            size = len(self._base)
            self._free = [*range(size, 2 * size)]
            self._where = np.concatenate([self._where, np.zeros_like(self._where)], axis=1)
            for name in ("_base", "_total", "_at", "_ahead", "_used"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros_like(getattr(self, name))]))
        load.slot = slot = self._free.pop()
        self._where[:, slot] = dataset, load.domain
        self._base[slot], self._total[slot] = held + load.total, load.total
        self._used[slot] = True
        self.change(load)

    def change(self, load: Load) -> None:
        """It is served in another class than before, or is for more bytes."""
        if load.slot >= 0:
            self._base[load.slot] += load.total - self._total[load.slot]
            self._total[load.slot] = load.total
            self._at[load.slot], self._ahead[load.slot] = load.at, load.ahead

    def remove(self, load: Load) -> None:
        if load.slot >= 0:
            self._used[load.slot] = False
            self._free.append(load.slot)

    def cached(self, store: UnderStore) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Datasets, domains, and how many bytes are cached there now."""
        slots = np.flatnonzero(self._used)
        served = np.array(store.served)[self._ahead[slots]]
        amounts = self._base[slots] - np.maximum(0.0, self._at[slots] - served)
        return self._where[0, slots], self._where[1, slots], amounts.astype(np.int64)


class DomainCache:
    """What one domain has cached: least recently used datasets go first; those in use stay."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.used = 0
        self._held: OrderedDict[str, int] = OrderedDict()
        self._readers: dict[str, int] = {}

    def held(self, dataset: str) -> int:
        return self._held.get(dataset, 0)

    def touch(self, dataset: str) -> None:
        if dataset in self._held:
            self._held.move_to_end(dataset)

    def read(self, dataset: str, sign: int) -> None:
        """A reader (or a load) comes (1) or goes (-1)."""
        self._readers[dataset] = self._readers.get(dataset, 0) + sign

    def make_room(self, amount: int, keep: str) -> tuple[list[str], bool]:
        """Datasets that are dropped for `amount` bytes of `keep`, and whether these have room now."""
        dropped: list[str] = []
        for dataset in list(self._held):
            if self.used + amount <= self.room:
                break
            if dataset != keep and not self._readers.get(dataset):
                self.used -= self._held.pop(dataset)
                dropped.append(dataset)
        return dropped, self.used + amount <= self.room

    def put(self, dataset: str, amount: int) -> None:
        """So many more bytes of a dataset are there."""
        self._held[dataset] = self._held.get(dataset, 0) + amount
        self.used += amount
        self._held.move_to_end(dataset)
