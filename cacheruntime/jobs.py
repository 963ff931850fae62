"""Records of warm-ups: what was asked for, how far it has come, and what failed.

Storage format: in the cache folder, ``jobs/N.request`` (`JobRequest`, written once), ``jobs/N.json`` (the rest of
`JobRecord`, replaced at once) and ``jobs/N.failures``, a JSON object ``{"path", "error"}`` for each file that failed, a
line each. N counts up from 1. The worker alone writes them;
who reads a record that says 'running' asks who runs the cache folder (`JobRecord.worker`): a worker that was killed
could not say otherwise. No credentials: a job that is taken up again gets them from who attaches its dataset.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from forebay.cacheruntime.errors import CacheFormatError, UsageError

KEPT_JOBS = 100
"""Ended ones that are remembered."""


class JobState(StrEnum):
    """What became of a job."""

    RUNNING = "running"
    DONE = "done"
    """Everything was tried; some files may have failed."""
    FAILED = "failed"
    """It could not go on: the listing broke off, the deadline came."""
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """Its worker ended, or who waited for it left. It can be resumed."""


@dataclass(frozen=True)
class JobRequest:
    """What a warm-up was asked for; fields as in proto's WarmupRequest."""

    dataset_id: str
    paths: tuple[str, ...] = ()
    """Bytes that are not UTF-8 as surrogate escapes."""
    globs: tuple[str, ...] = ()
    jobs: int = 0
    snapshot: int = 0
    rate_bytes_s: int = 0
    medium: str = ""
    pin: bool = False
    verify: bool = False
    metadata_only: bool = False
    skip_existing: bool = False
    deadline_s: float = 0.0
    local: bool = False


@dataclass(frozen=True)
class JobProgress:
    """How far it has come; fields as in proto's WarmupProgress."""

    files_total: int = 0
    files_done: int = 0
    files_failed: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    bytes_fetched: int = 0
    files_uncached: int = 0
    files_verified: int = 0
    files_damaged: int = 0
    listing: bool = True
    elapsed_s: float = 0.0


@dataclass(frozen=True)
class JobRecord:
    """One job."""

    id: int
    source: str
    """As the user wrote it, without a password."""
    request: JobRequest
    state: JobState = JobState.RUNNING
    error: str = ""
    progress: JobProgress = field(default_factory=JobProgress)
    background: bool = False
    """Nobody waits for it: a new worker takes it up again."""
    worker: int = 0
    """Process id of the worker that runs it, or ran it last."""
    created_at: float = 0.0
    """Seconds since the epoch."""
    ended_at: float = 0.0
    """0 while it runs."""

    def seen_by(self, worker: int | None) -> "JobRecord":
        """The record as it is to be understood.

        Args:
            worker: process id of the worker that runs now; None without one.
        """
        if self.state is JobState.RUNNING and self.worker != worker:
            return replace(self, state=JobState.INTERRUPTED, error="the cache worker ended")
        return self


class JobStore:
    """The folder of records."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: ``jobs`` in the cache folder; need not exist."""
        self._folder = folder

    def ids(self) -> list[int]:
        """In the order of creation."""
        if not self._folder.exists():
            return []
        return sorted(int(path.stem) for path in self._folder.glob("*.json") if path.stem.isdigit())

    def all(self) -> Iterator[JobRecord]:
        """In the order of creation; what cannot be read is left out."""
        for number in self.ids():
            try:
                yield self.get(number)
            except (UsageError, CacheFormatError):
                continue

    def get(self, number: int) -> JobRecord:
        """Raises: UsageError: there is no such job. CacheFormatError: its record cannot be read."""
        path = self._path(number)
        try:
            raw = json.loads(path.read_text())
            asked = json.loads(self._request_path(number).read_text())
            request = _known(JobRequest, asked) | {name: tuple(asked[name]) for name in ("paths", "globs")}
            return JobRecord(
                **_known(JobRecord, raw)
                | {
                    "state": JobState(raw["state"]),
                    "request": JobRequest(**request),
                    "progress": JobProgress(**_known(JobProgress, raw["progress"])),
                }
            )
        except FileNotFoundError:
            raise UsageError(f"there is no job {number}; see what there is with: forebay jobs") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheFormatError(f"{path} cannot be read ({error}); remove it") from error

    def create(self, source: str, request: JobRequest, background: bool, now: float) -> JobRecord:
        """A new job of this process, with the next number; the oldest that have ended are forgotten."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        ids = self.ids()
        last = self._folder / "last"
        number = max(max(ids, default=0), int(last.read_text()) if last.exists() else 0) + 1
        last.write_text(str(number))
        ended = [record.id for record in self.all() if record.state is not JobState.RUNNING]
        for old in ended[: max(0, len(ended) - KEPT_JOBS + 1)]:
            for path in (self._path(old), self._request_path(old), self.failures_path(old)):
                path.unlink(missing_ok=True)
        record = JobRecord(number, source, request, background=background, worker=os.getpid(), created_at=now)
        self._write(self._request_path(number), asdict(request))
        self.put(record)
        return record

    def put(self, record: JobRecord) -> None:
        """Replace a record at once."""
        self._write(self._path(record.id), {k: v for k, v in asdict(record).items() if k != "request"})

    @staticmethod
    def _write(path: Path, value: dict[str, Any]) -> None:
        draft = path.with_name(f"{path.name}.new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as output:
            json.dump(value, output)
        draft.rename(path)

    def failures_path(self, number: int) -> Path:
        """Of the log of files that failed."""
        return self._folder / f"{number}.failures"

    def failures(self, number: int) -> list[dict[str, str]]:
        """Each with `path` and `error`; a last line that a crash cut short is left out."""
        try:
            lines = self.failures_path(number).read_text().splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.json"

    def _request_path(self, number: int) -> Path:
        return self._folder / f"{number}.request"


def _known(kind: type, raw: dict[str, Any]) -> dict[str, Any]:
    """The fields that this version has: a record may be of another one."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in raw.items() if name in names}
