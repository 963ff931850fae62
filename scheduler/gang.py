"""Gangs: how few pods a job may start with, and what becomes of one that does not bind in time."""

from collections.abc import Callable, Iterable, Sequence

from forebay.scheduler.decisions import GivenUp, Release
from forebay.scheduler.jobs import PodSet
from forebay.scheduler.model import RunningJob
from forebay.scheduler.settings import Settings


def reduced(pod_sets: Sequence[PodSet], step: int, steps: int) -> tuple[int, ...]:
    """Pods of each set, from all (step 0) to the least (step `steps`), in proportion (Kueue's partial admission)."""
    return tuple(
        pod_set.count - (pod_set.count - pod_set.least) * step // steps if steps else pod_set.count
        for pod_set in pod_sets
    )


def steps_of(pod_sets: Sequence[PodSet]) -> int:
    return max(pod_set.count - pod_set.least for pod_set in pod_sets)


def first_step(steps: int, fits: Callable[[int], bool], low: int = 0) -> int | None:
    """The smallest step from `low` at which the job fits; None: not even at the last. What fits, fits with less."""
    if fits(low):
        return low
    high = steps
    if low >= high or not fits(high):
        return None
    low += 1
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle + 1
    return high


def backoff_s(base: float, retries: int, most: float) -> float:
    """Wait after the release number `retries`, from 1 on."""
    return min(base * 2.0 ** (retries - 1), most)


def short(running: Iterable[RunningJob], now: float, settings: Settings) -> list[Release]:
    """Jobs that have had fewer pods than their least for too long: what is left of them holds room for nothing."""
    return [
        Release(one.job.name, now, one.job.retries)
        for one in sorted(running, key=lambda one: one.job.name)
        if one.short_since is not None and now - one.short_since >= settings.short_s and one.evicted_for is None
    ]


def unbound(running: Iterable[RunningJob], now: float, settings: Settings) -> list[Release | GivenUp]:
    """Admitted jobs whose pods are not all bound though they should be."""
    found: list[Release | GivenUp] = []
    for one in sorted(running, key=lambda one: one.job.name):
        if one.bound or one.bind_by is None or now < one.bind_by:
            continue
        retries = one.job.retries + 1
        if settings.retries_max is not None and retries > settings.retries_max:
            found.append(GivenUp(one.job.name, f"did not bind in time {retries} times"))
        else:
            wait = backoff_s(settings.backoff_s, retries, settings.backoff_max_s)
            found.append(Release(one.job.name, now + wait, retries))
    return found
