"""What came of a simulation, in numbers."""

from dataclasses import dataclass, field

import numpy as np

from forebay.scheduler.fair_share import jain


@dataclass(eq=False)
class Record:
    """One job's story."""

    name: str
    queue: str
    gpus: float
    submitted: float
    compute_s: float
    started: float | None = None
    finished: float | None = None
    idle_gpu_s: float = 0.0
    read: float = 0.0
    """Bytes of the first pass over its dataset."""
    warm: float = 0.0
    """Of these, bytes that were near when it started."""
    preemptions: int = 0


@dataclass(frozen=True)
class Report:
    """Of one arm. Times in seconds, means over jobs that ended."""

    arm: str
    jobs: int
    completion_s: float
    """Mean from submission to end."""
    completion_p95_s: float
    runtime_s: float
    """Mean runtime when nothing has to be waited for: no policy completes jobs sooner."""
    wait_s: float
    """Mean from submission to the first start."""
    wait_p95_s: float
    idle_gpu_h: float
    """GPU-hours of jobs that waited for data."""
    warm: float
    """Fraction of first-pass bytes that were near when their job started."""
    fetched_bytes: float
    """From the under-store."""
    utilisation: float
    """GPU-seconds held by jobs, of those there are until the last submission."""
    fragmentation: float
    """Mean fraction of free GPU that the mix of jobs cannot use."""
    fairness: float
    """Jain's index over queues of their mean slowdown (completion over runtime, at least one minute of it)."""
    preemptions: int
    makespan_s: float
    decided: int
    """Jobs admitted, those admitted again counted again."""
    deciding_s: float
    """CPU time of the scheduler's passes."""
    running_s: float
    """CPU time in all."""
    records: tuple[Record, ...] = field(default=(), repr=False)


@dataclass(eq=False)
class Meters:
    """What is measured while the simulation runs."""

    held_gpu_s: float = 0.0
    free_samples: list[tuple[float, float]] = field(default_factory=list)
    """(free thousandths, expected unusable ones)."""
    decided: int = 0
    deciding_s: float = 0.0


def report(
    arm: str, records: list[Record], meters: Meters, fetched: float, capacity: float, last: float, running_s: float
) -> Report:
    """Args: capacity: GPUs of the cluster; last: time of the last submission."""
    done = [record for record in records if record.finished is not None and record.started is not None]
    completion = np.array([(record.finished or 0.0) - record.submitted for record in done] or [0.0])
    wait = np.array([(record.started or 0.0) - record.submitted for record in done] or [0.0])
    read = sum(record.read for record in done)
    free = sum(sample[0] for sample in meters.free_samples)
    by_queue: dict[str, list[float]] = {}
    for record in done:
        slowdown = ((record.finished or 0.0) - record.submitted) / max(record.compute_s, 60.0)
        by_queue.setdefault(record.queue, []).append(slowdown)
    return Report(
        arm=arm,
        jobs=len(done),
        completion_s=float(completion.mean()),
        completion_p95_s=float(np.percentile(completion, 95)),
        runtime_s=float(np.mean([record.compute_s for record in done] or [0.0])),
        wait_s=float(wait.mean()),
        wait_p95_s=float(np.percentile(wait, 95)),
        idle_gpu_h=sum(record.idle_gpu_s for record in records) / 3600.0,
        warm=sum(record.warm for record in done) / read if read else 1.0,
        fetched_bytes=fetched,
        utilisation=meters.held_gpu_s / (capacity * last) if capacity * last else 0.0,
        fragmentation=sum(sample[1] for sample in meters.free_samples) / free if free else 0.0,
        fairness=jain([float(np.mean(by_queue[queue])) for queue in sorted(by_queue)]),
        preemptions=sum(record.preemptions for record in records),
        makespan_s=max((record.finished or 0.0 for record in done), default=0.0),
        decided=meters.decided,
        deciding_s=meters.deciding_s,
        running_s=running_s,
        records=tuple(records),
    )
