"""Why each waiting job waits, what would let it start, and when that may be."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from forebay.scheduler.admission import THE_GROUP, not_warm, over_quota
from forebay.scheduler.decisions import Prefetch, Stage, Wait
from forebay.scheduler.estimates import Releases
from forebay.scheduler.impossible import A_CHANGE, impossible
from forebay.scheduler.jobs import Job
from forebay.scheduler.quota import Vector
from forebay.scheduler.refusals import Refusal
from forebay.scheduler.state import State


def explain(
    state: State, refusals: Mapping[str, Refusal], no_room: Mapping[int, Refusal], loads: Collection[Prefetch] | None
) -> tuple[Wait, ...]:
    """A Wait for each waiting job, and for each admitted one that is not bound yet.

    Args:
        refusals: of the pass that has just been made, by job.
        no_room: of the same, by `id` of the shape.
        loads: that are to be made; None: that was not looked at.
    """
    releases = Releases(state)
    loaded = None if loads is None else {load.dataset for load in loads}
    found: list[Wait] = []
    shares: dict[str, Vector] = {}
    busy = max(1, sum(1 for queue in state.queues.values() if len(queue)))
    for name in sorted(state.queues):
        ahead = 0.0
        waiting_before: str | None = None
        for position, rank in enumerate(state.queues[name].in_order(), 1):
            job = state.waiting[rank[2]]
            ahead += state.shape(job).gpus
            refusal = _never(state, job, refusals.get(job.name), no_room)
            refusal = refusal or _cold(state, job) or refusals.get(job.name)
            refusal = refusal or _refusal(state, job, waiting_before, no_room)
            start = _start(state, job, refusal, releases, ahead * busy, loaded)
            reason = refusal.reason
            if not job.preempts and refusal.stage in ("quota", "gang", "topology"):
                reason += "; it may not evict others"
            if refusal.resource:
                shares = shares or _fair_shares(state)
                reason += _fairness(state, name, refusal.resource, shares)
            found.append(Wait(job.name, refusal.stage, reason, refusal.unblock, position, start))
            waiting_before = waiting_before or job.name
    for job in sorted((*state.later.values(), *state.foreign.values()), key=lambda job: job.name):
        found.append(_set_aside(state, job))
    for name in sorted(state.running):
        running = state.running[name].running
        if not running.bound:
            reason = f"admitted at {running.started:g}, not all pods are bound"
            found.append(Wait(name, "bind", reason, f"its pods to be bound by {running.bind_by or 0:g}", 0, None))
    return tuple(found)


def _fair_shares(state: State) -> dict[str, Vector]:
    """What each queue should have, with all that waits."""
    wanted: dict[str, Vector] = {}
    for job in state.waiting.values():
        more = state.shape(job).full
        before = wanted.get(job.queue, [0] * len(more))
        wanted[job.queue] = [old + new for old, new in zip(before, more, strict=True)]
    return state.quota.fair_shares(wanted)


def _fairness(state: State, queue: str, resource: str, shares: Mapping[str, Vector]) -> str:
    place = state.quota.resources.index(resource)
    return f"; its fair share is {shares[queue][place]}, it uses {state.quota.nodes[queue].used[place]}"


def _cold(state: State, job: Job) -> Refusal | None:
    """Whatever else the job may lack, its data is nowhere warm; None: it is, or it does not wait for any."""
    return not_warm(state, job) if state.warm.lacks(job, state.now) else None


def _never(state: State, job: Job, now: Refusal | None, no_room: Mapping[int, Refusal]) -> Refusal | None:
    """Why the job can never start; beside it why it cannot now, which says more of the nodes."""
    never = impossible(state, job)
    if never is None or never.stage == "quota":
        return never
    shape = state.shape(job)
    if now is None:
        # Whether its class was looked at in this pass depends on whether it was known to wait for data.
        room = state.placer.crowded(job.pod_sets, shape.demands)
        now = no_room.get(id(shape)) if room is None else Refusal("gang", room.reason, never.unblock)
    if now is None or now.stage not in ("gang", "topology"):
        return never
    return replace(never, stage=now.stage, reason=f"{now.reason}; {never.reason}")


def _refusal(state: State, job: Job, before: str | None, no_room: Mapping[int, Refusal]) -> Refusal:
    """Of a job that was not tried in this pass.

    Args:
        no_room: why jobs of the same shape found no room.
    """
    shape, leaf = state.shape(job), state.quota.leaf(job.queue)
    if state.victims.get(job.name):
        return Refusal("gang", f"waits for {', '.join(sorted(state.victims[job.name]))} to leave", "their end")
    if (excess := state.quota.excess(leaf, shape.least, firm=not job.preemptible)) is not None:
        return over_quota(excess)
    if (found := no_room.get(id(shape))) is not None:
        return found
    return Refusal("order", f"its queue serves in order, and {before} waits before it", f"{before} to start")


def _start(
    state: State, job: Job, refusal: Refusal, releases: Releases, ahead: float, loaded: Collection[str] | None
) -> float | None:
    """An estimate of its start; None: it never fits, or nothing is known."""
    if refusal.unblock in (THE_GROUP, A_CHANGE):
        return None
    released = releases.start(ahead)
    hold = state.holds.get(job.name)
    start = hold.start if hold is not None else released
    if refusal.stage == "cache":
        start = max(start, state.now + _load_s(state, job, loaded))
        deadlines = [need.deadline for need in state.warm.required(job, state.now)]
        known = [deadline for deadline in deadlines if deadline is not None]
        if known and len(known) == len(deadlines):
            start = min(start, max(*known, released))
    elif start <= state.now:
        start = releases.next_end  # cards alone would suffice: it lacks something that the next end may bring
    return start if math.isfinite(start) else None


def _load_s(state: State, job: Job, loaded: Collection[str] | None) -> float:
    """Seconds until all that it requires is warm somewhere, at the store's pace now; infinite if nobody loads it."""
    seconds = 0.0
    for need in state.warm.required(job, state.now):
        size = state.warm.size(need.dataset)
        cold = size * need.min_warm - float(state.warm.warm(need.dataset).max(initial=0))
        if cold > 0 and loaded is not None and need.dataset not in loaded:
            return math.inf
        seconds = max(seconds, cold / max(state.warm.bandwidth(need.dataset), 1e-9))
    return max(0.0, seconds)


def _set_aside(state: State, job: Job) -> Wait:
    stage: Stage = "bind"
    if job.gates:
        return Wait(job.name, stage, f"gates of others hold it: {', '.join(job.gates)}", "those gates to go", 0, None)
    reason = f"it did not bind in time, {job.retries} times"
    return Wait(job.name, stage, reason, f"its next try at {job.not_before:g}", 0, job.not_before)
