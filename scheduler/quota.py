"""The tree of queues: what each uses, what it may still take, and whose turn it is.

Legality is Kueue's rule for hierarchical cohorts. With S = min of a subtree less what its children keep for themselves,
and G = max(0, S - lending limit), the part of it that nobody else may use, what a node can still take is

    max(0, G - used) + min(what its parent can still take, S - G - max(0, used - G) + borrowing limit)

and a node reports only max(0, used - G) to its parent. On top of it no queue exceeds its `max`.

All vectors are lists along `QuotaTree.resources`; FREE stands for "not limited".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from forebay.scheduler.fair_share import Claim, Number, borrowed_share, dominant_share, largest_remainder, water_fill
from forebay.scheduler.model import Queue

FREE = 1 << 60
"""Not limited."""

Vector = list[int]


@dataclass(eq=False)
class QuotaNode:
    """A queue at work."""

    queue: Queue
    parent: "QuotaNode | None" = None
    children: list["QuotaNode"] = field(default_factory=list)
    quota: Vector = field(default_factory=list)
    """Min of the subtree, scaled down where the parent's does not cover it; FREE where no queue of the tree has one."""
    pool: Vector = field(default_factory=list)
    """Of the quota, what the children do not keep for themselves."""
    guaranteed: Vector = field(default_factory=list)
    """Of the pool, what nobody outside the subtree may use."""
    borrowing: Vector = field(default_factory=list)
    limit: Vector = field(default_factory=list)
    used: Vector = field(default_factory=list)
    """By all jobs of the subtree."""
    reported: Vector = field(default_factory=list)
    """What the children use above what they are guaranteed, or what the jobs of a leaf use."""
    firm: Vector = field(default_factory=list)
    """Of it, by jobs that cannot be evicted."""
    jobs: int = 0
    by_priority: bool = False
    """Some queue of its tree evicts lower priorities to borrow."""

    def __post_init__(self) -> None:
        self.name = self.queue.name

    def path(self) -> Iterator["QuotaNode"]:
        """This node and its ancestors."""
        node: QuotaNode | None = self
        while node is not None:
            yield node
            node = node.parent

    @cached_property
    def shield_s(self) -> float:
        """A job of it that has run for less is not evicted by another queue's."""
        return max(node.queue.min_runtime_s for node in self.path())

    def kept(self, place: int) -> int:
        """Of its quota of a resource, what nobody outside the subtree may use: its own part and its children's."""
        return self.quota[place] - self.pool[place] + self.guaranteed[place]

    def within_min(self, more: Sequence[int]) -> bool:
        """Whether it would use no more than its min with `more`."""
        return all(
            used + amount <= quota or not amount
            for used, amount, quota in zip(self.used, more, self.quota, strict=True)
        )

    def above_min(self, request: Sequence[int]) -> bool:
        """Whether it uses more than its min of something that is asked for."""
        return any(amount and used > quota for amount, used, quota in zip(request, self.used, self.quota, strict=True))


@dataclass(frozen=True)
class Excess:
    """Why a request is not legal."""

    queue: str
    """Where: the queue itself or one of its ancestors."""
    resource: str
    requested: int
    available: int
    rule: str
    """'max', 'jobs', 'quota' (min, lending and borrowing), or 'firm' (jobs that cannot be evicted do not borrow)."""


