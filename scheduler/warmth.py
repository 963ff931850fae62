"""How warm each cache domain is for a job, what cold bytes cost it, and whether it should wait for them.

Throughput of a job that reads d bytes of which c are cached, with f* its rate when all is cached and b its share of the
under-store, is min(f*, b / (1 - c / d)) (SiloD, EuroSys 2023): cached and cold samples are mixed in shuffled reads, so
the cold ones set the pace.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forebay.scheduler.jobs import DataNeed, Job
from forebay.scheduler.losses import Floats
from forebay.scheduler.model import Dataset, Snapshot, Store
from forebay.scheduler.nodes import Bools, Ints, NodeTable
from forebay.scheduler.settings import Settings

_ENDLESS = float("inf")


def throughput(full: float, bandwidth: float, cached: float, size: float) -> float:
    """Bytes per second of a job.

    Args:
        full: f*, its rate when all is cached.
        bandwidth: b, its share of the under-store.
        cached: c, bytes that are cached; all of `size` or more means that nothing is cold.
        size: d, bytes that it reads.
    """
    cold = 1.0 - cached / size if size else 0.0
    return full if cold <= 0 else min(full, bandwidth / cold)


def bandwidth_needed(full: float, cached: float, size: float) -> float:
    """Bytes per second from the under-store with which a job runs at full rate: the quota dimension `bandwidth`."""
    return full * max(0.0, 1.0 - cached / size) if size else 0.0


def stall_s(cold: float, bandwidth: float, full: float, size: float) -> float:
    """Seconds of the first pass over a dataset in which a job computes nothing, for it waits for cold bytes."""
    if cold <= 0:
        return 0.0
    if bandwidth <= 0:
        return _ENDLESS
    return max(0.0, cold / bandwidth - (size / full if full else 0.0))


@dataclass(frozen=True)
class View:
    """The cache as one job sees it."""

    stall_s: Floats
    """For each cache domain: seconds that it would wait there."""
    load_s: Floats
    """For each cache domain: what its cold bytes cost, in seconds of its GPUs: its share of the under-store is occupied
    for so long, even if it computes meanwhile, and the GPUs that wait for the store now wait longer."""


class WarmTable:
    """Warm bytes by dataset and cache domain, kept up to date."""

    def __init__(self, table: NodeTable, snapshot: Snapshot, settings: Settings) -> None:
        self._table = table
        self._settings = settings
        self.depth = table.depth(settings.cache_level) if settings.cache_level else max(len(table.levels) - 1, 0)
        self.domain_of = table.domain_of[self.depth]
        self.names = table.domain_names[self.depth]
        self.datasets: dict[str, Dataset] = {}
        self.stores: dict[str, Store] = {store.name: store for store in snapshot.stores}
        self.room = np.bincount(
            self.domain_of, [node.cache_bytes for node in table.nodes], minlength=len(self.names)
        ).astype(np.int64)
        """Cache bytes of each domain."""
        self._places: dict[str, int] = {}
        self._cached: Ints = np.zeros((len(snapshot.datasets), len(self.names)), dtype=np.int64)
        """Bytes by place of the dataset and domain."""
        self._readers: Ints = np.zeros_like(self._cached)
        """Running jobs that read it there."""
        self._sizes: Ints = np.zeros(len(snapshot.datasets), dtype=np.int64)
        self._nodes: dict[str, dict[int, int]] = {}
        self._mean_stalls: dict[tuple[str, float, float], float] = {}
        """By dataset, bandwidth and full rate, as long as nothing changes."""
        self.changed: set[str] = set()
        """Datasets of which more or less is cached than at the last pass."""
        for dataset in snapshot.datasets:
            self.add(dataset)

    def add(self, dataset: Dataset) -> None:
        """A dataset is there, or another than before."""
        place = self._places.setdefault(dataset.name, len(self._places))
        if place == len(self._cached):
            none = np.zeros((1, len(self.names)), dtype=np.int64)
            self._cached, self._readers = np.vstack([self._cached, none]), np.vstack([self._readers, none])
            self._sizes = np.append(self._sizes, 0)
        self._sizes[place] = dataset.size
        self.datasets[dataset.name] = dataset
        self.set_warm(dataset.name, dataset.warm)

    def set_warm(self, dataset: str, warm: Mapping[str, int]) -> None:
        """All that is cached of a dataset now, by node; nodes that are not there do not count."""
        rows = {self._table.index[name]: amount for name, amount in warm.items() if name in self._table.index}
        found = np.zeros(len(self.names), dtype=np.int64)
        for row, amount in rows.items():
            found[self.domain_of[row]] += amount
        self._nodes[dataset] = rows
        self._cached[self._places[dataset]] = np.minimum(found, self.size(dataset))
        self._mean_stalls.clear()
        self.changed.add(dataset)

    def set_domain(self, dataset: str, domain: int, amount: int, announce: bool = True) -> None:
        """As `set_warm` for one domain as a whole.

        Args:
            announce: look again at jobs that wait for the dataset.
        """
        self._cached[self._places[dataset], domain] = min(amount, self.size(dataset))
        self._mean_stalls.clear()
        if announce:
            self.changed.add(dataset)

    def place(self, dataset: str) -> int:
        """By which `set_domains` knows it."""
        return self._places[dataset]

    def set_domains(self, places: Ints, domains: Ints, amounts: Ints) -> None:
        """As `set_domain` for many, none of them announced or larger than the dataset."""
        self._cached[places, domains] = amounts
        self._mean_stalls.clear()

    def size(self, dataset: str) -> int:
        """Raises: ValueError: no such dataset."""
        if dataset not in self.datasets:
            raise ValueError(f"no dataset is named {dataset!r}; there are {', '.join(sorted(self.datasets)) or 'none'}")
        return self.datasets[dataset].size

    def warm(self, dataset: str) -> Ints:
        """Bytes that are cached in each domain; do not change it."""
        self.size(dataset)
        cached: Ints = self._cached[self._places[dataset]]
        return cached

    def fraction(self, dataset: str) -> float:
        """Of the dataset that is cached where most of it is."""
        return float(self.warm(dataset).max(initial=0)) / max(self.size(dataset), 1)

    def read(self, job: Job, rows: Iterable[int], sign: int) -> None:
        """The job begins (1) or ends (-1) to read its data on these nodes."""
        domains = [*{int(self.domain_of[row]) for row in rows}] if job.data else []
        for dataset in {need.dataset for need in job.data}:
            self._readers[self._places[dataset], domains] += sign

    def kept(self, dataset: str) -> Ints:
        """Bytes of the dataset that each domain cannot do without: all of it where a job reads it."""
        kept: Ints = np.where(self._readers[self._places[dataset]] > 0, self.size(dataset), 0)
        return kept

    def free(self) -> Ints:
        """Cache bytes of each domain that hold nothing."""
        free: Ints = self.room - self._cached.sum(axis=0)
        return free

    def spare(self) -> Ints:
        """Cache bytes of each domain that are free, or hold what no running job reads there."""
        spare: Ints = self.room - self._sizes @ (self._readers > 0)
        return spare

    def bandwidth(self, dataset: str) -> float:
        store = self.stores.get(self.datasets[dataset].store)
        return store.share if store is not None else _ENDLESS

    def crowd(self, dataset: str) -> float:
        """GPU-seconds that one more byte from the dataset's store costs those who wait for it now."""
        store = self.stores.get(self.datasets[dataset].store)
        return store.waiting_gpus / store.bandwidth if store is not None and store.bandwidth else 0.0

    def view(self, job: Job, gpus: float) -> View | None:
        """None: the job reads nothing that is known here."""
        if not job.data:
            return None
        stall, load = np.zeros(len(self.names)), np.zeros(len(self.names))
        for need in job.data:
            size, cached = self.size(need.dataset), self.warm(need.dataset)
            bandwidth, full = self.bandwidth(need.dataset), need.read_rate * gpus
            if bandwidth < _ENDLESS and size:
                overlapped = size / full if full else 0.0
                seconds = (size - cached) / max(bandwidth, 1e-9)
                load += seconds + (size - cached) * (self.crowd(need.dataset) / max(gpus, 0.1))
                stall += np.maximum(0.0, seconds - overlapped)
        return View(stall, load)

    def mean_stall_s(self, job: Job, gpus: float) -> float:
        """Seconds that the job would wait for cold bytes in a cache domain, if each were as likely."""
        total = 0.0
        for need in job.data:
            key = (need.dataset, self.bandwidth(need.dataset), need.read_rate * gpus)
            if key not in self._mean_stalls:
                self._mean_stalls[key] = self._mean_stall_s(*key)
            total += self._mean_stalls[key]
        return total

    def _mean_stall_s(self, dataset: str, bandwidth: float, full: float) -> float:
        size = self.size(dataset)
        if bandwidth == _ENDLESS or not size or not len(self.names):
            return 0.0
        seconds = (size - self.warm(dataset)) / max(bandwidth, 1e-9)
        return float(np.maximum(0.0, seconds - (size / full if full else 0.0)).mean())

    def required(self, job: Job, now: float) -> list[DataNeed]:
        """The data that the job waits for at this time."""
        if not self._settings.warm_gate:
            return []
        return [need for need in job.data if need.mode == "require" and (need.deadline is None or now < need.deadline)]

    def where(self, needs: Sequence[DataNeed]) -> Bools:
        """Cache domains in which all of these are warm enough."""
        found: Bools = np.ones(len(self.names), dtype=np.bool_)
        for need in needs:
            found &= self.warm(need.dataset) >= need.min_warm * self.size(need.dataset)
        return found

    def nodes(self, job: Job, now: float) -> Bools | None:
        """Nodes where all data that the job waits for is warm enough; None: any, it waits for none."""
        needs = self.required(job, now)
        return self.where(needs)[self.domain_of] if needs else None

    def lacks(self, job: Job, now: float) -> bool:
        """Whether the job waits for data that is nowhere warm enough, together."""
        needs = self.required(job, now)
        return bool(needs) and not self.where(needs).any()

    def labelled(self, datasets: Iterable[str]) -> Bools:
        """Nodes that hold any byte of any of the datasets: the label that Fluid's affinity goes by."""
        found = np.zeros(len(self._table), dtype=np.bool_)
        for dataset in datasets:
            found |= self.warm(dataset)[self.domain_of] > 0 if not self._nodes[dataset] else False
            found[list(self._nodes[dataset])] = True
        return found

    def amounts(self, job: Job, gpus: float) -> dict[str, int]:
        """What the job's data costs in quota: cache bytes, and bandwidth for what is cold in the warmest domain."""
        cache = bandwidth = 0
        for need in job.data:
            size = self.size(need.dataset)
            cached = int(self.warm(need.dataset).max(initial=0))
            cache += int(size * need.min_warm)
            bandwidth += int(bandwidth_needed(need.read_rate * gpus, cached, size))
        return {"cache": cache, "bandwidth": bandwidth} if job.data else {}
