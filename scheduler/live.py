"""A running job as the scheduler keeps it, and when it ends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forebay.scheduler.jobs import Job, PlacedPods
from forebay.scheduler.model import RunningJob
from forebay.scheduler.nodes import Demand
from forebay.scheduler.pending import Shape
from forebay.scheduler.quota import QuotaNode, Vector


@dataclass(eq=False)
class Live:
    """A running job at work."""

    running: RunningJob
    shape: Shape
    leaf: QuotaNode
    charged: Vector
    """Its quota."""
    rows: tuple[tuple[int, float], ...] = ()
    """Nodes of its pods, with the GPUs on each, for weighing."""

    @property
    def job(self) -> Job:
        return self.running.job

    def pods(self) -> Iterator[tuple[PlacedPods, Demand]]:
        return self.shape.pods(self.running.pods)


def ends_of(lives: Sequence[Live], now: float) -> NDArray[np.float64]:
    """When each of these jobs has ended for certain; all of them have a bound of their runtime.

    One that has run for longer than its bound is taken to need as long again as the bound, and so on in doublings.
    """
    started = np.array([live.running.started for live in lives], dtype=np.float64)
    bound = np.array([live.running.job.max_run_s for live in lives], dtype=np.float64)
    started += np.array([live.running.load_s for live in lives], dtype=np.float64)
    over = (now - started) / np.maximum(bound, 1e-9)
    ends: NDArray[np.float64] = started + bound * np.exp2(np.ceil(np.log2(np.maximum(over, 1.0))))
    return ends
