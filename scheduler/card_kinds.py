"""Kinds of nodes by their cards: links, models, and which cards have an RDMA device near; one table for each kind.

A card and an RDMA device exchange data without the host's memory if no host bridge is between them (GPUDirect): one
PCIe switch (PIX), or several (PXB).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forebay.scheduler.gpu_sets import POINTS, GpuSets, mask_of
from forebay.scheduler.jobs import GpuRequest
from forebay.scheduler.model import Node

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

NEAR_POINTS = POINTS["PXB"]


class CardKinds:
    """The kinds of some nodes."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        """Raises: ValueError: a node's RDMA devices have not as many links as it has cards."""
        self.examples: list[Node] = []
        """A node of each kind."""
        self.sets: list[GpuSets] = []
        places: dict[object, int] = {}
        self.of = np.zeros(len(nodes), dtype=np.int64)
        """Kind of each node."""
        for row, node in enumerate(nodes):
            key = (node.gpus, node.links, node.rdma)
            if key not in places:
                if any(len(device) != len(node.gpus) for device in node.rdma):
                    raise ValueError(f"node {node.name!r}: an RDMA device must have a link to each of its cards")
                places[key] = len(self.examples)
                self.examples.append(node)
                self.sets.append(GpuSets(node.links, len(node.gpus)))
            self.of[row] = places[key]
        self.cards_max = max((len(node.gpus) for node in nodes), default=0)
        self._mixed = any(len({gpu.model for gpu in node.gpus}) > 1 for node in self.examples)
        self.zones = [_zones(node) for node in self.examples]
        """By kind, masks of the cards of each NUMA node, where links say nothing about them."""
        near = [
            [place for place in range(len(node.gpus)) if any(device[place] >= NEAR_POINTS for device in node.rdma)]
            for node in self.examples
        ]
        self.near = np.array([mask_of(cards) for cards in near], dtype=np.int64)
        """By kind, mask of the cards with an RDMA device near."""
        self._usable: dict[tuple[tuple[str, ...], bool], tuple[Bools, Ints] | None] = {}

    def usable(self, gpus: GpuRequest) -> tuple[Bools, Ints] | None:
        """Cards that such a request may use, by kind: [kind, card], and as masks; None: all of eligible nodes."""
        key = (gpus.models, gpus.rdma == "require")
        if key not in self._usable:
            self._usable[key] = self._look(*key)
        return self._usable[key]

    def _look(self, models: tuple[str, ...], near: bool) -> tuple[Bools, Ints] | None:
        if not near and not (models and self._mixed):
            return None
        found = np.zeros((len(self.examples), self.cards_max), dtype=np.bool_)
        for kind, node in enumerate(self.examples):
            for place, gpu in enumerate(node.gpus):
                found[kind, place] = (not models or gpu.model in models) and (
                    not near or bool(int(self.near[kind]) >> place & 1)
                )
        return found, np.array([mask_of(np.flatnonzero(row).tolist()) for row in found], dtype=np.int64)

    def near_parts(self, kinds: Ints, free: Ints, cards: int) -> NDArray[np.float64]:
        """For each mask of free cards, how many of `cards` can be ones with an RDMA device near, as a part; 0 to 1."""
        masks, where = np.unique(free & self.near[kinds], return_inverse=True)
        parts = np.array([min(int(mask).bit_count(), cards) / cards for mask in masks])
        found: NDArray[np.float64] = parts[where.reshape(-1)]
        return found


def _zones(node: Node) -> tuple[int, ...]:
    numbers = sorted({gpu.numa for gpu in node.gpus})
    if node.links or len(numbers) < 2:
        return ()
    return tuple(mask_of(place for place, gpu in enumerate(node.gpus) if gpu.numa == number) for number in numbers)
