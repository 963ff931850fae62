"""Warm-ups as jobs: with a number and a record, in the background or for a client that waits, and taken up again."""

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.errors import ForebayError, UsageError
from forebay.cacheruntime.jobs import JobProgress, JobRecord, JobRequest, JobState, JobStore
from forebay.cacheruntime.understore.address import without_userinfo
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.datasets import Datasets
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.small_files import SmallFiles
from forebay.cacheruntime.worker.snapshot import Snapshot
from forebay.cacheruntime.worker.storage import Storage
from forebay.cacheruntime.worker.warmup import Warmup
from forebay.proto import worker_pb2 as pb

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.cluster_node import ClusterNode

log = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.2
_RECORD_INTERVAL_S = 2.0
"""Between notes of a job's progress: so much of its figures a killed worker loses, of its work nothing."""


@dataclass
class Job:
    """One that runs, or has just ended."""

    record: JobRecord
    warmup: Warmup
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    failed: ForebayError | None = None
    """Why it could not go on."""
    cancelled: bool = False
    """Somebody said so; else it breaks off because who waited for it left, or the worker ends."""

    async def wait_update(self) -> bool:
        """Wait until there is something new to show; False once it is over."""
        with trio.move_on_after(_PROGRESS_INTERVAL_S):
            await self.ended.wait()
        return not self.ended.is_set()

    def message(self) -> pb.WarmupProgress:
        """Its progress for a client."""
        progress = self.warmup.progress
        return pb.WarmupProgress(
            **vars(progress.record()),
            failures=progress.failures,
            finished=progress.finished,
            job=self.record.id,
            state=self.record.state,
            error=self.record.error,
        )


