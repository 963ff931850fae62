"""What is free at each NUMA node: cores and memory beside the cards.

Where the kubelet takes a pod's cores from is known only of pods whose cards are all at one NUMA node: with them. What
the others use is spread over the NUMA nodes in proportion to what these have. So the figures follow from the pods that
run, in whatever order they came.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forebay.scheduler.model import Node

Ints = NDArray[np.int64]

_PLENTY = 1 << 40


class NumaTable:
    """Free room of NUMA nodes, for the nodes that say what theirs have."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        """Raises: ValueError: the NUMA nodes of a node have more than it has."""
        self.any = any(node.numa for node in nodes)
        names = sorted({name for node in nodes for zone in node.numa for name in zone})
        zones = max((len(node.numa) for node in nodes), default=0)
        self._rows = {name: row for row, name in enumerate(names)}
        self._capacity = np.zeros((len(names), len(nodes), zones), dtype=np.int64)
        for place, node in enumerate(nodes):
            for number, zone in enumerate(node.numa):
                for name, amount in zone.items():
                    self._capacity[self._rows[name], place, number] = amount
            for name, row in self._rows.items():
                parts, whole = int(self._capacity[row, place].sum()), node.allocatable.get(name, 0)
                if parts > whole:
                    raise ValueError(f"node {node.name!r}: its NUMA nodes have {parts} {name}, it has {whole}")
        self._aligned = np.zeros_like(self._capacity)
        self._loose = np.zeros((len(names), len(nodes)), dtype=np.int64)
        self._known = np.array([bool(node.numa) for node in nodes], dtype=np.bool_)

    def change(self, node: int, amounts: Sequence[tuple[str, int]], zone: int | None, pods: int) -> None:
        """Pods start (or end: less than 0) with their cards at one NUMA node, or at several or without any: None."""
        for name, amount in amounts:
            row = self._rows.get(name)
            if row is None or not self._known[node]:
                continue
            if zone is None or zone >= self._capacity.shape[2]:
                self._loose[row, node] += amount * pods
            else:
                self._aligned[row, node, zone] += amount * pods

    def pods(self, amounts: Sequence[tuple[str, int]], rows: Ints, zone: int) -> Ints:
        """How many pods of such requests each node's NUMA node takes; plenty where nothing is known of it."""
        found = np.full(len(rows), _PLENTY, dtype=np.int64)
        for name, amount in amounts:
            row = self._rows.get(name)
            if row is None:
                continue
            if zone >= self._capacity.shape[2]:
                return np.where(self._known[rows], 0, found)
            capacity = self._capacity[row, rows]
            total = np.maximum(capacity.sum(axis=1), 1)
            spread = -(-self._loose[row, rows] * capacity[:, zone] // total)
            free = np.maximum(capacity[:, zone] - self._aligned[row, rows, zone] - spread, 0)
            np.minimum(found, np.where(self._known[rows], free // amount, found), out=found)
        return found


def zone_of(node: Node, cards: Sequence[int]) -> int | None:
    """The NUMA node that all of these cards are at; None: there is no such one."""
    zones = {node.gpus[card].numa for card in cards}
    return zones.pop() if len(zones) == 1 else None
