"""Which waiting jobs compete for nodes: those whose nodes meet, and all that are linked by such.

A job that asks for cards competes for them; for cores compete those that ask for none.
"""

from collections.abc import Sequence

import numpy as np

from forebay.scheduler.nodes import Bools, NodeTable
from forebay.scheduler.pending import JobClass, Rivalry

_KEPT = 64
"""Answers that are kept, each for the kinds of jobs that a queue had: they come again when a class runs dry."""


class Rivals:
    """Parts of queues between which there is no competition, for the nodes that are eligible now."""

    def __init__(self, table: NodeTable) -> None:
        self._table = table
        self._eligibility = table.eligibility
        self._known: dict[frozenset[Rivalry], dict[Rivalry, int]] = {}

    def parted(self, classes: Sequence[JobClass]) -> list[list[JobClass]]:
        """The classes in parts; jobs of two parts have no node in common."""
        wanted = {one.shape.rivalry: one for one in classes}
        if len(wanted) < 2:
            return [[*classes]] if classes else []
        if self._table.eligibility != self._eligibility or len(self._known) > _KEPT:
            self._eligibility = self._table.eligibility
            self._known.clear()
        key = frozenset(wanted)
        parts = self._known.get(key)
        if parts is None:
            parts = self._known[key] = self._linked(wanted)
        found: dict[int, list[JobClass]] = {}
        for one in classes:
            found.setdefault(parts[one.shape.rivalry], []).append(one)
        return [*found.values()]

    def _linked(self, wanted: dict[Rivalry, JobClass]) -> dict[Rivalry, int]:
        """A number for each kind of jobs, the same for those that compete."""
        parts: list[tuple[bool, Bools, list[Rivalry]]] = []
        for kind, one in wanted.items():
            mask, kinds, others = self._nodes(one), [kind], []
            for part in parts:
                if part[0] == kind.cards and (part[1] & mask).any():
                    mask = mask | part[1]
                    kinds += part[2]
                else:
                    others.append(part)
            parts = [*others, (kind.cards, mask, kinds)]
        return {kind: number for number, (_, _, kinds) in enumerate(parts) for kind in kinds}

    def _nodes(self, one: JobClass) -> Bools:
        found = np.zeros(len(self._table), dtype=np.bool_)
        for demand in one.shape.contested:
            found |= self._table.eligible(demand)
        return found & (self._table.gpu_capacity > 0) if one.shape.rivalry.cards else found
