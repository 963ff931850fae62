"""Jobs that could not start if they had the cluster, as it is now, for themselves."""

from forebay.scheduler.jobs import Job
from forebay.scheduler.refusals import Refusal
from forebay.scheduler.state import State

A_CHANGE = "a smaller request, a larger quota or other nodes"


def impossible(state: State, job: Job) -> Refusal | None:
    """Why a job can never start, however long it waits; None: it could."""
    key = (id(state.shape(job)), job.queue)
    known = state.impossible.get(key)
    if known is None or known[0] != state.table.eligibility:
        known = state.impossible[key] = (state.table.eligibility, _look(state, job))
    return known[1]


def _look(state: State, job: Job) -> Refusal | None:
    shape, leaf, table = state.shape(job), state.quota.leaf(job.queue), state.table
    if (excess := state.quota.ever_legal(leaf, shape.least, not job.preemptible)) is not None:
        what = f"{excess.requested} {excess.resource} asked for"
        never = f"{what}, and queue {excess.queue!r} never has more than {excess.available}"
        return Refusal("quota", never + " for jobs that cannot be evicted" * (excess.rule == "firm"), A_CHANGE)
    for pod_set, demand in zip(job.pod_sets, shape.demands, strict=True):
        pods, name = table.ever_pods(demand), pod_set.name
        if not pods.any():
            return Refusal("gang", f"no node could take a pod of {name!r} even if it were empty", A_CHANGE)
        if (most := int(pods.sum())) < pod_set.least:
            reason = f"{most} of {pod_set.least} pods of {name!r} would fit if all nodes were empty"
            return Refusal("gang", reason, A_CHANGE)
        level = pod_set.topology.required
        if level is None or pod_set.topology.slice_level is not None:
            continue
        depth = table.depth(level)
        largest = max(int(pods[table.domain_of[depth] == domain].sum()) for domain in {*table.domain_of[depth]})
        if largest < pod_set.least:
            reason = f"{largest} of {pod_set.least} pods of {name!r} would fit in an empty {level}"
            return Refusal("topology", reason, A_CHANGE)
    return None
