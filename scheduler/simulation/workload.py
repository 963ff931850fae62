"""Workloads: a cluster, jobs with the shapes of a trace, and datasets that no public trace has.

Shapes are those of Alibaba's gpu-v2023 trace ("Beware of Fragmentation", USENIX ATC 2023), its sample with more
multi-GPU tasks: read from its CSV where it is there, else the 40 most frequent shapes (88 % of its tasks), which are
below. What the trace lacks is made up, from one seed: gangs, runtimes, queues, and which dataset a job reads (Zipf over
datasets that it can read once in its runtime).
"""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from forebay.scheduler.jobs import DataNeed, GpuRequest, Job, PodSet
from forebay.scheduler.model import Dataset, Gpu, Node, Queue, Store

GIB = 1 << 30

Shape = tuple[int, int, int, int]
"""Thousandths of a core, MiB, cards, thousandths of each card: a line of the trace."""

SHAPES: dict[Shape, int] = {
    (3152, 5600, 1, 810): 116, (11300, 49152, 1, 1000): 95, (11400, 48128, 1, 1000): 59, (3152, 5600, 1, 1000): 52,
    (11908, 47104, 1, 470): 43, (12500, 57344, 0, 0): 40, (8000, 30517, 1, 470): 40, (32000, 49152, 0, 0): 31,
    (18708, 64512, 1, 1000): 28, (11908, 47104, 1, 650): 26, (64200, 263168, 8, 1000): 25,
    (88000, 327680, 8, 1000): 24, (9810, 41560, 1, 1000): 22, (8000, 30517, 0, 0): 18, (12000, 24576, 1, 1000): 17,
    (15700, 58368, 1, 1000): 17, (11908, 47104, 1, 1000): 17, (15400, 51200, 0, 0): 13, (32200, 132096, 4, 1000): 12,
    (4000, 22888, 1, 320): 12, (16000, 32768, 1, 1000): 12, (8000, 16384, 1, 1000): 11, (4000, 24576, 1, 1000): 11,
    (12000, 16384, 1, 1000): 11, (16200, 66560, 2, 1000): 11, (16500, 51200, 0, 0): 10, (14200, 58368, 1, 1000): 10,
    (4000, 30517, 1, 230): 9, (24200, 93184, 1, 1000): 9, (4000, 15258, 1, 320): 9, (3152, 5600, 1, 590): 8,
    (8000, 30517, 1, 320): 8, (4152, 10600, 1, 550): 8, (11400, 77824, 1, 1000): 7, (8000, 32768, 1, 1000): 6,
    (60200, 320512, 4, 1000): 6, (4000, 15258, 1, 160): 6, (6000, 6144, 1, 460): 6, (11900, 77824, 1, 1000): 6,
    (30200, 160768, 2, 1000): 5,
}  # fmt: skip
"""Per mille of the tasks of openb_pod_list_multigpu50.csv."""

TRACE_FILE = "openb_pod_list_multigpu50.csv"


@dataclass(frozen=True)
class Plan:
    """What is simulated; every number is an assumption that a reader can change."""

    nodes: int = 10_000
    jobs: int = 100_000
    seed: int = 1
    load: float = 0.9
    """GPU-seconds that jobs ask for, of those that the cluster has while they arrive."""
    nodes_per_rack: int = 50
    racks_per_spine: int = 25
    gpus_per_node: int = 8
    cache_per_node: int = 1024 * GIB
    queues: int = 10
    datasets: int = 0
    """0: one for 50 jobs, so that larger runs have as many jobs on each."""
    zipf: float = 0.9
    dataset_median: int = 300 * GIB
    dataset_sigma: float = 1.2
    dataset_max: int = 5120 * GIB
    store_bandwidth: int = 100 * GIB
    """Bytes per second of the under-store, for the 80,000 GPUs of 10,000 nodes; smaller clusters get as much less."""
    flow_bandwidth: int = 10 * GIB
    """Bytes per second that one rack takes of one dataset."""
    read_rate: int = GIB // 2
    """Bytes per second that one GPU reads when all is cached."""
    data_fraction: float = 0.8
    """Jobs with cards that read a dataset."""
    gang_fraction: float = 0.04
    """Jobs that are gangs of pods with all cards of a node."""
    runtime_median_s: float = 900.0
    runtime_sigma: float = 1.2
    runtime_max_s: float = 6 * 3600.0
    expected_bandwidth: int = GIB
    """Bytes per second of the under-store that a user reckons with: his job asks for so much of its data to be warm
    that it can read the rest as fast as it computes."""
    gate_deadline_s: float = 1800.0
    """A job waits for its data for no longer."""
    bound_factor: float = 2.0
    """Declared bounds of runtimes are up to so many times too long."""
    trace: Path | None = None
    """Folder of the trace's CSVs."""


