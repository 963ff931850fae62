"""What quota allows, reckoned from queues and jobs alone.

Legality is checked by Kueue's rule as it is written down, not by the scheduler's own code: with T of a leaf its min
less what it uses, and T of an inner queue its own part of the min and of each child the least of its T and its lending
limit, no queue's T is below its borrowing limit, and no root's below zero.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from forebay.scheduler.model import Queue, Snapshot
from forebay.scheduler.quota import FREE


class Rules:
    """What a tree of queues allows of one resource."""

    def __init__(self, queues: Sequence[Queue], resource: str) -> None:
        self._resource = resource
        self.queues = {queue.name: queue for queue in queues}
        self.children: dict[str | None, list[str]] = {}
        for queue in queues:
            self.children.setdefault(queue.parent, []).append(queue.name)

    def least(self, name: str) -> int:
        """A min that is not mentioned is the sum of the children's."""
        below = sum(self.least(child) for child in self.children.get(name, ()))
        return self.queues[name].min.get(self._resource, below)

    def use(self, name: str, used: Mapping[str, int]) -> int:
        return used.get(name, 0) + sum(self.use(child, used) for child in self.children.get(name, ()))

    def left(self, name: str, used: Mapping[str, int]) -> int:
        """T."""
        below = self.children.get(name, ())
        own = self.least(name) - sum(self.least(child) for child in below) - used.get(name, 0)
        return own + sum(min(self.lends(child), self.left(child, used)) for child in below)

    def lends(self, name: str) -> int:
        return self.queues[name].lending_limit.get(self._resource, FREE)

    def check(self, used: Mapping[str, int]) -> None:
        """Args: used: by leaf."""
        for name, queue in self.queues.items():
            assert self.use(name, used) <= queue.max.get(self._resource, FREE), f"{name} is above its max"
            limit = 0 if queue.parent is None else queue.borrowing_limit.get(self._resource, FREE)
            assert self.left(name, used) >= -limit, f"{name} borrows too much"
            if not self.children.get(name):
                most = self.least(name) + limit
                assert used.get(name, 0) <= most, f"{name} uses more than its min and what it may borrow"

    @property
    def leaves(self) -> list[str]:
        return [name for name in self.queues if not self.children.get(name)]


def cards_of(snapshot: Snapshot) -> Counter[str]:
    """Thousandths of cards that the jobs of each leaf use; of a share, the larger of compute and memory counts."""
    mib = min((card.memory_mib for node in snapshot.nodes for card in node.gpus), default=1)
    used: Counter[str] = Counter()
    for one in snapshot.running:
        for pod_set in one.job.pod_sets:
            count = sum(placed.count for placed in one.pods if placed.pod_set == pod_set.name)
            if (gpus := pod_set.gpus) is not None:
                part = 0 if gpus.exclusive else -(-1000 * gpus.memory_mib // mib)
                used[one.job.queue] += max(gpus.compute_milli, part) * gpus.cards * count
    return used
