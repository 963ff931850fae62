"""Several arms on one workload or more, each in a process of its own."""

import gc
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from multiprocessing import active_children, get_context

from forebay.scheduler.simulation.arms import arm_named
from forebay.scheduler.simulation.report import Report
from forebay.scheduler.simulation.run import simulate
from forebay.scheduler.simulation.workload import Plan, Workload, check, make


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
        with _interrupts_later():
            found = pool.map(_one, *zip(*tasks, strict=True))
        yield from found
    except BaseException:
        for process in active_children():
            if process not in before:
                process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C reaches the whole process group: processes that start inherit that it is blocked, and their parent, who
    ends them, hears of it when all of them have what they need to start.

    To block it here is not enough for that: another thread of this process (numpy has some) may take the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if came:
        signal.raise_signal(signal.SIGINT)


def _one(plan: Plan, arm: str) -> Report:
    workload = _workload(plan)
    with _no_collections():
        return replace(simulate(workload, arm_named(arm)), records=())


@lru_cache(maxsize=1)
def _workload(plan: Plan) -> Workload:
    """Several arms of a process run on it; nothing of it is changed by a run."""
    return make(plan)


@contextmanager
def _no_collections() -> Iterator[None]:
    """A run makes many objects that live long, and next to no cycles: to look for those took a 15th of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
