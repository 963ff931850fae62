"""What a client tells the worker of a source: a URL, or the tree of stores of a dataset that has a name.

A dataset with a name is named by it and by what its mounts are. So its snapshots are its own; one whose mounts were
changed begins anew, and every machine with the same manifest has the same name for it (docs/decisions/0024).
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from forebay.cacheruntime.keys import DatasetId, Roots, dataset_id
from forebay.cacheruntime.understore.address import without_userinfo
from forebay.cacheruntime.understore.factory import canonical_source
from forebay.proto import worker_pb2 as pb


@dataclass(frozen=True)
class StoreMount:
    """One store in a tree; fields as in proto's StoreMount."""

    path: str
    source: str = field(default="", repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    owner: str = ""
    of_dataset: str = ""
    of_snapshot: int = 0
    of_path: str = ""
    stores: tuple["StoreMount", ...] = ()
    owner_path: str = ""

    @property
    def url(self) -> str:
        """Canonical."""
        if self.of_dataset:
            return f"{tree_id(self.of_dataset, list(self.stores))}@{self.of_snapshot}/{self.of_path}"
        return canonical_source(self.source, self.options)

    def roots(self) -> list[tuple[str, str]]:
        """For `keys.Roots`."""
        if not self.of_dataset:
            return [(self.path, self.url)]
        whole = Roots("", [root for store in self.stores for root in store.roots()])
        return [("/".join(filter(None, (self.path, path))), url) for path, url in whole.below(self.of_path)]

    def to_proto(self) -> pb.StoreMount:
        return pb.StoreMount(
            path=self.path, source=self.source, options=dict(self.options), owner=self.owner,
            of_dataset=self.of_dataset, of_snapshot=self.of_snapshot, of_path=self.of_path,
            stores=[store.to_proto() for store in self.stores], owner_path=self.owner_path,
        )  # fmt: skip

    @classmethod
    def from_proto(cls, made: pb.StoreMount) -> "StoreMount":
        inner = tuple(cls.from_proto(store) for store in made.stores)
        return cls(
            made.path, made.source, dict(made.options), made.owner,
            made.of_dataset, made.of_snapshot, made.of_path, inner, made.owner_path,
        )  # fmt: skip

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "StoreMount":
        return cls(**dict(raw) | {"stores": tuple(cls.from_json(store) for store in raw["stores"])})


def tree_id(name: str, stores: list[StoreMount]) -> DatasetId:
    """Name a dataset by its name (dataset://NAMESPACE/NAME) and its mounts."""
    return dataset_id("\n".join([name, *sorted(f"{store.path}\t{store.url}" for store in stores)]))


@dataclass(frozen=True)
class ClusterView:
    """A part of a dataset of the cluster, as a client node shows it; fields as in proto's ClusterView."""

    dataset_id: DatasetId
    path: str = ""
    snapshot: int = 0

    def to_proto(self) -> pb.ClusterView:
        return pb.ClusterView(dataset_id=self.dataset_id, path=self.path, snapshot=self.snapshot)

    @classmethod
    def from_proto(cls, made: pb.ClusterView) -> "ClusterView":
        return cls(DatasetId(made.dataset_id), made.path, made.snapshot)

    def below(self, path: str) -> str:
        """Where a path of the view is in the dataset."""
        return "/".join(filter(None, (self.path, path)))


@dataclass(frozen=True)
class PathRule:
    """What holds for the files below one path; fields as in proto's PathRule."""

    path: str
    quota_bytes: int = 0
    pinned: bool = False
    replicas: int = 0


@dataclass(frozen=True)
class Tree:
    """What a dataset with a name is made of, and how it is kept."""

    stores: tuple[StoreMount, ...]
    policy: str = "epoch"
    quota_bytes: int = 0
    path_rules: tuple[PathRule, ...] = ()
    replicas: int = 0
    """Workers of a cluster that are to have each piece; 0: as many as the cluster is set to."""
    keep_count: int = 0
    """As proto's Retention."""
    keep_age_s: float = 0.0
    keep_pinned: tuple[int, ...] = ()
    on_mount: bool = True
    """A mount lists it again."""
    interval_s: float = 0.0
    """Mounts have it synced this often; 0: never."""
    owner: str = ""
    """Whose the files seem to be, as `--owner` takes it; empty: who mounts."""
    view: ClusterView | None = None
    """On a client node: which part of a dataset it is; None: all of one."""

    def retention(self) -> pb.Retention:
        return pb.Retention(count=self.keep_count, age_s=self.keep_age_s, pinned=self.keep_pinned)

    def cache_policy(self) -> pb.CachePolicy:
        rules = [
            pb.PathRule(
                path=os.fsencode(rule.path), quota_bytes=rule.quota_bytes, pinned=rule.pinned, replicas=rule.replicas
            )
            for rule in self.path_rules
        ]
        return pb.CachePolicy(policy=self.policy, quota_bytes=self.quota_bytes, paths=rules, replicas=self.replicas)

    def to_json(self) -> dict[str, Any]:
        """For a process of ours; credentials are in it."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Tree":
        return cls(
            **dict(raw)
            | {
                "stores": tuple(StoreMount.from_json(store) for store in raw["stores"]),
                "path_rules": tuple(PathRule(**rule) for rule in raw["path_rules"]),
                "keep_pinned": tuple(raw["keep_pinned"]),
                "view": ClusterView(**raw["view"]) if raw.get("view") else None,
            }
        )


@dataclass(frozen=True)
class SourceSpec:
    """What a client needs to attach, and to attach again. Its repr holds no secret."""

    source: str
    """A URL, or dataset://NAMESPACE/NAME."""
    options: Mapping[str, str] = field(repr=False)
    """Empty for a dataset with a name: each of its stores has its own."""
    tree: Tree | None = None
    snapshot: int = 0
    """Pinned to this one."""
    shown: str = ""
    """As a user writes it; empty: `source`."""

    def attach_request(
        self, *, list_tree: bool = False, relist: bool = False, snapshot: int = 0, stored: bool = False,
        cache_policy: str = "",
    ) -> pb.AttachRequest:  # fmt: skip
        """See `AttachRequest` in proto/worker.proto; `cache_policy` takes the place of the manifest's, whose quotas and
        pins stay."""
        request = pb.AttachRequest(
            source=self.source, options=dict(self.options), list=list_tree, relist=relist,
            snapshot=self.snapshot or snapshot, stored=stored, pinned=bool(self.snapshot),
        )  # fmt: skip
        if self.tree is not None:
            request.stores.extend(store.to_proto() for store in self.tree.stores)
            request.cache_policy.CopyFrom(self.tree.cache_policy())
            request.retention.CopyFrom(self.tree.retention())
            if self.tree.view is not None:
                request.view.CopyFrom(self.tree.view.to_proto())
        if cache_policy:
            request.cache_policy.policy = cache_policy
        return request

    @property
    def shown_source(self) -> str:
        """Without credentials."""
        return self.shown or without_userinfo(self.source)

    @property
    def url(self) -> str:
        """Canonical, without credentials."""
        return self.source if self.tree is not None else canonical_source(self.source, self.options)

    @property
    def dataset_id(self) -> DatasetId:
        if self.tree is not None:
            return tree_id(self.source, list(self.tree.stores))
        return dataset_id(self.url)

    @property
    def roots(self) -> Roots:
        if self.tree is None:
            return Roots(self.url)
        return Roots(self.url, [root for store in self.tree.stores for root in store.roots()])

    @property
    def owners(self) -> tuple[str, ...]:
        """The other datasets that what it caches belongs to."""
        stores = self.tree.stores if self.tree is not None else ()
        return tuple(sorted({store.owner for store in stores if store.owner}))
