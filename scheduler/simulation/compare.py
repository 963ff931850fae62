"""Several arms on one workload, each in a process of its own."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from forebay.scheduler.simulation.arms import arm_named
from forebay.scheduler.simulation.report import Report
from forebay.scheduler.simulation.run import simulate
from forebay.scheduler.simulation.workload import Plan, make


def compare(plan: Plan, arms: Sequence[str], processes: int | None = None) -> list[Report]:
    """Reports in the order of the arms, without the records of single jobs.

    Args:
        processes: at once; None: as many as this process may use cores.

    Raises:
        ValueError: there is no such arm, or the plan contradicts itself.
    """
    for arm in arms:
        arm_named(arm)
    count = min(len(arms), processes or len(os.sched_getaffinity(0)))
    if count < 2:
        return [_one(plan, arm) for arm in arms]
    # Each makes the workload anew from its seed: that is quicker than sending it.
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        return list(pool.map(_one, [plan] * len(arms), arms))


def _one(plan: Plan, arm: str) -> Report:
    return replace(simulate(make(plan), arm_named(arm)), records=())
