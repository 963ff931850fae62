"""The Dataset kind: what `forebay apply` takes and a cluster's schema is made of.

Fields and their names are those of Fluid's Dataset, so that a manifest needs another `apiVersion` and no more; what is
ours beside them is `syncPolicy`, `cachePolicy`, `snapshot` and `snapshotHistory`. The models are strict: an unknown
field, or text where a number belongs, is an error (`manifest_errors.py` puts it into words). What holds between fields
is in `dataset_rules.py`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from forebay.cacheruntime import config
from forebay.cacheruntime.config import KEPT_SNAPSHOTS, parse_size
from forebay.cacheruntime.errors import UsageError

GROUP = "data.forebay.io"
API_VERSION = f"{GROUP}/v1alpha1"


def parse_duration(text: str) -> float:
    """Seconds from '30s', '10m', '1h30m', '7d'.

    Raises:
        ValueError: not of that form, or not positive.
    """
    try:
        if re.search(r"\d$|[\sA-Z]", text):
            raise UsageError("")  # Kubernetes' durations have small units, without spaces
        return config.parse_duration(text)
    except UsageError:
        raise ValueError(f"{text!r} is not a duration; write it like 30s, 10m, 1h30m or 7d") from None


def parse_quantity(text: str) -> int:
    """Bytes from '100GiB', '100Gi' (as Kubernetes writes it), '500MB'.

    Raises:
        ValueError: not of that form, or not positive.
    """
    try:
        return parse_size(text + "B" if re.search(r"[KMGT]i$", text) else text)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _checked_duration(text: str) -> str:
    parse_duration(text)
    return text


def _checked_quantity(text: str) -> str:
    parse_quantity(text)
    return text


Duration = Annotated[str, AfterValidator(_checked_duration)]
Quantity = Annotated[str, AfterValidator(_checked_quantity)]
Replicas = Annotated[int, Field(ge=1, le=64)]
"""`routing.py` spreads over 64 workers at most."""
SecretName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
SecretKey = Annotated[str, Field(pattern=r"^[-_a-zA-Z0-9][-._a-zA-Z0-9]*$", max_length=253)]
Label = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A DNS label (RFC 1035): what names a dataset, for it names volumes and services in a cluster."""


class Model(BaseModel):
    """What all of them share."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)


class SecretKeyRef(Model):
    """One value of a secret."""

    name: SecretName
    key: SecretKey


class ValueFrom(Model):
    """Where an option's value comes from."""

    secret_key_ref: SecretKeyRef


class EncryptOption(Model):
    """An option whose value is a secret. It wins over the same name in `options`."""

    name: Annotated[str, Field(min_length=1)]
    value_from: ValueFrom


class Mount(Model):
    """A place in some store, and where it appears in the dataset."""

    mount_point: Annotated[str, Field(min_length=5)]
    """A URL: s3://, oss://, gs://, az://, hdfs://, http(s)://, local:///, file:///, dataset://NAME[@N][/sub], ..."""
    name: str = ""
    path: str = ""
    """Default: /{name}. '/' is the dataset's root, with a single mount only."""
    options: dict[str, str] = {}
    encrypt_options: list[EncryptOption] = []
    read_only: bool = False
    shared: bool = False


class NodeSelectorRequirement(Model):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[str] = []


class NodeSelectorTerm(Model):
    match_expressions: list[NodeSelectorRequirement] = []
    match_fields: list[NodeSelectorRequirement] = []


class NodeSelector(Model):
    node_selector_terms: list[NodeSelectorTerm]


class CacheableNodeAffinity(Model):
    """Nodes that may cache."""

    required: NodeSelector | None = None


class Toleration(Model):
    key: str = ""
    operator: Literal["Exists", "Equal", ""] = ""
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute", ""] = ""
    toleration_seconds: int | None = None


class Owner(Model):
    """Whose the files seem to be."""

    uid: Annotated[int, Field(ge=0, le=2**32 - 2)] | None = None
    gid: Annotated[int, Field(ge=0, le=2**32 - 2)] | None = None
    user: str = ""
    group: str = ""


class Runtime(Model):
    name: str
    namespace: str = ""
    category: str = ""
    type: str = ""
    master_replicas: int = 0


class DataRestoreLocation(Model):
    path: str = ""
    node_name: str = ""


class SyncPolicy(Model):
    """When the source is listed again."""

    interval: Duration | None = None
    """While the dataset is mounted. None: only by `forebay sync`."""
    on_mount: bool = True
    """Also when it is mounted. False: show the newest snapshot that there is."""


class CachePath(Model):
    """What holds for the files below one path of the dataset; the longest path that matches counts."""

    path: str
    quota: Quantity | None = None
    pinned: bool = False
    replicas: Replicas | None = None
    """None: as the next longer path above says, or the dataset."""


class CachePolicy(Model):
    """How the dataset shares the tiers with others."""

    policy: Literal["epoch", "sieve", "lru", "next-use"] = "epoch"
    quota: Quantity | None = None
    paths: list[CachePath] = []
    replicas: Replicas | None = None
    """Workers of a cluster that are to have each piece. None: as many as the cluster is set to."""


class SnapshotHistory(Model):
    """Which snapshots are kept beside the newest and those in use."""

    count: Annotated[int, Field(ge=1)] = KEPT_SNAPSHOTS
    """At most so many, the newest included."""
    age: Duration | None = None
    """None of them older than this."""


class DatasetSpec(Model):
    mounts: Annotated[list[Mount], Field(min_length=1)]
    shared_options: dict[str, str] = {}
    shared_encrypt_options: list[EncryptOption] = []
    access_modes: list[Literal["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]] = []
    owner: Owner | None = None
    placement: Literal["Exclusive", "Shared", ""] = ""
    node_affinity: CacheableNodeAffinity | None = None
    tolerations: list[Toleration] = []
    runtimes: list[Runtime] = []
    data_restore_location: DataRestoreLocation | None = None
    sync_policy: SyncPolicy = SyncPolicy()
    cache_policy: CachePolicy = CachePolicy()
    snapshot: Annotated[int, Field(ge=1)] | None = None
    """Mounts show this one, whatever is synced."""
    snapshot_history: SnapshotHistory = SnapshotHistory()


class Metadata(Model):
    """Of an object; what a cluster adds to it is accepted and left out."""

    name: Label
    namespace: Label = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: Any = None
    deletion_timestamp: Any = None
    deletion_grace_period_seconds: Any = None
    finalizers: Any = None
    generate_name: Any = None
    generation: Any = None
    managed_fields: Any = None
    owner_references: Any = None
    resource_version: Any = None
    self_link: Any = None
    uid: Any = None


class Dataset(Model):
    """A dataset: stores under one tree, and how they are listed and cached."""

    api_version: Literal["data.forebay.io/v1alpha1"]
    kind: Literal["Dataset"]
    metadata: Metadata
    spec: DatasetSpec
    status: Any = None
    """Accepted, for `kubectl get -o yaml` prints it; never kept."""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.metadata.namespace, self.metadata.name

    def manifest(self) -> dict[str, Any]:
        """As the user wrote it, without what a cluster added."""
        metadata = self.metadata.model_dump(
            by_alias=True, exclude_unset=True, include={"name", "namespace", "labels", "annotations"}
        )
        spec = self.spec.model_dump(by_alias=True, exclude_unset=True)
        return {"apiVersion": self.api_version, "kind": self.kind, "metadata": metadata, "spec": spec}


def json_schema() -> dict[str, Any]:
    """The JSON schema of the kind."""
    return Dataset.model_json_schema(by_alias=True)
