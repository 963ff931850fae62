"""What the processes of one mount are told: a JSON text in a memory file that they inherit.

Credentials are in it, so it is on no disk, in no argument and in no environment.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from forebay.cacheruntime.dataset_source import SourceSpec, Tree


@dataclass(frozen=True)
class MountSpec:
    """Everything that a supervisor and its handlers need."""

    directory: str
    folder: str
    """The mount's folder in the runtime folder."""
    source: str = field(repr=False)
    """As the user wrote it; it may hold a password."""
    shown_source: str
    """The same without one."""
    source_url: str
    """Canonical."""
    options: Mapping[str, str] = field(repr=False)
    config: str
    """CacheConfig as JSON."""
    cache_dir: str
    dataset_id: str
    snapshot: int
    catalogue: str
    engine: str
    open_mode: str
    open_mode_reason: str
    passthrough_note: str
    """Why there is no passthrough where it was wished for, or empty."""
    uid: int
    gid: int
    umask: int
    allow_other: bool
    handlers_min: int
    handlers_max: int
    """Bounds of how many handlers serve the mount; the load decides."""
    log: str
    """Path of the log file of supervisor and handlers."""
    tree: Mapping[str, Any] | None = field(default=None, repr=False)
    """Of a dataset with a name: `dataset_source.Tree` as JSON."""
    pinned: bool = False
    """It shows `snapshot` whatever is synced."""
    resend: bool = True
    """False: do without NOTIFY_RESEND, as on Linux before 6.9."""

    @property
    def source_spec(self) -> SourceSpec:
        """To attach with."""
        tree = Tree.from_json(self.tree) if self.tree is not None else None
        return SourceSpec(self.source, self.options, tree, self.snapshot if self.pinned else 0)

    def to_memory(self) -> int:
        """A descriptor of a memory file with this text, to be inherited."""
        descriptor = os.memfd_create("forebay-mount")
        os.write(descriptor, json.dumps(asdict(self)).encode())
        os.set_inheritable(descriptor, True)
        return descriptor

    @classmethod
    def from_memory(cls, descriptor: int) -> "MountSpec":
        """Read one, also of another version: fields that are not known here are passed over, and a field that a
        version adds has a default."""
        size = os.fstat(descriptor).st_size
        known = {field.name for field in fields(cls)}
        return cls(**{k: v for k, v in json.loads(os.pread(descriptor, size, 0)).items() if k in known})
