"""Quota that is spoken for: what others may not take though nobody uses it yet.

Two kinds of jobs have a claim until they start. For whom victims leave: what these give back one by one is not there
for others (else the job would need further victims, kueue #14682), nor is it in the pass after the last one is gone
(else a victim by share starts anew before the job, beside the nodes that are held, and is taken again). And the first
of a queue that waits within its min and may not reclaim from whomever it likes: it has nothing else to rely on, and
borrowers one after the other would keep it waiting.
"""

from forebay.scheduler.jobs import Job
from forebay.scheduler.quota import Excess, QuotaNode, Vector
from forebay.scheduler.state import State


class Claims:
    """The claims at the start of a pass; they hold until its end, or until their jobs start."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._claimed: dict[tuple[str, str], Vector] = {}
        """By job and leaf, beyond what jobs of the leaf use, less what leaves it for the job."""
        self._awaiting: dict[str, list[str]] = {}
        """By leaf, its jobs for which victims leave."""
        self.names: set[str] = set()
        left = {hold.job for hold in state.holds.values() if hold.forced}
        for name in sorted(left | {name for name, victims in state.victims.items() if victims}):
            if name in state.waiting:
                self._await(state.waiting[name], state.victims.get(name, set()))
        for name in sorted(state.queues):
            self._starving(state.quota.nodes[name])

    def _await(self, job: Job, victims: set[str]) -> None:
        state = self._state
        self.names |= state.groups[job.group] if job.group is not None else {job.name}
        self._awaiting.setdefault(job.queue, []).append(job.name)
        for member in state.members(job)[: state.needed(job)]:
            self._add(member.name, member.queue, state.shape(member).least, 1)
        for victim in sorted(victims):
            live = state.running[victim]
            self._add(job.name, live.leaf.name, state.leaving(live)[1], -1)

    def _starving(self, leaf: QuotaNode) -> None:
        state = self._state
        if leaf.queue.reclaim == "any":
            return
        job = next(state.ready(leaf.name), None)
        if job is None:
            return
        least = state.shape(job).least
        if (
            job.name in self.names
            or not leaf.within_min(least)
            or state.quota.excess(leaf, least, firm=not job.preemptible) is None
        ):
            return
        self.names.add(job.name)
        self._add(job.name, leaf.name, least, 1)

    def _add(self, job: str, leaf: str, amounts: Vector, sign: int) -> None:
        before = self._claimed.get((job, leaf), [0] * len(amounts))
        self._claimed[job, leaf] = [old + sign * new for old, new in zip(before, amounts, strict=True)]

    def awaited(self, leaf: QuotaNode) -> bool:
        """Whether victims leave for a job of this queue."""
        return leaf.name in self._awaiting

    def excess(self, job: Job, leaf: QuotaNode, request: Vector, runs: bool = False) -> Excess | None:
        """As `QuotaTree.excess`, with the claims of others; they do not count for who stays within its queue's min."""
        quota, firm = self._state.quota, not job.preemptible
        found = quota.excess(leaf, request, runs, firm)
        if found is not None or not self._claimed or job.name in self.names or not self._yields(job, leaf, request):
            return found
        waiting = self._state.waiting
        claimed = [(quota.nodes[queue], amounts) for (name, queue), amounts in self._claimed.items() if name in waiting]
        for node, amounts in claimed:
            quota.resize(node, amounts, 1)
        try:
            return quota.excess(leaf, request, runs, firm)
        finally:
            for node, amounts in claimed:
                quota.resize(node, amounts, -1)

    def _yields(self, job: Job, leaf: QuotaNode, request: Vector) -> bool:
        state = self._state
        if not leaf.within_min(request):
            return True
        queue = state.queues[leaf.name]
        before = [state.waiting[name] for name in self._awaiting.get(leaf.name, ()) if name in state.waiting]
        return any(queue.rank(other) < queue.rank(job) for other in before)
