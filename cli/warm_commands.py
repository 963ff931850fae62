"""What `forebay warmup` and `forebay jobs` do."""

import json as jsonlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forebay.cacheruntime.client import WorkerClient, worker_pid
from forebay.cacheruntime.config import CacheConfig, Medium, parse_duration, parse_size
from forebay.cacheruntime.errors import ForebayError, NotAttached, UsageError, WorkerUnavailable
from forebay.cacheruntime.jobs import JobRecord, JobState, JobStore
from forebay.cli import warm_screens
from forebay.cli.commands import cache_config, source_spec
from forebay.cli.reach import Reached, below, reached
from forebay.fuse import lifecycle
from forebay.proto import worker_pb2 as pb

_TRIES = 4
"""Workers that a warm-up may lose before it gives up."""

_REQUEST_BYTES = 60 << 20
"""Of paths in one request; below the largest message."""

_WATCH_S = 0.5


@dataclass(frozen=True)
class Wish:
    """Arguments of `forebay warmup`, as they were typed."""

    paths: tuple[str, ...]
    listed: str | None
    globs: tuple[str, ...]
    snapshot: int
    jobs: int
    rate: str | None
    tiers: tuple[str, ...]
    pin: bool
    verify: bool
    metadata_only: bool
    skip_existing: bool
    deadline: str | None
    local: bool


def warmup(
    target: str, wish: Wish, cache_dir: Path | None, options: list[str], *, background: bool, json: bool
) -> None:
    media = [tier for tier in wish.tiers if ":" not in tier]
    if len(media) > 1 or any(medium.upper() not in Medium.__members__ for medium in media):
        raise UsageError(
            f"--tier {' '.join(media)!r} is not one of {', '.join(Medium.__members__)}, nor MEDIUM:FOLDER:SIZE"
        )
    if wish.pin and (wish.globs or wish.listed is not None):
        raise UsageError("--pin goes with paths, which stand for all below them, and not with --glob or --from")
    rate = parse_size(wish.rate) if wish.rate is not None else 0
    deadline_s = parse_duration(wish.deadline) if wish.deadline is not None else 0.0
    listed = _listed(wish.listed) if wish.listed is not None else []
    if wish.listed is not None and not listed and not wish.paths and not wish.globs:
        raise UsageError(f"--from {wish.listed}: there is no path in it")
    with reached(target, cache_dir, [tier for tier in wish.tiers if ":" in tier], options) as found:
        paths = [below(path, found.state) for path in (*wish.paths, *listed)]
        if sum(map(len, paths)) > _REQUEST_BYTES:
            raise UsageError(f"--from {wish.listed}: over {_REQUEST_BYTES >> 20} MiB of paths; split it")
        request = pb.WarmupRequest(
            dataset_id=found.dataset_id, paths=paths, globs=[below(glob, found.state) for glob in wish.globs],
            jobs=wish.jobs, snapshot=wish.snapshot or _pinned(found), rate_bytes_s=rate,
            medium=media[0].upper() if media else "",
            pin=wish.pin, verify=wish.verify, metadata_only=wish.metadata_only, skip_existing=wish.skip_existing,
            deadline_s=deadline_s, local=wish.local,
        )  # fmt: skip
        _begin(found, request, background, json)


def _pinned(found: Reached) -> int:
    """Of NAME@N and mounts of it; else the newest."""
    return found.snapshot if found.state is None or found.state.pinned else 0


def _listed(name: str) -> list[str]:
    """The paths in a list file."""
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"--from {name} cannot be read: {error.strerror}") from error
    return [os.fsdecode(line) for line in raw.split(b"\n") if line.strip()]


def _begin(found: Reached, request: pb.WarmupRequest, background: bool, json: bool) -> None:
    """Start or resume a job, and wait for it unless it is to go on by itself."""
    store = JobStore(found.client.config.jobs_dir)
    if background:
        started = found.persist(lambda: found.client.call("StartJob", request))
        print(jsonlib.dumps({"job": started.job}) if json else started.job)
        return
    number = 0
    try:
        for last in warm_screens.follow(_updates(found, request), json, store):
            number = last.job
    except KeyboardInterrupt:
        if number:
            print(f"interrupted; go on with: forebay jobs resume {number}", file=sys.stderr)
        raise
    _exit_as(store.get(number))


