"""Kueue's public scalability workloads, for figures beside their published ones.

Baseline (`make run-performance-scheduler`): 5 cohorts of 6 queues, each with 350 small, 100 medium and 50 large
workloads of 1, 5 and 20 cores that run for 200, 500 and 1,000 ms with priority 50, 100 and 200, created every 100, 500
and 1,200 ms; each queue has 20 cores of its own and may borrow 100. Topology: 640 nodes of 96 cores in 10 racks, the
same classes with 2, 4 and 8 pods, a third each with rack required, preferred and free.
"""

from collections.abc import Iterator

from forebay.scheduler.jobs import Job, PodSet, TopologyRequest
from forebay.scheduler.model import Node, Queue
from forebay.scheduler.settings import Settings, Weights
from forebay.scheduler.simulation.arms import Arm
from forebay.scheduler.simulation.run import Pace
from forebay.scheduler.simulation.workload import SimJob, Workload

CLASSES = (
    ("small", 350, 1, 0.2, 50, 0.1, 2),
    ("medium", 100, 5, 0.5, 100, 0.5, 4),
    ("large", 50, 20, 1.0, 200, 1.2, 8),
)
"""Name, workloads in each queue, cores, seconds, priority, seconds between two, pods of the topology workload."""

PACE = Pace(cycle_s=0.01, plan_s=0.05, preempt_s=0.05, grace_s=0.01, checkpoint_s=1e9)

ARM = Arm(
    "kueue",
    "quota, borrowing, reclaim and priority, as in Kueue",
    Settings(
        fairness="none",
        fair_preemption=False,
        warm_gate=False,
        prefetch=False,
        backfill=False,
        weights=Weights(domain=0.0),
    ),
)


def baseline(queues_each: int = 6) -> Workload:
    """15,000 workloads in 30 queues, without a topology."""
    return Workload(
        (), (Node("quota", {"cpu": 10**9}),), _queues(queues_each, 20_000), tuple(_jobs(queues_each, False))
    )


def topology(queues_each: int = 6) -> Workload:
    """15,000 workloads of several pods on 640 nodes. Each pod asks for the cores of its class: that is an
    assumption."""
    nodes = tuple(
        Node(f"r{rack}-n{number:02}", {"cpu": 96_000}, topology=("b", f"r{rack}"))
        for rack in range(10)
        for number in range(64)
    )
    share = 640 * 96_000 // (5 * queues_each)
    return Workload(("block", "rack"), nodes, _queues(queues_each, share), tuple(_jobs(queues_each, True)))


def _queues(each: int, cores: int) -> tuple[Queue, ...]:
    found = [Queue(f"cohort-{cohort}") for cohort in range(5)]
    for cohort in range(5):
        for number in range(each):
            found.append(
                Queue(
                    f"cohort-{cohort}-queue-{number}",
                    f"cohort-{cohort}",
                    min={"cpu": cores},
                    borrowing_limit={"cpu": 5 * cores},
                )
            )
    return tuple(found)


def _jobs(each: int, pods: bool) -> Iterator[SimJob]:
    found = []
    requests = (TopologyRequest(), TopologyRequest(required="rack"), TopologyRequest(preferred="rack"))
    for cohort in range(5):
        for number in range(each):
            for name, count, cores, seconds, priority, every, pod_count in CLASSES:
                for place in range(count):
                    pod_set = PodSet(requests={"cpu": cores * 1000})
                    if pods:
                        pod_set = PodSet(
                            count=pod_count, requests={"cpu": cores * 1000}, topology=requests[place % len(requests)]
                        )
                    job = Job(
                        f"{cohort}-{number}-{name}-{place:03}",
                        f"cohort-{cohort}-queue-{number}",
                        (pod_set,),
                        priority=priority,
                        submitted=place * every,
                    )
                    found.append(SimJob(job, seconds))
    return iter(sorted(found, key=lambda one: (one.job.submitted, one.job.name)))