class QuotaTree:
    """Queues and what is used of them.

    Raises:
        ValueError: the queues are no forest.
    """

    def __init__(self, queues: Sequence[Queue], capacity: Mapping[str, int] | None = None) -> None:
        """Args: capacity: of the cluster, for shares of resources that no root has a min of."""
        self.nodes = _linked(queues)
        self.roots = [node for node in self.nodes.values() if node.parent is None]
        named = {name for queue in queues for name in (*queue.min, *queue.max)}
        self.resources = tuple(sorted(named | set(capacity or ())))
        self._places = {name: place for place, name in enumerate(self.resources)}
        self._capacity = [int((capacity or {}).get(name, 0)) for name in self.resources]
        self._totals: dict[str, Vector] = {}
        self._lendable: dict[str, Vector] = {}
        for root in self.roots:
            self._set_up(root)

    def _set_up(self, root: QuotaNode) -> None:
        below = list(_below(root))
        for place, name in enumerate(self.resources):
            limited = any(name in node.queue.min for node in below)
            for node in reversed(below):
                own = sum(child.quota[place] for child in node.children) if node.children else 0
                node.quota.append(node.queue.min.get(name, own) if limited else FREE)
            if limited:
                for node in below:
                    self._scale(node, place)
            for node in reversed(below):
                lends = node.queue.lending_limit.get(name)
                pool = (
                    max(0, node.quota[place] - sum(child.kept(place) for child in node.children)) if limited else FREE
                )
                node.pool.append(pool)
                node.guaranteed.append(max(0, pool - lends) if lends is not None and limited else 0)
                node.borrowing.append(node.queue.borrowing_limit.get(name, FREE))
                node.limit.append(node.queue.max.get(name, FREE))
        totals = [
            quota if quota < FREE else capacity for quota, capacity in zip(root.quota, self._capacity, strict=True)
        ]
        by_priority = any(node.queue.preempt_to_borrow for node in below)
        for node in below:
            node.by_priority = by_priority
            node.used = [0] * len(self.resources)
            node.reported = [0] * len(self.resources)
            node.firm = [0] * len(self.resources)
            self._totals[node.name] = totals
            most = [self._ceiling(node, place) for place in range(len(self.resources))]
            self._lendable[node.name] = [0 if amount >= FREE else amount for amount in most]

    @staticmethod
    def _scale(node: QuotaNode, place: int) -> None:
        """Children's mins that exceed the parent's are scaled down in proportion (Koordinator's scaled min)."""
        mins = [child.quota[place] for child in node.children]
        if sum(mins) > node.quota[place]:
            for child, amount in zip(node.children, largest_remainder(node.quota[place], mins), strict=True):
                child.quota[place] = amount

    def vector(self, amounts: Mapping[str, int]) -> Vector:
        """Amounts along `resources`; what no queue limits is left out."""
        return [int(amounts.get(name, 0)) for name in self.resources]

    def leaf(self, name: str) -> QuotaNode:
        """The queue of a job.

        Raises:
            ValueError: there is none, or it has children.
        """
        node = self.nodes.get(name)
        if node is None:
            raise ValueError(f"no queue is named {name!r}; there are {', '.join(sorted(self.nodes)) or 'none'}")
        if node.children:
            raise ValueError(f"queue {name!r} has queues below it; jobs wait in leaves only")
        return node

    def available(self, node: QuotaNode) -> Vector:
        """The most that jobs of this queue may take in addition, for each resource; at least 0."""
        return [max(0, self._available(node, place)) for place in range(len(self.resources))]

    def _available(self, node: QuotaNode, place: int) -> int:
        headroom = FREE
        for above in node.path():
            if above.limit[place] < FREE:
                headroom = min(headroom, above.limit[place] - above.used[place])
        return min(headroom, self._borrowable(node, place))

    def _borrowable(self, node: QuotaNode, place: int) -> int:
        pool, reported, guaranteed = node.pool[place], node.reported[place], node.guaranteed[place]
        if pool >= FREE:
            return FREE
        if node.parent is None:
            return pool - reported
        shared = self._borrowable(node.parent, place)
        if (borrowing := node.borrowing[place]) < FREE:
            shared = min(shared, pool - guaranteed - max(0, reported - guaranteed) + borrowing)
        return max(0, guaranteed - reported) + shared

    def excess(self, node: QuotaNode, request: Sequence[int], runs: bool = False, firm: bool = False) -> Excess | None:
        """What stands against `request` in this queue; None: it is legal.

        Args:
            runs: it is for a job that runs already.
            firm: it is for one that cannot be evicted. What it borrowed could never be reclaimed, so all such jobs
                together stay within min (Koordinator's and KAI's rule).
        """
        for above in node.path():
            if not runs and above.queue.max_jobs is not None and above.jobs >= above.queue.max_jobs:
                return Excess(above.name, "jobs", 1, 0, "jobs")
            for place, amount in enumerate(request):
                if amount and above.used[place] + amount > above.limit[place]:
                    rest = max(0, above.limit[place] - above.used[place])
                    return Excess(above.name, self.resources[place], amount, rest, "max")
        for place, amount in enumerate(request):
            if amount and amount > (rest := self._borrowable(node, place)):
                return Excess(node.name, self.resources[place], amount, max(0, rest), "quota")
        if firm:
            for above in node.path():
                for place, amount in enumerate(request):
                    if amount and amount > (rest := above.quota[place] - above.firm[place]):
                        return Excess(above.name, self.resources[place], amount, max(0, rest), "firm")
        return None

    def ever_legal(self, node: QuotaNode, request: Sequence[int], firm: bool = False) -> Excess | None:
        """As `excess`, were nothing else running at all."""
        for above in node.path():
            for place, amount in enumerate(request):
                if amount > above.limit[place]:
                    return Excess(above.name, self.resources[place], amount, above.limit[place], "max")
        for place, amount in enumerate(request):
            if amount and amount > (rest := self._ceiling(node, place)):
                return Excess(node.name, self.resources[place], amount, rest, "quota")
        for above in node.path() if firm else ():
            for place, amount in enumerate(request):
                if amount > above.quota[place]:
                    return Excess(above.name, self.resources[place], amount, above.quota[place], "firm")
        return None

    def _ceiling(self, node: QuotaNode, place: int) -> int:
        pool, guaranteed = node.pool[place], node.guaranteed[place]
        if node.parent is None or pool >= FREE:
            return pool
        shared = self._ceiling(node.parent, place)
        if (borrowing := node.borrowing[place]) < FREE:
            shared = min(shared, pool - guaranteed + borrowing)
        return guaranteed + shared

    def take(self, node: QuotaNode, amounts: Sequence[int]) -> None:
        self._change(node, amounts, 1)

    def give(self, node: QuotaNode, amounts: Sequence[int]) -> None:
        self._change(node, amounts, -1)

    def _change(self, node: QuotaNode, amounts: Sequence[int], sign: int) -> None:
        for above in node.path():
            above.jobs += sign
        for place, amount in enumerate(amounts):
            if not amount:
                continue
            change = sign * amount
            for above in node.path():
                above.used[place] += change
            below: QuotaNode | None = node
            while below is not None and change:
                guaranteed, before = below.guaranteed[place], below.reported[place]
                below.reported[place] = before + change
                change = max(0, before + change - guaranteed) - max(0, before - guaranteed)
                below = below.parent

    def firmly(self, node: QuotaNode, amounts: Sequence[int], sign: int) -> None:
        """So much more (1) or less (-1) is used by jobs that cannot be evicted; beside `take` and the like."""
        for above in node.path():
            above.firm = [old + sign * new for old, new in zip(above.firm, amounts, strict=True)]

    def resize(self, node: QuotaNode, amounts: Sequence[int], sign: int) -> None:
        """A running job grows (1) or shrinks (-1)."""
        self._change(node, amounts, sign)
        for above in node.path():
            above.jobs -= sign

    def borrows(self, node: QuotaNode, more: Sequence[int]) -> int:
        """How many levels up borrowing goes with `more`: 0, all in the queue's own min; 1, its parent covers it..."""
        for level, above in enumerate(node.path()):
            if above.within_min(more):
                return level
        return sum(1 for _ in node.path())

    def share(self, node: QuotaNode) -> float:
        """The dominant share of a subtree, over its weight."""
        return float(self.share_with(node, node.used))

    def share_with(self, node: QuotaNode, used: Sequence[Number]) -> Number:
        """As `share`, if it used so much; exact if that is in fractions."""
        return dominant_share(used, self._totals[node.name], node.queue.weight)

    def parts(self, node: QuotaNode) -> list[float]:
        """Of each resource, the part of the tree's total that a subtree uses."""
        totals = self._totals[node.name]
        return [used / total if total else 0.0 for used, total in zip(node.used, totals, strict=True)]

    def borrowed(self, node: QuotaNode, more: Sequence[int] | None = None) -> float:
        """Kueue's share of a subtree, with `more`: what it uses above its min, of the most that its parent could have.

        That is what the parent's subtree lends and what it may borrow itself: a parent without a min lends nothing of
        its own, and yet its children borrow through it.
        """
        used = node.used if more is None else [old + new for old, new in zip(node.used, more, strict=True)]
        return float(self.borrowed_with(node, used))

    def borrowed_with(self, node: QuotaNode, used: Sequence[Number]) -> Number:
        """As `borrowed`, if it used so much; exact if that is in fractions."""
        if node.parent is None:
            return 0.0
        return borrowed_share(used, node.quota, self._lendable[node.parent.name], node.queue.weight)

    def fair_shares(self, wanted: Mapping[str, Sequence[int]]) -> dict[str, Vector]:
        """What each queue should have, by water-filling from the roots down.

        Args:
            wanted: what each leaf waits for, beside what it uses.

        Returns: for each queue a vector; FREE where the resource has no min in its tree.
        """
        columns = [self._divided(place, wanted) for place in range(len(self.resources))]
        return {name: [column[name] for column in columns] for name in self.nodes}

    def _divided(self, place: int, wanted: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """The shares of one resource."""
        claims: dict[str, Claim] = {}
        shares = {root.name: root.quota[place] for root in self.roots}
        for root in self.roots:
            below = [*_below(root)]
            for node in reversed(below):
                asked = node.used[place] + (wanted[node.name][place] if node.name in wanted else 0)
                if node.children:  # what they keep though they are idle is asked for too, and nothing beyond their max
                    asked = sum(claims[child.name].most for child in node.children)
                claims[node.name] = Claim(
                    request=asked,
                    min=node.quota[place],
                    max=_cap(node, place),
                    weight=node.queue.weight,
                    priority=node.queue.priority,
                    unlent=node.kept(place),
                )
            for node in below:
                names = [child.name for child in node.children]
                if node.quota[place] >= FREE:
                    shares |= dict.fromkeys(names, FREE)
                else:
                    parts = water_fill(shares[node.name], [claims[name] for name in names])
                    shares |= zip(names, parts, strict=True)
        return shares


def _cap(node: QuotaNode, place: int) -> int:
    return min(node.limit[place], node.quota[place] + node.borrowing[place])


def _below(root: QuotaNode) -> Iterator[QuotaNode]:
    """Parents before children."""
    yield root
    for child in root.children:
        yield from _below(child)


def _linked(queues: Sequence[Queue]) -> dict[str, QuotaNode]:
    nodes: dict[str, QuotaNode] = {}
    for queue in sorted(queues, key=lambda queue: queue.name):
        if queue.name in nodes:
            raise ValueError(f"two queues are named {queue.name!r}")
        for name, least in queue.min.items():
            if least < 0 or least > queue.max.get(name, least):
                raise ValueError(f"queue {queue.name!r}: min {name} {least} is not in 0..{queue.max.get(name)}")
        nodes[queue.name] = QuotaNode(queue)
    for node in nodes.values():
        if node.queue.parent is not None:
            if node.queue.parent not in nodes:
                raise ValueError(f"queue {node.name!r}: its parent {node.queue.parent!r} is not there")
            node.parent = nodes[node.queue.parent]
            node.parent.children.append(node)
    reached = {below.name for node in nodes.values() if node.parent is None for below in _below(node)}
    if lost := sorted(nodes.keys() - reached):
        raise ValueError(f"queues {', '.join(lost)} are their own ancestors")
    return nodes
