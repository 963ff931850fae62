"""Clusters in which no card is free, and a large job that comes: nothing starts without victims."""

import random
from collections.abc import Sequence
from dataclasses import replace

from clusters import job, node, on

from forebay.scheduler.jobs import GpuRequest, Job, TopologyRequest
from forebay.scheduler.model import Node, Queue, RunningJob, Snapshot
from forebay.scheduler.settings import Settings

SETTINGS = [Settings(fairness=fairness, growth=False) for fairness in ("drf", "hdrf", "borrowed", "usage", "none")]


def queues(rng: random.Random, total: int, part: int) -> tuple[Queue, ...]:
    """Two beside each other and one above: `a`, of which most newcomers are, has a large min.

    Args:
        part: the others have at most a part of so many of the total.
    """

    def leaf(name: str, parent: str, least: int) -> Queue:
        return Queue(
            name, parent, min={"gpu": least}, weight=rng.choice([1.0, 2.0]),
            preempt=rng.choice(["lower", "later"]), reclaim=rng.choice(["any", "any", "any", "lower-priority"]),
        )  # fmt: skip

    small = total // part // 1000 * 1000
    return (
        Queue("root", min={"gpu": total}),
        Queue("left", "root"),
        leaf("a", "left", rng.randrange(total // 4, total - 2 * small, 1000)),
        leaf("b", "left", rng.randrange(0, small + 1, 1000)),
        leaf("c", "root", rng.randrange(0, small + 1, 1000)),
    )


def fill(rng: random.Random, nodes: Sequence[Node], single: bool = False, elastic: bool = True) -> list[RunningJob]:
    """Jobs on all cards: of one pod and of several, some that can do with less, some groups of two gangs.

    Args:
        single: all of them have one card.
        elastic: some can do with less.
    """
    free = {one.name: [*range(len(one.gpus))] for one in nodes}
    found: list[RunningJob] = []
    while any(free.values()):
        names = [name for name, cards in free.items() if cards]
        size = 1 if single else rng.choice([1, 1, 1, 2, 2, 4])
        pods = [name for name in rng.sample(names, len(names)) if len(free[name]) >= size]
        if not pods:
            continue
        pods = pods[: 1 if single else rng.choice([1, 1, 1, 2, 3])]
        cards = [tuple(free[name].pop(0) for _ in range(size)) for name in pods]
        one = job(
            f"r{len(found):02}", rng.choice("bbbccca"), len(pods), size,
            priority=rng.choice([-1, 0, 0, 1]), submitted=float(rng.randrange(20)),
            pods={"min_count": rng.choice([None, 1]) if elastic else None}, preemptible=rng.random() < 0.9,
        )  # fmt: skip
        found.append(on(one, *pods, started=float(rng.randrange(60)), cards=cards))
    if not single and rng.random() < 0.3:
        for place in range(2):
            member = replace(found[place].job, queue=found[0].job.queue, group="g", group_size=2)
            found[place] = replace(found[place], job=member)
    return found


def newcomer(rng: random.Random, name: str = "new", queue: str = "a") -> Job:
    """It wants several cards, mostly on several nodes."""
    topology = rng.choice(
        [TopologyRequest(), TopologyRequest(), TopologyRequest("rack"), TopologyRequest(None, "rack")]
    )
    return job(
        name, queue, rng.choice([1, 2, 3, 4]), share=GpuRequest(rng.choice([1, 2, 3, 4])),
        priority=rng.choice([0, 2, 2]), submitted=50.0,
        pods={"topology": topology, "min_count": rng.choice([None, None, 1])},
    )  # fmt: skip


def full(seed: int, single: bool = False, newcomers: int = 1, elastic: bool = True) -> tuple[Snapshot, Settings]:
    """A cluster at 100 s. The jobs that come are of the queue `a`, those after the first of any queue."""
    rng = random.Random(seed)
    nodes = tuple(
        node(f"n{rack}{number}", 4, topology=(f"r{rack}",))
        for rack in range(rng.randrange(2, 4))
        for number in range(rng.randrange(2, 4))
    )
    waiting = tuple(
        newcomer(rng, f"new{place}", "a" if place == 0 else rng.choice("abc")) for place in range(newcomers)
    )
    tree = queues(rng, 4000 * len(nodes), 3 if single else 8)
    snapshot = Snapshot(100.0, ("rack",), nodes, tree, waiting, tuple(fill(rng, nodes, single, elastic)))
    return snapshot, SETTINGS[seed % len(SETTINGS)]
