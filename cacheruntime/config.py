"""Every setting, built once at the command line and passed down. Nothing else reads the environment."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import Any

from forebay.cacheruntime.durable import write_durably
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.logs import LOG_FORMATS

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

KEPT_SNAPSHOTS = 8
"""Kept of a dataset by default, the newest included, beside those in use: enough to look a week of nightly syncs back;
each takes about 350 bytes of disk for a file."""

_LARGEST = 2.0**63
"""No file system holds more bytes, and no unit makes a larger number meaningful."""

_UNITS = {"": 1, "B": 1, "K": 10**3, "KB": 10**3, "KIB": KIB, "M": 10**6, "MB": 10**6, "MIB": MIB,
          "G": 10**9, "GB": 10**9, "GIB": GIB, "T": 10**12, "TB": 10**12, "TIB": 1 << 40}  # fmt: skip


class Medium(Enum):
    """What a tier is made of; the names are those that `--tier` takes."""

    MEM = "MEM"
    SSD = "SSD"
    HDD = "HDD"


def parse_size(text: str) -> int:
    """Bytes from '4GiB', '500MB', '1048576'.

    Raises:
        UsageError: not a number with a known unit, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    number = float(match[1]) if match else 0.0
    size = int(number * unit) if unit and number < _LARGEST else 0
    if size <= 0:
        raise UsageError(f"size {text!r} is not a positive number with a unit; write it like 4GiB, 500MB or 1048576")
    return size


HIGH, LOW = 0.98, 0.95
"""Watermarks of a tier without its own."""

_TIME_UNITS = {"S": 1.0, "M": 60.0, "H": 3600.0, "D": 86400.0, "W": 7 * 86400.0}


def parse_duration(text: str) -> float:
    """Seconds from '90', '90s', '30m', '1h30m', '1d', '2w'.

    Raises:
        UsageError: not a positive number with a known unit.
    """
    bare = text.strip().upper()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([SMHDW])", bare + ("S" if bare[-1:].isdigit() else ""))
    seconds = sum(float(number) * _TIME_UNITS[unit] for number, unit in parts)
    whole = re.fullmatch(r"(?:\d+(?:\.\d+)?\s*[SMHDW])*(?:\d+(?:\.\d+)?)?", bare)
    if whole is None or not 0 < seconds < _LARGEST:
        raise UsageError(f"time {text!r} is not a positive number with a unit; write it like 90s, 30m, 1h30m or 7d")
    return seconds


@dataclass(frozen=True)
class TierConfig:
    """One tier: a folder on one kind of storage with an upper bound."""

    medium: Medium
    path: Path
    """Absolute folder; made when absent."""
    quota_bytes: int
    """Upper bound of what this tier holds, in bytes of cached data."""
    high: float = HIGH
    """Share of the quota from which on room is made in the background, down to `low`."""
    low: float = LOW

    @classmethod
    def parse(cls, text: str) -> "TierConfig":
        """From `MEM:/dev/shm/forebay:4GiB` or `SSD:/var/cache/forebay:100GiB,high=0.95,low=0.8`.

        Raises:
            UsageError: not of that form.
        """
        medium, _, rest = text.partition(":")
        path, _, tail = rest.rpartition(":")
        if not path or medium.upper() not in Medium.__members__:
            raise UsageError(
                f"--tier {text!r} is not MEDIUM:FOLDER:SIZE with MEDIUM one of MEM, SSD, HDD;"
                " write it like SSD:/var/cache/forebay:100GiB"
            )
        size, *marks = tail.split(",")
        given = {"high": HIGH, "low": LOW}
        for mark in marks:
            name, _, value = mark.partition("=")
            try:
                given[name] = float(value) if name in given else math.nan
            except ValueError:
                given[name] = math.nan
        if len(given) > 2 or not 0 < given["low"] <= given["high"] <= 1:
            raise UsageError(
                f"--tier {text!r}: behind the size only high=RATIO and low=RATIO with 0 < low <= high <= 1,"
                " like SSD:/var/cache/forebay:100GiB,high=0.95,low=0.8"
            )
        return cls(Medium[medium.upper()], Path(os.path.abspath(path)), parse_size(size), **given)

    def __str__(self) -> str:
        marks = "" if (self.high, self.low) == (HIGH, LOW) else f",high={self.high:g},low={self.low:g}"
        return f"{self.medium.value}:{self.path}:{self.quota_bytes}{marks}"


