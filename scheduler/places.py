"""Room for a whole job: in its reservations, by its resource policy, or on any node."""

from collections.abc import Sequence

from forebay.scheduler.jobs import Job
from forebay.scheduler.pending import Shape
from forebay.scheduler.placement import Placement, Site
from forebay.scheduler.reservations import ReservedRoom
from forebay.scheduler.resource_policies import place_by_policy
from forebay.scheduler.state import State
from forebay.scheduler.topology import NoRoom


def place_job(
    state: State, job: Job, shape: Shape, counts: Sequence[int], site: Site
) -> tuple[Placement, tuple[str, ...], str | None] | NoRoom:
    """Pods with the reservations that they use and the unit of the policy; call it inside `NodeTable.trial`."""
    reserved = ReservedRoom(state, job)
    if reserved.any:
        return reserved.place(job, shape, counts, site)
    if (policy := shape.policy) is not None:
        return place_by_policy(state, policy, job, shape, counts, site)
    placed = state.placer.place(job.pod_sets, shape.demands, counts, site)
    return placed if isinstance(placed, NoRoom) else (placed, (), None)
