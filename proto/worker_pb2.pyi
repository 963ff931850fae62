from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttachRequest(_message.Message):
    __slots__ = ("source", "options", "list", "relist", "snapshot", "cache_policy", "stores", "retention", "stored", "pinned", "view")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    RELIST_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CACHE_POLICY_FIELD_NUMBER: _ClassVar[int]
    STORES_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    source: str
    options: _containers.ScalarMap[str, str]
    list: bool
    relist: bool
    snapshot: int
    cache_policy: CachePolicy
    stores: _containers.RepeatedCompositeFieldContainer[StoreMount]
    retention: Retention
    stored: bool
    pinned: bool
    view: ClusterView
    def __init__(self, source: _Optional[str] = ..., options: _Optional[_Mapping[str, str]] = ..., list: _Optional[bool] = ..., relist: _Optional[bool] = ..., snapshot: _Optional[int] = ..., cache_policy: _Optional[_Union[CachePolicy, _Mapping]] = ..., stores: _Optional[_Iterable[_Union[StoreMount, _Mapping]]] = ..., retention: _Optional[_Union[Retention, _Mapping]] = ..., stored: _Optional[bool] = ..., pinned: _Optional[bool] = ..., view: _Optional[_Union[ClusterView, _Mapping]] = ...) -> None: ...

class ClusterView(_message.Message):
    __slots__ = ("dataset_id", "path", "snapshot")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    path: str
    snapshot: int
    def __init__(self, dataset_id: _Optional[str] = ..., path: _Optional[str] = ..., snapshot: _Optional[int] = ...) -> None: ...

class CachePolicy(_message.Message):
    __slots__ = ("policy", "quota_bytes", "paths", "replicas")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    quota_bytes: int
    paths: _containers.RepeatedCompositeFieldContainer[PathRule]
    replicas: int
    def __init__(self, policy: _Optional[str] = ..., quota_bytes: _Optional[int] = ..., paths: _Optional[_Iterable[_Union[PathRule, _Mapping]]] = ..., replicas: _Optional[int] = ...) -> None: ...

class PathRule(_message.Message):
    __slots__ = ("path", "quota_bytes", "pinned", "replicas")
    PATH_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    quota_bytes: int
    pinned: bool
    replicas: int
    def __init__(self, path: _Optional[bytes] = ..., quota_bytes: _Optional[int] = ..., pinned: _Optional[bool] = ..., replicas: _Optional[int] = ...) -> None: ...

class AttachReply(_message.Message):
    __slots__ = ("dataset_id", "snapshot", "catalogue")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    snapshot: int
    catalogue: str
    def __init__(self, dataset_id: _Optional[str] = ..., snapshot: _Optional[int] = ..., catalogue: _Optional[str] = ...) -> None: ...