NO_TIER = "none"
"""In the place of tiers: nothing is kept but what passes through the worker's memory."""


def parse_tiers(texts: Iterable[str]) -> tuple[TierConfig, ...]:
    """Tiers as `--tier` takes them; `none` alone stands for none at all.

    Raises:
        UsageError: one is not of that form, or `none` stands beside others.
    """
    given = list(texts)
    if given == [NO_TIER]:
        return ()
    if NO_TIER in given:
        raise UsageError("--tier none stands for no tier at all; leave out the others, or it")
    return tuple(TierConfig.parse(text) for text in given)


@dataclass(frozen=True)
class FillConfig:
    """How data is fetched on a miss."""

    small_file_bytes: int = MIB
    """Source files below this size are fetched whole and live in packs."""
    part_bytes: int = 8 * MIB
    """One GET asks for at most this much; within AWS's advice of 8-16 MiB ranges. A window is spread over the GETs that
    may run at once, so parts are this large only when all are taken."""
    window_min_bytes: int = MIB
    """First sequential window after a miss."""
    window_max_bytes: int = 64 * MIB
    """Window doubles up to this."""
    parallel_gets: int = 16
    """GETs under way at once, over all readers; also the bound of the worker's fetch threads."""
    memory_bytes: int = 0
    """What the worker may use for bytes on their way; 0: a quarter of the smaller of RAM and the control group's limit,
    at most 512 MiB. Sixteen GETs take 128 MiB of it; with less, fewer run at once."""
    deadline_s: float = 60.0
    """A reader waits at most this long for one miss, retries included."""


@dataclass(frozen=True)
class RetryConfig:
    """Tries against an under-store."""

    first_delay_s: float = 0.1
    max_delay_s: float = 5.0
    deadline_s: float = 30.0
    """From the first try to the last; below FillConfig.deadline_s, so that a reader gets the reason."""
    probe_deadline_s: float = 8.0
    """For the first contact in `mount`: a person waits there."""


@dataclass(frozen=True)
class LimitConfig:
    """What one client of a worker may use at once; see `cluster/limits.py`."""

    streams: int = 64
    """Calls and streams of one identity, and of one connection."""
    fills: int = 256
    """Blocks that one identity waits for to be fetched."""
    message_bytes: int = 4 * MIB
    """Of one message that comes in: gRPC's default. What goes out is as long as it is; pieces of data are 1 MiB."""