class Jobs:
    """All jobs of a worker. One event loop."""

    def __init__(
        self,
        config: CacheConfig,
        datasets: Datasets,
        filler: Filler,
        small: SmallFiles,
        storage: Storage,
        nursery: trio.Nursery,
        busy: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """
        Args:
            config: of the cache.
            datasets, filler, small, storage: of the worker.
            nursery: runs the jobs.
            busy: what keeps the worker from leaving meanwhile.
        """
        self.store = JobStore(config.jobs_dir)
        self._datasets = datasets
        self._filler = filler
        self._small = small
        self._storage = storage
        self._nursery = nursery
        self._busy = busy
        self.cluster: ClusterNode | None = None
        """Other workers, whose share of a warm-up is theirs to bring."""
        self.running: dict[int, Job] = {}
        for record in self.store.all():
            if record.state is JobState.RUNNING:  # of a worker that was killed
                self.store.put(replace(record, state=JobState.INTERRUPTED, error="the cache worker ended"))

    def start(self, asked: pb.WarmupRequest, *, background: bool) -> Job:
        """Begin a job, or go on with one (`WarmupRequest.job`).

        Raises:
            UsageError: no such job, or it runs; no tier of the medium that is wanted.
            ForebayError: its dataset has no such snapshot.
        """
        if asked.job:
            if asked.job in self.running:
                raise UsageError(f"job {asked.job} is running; watch it with: forebay jobs {asked.job} --watch")
            before = self.store.get(asked.job)
            dataset = self._datasets.get(before.request.dataset_id)
            snapshot = self._datasets.chosen(dataset, before.request.snapshot)
            self.store.failures_path(before.id).unlink(missing_ok=True)
            return self._go_on(before, dataset, snapshot, background)
        dataset = self._datasets.get(asked.dataset_id)
        snapshot = self._datasets.chosen(dataset, asked.snapshot)
        request = _request(asked)
        elsewhere = self.cluster is not None and not request.local
        if request.pin and elsewhere:
            raise UsageError("--pin keeps files on the node itself: in a cluster give --local with it")
        media = [tier.config.medium.value for tier in self._storage.tiers]
        if request.medium and request.medium not in media and not elsewhere:
            raise UsageError(f"there is no tier of medium {request.medium}; this cache has {', '.join(media)}")
        record = self.store.create(without_userinfo(dataset.definition.source), request, background, time.time())
        return self._go_on(record, dataset, snapshot, background)

    def attached(self, dataset: Dataset) -> None:
        """A dataset can be read again: take up the jobs that a worker before us had in the background."""
        for record in self.store.all():
            mine = record.request.dataset_id == dataset.id and record.id not in self.running
            if not (mine and record.background and record.state is JobState.INTERRUPTED):
                continue
            try:
                snapshot = self._datasets.chosen(dataset, record.request.snapshot)
            except ForebayError as error:
                log.info("job %d is not taken up again: %s", record.id, error)
                continue
            log.info("job %d is taken up again", record.id)
            self.store.failures_path(record.id).unlink(missing_ok=True)
            self._go_on(record, dataset, snapshot, True)

    async def cancel(self, number: int) -> JobState:
        """End a job; one that is interrupted is not taken up any more.

        Raises:
            UsageError: there is no such job.
        """
        job = self.running.get(number)
        if job is not None:
            job.cancelled = True
            job.scope.cancel()
            await job.ended.wait()
        record = self.store.get(number)
        if record.state is JobState.INTERRUPTED:
            record = replace(record, state=JobState.CANCELLED, error="", ended_at=time.time())
            self.store.put(record)
        return record.state

    def _go_on(self, record: JobRecord, dataset: Dataset, snapshot: Snapshot, background: bool) -> Job:
        running = replace(
            record, state=JobState.RUNNING, error="", background=background, worker=os.getpid(), ended_at=0.0,
            progress=JobProgress(),
        )  # fmt: skip
        failures = self.store.failures_path(record.id)

        def failed(path: str, error: str) -> None:
            with failures.open("a") as output:
                output.write(json.dumps({"path": path, "error": error}) + "\n")

        def stale(path: str) -> None:
            self._nursery.start_soon(self._datasets.refresh_file, dataset, path)

        warmup = Warmup(
            dataset, snapshot, record.request, self._filler, self._small, self._storage, failed, stale,
            None if record.request.local else self.cluster,
        )  # fmt: skip
        job = Job(running, warmup)
        self.store.put(running)
        self.running[record.id] = job
        self._nursery.start_soon(self._run, job)
        return job

    async def _run(self, job: Job) -> None:
        began = trio.current_time()
        progress, deadline_s = job.warmup.progress, job.record.request.deadline_s
        state, error = JobState.INTERRUPTED, ""
        try:
            with self._busy(), job.warmup.snapshot.held(), job.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_record, job, began)
                    with trio.move_on_after(deadline_s or float("inf")) as deadline:
                        try:
                            await job.warmup.run()
                            state = JobState.DONE
                        except ForebayError as failure:
                            job.failed = failure
                            state, error = JobState.FAILED, str(failure)
                    if deadline.cancelled_caught:
                        state, error = JobState.FAILED, f"the deadline of {deadline_s:g} s came first"
                    nursery.cancel_scope.cancel()
        finally:
            job.warmup.dataset.last_used = time.monotonic()
            if state is JobState.INTERRUPTED:
                gone = "who waited for it left" if not job.record.background else "the cache worker ended"
                state, error = (JobState.CANCELLED, "") if job.cancelled else (state, gone)
            progress.elapsed_s = trio.current_time() - began
            job.record = replace(job.record, state=state, error=error, progress=progress.record(), ended_at=time.time())
            self.store.put(job.record)
            del self.running[job.record.id]
            job.ended.set()

    async def _keep_record(self, job: Job, began: float) -> None:
        last = 0.0
        while True:
            await trio.sleep(_PROGRESS_INTERVAL_S)
            job.warmup.progress.elapsed_s = trio.current_time() - began
            if trio.current_time() - last >= _RECORD_INTERVAL_S:
                last = trio.current_time()
                job.record = replace(job.record, progress=job.warmup.progress.record())
                self.store.put(job.record)


def _request(asked: pb.WarmupRequest) -> JobRequest:
    return JobRequest(
        dataset_id=asked.dataset_id,
        paths=tuple(os.fsdecode(path) for path in asked.paths),
        globs=tuple(os.fsdecode(glob) for glob in asked.globs),
        jobs=asked.jobs,
        snapshot=asked.snapshot,
        rate_bytes_s=asked.rate_bytes_s,
        medium=asked.medium,
        pin=asked.pin,
        verify=asked.verify,
        metadata_only=asked.metadata_only,
        skip_existing=asked.skip_existing,
        deadline_s=asked.deadline_s,
        local=asked.local,
    )