class FileRef(_message.Message):
    __slots__ = ("path", "size", "version")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    size: int
    version: str
    def __init__(self, path: _Optional[bytes] = ..., size: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class FillRequest(_message.Message):
    __slots__ = ("dataset_id", "file", "offset", "length", "window", "background", "ahead", "suspect", "traceparent")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    SUSPECT_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    file: FileRef
    offset: int
    length: int
    window: int
    background: bool
    ahead: bool
    suspect: bool
    traceparent: str
    def __init__(self, dataset_id: _Optional[str] = ..., file: _Optional[_Union[FileRef, _Mapping]] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., window: _Optional[int] = ..., background: _Optional[bool] = ..., ahead: _Optional[bool] = ..., suspect: _Optional[bool] = ..., traceparent: _Optional[str] = ...) -> None: ...

class ListDirectoryRequest(_message.Message):
    __slots__ = ("dataset_id", "path", "name")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    path: bytes
    name: bytes
    def __init__(self, dataset_id: _Optional[str] = ..., path: _Optional[bytes] = ..., name: _Optional[bytes] = ...) -> None: ...

class ListDirectoryReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WarmupRequest(_message.Message):
    __slots__ = ("dataset_id", "paths", "jobs", "snapshot", "globs", "rate_bytes_s", "medium", "pin", "verify", "metadata_only", "skip_existing", "deadline_s", "job", "local")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    GLOBS_FIELD_NUMBER: _ClassVar[int]
    RATE_BYTES_S_FIELD_NUMBER: _ClassVar[int]
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    METADATA_ONLY_FIELD_NUMBER: _ClassVar[int]
    SKIP_EXISTING_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    paths: _containers.RepeatedScalarFieldContainer[bytes]
    jobs: int
    snapshot: int
    globs: _containers.RepeatedScalarFieldContainer[bytes]
    rate_bytes_s: int
    medium: str
    pin: bool
    verify: bool
    metadata_only: bool
    skip_existing: bool
    deadline_s: float
    job: int
    local: bool
    def __init__(self, dataset_id: _Optional[str] = ..., paths: _Optional[_Iterable[bytes]] = ..., jobs: _Optional[int] = ..., snapshot: _Optional[int] = ..., globs: _Optional[_Iterable[bytes]] = ..., rate_bytes_s: _Optional[int] = ..., medium: _Optional[str] = ..., pin: _Optional[bool] = ..., verify: _Optional[bool] = ..., metadata_only: _Optional[bool] = ..., skip_existing: _Optional[bool] = ..., deadline_s: _Optional[float] = ..., job: _Optional[int] = ..., local: _Optional[bool] = ...) -> None: ...

class WarmupProgress(_message.Message):
    __slots__ = ("files_total", "files_done", "files_failed", "bytes_total", "bytes_done", "files_uncached", "failures", "finished", "listing", "job", "state", "error", "elapsed_s", "bytes_fetched", "files_verified", "files_damaged")
    FILES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    FILES_DONE_FIELD_NUMBER: _ClassVar[int]
    FILES_FAILED_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    FILES_UNCACHED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_FETCHED_FIELD_NUMBER: _ClassVar[int]
    FILES_VERIFIED_FIELD_NUMBER: _ClassVar[int]
    FILES_DAMAGED_FIELD_NUMBER: _ClassVar[int]
    files_total: int
    files_done: int
    files_failed: int
    bytes_total: int
    bytes_done: int
    files_uncached: int
    failures: _containers.RepeatedScalarFieldContainer[str]
    finished: bool
    listing: bool
    job: int
    state: str
    error: str
    elapsed_s: float
    bytes_fetched: int
    files_verified: int
    files_damaged: int
    def __init__(self, files_total: _Optional[int] = ..., files_done: _Optional[int] = ..., files_failed: _Optional[int] = ..., bytes_total: _Optional[int] = ..., bytes_done: _Optional[int] = ..., files_uncached: _Optional[int] = ..., failures: _Optional[_Iterable[str]] = ..., finished: _Optional[bool] = ..., listing: _Optional[bool] = ..., job: _Optional[int] = ..., state: _Optional[str] = ..., error: _Optional[str] = ..., elapsed_s: _Optional[float] = ..., bytes_fetched: _Optional[int] = ..., files_verified: _Optional[int] = ..., files_damaged: _Optional[int] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("dataset_id", "shown")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    shown: int
    def __init__(self, dataset_id: _Optional[str] = ..., shown: _Optional[int] = ...) -> None: ...

class SyncReply(_message.Message):
    __slots__ = ("snapshot", "catalogue", "added", "changed", "removed", "previous")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    snapshot: int
    catalogue: str
    added: int
    changed: int
    removed: int
    previous: int
    def __init__(self, snapshot: _Optional[int] = ..., catalogue: _Optional[str] = ..., added: _Optional[int] = ..., changed: _Optional[int] = ..., removed: _Optional[int] = ..., previous: _Optional[int] = ...) -> None: ...

class StatRequest(_message.Message):
    __slots__ = ("dataset_id", "path", "children")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    path: bytes
    children: bool
    def __init__(self, dataset_id: _Optional[str] = ..., path: _Optional[bytes] = ..., children: _Optional[bool] = ...) -> None: ...

class StatEntry(_message.Message):
    __slots__ = ("path", "kind", "size", "mtime_ns", "version", "target", "mode")
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    kind: str
    size: int
    mtime_ns: int
    version: str
    target: bytes
    mode: int
    def __init__(self, path: _Optional[bytes] = ..., kind: _Optional[str] = ..., size: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., version: _Optional[str] = ..., target: _Optional[bytes] = ..., mode: _Optional[int] = ...) -> None: ...

class StatReply(_message.Message):
    __slots__ = ("entry", "children")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    entry: StatEntry
    children: _containers.RepeatedCompositeFieldContainer[StatEntry]
    def __init__(self, entry: _Optional[_Union[StatEntry, _Mapping]] = ..., children: _Optional[_Iterable[_Union[StatEntry, _Mapping]]] = ...) -> None: ...

class MembersRequest(_message.Message):
    __slots__ = ("dataset_id", "path")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    path: bytes
    def __init__(self, dataset_id: _Optional[str] = ..., path: _Optional[bytes] = ...) -> None: ...

class MembersReply(_message.Message):
    __slots__ = ("members",)
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("id", "address", "state", "version", "me", "trouble", "tiers", "datasets", "gets", "fetched_bytes", "left_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ME_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    GETS_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEFT_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    address: str
    state: str
    version: str
    me: bool
    trouble: str
    tiers: _containers.RepeatedCompositeFieldContainer[TierStatus]
    datasets: _containers.RepeatedCompositeFieldContainer[MemberHoldings]
    gets: int
    fetched_bytes: int
    left_bytes: int
    def __init__(self, id: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., version: _Optional[str] = ..., me: _Optional[bool] = ..., trouble: _Optional[str] = ..., tiers: _Optional[_Iterable[_Union[TierStatus, _Mapping]]] = ..., datasets: _Optional[_Iterable[_Union[MemberHoldings, _Mapping]]] = ..., gets: _Optional[int] = ..., fetched_bytes: _Optional[int] = ..., left_bytes: _Optional[int] = ...) -> None: ...

class MemberHoldings(_message.Message):
    __slots__ = ("dataset_id", "name", "bytes", "files", "path_bytes", "path_files", "replica_bytes")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PATH_BYTES_FIELD_NUMBER: _ClassVar[int]
    PATH_FILES_FIELD_NUMBER: _ClassVar[int]
    REPLICA_BYTES_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    name: str
    bytes: int
    files: int
    path_bytes: int
    path_files: int
    replica_bytes: int
    def __init__(self, dataset_id: _Optional[str] = ..., name: _Optional[str] = ..., bytes: _Optional[int] = ..., files: _Optional[int] = ..., path_bytes: _Optional[int] = ..., path_files: _Optional[int] = ..., replica_bytes: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("pid", "version", "tiers", "datasets", "damaged_blocks", "damaged_files", "damaged_records", "moved_bytes", "scrubbed_bytes", "checkpoints", "cluster")
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FILES_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SCRUBBED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    pid: int
    version: str
    tiers: _containers.RepeatedCompositeFieldContainer[TierStatus]
    datasets: _containers.RepeatedCompositeFieldContainer[DatasetStatus]
    damaged_blocks: int
    damaged_files: int
    damaged_records: int
    moved_bytes: int
    scrubbed_bytes: int
    checkpoints: int
    cluster: str
    def __init__(self, pid: _Optional[int] = ..., version: _Optional[str] = ..., tiers: _Optional[_Iterable[_Union[TierStatus, _Mapping]]] = ..., datasets: _Optional[_Iterable[_Union[DatasetStatus, _Mapping]]] = ..., damaged_blocks: _Optional[int] = ..., damaged_files: _Optional[int] = ..., damaged_records: _Optional[int] = ..., moved_bytes: _Optional[int] = ..., scrubbed_bytes: _Optional[int] = ..., checkpoints: _Optional[int] = ..., cluster: _Optional[str] = ...) -> None: ...

class TierStatus(_message.Message):
    __slots__ = ("medium", "path", "quota_bytes", "used_bytes", "state")
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    medium: str
    path: str
    quota_bytes: int
    used_bytes: int
    state: str
    def __init__(self, medium: _Optional[str] = ..., path: _Optional[str] = ..., quota_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., state: _Optional[str] = ...) -> None: ...

class DatasetStatus(_message.Message):
    __slots__ = ("dataset_id", "source", "snapshot", "listing", "listing_error", "files", "bytes", "skipped", "holdings", "fetched_bytes", "gets", "replica_bytes")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    LISTING_ERROR_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    GETS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_BYTES_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    source: str
    snapshot: int
    listing: bool
    listing_error: str
    files: int
    bytes: int
    skipped: int
    holdings: _containers.RepeatedCompositeFieldContainer[TierHoldings]
    fetched_bytes: int
    gets: int
    replica_bytes: int
    def __init__(self, dataset_id: _Optional[str] = ..., source: _Optional[str] = ..., snapshot: _Optional[int] = ..., listing: _Optional[bool] = ..., listing_error: _Optional[str] = ..., files: _Optional[int] = ..., bytes: _Optional[int] = ..., skipped: _Optional[int] = ..., holdings: _Optional[_Iterable[_Union[TierHoldings, _Mapping]]] = ..., fetched_bytes: _Optional[int] = ..., gets: _Optional[int] = ..., replica_bytes: _Optional[int] = ...) -> None: ...

class TierHoldings(_message.Message):
    __slots__ = ("tier", "bytes", "files")
    TIER_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    tier: int
    bytes: int
    files: int
    def __init__(self, tier: _Optional[int] = ..., bytes: _Optional[int] = ..., files: _Optional[int] = ...) -> None: ...

class RetireRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RetireReply(_message.Message):
    __slots__ = ("leaving",)
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    leaving: bool
    def __init__(self, leaving: _Optional[bool] = ...) -> None: ...

class PostOrderRequest(_message.Message):
    __slots__ = ("dataset_id", "reader", "snapshot", "nodes", "first", "position", "asked", "done")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    reader: str
    snapshot: int
    nodes: _containers.RepeatedScalarFieldContainer[int]
    first: int
    position: int
    asked: int
    done: bool
    def __init__(self, dataset_id: _Optional[str] = ..., reader: _Optional[str] = ..., snapshot: _Optional[int] = ..., nodes: _Optional[_Iterable[int]] = ..., first: _Optional[int] = ..., position: _Optional[int] = ..., asked: _Optional[int] = ..., done: _Optional[bool] = ...) -> None: ...

class PostOrderReply(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: int
    def __init__(self, known: _Optional[int] = ...) -> None: ...

class StoreMount(_message.Message):
    __slots__ = ("path", "source", "options", "owner", "of_dataset", "of_snapshot", "of_path", "stores", "owner_path")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PATH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    OF_DATASET_FIELD_NUMBER: _ClassVar[int]
    OF_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    OF_PATH_FIELD_NUMBER: _ClassVar[int]
    STORES_FIELD_NUMBER: _ClassVar[int]
    OWNER_PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    source: str
    options: _containers.ScalarMap[str, str]
    owner: str
    of_dataset: str
    of_snapshot: int
    of_path: str
    stores: _containers.RepeatedCompositeFieldContainer[StoreMount]
    owner_path: str
    def __init__(self, path: _Optional[str] = ..., source: _Optional[str] = ..., options: _Optional[_Mapping[str, str]] = ..., owner: _Optional[str] = ..., of_dataset: _Optional[str] = ..., of_snapshot: _Optional[int] = ..., of_path: _Optional[str] = ..., stores: _Optional[_Iterable[_Union[StoreMount, _Mapping]]] = ..., owner_path: _Optional[str] = ...) -> None: ...

class Retention(_message.Message):
    __slots__ = ("count", "age_s", "pinned")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    count: int
    age_s: float
    pinned: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, count: _Optional[int] = ..., age_s: _Optional[float] = ..., pinned: _Optional[_Iterable[int]] = ...) -> None: ...

class CollectSnapshotsRequest(_message.Message):
    __slots__ = ("dataset_id", "retention")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    retention: Retention
    def __init__(self, dataset_id: _Optional[str] = ..., retention: _Optional[_Union[Retention, _Mapping]] = ...) -> None: ...

class CollectSnapshotsReply(_message.Message):
    __slots__ = ("removed",)
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    removed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, removed: _Optional[_Iterable[int]] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("name", "purge")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PURGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    purge: bool
    def __init__(self, name: _Optional[str] = ..., purge: _Optional[bool] = ...) -> None: ...

class ForgetReply(_message.Message):
    __slots__ = ("snapshots", "bytes")
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    snapshots: int
    bytes: int
    def __init__(self, snapshots: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class StartJobReply(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: int
    def __init__(self, job: _Optional[int] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: int
    def __init__(self, job: _Optional[int] = ...) -> None: ...

class CancelJobReply(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class TrafficRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrafficReply(_message.Message):
    __slots__ = ("sources", "uptime_s", "peers", "peer_requests", "hedges", "certificate_left_s")
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    PEER_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    HEDGES_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    sources: _containers.RepeatedCompositeFieldContainer[SourceTraffic]
    uptime_s: float
    peers: _containers.RepeatedCompositeFieldContainer[PeerTraffic]
    peer_requests: int
    hedges: int
    certificate_left_s: float
    def __init__(self, sources: _Optional[_Iterable[_Union[SourceTraffic, _Mapping]]] = ..., uptime_s: _Optional[float] = ..., peers: _Optional[_Iterable[_Union[PeerTraffic, _Mapping]]] = ..., peer_requests: _Optional[int] = ..., hedges: _Optional[int] = ..., certificate_left_s: _Optional[float] = ...) -> None: ...

class PeerTraffic(_message.Message):
    __slots__ = ("id", "requests", "bytes", "errors", "wrong", "usable", "header_counts", "header_sum_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    WRONG_FIELD_NUMBER: _ClassVar[int]
    USABLE_FIELD_NUMBER: _ClassVar[int]
    HEADER_COUNTS_FIELD_NUMBER: _ClassVar[int]
    HEADER_SUM_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    requests: int
    bytes: int
    errors: int
    wrong: int
    usable: bool
    header_counts: _containers.RepeatedScalarFieldContainer[int]
    header_sum_s: float
    def __init__(self, id: _Optional[str] = ..., requests: _Optional[int] = ..., bytes: _Optional[int] = ..., errors: _Optional[int] = ..., wrong: _Optional[int] = ..., usable: _Optional[bool] = ..., header_counts: _Optional[_Iterable[int]] = ..., header_sum_s: _Optional[float] = ...) -> None: ...

class SourceTraffic(_message.Message):
    __slots__ = ("dataset_id", "gets", "bytes", "errors", "get_counts", "get_sum_s", "queue_counts", "queue_sum_s", "peer_reads", "peer_bytes")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    GETS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    GET_COUNTS_FIELD_NUMBER: _ClassVar[int]
    GET_SUM_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SUM_S_FIELD_NUMBER: _ClassVar[int]
    PEER_READS_FIELD_NUMBER: _ClassVar[int]
    PEER_BYTES_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    gets: int
    bytes: int
    errors: int
    get_counts: _containers.RepeatedScalarFieldContainer[int]
    get_sum_s: float
    queue_counts: _containers.RepeatedScalarFieldContainer[int]
    queue_sum_s: float
    peer_reads: int
    peer_bytes: int
    def __init__(self, dataset_id: _Optional[str] = ..., gets: _Optional[int] = ..., bytes: _Optional[int] = ..., errors: _Optional[int] = ..., get_counts: _Optional[_Iterable[int]] = ..., get_sum_s: _Optional[float] = ..., queue_counts: _Optional[_Iterable[int]] = ..., queue_sum_s: _Optional[float] = ..., peer_reads: _Optional[int] = ..., peer_bytes: _Optional[int] = ...) -> None: ...

class ServeMetricsRequest(_message.Message):
    __slots__ = ("address",)
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    address: str
    def __init__(self, address: _Optional[str] = ...) -> None: ...

class ServeMetricsReply(_message.Message):
    __slots__ = ("address",)
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    address: str
    def __init__(self, address: _Optional[str] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ("deep", "repair", "bytes_s")
    DEEP_FIELD_NUMBER: _ClassVar[int]
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    BYTES_S_FIELD_NUMBER: _ClassVar[int]
    deep: bool
    repair: bool
    bytes_s: int
    def __init__(self, deep: _Optional[bool] = ..., repair: _Optional[bool] = ..., bytes_s: _Optional[int] = ...) -> None: ...

class CheckProgress(_message.Message):
    __slots__ = ("files", "bytes", "findings", "finished")
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    files: int
    bytes: int
    findings: _containers.RepeatedCompositeFieldContainer[CheckFinding]
    finished: bool
    def __init__(self, files: _Optional[int] = ..., bytes: _Optional[int] = ..., findings: _Optional[_Iterable[_Union[CheckFinding, _Mapping]]] = ..., finished: _Optional[bool] = ...) -> None: ...

class CheckFinding(_message.Message):
    __slots__ = ("kind", "what", "repaired")
    KIND_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    what: str
    repaired: bool
    def __init__(self, kind: _Optional[str] = ..., what: _Optional[str] = ..., repaired: _Optional[bool] = ...) -> None: ...

class EvictRequest(_message.Message):
    __slots__ = ("dataset_id", "paths", "globs", "snapshot", "pinned")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    GLOBS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    paths: _containers.RepeatedScalarFieldContainer[bytes]
    globs: _containers.RepeatedScalarFieldContainer[bytes]
    snapshot: int
    pinned: bool
    def __init__(self, dataset_id: _Optional[str] = ..., paths: _Optional[_Iterable[bytes]] = ..., globs: _Optional[_Iterable[bytes]] = ..., snapshot: _Optional[int] = ..., pinned: _Optional[bool] = ...) -> None: ...

class EvictReply(_message.Message):
    __slots__ = ("files", "bytes", "pinned")
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    files: int
    bytes: int
    pinned: int
    def __init__(self, files: _Optional[int] = ..., bytes: _Optional[int] = ..., pinned: _Optional[int] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("dataset_id", "paths", "unpin", "snapshot")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    UNPIN_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    paths: _containers.RepeatedScalarFieldContainer[bytes]
    unpin: bool
    snapshot: int
    def __init__(self, dataset_id: _Optional[str] = ..., paths: _Optional[_Iterable[bytes]] = ..., unpin: _Optional[bool] = ..., snapshot: _Optional[int] = ...) -> None: ...

class PinReply(_message.Message):
    __slots__ = ("pins", "unknown")
    PINS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    pins: _containers.RepeatedScalarFieldContainer[bytes]
    unknown: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, pins: _Optional[_Iterable[bytes]] = ..., unknown: _Optional[_Iterable[bytes]] = ...) -> None: ...
