"""Several arms on one workload or more, each in a process of its own."""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import active_children, get_context

from forebay.scheduler.simulation.arms import arm_named
from forebay.scheduler.simulation.report import Report
from forebay.scheduler.simulation.run import simulate
from forebay.scheduler.simulation.workload import Plan, check, make


def compare(tasks: Sequence[tuple[Plan, str]], processes: int | None = None) -> Iterator[Report]:
    """Reports in the order of the tasks, each as soon as it and those before it are there, without `records`.

    Args:
        tasks: plans with names of arms.
        processes: at once; None: as many as this process may use cores.

    Raises:
        ValueError: there is no such arm, or a plan contradicts itself.

    Cancellation: whoever stops early, by an exception or by closing the iterator, ends the processes.
    """
    for plan, arm in tasks:
        check(plan)
        arm_named(arm)
    return _outcomes(tasks, min(len(tasks), processes or len(os.sched_getaffinity(0))))


def _outcomes(tasks: Sequence[tuple[Plan, str]], count: int) -> Iterator[Report]:
    if count < 2:
        yield from (_one(plan, arm) for plan, arm in tasks)
        return
    # Each makes the workload anew from its seed: that is quicker than sending it.
    before = active_children()
    pool = ProcessPoolExecutor(count, get_context("spawn"))
    try:
        # Ctrl-C reaches the whole process group: they inherit that it is blocked, and are ended below.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            found = pool.map(_one, *zip(*tasks, strict=True))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield from found
    except BaseException:
        for process in active_children():
            if process not in before:
                process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _one(plan: Plan, arm: str) -> Report:
    return replace(simulate(make(plan), arm_named(arm)), records=())