@dataclass(frozen=True)
class SimJob:
    """A job with what only the simulation knows."""

    job: Job
    compute_s: float
    """Runtime when nothing has to be waited for."""


@dataclass(frozen=True)
class Workload:
    """Everything that is given from outside. The jobs come in the order of their submission."""

    levels: tuple[str, ...]
    nodes: tuple[Node, ...]
    queues: tuple[Queue, ...]
    jobs: tuple[SimJob, ...]
    datasets: tuple[Dataset, ...] = ()
    stores: tuple[Store, ...] = ()
    read_rate: int = 0
    description: str = field(default="", compare=False)


def make(plan: Plan) -> Workload:
    """The workload of a plan; the same for the same plan, on every machine.

    Raises:
        ValueError: the plan contradicts itself, or the trace cannot be read.
    """
    check(plan)
    if plan.datasets == 0:
        plan = replace(plan, datasets=max(20, plan.jobs // 50))
    rng = np.random.default_rng(plan.seed)
    nodes = cluster(plan)
    datasets = _datasets(plan, rng)
    jobs = tuple(_jobs(plan, rng, datasets))
    cards = plan.nodes * plan.gpus_per_node
    share = cards * 1000 // plan.queues
    queues = (
        Queue("cluster", min={"gpu": cards * 1000}),
        *(Queue(f"team-{number:02}", "cluster", min={"gpu": share}) for number in range(plan.queues)),
    )
    bandwidth = max(1, plan.store_bandwidth * cards // 80_000)
    return Workload(
        ("spine", "rack"),
        nodes,
        queues,
        jobs,
        datasets,
        (Store("store", bandwidth, plan.flow_bandwidth),),
        plan.read_rate,
        f"{plan.nodes:,} nodes x {plan.gpus_per_node} GPUs, {plan.jobs:,} jobs at load {plan.load:g},"
        f" {plan.datasets:,} datasets, seed {plan.seed}",
    )


def check(plan: Plan) -> None:
    """Raises: ValueError: the plan contradicts itself, or there is no trace where it says."""
    for name in ("nodes", "jobs", "queues", "gpus_per_node", "nodes_per_rack", "racks_per_spine"):
        if getattr(plan, name) < 1:
            raise ValueError(f"{name} is {getattr(plan, name)}; at least 1 is needed")
    if plan.datasets < 0:
        raise ValueError(f"datasets is {plan.datasets}; 0 stands for one for 50 jobs")
    if not 0 < plan.load < math.inf:
        raise ValueError(f"load is {plan.load}; it has to be above 0, and finite")
    if plan.trace is not None:
        shapes_of(plan.trace)


def cluster(plan: Plan) -> tuple[Node, ...]:
    """Nodes that are alike, in racks and spines; cards in two NUMA nodes, all linked alike."""
    cards = tuple(Gpu("A100", 81920, card * 2 // plan.gpus_per_node) for card in range(plan.gpus_per_node))
    allocatable = {"cpu": 128_000, "memory": 1 << 20}
    return tuple(
        Node(
            f"node-{number:05}",
            allocatable,
            cards,
            topology=(
                f"spine-{number // plan.nodes_per_rack // plan.racks_per_spine:02}",
                f"rack-{number // plan.nodes_per_rack:03}",
            ),
            cache_bytes=plan.cache_per_node,
        )
        for number in range(plan.nodes)
    )


def _datasets(plan: Plan, rng: np.random.Generator) -> tuple[Dataset, ...]:
    sizes = plan.dataset_median * rng.lognormal(0.0, plan.dataset_sigma, plan.datasets)
    sizes = np.clip(sizes, GIB, plan.dataset_max).astype(np.int64)
    return tuple(Dataset(f"data-{number:04}", int(size), store="store") for number, size in enumerate(sizes))


def shapes_of(folder: Path | None) -> dict[Shape, int]:
    """How often each shape is in the trace; those above without a folder.

    Raises:
        ValueError: the trace is not there, or is another table.
    """
    if folder is None:
        return SHAPES
    found: dict[Shape, int] = {}
    try:
        with open(folder / TRACE_FILE, newline="") as lines:
            for line in csv.DictReader(lines):
                shape = (
                    int(line["cpu_milli"]), int(line["memory_mib"]), int(line["num_gpu"]), int(line["gpu_milli"]),
                )  # fmt: skip
                found[shape] = found.get(shape, 0) + 1
    except OSError as error:
        raise ValueError(f"{folder / TRACE_FILE} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError) as error:
        raise ValueError(f"{folder / TRACE_FILE} is no table of the gpu-v2023 trace: {error}") from error
    return found


def _jobs(plan: Plan, rng: np.random.Generator, datasets: Sequence[Dataset]) -> Iterator[SimJob]:
    shapes = [shape for shape in sorted(shapes_of(plan.trace)) if shape[2] <= plan.gpus_per_node]
    weights = np.array([shapes_of(plan.trace)[shape] for shape in shapes], dtype=np.float64)
    picked = rng.choice(len(shapes), plan.jobs, p=weights / weights.sum())
    gangs = rng.random(plan.jobs) < plan.gang_fraction
    pods = 2 ** rng.integers(1, 6, plan.jobs)
    pods = np.minimum(pods, max(1, plan.nodes // 4))
    pod_sets = {shape: _pod_set(shape, 1) for shape in shapes}
    whole = {count: _pod_set((64_000, 262_144, plan.gpus_per_node, 1000), int(count)) for count in {*pods.tolist()}}
    chosen = [whole[int(pods[i])] if gangs[i] else pod_sets[shapes[picked[i]]] for i in range(plan.jobs)]
    gpus = np.array([_gpus(one) for one in chosen])
    runtimes = plan.runtime_median_s * np.sqrt(1 + gpus / 8) * rng.lognormal(0.0, plan.runtime_sigma, plan.jobs)
    runtimes = np.clip(runtimes, 60.0, plan.runtime_max_s)
    span = float((gpus * runtimes).sum()) / (plan.load * plan.nodes * plan.gpus_per_node)
    arrivals = np.sort(rng.random(plan.jobs)) * span
    teams = rng.choice(plan.queues, plan.jobs, p=_zipf(plan.queues, 0.5))
    bounds = runtimes * rng.uniform(1.1, max(1.1, plan.bound_factor), plan.jobs)
    reads = rng.random(plan.jobs) < plan.data_fraction
    ranks = rng.permutation(plan.datasets)  # popularity is not tied to size
    reach = _Reach(plan, datasets, ranks)
    for i in range(plan.jobs):
        data: tuple[DataNeed, ...] = ()
        if reads[i] and gpus[i] > 0 and (dataset := reach.pick(gpus[i] * runtimes[i], rng)) is not None:
            needed = max(0.0, 1.0 - plan.expected_bandwidth / (plan.read_rate * float(gpus[i])))
            deadline = float(arrivals[i]) + plan.gate_deadline_s
            data = (DataNeed(dataset, needed, "require", deadline, plan.read_rate),)
        job = Job(
            f"job-{i:06}",
            f"team-{teams[i]:02}",
            (chosen[i],),
            submitted=float(arrivals[i]),
            data=data,
            max_run_s=float(bounds[i]),
        )
        yield SimJob(job, float(runtimes[i]))


def _pod_set(shape: Shape, count: int) -> PodSet:
    cpu, memory, cards, milli = shape
    gpus = GpuRequest(cards, milli) if cards else None
    return PodSet("main", count, requests={"cpu": cpu, "memory": memory}, gpus=gpus)


def _gpus(pod_set: PodSet) -> float:
    return 0.0 if pod_set.gpus is None else pod_set.count * pod_set.gpus.cards * pod_set.gpus.compute_milli / 1000


def _zipf(count: int, exponent: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    found: np.ndarray[tuple[int], np.dtype[np.float64]] = weights / weights.sum()
    return found


class _Reach:
    """Datasets by size, each prefix with its popularity: a job reads what it can read once in its runtime."""

    def __init__(
        self, plan: Plan, datasets: Sequence[Dataset], ranks: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> None:
        order = sorted(range(len(datasets)), key=lambda number: (datasets[number].size, number))
        self._names = [datasets[number].name for number in order]
        self._sizes = np.array([datasets[number].size for number in order], dtype=np.float64)
        popularity = _zipf(plan.datasets, plan.zipf)[ranks]
        self._sums = np.cumsum(popularity[order])
        self._rate = plan.read_rate

    def pick(self, gpu_s: float, rng: np.random.Generator) -> str | None:
        within = int(np.searchsorted(self._sizes, gpu_s * self._rate, "right"))
        if not within:
            return None
        at = rng.random() * self._sums[within - 1]
        return self._names[min(int(np.searchsorted(self._sums, at)), within - 1)]
