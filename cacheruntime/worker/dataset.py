"""One dataset in the worker: what it is made of, and what of it is open."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from forebay.cacheruntime.dataset_source import ClusterView, StoreMount
from forebay.cacheruntime.keys import ContentId, DatasetId, Roots
from forebay.cacheruntime.snapshot_history import Keep
from forebay.cacheruntime.understore.base import UnderStore
from forebay.cacheruntime.understore.composite import CompositeStore
from forebay.cacheruntime.worker.fetch import Peers, SourceFile
from forebay.cacheruntime.worker.snapshot import Snapshot
from forebay.cacheruntime.worker.space import is_below
from forebay.proto import worker_pb2 as pb


@dataclass(frozen=True)
class Definition:
    """What a dataset is made of. Credentials are in it."""

    source: str
    options: dict[str, str]
    stores: tuple[StoreMount, ...] = ()
    """Of a dataset with a name; `source` is that name then."""
    view: ClusterView | None = None
    """On a client node, where it is a part of one."""


@dataclass
class Dataset:
    """One attached source."""

    id: DatasetId
    definition: Definition
    store: UnderStore
    roots: Roots
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    """Those that are open: the newest, those in use, and those that were lately."""
    dropped: list[Snapshot] = field(default_factory=list)
    """Removed from sight and disk while tasks of this worker still had them; to be closed."""
    last_used: float = 0.0
    keep: Keep = field(default_factory=Keep)
    policy: pb.CachePolicy | None = None
    """As it was last attached with one."""
    peers: Peers | None = None
    """Other workers that may have its files."""
    attached: Mapping[DatasetId, "Dataset"] = field(default_factory=dict, repr=False)
    """All datasets of the worker."""

    @property
    def newest(self) -> Snapshot | None:
        return self.snapshots[max(self.snapshots)] if self.snapshots else None

    @property
    def in_cluster(self) -> ClusterView:
        """What it is to the workers: itself, or, on a client node, a part of one of their datasets."""
        return self.definition.view or ClusterView(self.id)

    @property
    def owners(self) -> set[str]:
        """Ids of the other datasets that what it caches belongs to."""
        return {store.owner for store in self.definition.stores if store.owner}

    def file(self, path: str, size: int, version: str, hops: int = 0, content: ContentId | None = None) -> SourceFile:
        """One version of one file, as its own store knows it.

        Args:
            path: in the dataset.
            size, version: as listed.
            hops: workers that passed the request on.
            content: the name of these, where it is known: to hash them takes 5 us.

        Raises:
            SourceNotFound: the path is in no store.
        """
        if not isinstance(self.store, CompositeStore):
            replicas = self._replicas(self.id, path)
            return SourceFile(
                self.id, self.store, path, size, version, path, self.id, path, self.peers, hops, content, replicas
            )
        place = self.store.locate(path)
        owner = DatasetId(place.owner or self.id)
        view = self.in_cluster
        return SourceFile(
            owner, place.store, place.path, size, version, place.owner_path, view.dataset_id, view.below(path),
            self.peers, hops, content, self._replicas(owner, place.owner_path),
        )  # fmt: skip

    def _replicas(self, owner: DatasetId, path: str) -> int:
        """Of a file, by the dataset that it belongs to; by this one's where that one is not known here."""
        if self.peers is None:
            return 0
        known = self.attached.get(owner)
        if known is not None and known.policy is not None:
            return replicas_of(known.policy, os.fsencode(path))
        return self.policy.replicas if self.policy is not None else 0


def replicas_of(policy: pb.CachePolicy, path: bytes) -> int:
    """How many workers are to have a file: by the longest path that says so, else by the dataset; 0: not said."""
    rules = [rule for rule in policy.paths if rule.replicas and is_below(path, rule.path)]
    return max(rules, key=lambda rule: len(rule.path)).replicas if rules else policy.replicas