@dataclass(frozen=True)
class ClusterConfig:
    """How a worker takes part in a cluster."""

    listen: str = ""
    """HOST:PORT of its gRPC server; empty for a client node, which serves nobody."""
    peers: str = ""
    """Where the addresses of the members come from; see `cluster/directory.py`."""
    tls: str = ""
    """Folder of a bundle (`cluster/certs.py`); empty: plain text."""
    data_port: int = 0
    """For the bytes; 0: any that is free."""
    advertise: str = ""
    """HOST:PORT by which others reach it, where that is not `listen`."""
    replicas: int = 1
    """Owners of each file or slice."""
    limits: LimitConfig = field(default_factory=LimitConfig)

    @property
    def is_member(self) -> bool:
        """Whether it owns a share, and serves it to others."""
        return bool(self.listen)

    def to_json(self) -> str:
        """The same for equal ones; no secret is in it."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_raw(cls, raw: dict[str, Any]) -> "ClusterConfig":
        """From what `dataclasses.asdict` made of one."""
        return cls(**raw | {"limits": LimitConfig(**raw["limits"])})


@dataclass(frozen=True)
class CacheConfig:
    """One node cache: the worker's folder and its tiers."""

    cache_dir: Path
    """Holds the index, the catalogues and the worker's log; also the default tier."""
    tiers: tuple[TierConfig, ...]
    """In order, fastest first; empty: what is read is kept in no tier."""
    runtime_dir: Path
    """Sockets and the state of mounts; gone after a reboot."""
    free_reserve_ratio: float = 0.05
    """Share of a tier's file system that is always left free for others."""
    idle_exit_s: float = 5.0
    """A worker without mounts or requests ends after this."""
    log_format: str = "text"
    """Of worker, supervisors and handlers: one of `logs.LOG_FORMATS`."""
    checkpoint_s: float = 20.0
    """What was filled is safe from a power loss after this long, and the time that syncing it takes."""
    move_bytes_s: int = 256 * MIB
    """Bound of moves between tiers, in bytes a second over all of them."""
    scrub_bytes_s: int = 16 * MIB
    """Bound of the background check of what is cached, in bytes a second; 0 switches it off."""
    fill: FillConfig = field(default_factory=FillConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    cluster: ClusterConfig | None = None
    """None: the node is alone."""
    traces: bool = False
    """Worker, handlers and clients send traces; where to, they have from OTEL_* in their environment."""

    @property
    def client_of(self) -> ClusterConfig | None:
        """The cluster whose workers this node has everything from; None: it reads sources itself."""
        return self.cluster if self.cluster is not None and not self.cluster.is_member else None

    @property
    def lock_path(self) -> Path:
        """Locked by the running worker, which writes its process id there."""
        return self.cache_dir / "worker.lock"

    @property
    def metrics_path(self) -> Path:
        """Holds HOST:PORT where workers of this cache folder serve /metrics; absent: nowhere."""
        return self.cache_dir / "metrics"

    def remember_tiers(self) -> None:
        """Note the tiers in the cache folder, so that later commands need not be told."""
        lines = [str(tier) for tier in self.tiers] or [NO_TIER]
        write_durably(self.cache_dir / "tiers", "".join(f"{line}\n" for line in lines))

    def with_remembered_tiers(self) -> "CacheConfig":
        """With the tiers that this cache folder was last used with, else the default one."""
        try:
            lines = (self.cache_dir / "tiers").read_text().splitlines()
        except OSError:
            lines = []
        return replace(self, tiers=parse_tiers(lines) if lines else (default_tier(self.cache_dir),))

    def remember_cluster(self) -> None:
        """Note the cluster in the cache folder: whoever starts the next worker need not be told."""
        if self.cluster is not None:
            write_durably(self.cache_dir / "cluster", self.cluster.to_json() + "\n")

    def remembered_cluster(self) -> ClusterConfig | None:
        """The cluster that this cache folder was last used in.

        Raises:
            UsageError: what is noted cannot be read.
        """
        path = self.cache_dir / "cluster"
        try:
            return ClusterConfig.from_raw(json.loads(path.read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{path} cannot be read ({error}); remove it and start forebay worker again") from error

    @property
    def jobs_dir(self) -> Path:
        """Of the records of warm-ups; see `jobs.py`."""
        return self.cache_dir / "jobs"

    @property
    def index_dir(self) -> Path:
        return self.cache_dir / "index"

    @property
    def ledger_dir(self) -> Path:
        return self.cache_dir / "ledger"

    @property
    def socket_path(self) -> Path:
        """Of the worker; named by a hash, for a Unix socket's path holds 107 bytes at most."""
        return self.runtime_dir / f"worker-{self._digest}.sock"

    @property
    def fill_socket_path(self) -> Path:
        """Of the worker, for misses; see `fill_socket.py`."""
        return self.runtime_dir / f"fills-{self._digest}.sock"

    @property
    def _digest(self) -> str:
        return blake2b(os.fsencode(self.cache_dir), digest_size=8).hexdigest()

    def to_json(self) -> str:
        """For handing it to another process of ours; read by `from_json`."""
        raw = asdict(self) | {"cache_dir": str(self.cache_dir), "runtime_dir": str(self.runtime_dir)}
        return json.dumps(raw | {"tiers": [str(tier) for tier in self.tiers]})

    @classmethod
    def from_json(cls, text: str) -> "CacheConfig":
        raw = json.loads(text)
        return cls(
            **raw
            | {
                "cache_dir": Path(raw["cache_dir"]),
                "runtime_dir": Path(raw["runtime_dir"]),
                "tiers": tuple(TierConfig.parse(tier) for tier in raw["tiers"]),
                "fill": FillConfig(**raw["fill"]),
                "retry": RetryConfig(**raw["retry"]),
                "cluster": ClusterConfig.from_raw(raw["cluster"]) if raw["cluster"] else None,
            }
        )


def traces_asked(environ: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables ask for traces: an endpoint or an exporter is named, and nothing says no."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "")
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return exporter == "otlp" or (not exporter and any(environ.get(name) for name in endpoints))


def default_log_format(environ: Mapping[str, str]) -> str:
    """`FOREBAY_LOG_FORMAT`, else text.

    Raises:
        UsageError: it is neither text nor json.
    """
    chosen = environ.get("FOREBAY_LOG_FORMAT") or LOG_FORMATS[0]
    if chosen not in LOG_FORMATS:
        raise UsageError(f"FOREBAY_LOG_FORMAT={chosen!r} is not one of {', '.join(LOG_FORMATS)}")
    return chosen


def parse_address(text: str, default_host: str = "127.0.0.1") -> tuple[str, int]:
    """Where to listen, from 'PORT', ':PORT', 'HOST:PORT' or '[::1]:PORT'; on loopback unless a host is named.

    Args:
        text: what was given.
        default_host: where no host is named.

    Raises:
        UsageError: not of that form.
    """
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise UsageError(f"address {text!r} is not HOST:PORT; write it like 9321 or 0.0.0.0:9321")
    return host.strip("[]") or default_host, int(port)


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """`FOREBAY_CACHE_DIR`; else /var/cache/forebay for root and the XDG cache folder for others."""
    if chosen := environ.get("FOREBAY_CACHE_DIR"):
        return Path(os.path.abspath(chosen))
    if os.geteuid() == 0:
        return Path("/var/cache/forebay")
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forebay"


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """`FOREBAY_STATE_DIR`; else /var/lib/forebay for root and the XDG state folder for others: what was applied."""
    if chosen := environ.get("FOREBAY_STATE_DIR"):
        return Path(os.path.abspath(chosen))
    if os.geteuid() == 0:
        return Path("/var/lib/forebay")
    return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "forebay"


def default_secrets_dir(environ: Mapping[str, str]) -> Path:
    """`FOREBAY_SECRETS_DIR`, else `secrets` in the state folder: a file SECRET/KEY for each value."""
    if chosen := environ.get("FOREBAY_SECRETS_DIR"):
        return Path(os.path.abspath(chosen))
    return default_state_dir(environ) / "secrets"


def default_runtime_dir(environ: Mapping[str, str]) -> Path:
    """`FOREBAY_RUNTIME_DIR`; else /run/forebay for root, the XDG runtime folder or /tmp/forebay-UID for others."""
    if chosen := environ.get("FOREBAY_RUNTIME_DIR"):
        return Path(os.path.abspath(chosen))
    if os.geteuid() == 0:
        return Path("/run/forebay")
    base = environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "forebay" if base else Path(f"/tmp/forebay-{os.geteuid()}")


def default_tier(cache_dir: Path) -> TierConfig:
    """Without `--tier`: an SSD tier in the cache folder, half of what its file system has free, at least 1 GiB."""
    existing = next(p for p in (cache_dir, *cache_dir.parents) if p.exists())
    stats = os.statvfs(existing)
    return TierConfig(Medium.SSD, cache_dir / "tier", max(stats.f_bavail * stats.f_frsize // 2, GIB))
