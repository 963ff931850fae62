"""Small clusters for tests of the scheduler."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from forebay.scheduler.decide import decide
from forebay.scheduler.decisions import Decisions
from forebay.scheduler.gpu_sets import points
from forebay.scheduler.jobs import GpuRequest, Job, PlacedPods, PodSet, TopologyRequest
from forebay.scheduler.model import Gpu, Node, Queue, RunningJob, Snapshot
from forebay.scheduler.settings import Settings


def node(name: str, gpus: int = 0, cpu: int = 0, **more: Any) -> Node:
    """A node with cards that are alike, and cores."""
    cards = tuple(Gpu() for _ in range(gpus))
    return Node(name, {"cpu": cpu * 1000} if cpu else {}, cards, **more)


def racks(*sizes: int, gpus: int = 1, block: str = "b") -> tuple[Node, ...]:
    """Racks of one block, with so many nodes each."""
    return tuple(
        node(f"{block}-r{rack}-n{number}", gpus, topology=(block, f"r{rack}"))
        for rack, size in enumerate(sizes)
        for number in range(size)
    )


def job(name: str, queue: str = "q", count: int = 1, gpus: int = 0, cpu: int = 0, **more: Any) -> Job:
    """A job of one pod set; `pods` are further arguments of the pod set, `share` a GPU request."""
    pods: dict[str, Any] = more.pop("pods", {})
    share: GpuRequest | None = more.pop("share", GpuRequest(gpus) if gpus else None)
    requests: Mapping[str, int] = more.pop("requests", {"cpu": cpu * 1000} if cpu else {})
    return Job(name, queue, (PodSet(count=count, requests=requests, gpus=share, **pods),), **more)


def on(one: Job, *nodes: str, started: float = 0.0, cards: Sequence[tuple[int, ...]] = (), **more: Any) -> RunningJob:
    """The job running with a pod on each of these nodes, on these cards."""
    pods = tuple(PlacedPods("main", name, (cards[place],) if cards else ()) for place, name in enumerate(nodes))
    return RunningJob(one, started, pods, **more)


def required(level: str) -> dict[str, Any]:
    return {"topology": TopologyRequest(required=level)}


def preferred(level: str) -> dict[str, Any]:
    return {"topology": TopologyRequest(preferred=level)}


def links(cards: int, pairs: Mapping[tuple[int, int], str], other: str = "SYS") -> tuple[tuple[int, ...], ...]:
    """A matrix of points: those of `pairs`, and `other` between all the rest."""

    def between(one: int, two: int) -> int:
        return 0 if one == two else points(pairs.get((min(one, two), max(one, two)), other))

    return tuple(tuple(between(one, two) for two in range(cards)) for one in range(cards))


def outcome(
    nodes: Sequence[Node],
    queues: Sequence[Queue],
    waiting: Sequence[Job],
    running: Sequence[RunningJob] = (),
    settings: Settings | None = None,
    **more: Any,
) -> Decisions:
    levels = ("block", "rack") if nodes and len(nodes[0].topology) == 2 else ()
    snapshot = Snapshot(
        nodes=tuple(nodes), queues=tuple(queues), waiting=tuple(waiting), running=tuple(running),
        levels=more.pop("levels", levels), **more,
    )  # fmt: skip
    return decide(snapshot, settings)


def admitted(decisions: Decisions) -> list[str]:
    return [admission.job for admission in decisions.admissions]


def evicted(decisions: Decisions) -> set[str]:
    return {eviction.job for eviction in decisions.evictions}


def used_nodes(decisions: Decisions, name: str) -> dict[str, int]:
    """Pods of an admitted job by node."""
    (admission,) = (one for one in decisions.admissions if one.job == name)
    found: dict[str, int] = {}
    for placed in admission.pods:
        found[placed.node] = found.get(placed.node, 0) + placed.count
    return found


def used_racks(decisions: Decisions, name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for node_name, count in used_nodes(decisions, name).items():
        rack = node_name.split("-")[1]
        found[rack] = found.get(rack, 0) + count
    return found


def stage(decisions: Decisions, name: str) -> str:
    """Of a job that waits."""
    (wait,) = (one for one in decisions.waits if one.job == name)
    return wait.stage


def divided(total: int, queues: Sequence[Queue], asked: Sequence[int], fairness: str) -> list[int]:
    """How many jobs of one `x` of each queue start, of so many that wait, where there are `total`."""
    root = Queue("root", min={"x": total})
    waiting = [
        job(f"{queue.name}{place}", queue.name, requests={"x": 1})
        for queue, count in zip(queues, asked, strict=True)
        for place in range(count)
    ]
    settings = Settings(fairness=fairness, preemption=False)  # type: ignore[arg-type]
    tree = [root, *(replace(queue, parent="root") for queue in queues)]
    started = {*admitted(outcome([Node("n", {"x": 10 * total})], tree, waiting, settings=settings))}
    return [sum(one.queue == queue.name for one in waiting if one.name in started) for queue in queues]


LARGE = node("n", cpu=1000)
"""A node on which room is no matter."""


def cohort(*queues: tuple[str, int], **more: Any) -> list[Queue]:
    """Queues with so many cores of min, which lend to each other."""
    return [Queue("cohort"), *(Queue(name, "cohort", min={"cpu": cores * 1000}, **more) for name, cores in queues)]


def run(name: str, queue: str, cpu: int, started: float = 0.0, **more: Any) -> RunningJob:
    """A job of one pod on the large node."""
    return on(job(name, queue, cpu=cpu, **more), "n", started=started)


def decided(
    queues: Sequence[Queue],
    waiting: Sequence[Job],
    running: Sequence[RunningJob] = (),
    settings: Settings | None = None,
    **more: Any,
) -> Decisions:
    """`outcome` on the large node at 100 s."""
    return outcome([LARGE], queues, waiting, running, settings, now=more.pop("now", 100.0), **more)
