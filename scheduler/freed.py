"""Bounds of the room that there would be if some pods were gone, from sums over nodes: no cards are looked at."""

from collections.abc import Mapping, Sequence

import numpy as np

from forebay.scheduler.nodes import Demand, Ints, NodeTable


class Freed:
    """A table as if pods had ended."""

    def __init__(self, table: NodeTable, pods: Mapping[Demand, tuple[Sequence[int], Sequence[int]]]) -> None:
        """Args: pods: by what one of them asks for, rows of nodes and how many are there; none is given twice."""
        self._table = table
        self._free = {name: table.free[row] for name, row in table.rows.items()}
        self._milli = table.gpu_free
        for demand, (rows, counts) in pods.items():
            gone = np.bincount(rows, counts, len(table)).astype(np.int64)
            for name, amount in demand.amounts:
                if name in self._free:
                    self._free[name] = self._free[name] + gone * amount
            if demand.gpus is not None:
                self._milli = self._milli + gone * (demand.gpus.cards * max(demand.gpus.compute_milli, 1))

    def pods_at_most(self, demand: Demand) -> Ints:
        """No more pods would fit on each node; often fewer do."""
        count = len(self._table)
        found = np.full(count, 1 << 40, dtype=np.int64)
        for name, amount in demand.amounts:
            if name not in self._free:
                return np.zeros(count, dtype=np.int64)
            np.minimum(found, np.maximum(self._free[name], 0) // amount, out=found)
        if demand.gpus is not None and demand.gpus.compute_milli:
            np.minimum(found, np.maximum(self._milli, 0) // (demand.gpus.cards * demand.gpus.compute_milli), out=found)
        return found
