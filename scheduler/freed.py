"""Bounds of the room that there would be if some pods were gone, from sums over nodes: no cards are looked at."""

import numpy as np

from forebay.scheduler.nodes import Demand, Ints, NodeTable


class Freed:
    """A table as if pods had ended."""

    def __init__(self, table: NodeTable, rows: Ints, amounts: Ints) -> None:
        """Args: rows: of the nodes of the pods; amounts: of what they use there, along `NodeTable.room_of`."""
        self._table = table
        self._rows = rows
        self._amounts = amounts
        self._free: dict[int, Ints] = {}

    def _freed(self, kind: int, free: Ints) -> Ints:
        if kind not in self._free:
            gone = np.bincount(self._rows, self._amounts[:, kind], len(self._table)).astype(np.int64)
            self._free[kind] = np.maximum(free + gone, 0)
        return self._free[kind]

    def pods_at_most(self, demand: Demand) -> Ints:
        """No more pods would fit on each node; often fewer do."""
        table = self._table
        found = table.by_amounts(demand, lambda row: self._freed(row, table.free[row]), len(table))
        if demand.gpus is not None and demand.gpus.compute_milli:
            milli = demand.gpus.cards * demand.gpus.compute_milli
            np.minimum(found, self._freed(table.kinds_of_room - 1, table.gpu_free) // milli, out=found)
        return found
