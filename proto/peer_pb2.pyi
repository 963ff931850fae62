from forebay.proto import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReadMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FETCH: _ClassVar[ReadMode]
    ONLY_CACHED: _ClassVar[ReadMode]

class ReadState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HIT: _ClassVar[ReadState]
    COMING: _ClassVar[ReadState]
    MISSING: _ClassVar[ReadState]
    FAILED: _ClassVar[ReadState]
FETCH: ReadMode
ONLY_CACHED: ReadMode
HIT: ReadState
COMING: ReadState
MISSING: ReadState
FAILED: ReadState

class IdentifyRequest(_message.Message):
    __slots__ = ("caller",)
    CALLER_FIELD_NUMBER: _ClassVar[int]
    caller: str
    def __init__(self, caller: _Optional[str] = ...) -> None: ...

class IdentifyReply(_message.Message):
    __slots__ = ("id", "version", "state", "capacity_bytes", "data_port", "members")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_PORT_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: str
    state: str
    capacity_bytes: int
    data_port: int
    members: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., data_port: _Optional[int] = ..., members: _Optional[_Iterable[str]] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("content", "path", "size", "version", "offset", "length", "suspect")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SUSPECT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    path: bytes
    size: int
    version: str
    offset: int
    length: int
    suspect: bool
    def __init__(self, content: _Optional[bytes] = ..., path: _Optional[bytes] = ..., size: _Optional[int] = ..., version: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., suspect: _Optional[bool] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("dataset_id", "wants", "mode", "hops", "token", "traceparent")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    WANTS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    wants: _containers.RepeatedCompositeFieldContainer[Want]
    mode: ReadMode
    hops: int
    token: str
    traceparent: str
    def __init__(self, dataset_id: _Optional[str] = ..., wants: _Optional[_Iterable[_Union[Want, _Mapping]]] = ..., mode: _Optional[_Union[ReadMode, str]] = ..., hops: _Optional[int] = ..., token: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class ReadHeader(_message.Message):
    __slots__ = ("want", "state", "offset", "length", "unit", "sums", "error", "spread")
    WANT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    want: int
    state: ReadState
    offset: int
    length: int
    unit: int
    sums: _containers.RepeatedScalarFieldContainer[int]
    error: str
    spread: int
    def __init__(self, want: _Optional[int] = ..., state: _Optional[_Union[ReadState, str]] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., unit: _Optional[int] = ..., sums: _Optional[_Iterable[int]] = ..., error: _Optional[str] = ..., spread: _Optional[int] = ...) -> None: ...

class DefineRequest(_message.Message):
    __slots__ = ("dataset_id",)
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    def __init__(self, dataset_id: _Optional[str] = ...) -> None: ...

class DefineReply(_message.Message):
    __slots__ = ("attach",)
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    attach: _worker_pb2.AttachRequest
    def __init__(self, attach: _Optional[_Union[_worker_pb2.AttachRequest, _Mapping]] = ...) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("source", "dataset_id")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    source: str
    dataset_id: str
    def __init__(self, source: _Optional[str] = ..., dataset_id: _Optional[str] = ...) -> None: ...

class FindReply(_message.Message):
    __slots__ = ("attach", "dataset_id", "snapshot", "path", "rest")
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    REST_FIELD_NUMBER: _ClassVar[int]
    attach: _worker_pb2.AttachRequest
    dataset_id: str
    snapshot: int
    path: str
    rest: str
    def __init__(self, attach: _Optional[_Union[_worker_pb2.AttachRequest, _Mapping]] = ..., dataset_id: _Optional[str] = ..., snapshot: _Optional[int] = ..., path: _Optional[str] = ..., rest: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("dataset_id", "path", "fresh", "snapshot")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    path: bytes
    fresh: bool
    snapshot: int
    def __init__(self, dataset_id: _Optional[str] = ..., path: _Optional[bytes] = ..., fresh: _Optional[bool] = ..., snapshot: _Optional[int] = ...) -> None: ...

class ListPage(_message.Message):
    __slots__ = ("entries", "snapshot")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[_worker_pb2.StatEntry]
    snapshot: int
    def __init__(self, entries: _Optional[_Iterable[_Union[_worker_pb2.StatEntry, _Mapping]]] = ..., snapshot: _Optional[int] = ...) -> None: ...

class LookRequest(_message.Message):
    __slots__ = ("dataset_id", "path", "children", "snapshot")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    path: bytes
    children: bool
    snapshot: int
    def __init__(self, dataset_id: _Optional[str] = ..., path: _Optional[bytes] = ..., children: _Optional[bool] = ..., snapshot: _Optional[int] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("dataset_id", "wants", "medium", "skip_existing")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    WANTS_FIELD_NUMBER: _ClassVar[int]
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    SKIP_EXISTING_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    wants: _containers.RepeatedCompositeFieldContainer[Want]
    medium: str
    skip_existing: bool
    def __init__(self, dataset_id: _Optional[str] = ..., wants: _Optional[_Iterable[_Union[Want, _Mapping]]] = ..., medium: _Optional[str] = ..., skip_existing: _Optional[bool] = ...) -> None: ...

class LoadReply(_message.Message):
    __slots__ = ("want", "error", "bytes_fetched", "uncached", "damaged")
    WANT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    BYTES_FETCHED_FIELD_NUMBER: _ClassVar[int]
    UNCACHED_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    want: int
    error: str
    bytes_fetched: int
    uncached: bool
    damaged: bool
    def __init__(self, want: _Optional[int] = ..., error: _Optional[str] = ..., bytes_fetched: _Optional[int] = ..., uncached: _Optional[bool] = ..., damaged: _Optional[bool] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("dataset_id", "path")
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    path: bytes
    def __init__(self, dataset_id: _Optional[str] = ..., path: _Optional[bytes] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("id", "version", "state", "tiers", "datasets", "peers", "gets", "fetched_bytes", "left_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    GETS_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEFT_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: str
    state: str
    tiers: _containers.RepeatedCompositeFieldContainer[_worker_pb2.TierStatus]
    datasets: _containers.RepeatedCompositeFieldContainer[_worker_pb2.MemberHoldings]
    peers: _containers.RepeatedCompositeFieldContainer[_worker_pb2.PeerTraffic]
    gets: int
    fetched_bytes: int
    left_bytes: int
    def __init__(self, id: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., tiers: _Optional[_Iterable[_Union[_worker_pb2.TierStatus, _Mapping]]] = ..., datasets: _Optional[_Iterable[_Union[_worker_pb2.MemberHoldings, _Mapping]]] = ..., peers: _Optional[_Iterable[_Union[_worker_pb2.PeerTraffic, _Mapping]]] = ..., gets: _Optional[int] = ..., fetched_bytes: _Optional[int] = ..., left_bytes: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("undo",)
    UNDO_FIELD_NUMBER: _ClassVar[int]
    undo: bool
    def __init__(self, undo: _Optional[bool] = ...) -> None: ...

class DrainProgress(_message.Message):
    __slots__ = ("left_bytes", "moved_bytes", "lost_bytes", "finished")
    LEFT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    left_bytes: int
    moved_bytes: int
    lost_bytes: int
    finished: bool
    def __init__(self, left_bytes: _Optional[int] = ..., moved_bytes: _Optional[int] = ..., lost_bytes: _Optional[int] = ..., finished: _Optional[bool] = ...) -> None: ...