def _updates(found: Reached, request: pb.WarmupRequest) -> Iterator[pb.WarmupProgress]:
    """Progress to the end; a worker that is killed meanwhile is started again, and goes on with the job."""
    tries = 0
    while True:
        try:
            for update in found.client.warmup(request):
                request.job = update.job
                yield update
            return
        except NotAttached:
            if tries >= _TRIES:
                raise
            found.attach()
        except WorkerUnavailable:
            if tries >= _TRIES or not request.job:
                raise
            found.client.connect()
        tries += 1


def _exit_as(record: JobRecord) -> None:
    progress = record.progress
    if record.state is not JobState.DONE or progress.files_failed or progress.files_uncached:
        sys.exit(1)


def jobs(
    words: list[str], cache_dir: Path | None, options: list[str], *, watch: bool, background: bool, json: bool
) -> None:
    config = cache_config(cache_dir, [])
    store = JobStore(config.jobs_dir)
    verb = words[0] if words and words[0] in ("cancel", "resume") else ""
    numbers = [_number(word) for word in (words[1:] if verb else words)]
    if len(numbers) > 1 or (verb and not numbers) or (watch and not numbers):
        raise UsageError("write it like: forebay jobs, forebay jobs 3 --watch, forebay jobs cancel 3")
    if verb == "cancel":
        _cancel(config, store, numbers[0], json)
    elif verb == "resume":
        _resume(store.get(numbers[0]), cache_dir, options, background, json)
    elif numbers:
        _show(config, store, numbers[0], watch, json)
    else:
        worker = worker_pid(config)
        rows = [_row(record.seen_by(worker)) for record in store.all()]
        print(jsonlib.dumps(rows, indent=2)) if json else warm_screens.jobs(rows)


def _number(word: str) -> int:
    if not word.isdigit():
        raise UsageError(f"{word!r} is not the number of a job; see what there is with: forebay jobs")
    return int(word)


def _row(record: JobRecord) -> dict[str, Any]:
    """A record as JSON: flat, with rate and time left."""
    request = {name: value for name, value in asdict(record.request).items() if name not in ("paths", "globs")}
    progress = asdict(record.progress)
    shown = {"job": record.id, "state": record.state.value, "error": record.error, "source": record.source}
    times = {"background": record.background, "created_at": record.created_at, "ended_at": record.ended_at}
    paths = {"paths": len(record.request.paths), "globs": list(record.request.globs)}
    return shown | times | request | paths | progress | warm_screens.pace(record.progress)


def _show(config: CacheConfig, store: JobStore, number: int, watch: bool, json: bool) -> None:
    while True:
        record = store.get(number).seen_by(worker_pid(config))
        if not watch or record.state is not JobState.RUNNING:
            break
        if json:
            print(jsonlib.dumps(_row(record)), flush=True)
        else:
            warm_screens.job_line(_row(record))
        time.sleep(_WATCH_S)
    row = _row(record) | {"failures": store.failures(number)}
    if json:
        print(jsonlib.dumps(row, indent=None if watch else 2))
    else:
        warm_screens.job(row)
    if watch:
        _exit_as(record)


def _cancel(config: CacheConfig, store: JobStore, number: int, json: bool) -> None:
    store.get(number)  # a wrong number starts no worker
    client = WorkerClient(config)
    try:
        state = client.call("CancelJob", pb.CancelJobRequest(job=number)).state
    finally:
        lifecycle.retire(client)
        client.close()
    print(jsonlib.dumps({"job": number, "state": state}) if json else f"job {number} is {state}")


def _resume(record: JobRecord, cache_dir: Path | None, options: list[str], background: bool, json: bool) -> None:
    spec = source_spec(record.source, options, cache_config(cache_dir, []))
    try:
        known = spec.dataset_id == record.request.dataset_id
    except ForebayError:
        known = False
    if not known:
        raise UsageError(
            f"the source of job {record.id} is {record.source} with other options;"
            " give the --option KEY=VALUE that it was started with"
        )
    with reached(record.source, cache_dir, [], options) as found:
        _begin(found, pb.WarmupRequest(job=record.id), background, json)
