"""Syncs: a source listed again, what changed written down for the mounts, and nothing done twice."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from forebay.cacheruntime.catalogue_changes import Counts, record_changes
from forebay.cacheruntime.errors import ForebayError
from forebay.cacheruntime.keys import DatasetId
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.datasets import Datasets
from forebay.cacheruntime.worker.snapshot import Snapshot, all_held, writable

log = logging.getLogger(__name__)


@dataclass
class SyncOutcome:
    """What a sync came to."""

    snapshot: Snapshot
    """To show from now on."""
    previous: int
    """Number of the newest snapshot before; that of `snapshot` when nothing changed."""
    counts: dict[int, Counts]
    """How `snapshot` differs from earlier ones, by their numbers."""

    def since(self, shown: int) -> tuple[int, Counts]:
        """The snapshot that this one is compared with, and the differences: `shown`, or the one before if unknown."""
        number = shown if shown in self.counts or shown == self.snapshot.number else self.previous
        return number, self.counts.get(number, Counts())


@dataclass
class _Run:
    """A sync under way, for those who ask for the same meanwhile."""

    ended: trio.Event = field(default_factory=trio.Event)
    outcome: SyncOutcome | None = None
    failure: ForebayError | None = None


class Syncs:
    """The syncs of a worker, at most one for each dataset at a time."""

    def __init__(self, datasets: Datasets, shown: Callable[[DatasetId], set[int]]) -> None:
        """
        Args:
            datasets: of the worker.
            shown: numbers of the snapshots that live mounts of a dataset show.
        """
        self._datasets = datasets
        self._shown = shown
        self._under_way: dict[DatasetId, _Run] = {}
        self._comparers = trio.CapacityLimiter(1)  # one core's work; more at once would only take the fills' time

    async def sync(self, dataset: Dataset) -> SyncOutcome:
        """List a source again, or wait for the listing that is under way.

        For each snapshot that a live mount may show there are `changes-N` in the outcome's folder when this returns,
        and its catalogue has the records that readers of that snapshot hold.

        Raises:
            ForebayError: the listing broke off, or there is no room for its outcome; all stays as it was.
        """
        run = self._under_way.get(dataset.id)
        if run is not None:
            await run.ended.wait()
            if run.outcome is None:
                raise run.failure or ForebayError(f"the sync of {dataset.store.url} was broken off; try again")
            return run.outcome
        run = self._under_way[dataset.id] = _Run()
        try:
            run.outcome = await self._sync(dataset)
            return run.outcome
        except ForebayError as failure:
            run.failure = failure
            raise
        finally:
            del self._under_way[dataset.id]
            run.ended.set()

    async def _sync(self, dataset: Dataset) -> SyncOutcome:
        newest = dataset.newest
        self._datasets.list_anew(dataset)
        with all_held([newest] if newest is not None else []):
            joined = newest is not None and not newest.ended.is_set()
            fresh = newest if joined and newest is not None else self._datasets.next_snapshot(dataset)
            before = max((number for number in dataset.snapshots if number < fresh.number), default=0)
            previous = dataset.snapshots.get(before)
            try:
                with all_held([fresh] if previous is None else [fresh, previous]):
                    outcome = await self._outcome(dataset, previous, fresh)
            finally:
                if (
                    not joined and not fresh.asked_for and fresh.ended.is_set()
                ):  # no client was told of it, and none will be
                    self._datasets.drop(dataset, fresh)
        self._datasets.history.collect(dataset)
        log.info("synced %s: snapshot %d, %s", dataset.store.url, outcome.snapshot.number, outcome.since(0)[1])
        return outcome

    async def _outcome(self, dataset: Dataset, previous: Snapshot | None, fresh: Snapshot) -> SyncOutcome:
        await fresh.ended.wait()
        if fresh.failure is not None:
            kind = type(fresh.failure)
            stays = f"; snapshot {previous.number} stays" if previous is not None else ""
            raise kind(f"{dataset.store.url} could not be listed again: {fresh.failure}{stays}") from fresh.failure
        target = fresh
        counts: dict[int, Counts] = {}
        if previous is not None:
            counts[previous.number] = await self._compared(previous, fresh)
            # A mount that was told of the new one meanwhile keeps it, also when it is no news.
            if counts[previous.number].nothing and previous.catalogue.complete and not fresh.asked_for:
                target = previous
                del counts[previous.number]
        for base in self._bases(dataset):
            if base.number not in counts and base.number not in (target.number, fresh.number):
                counts[base.number] = await self._compared(base, target)
        # Until the mounts have registered the new one and left the old ones, a listing for another must remove none.
        for snapshot in (target, *self._shown_snapshots(dataset)):
            snapshot.asked_for = time.monotonic()
        return SyncOutcome(target, previous.number if previous is not None else target.number, counts)

    def _shown_snapshots(self, dataset: Dataset) -> list[Snapshot]:
        shown = (self._datasets.opened(dataset, number) for number in sorted(self._shown(dataset.id)))
        return [snapshot for snapshot in shown if snapshot is not None]

    def _bases(self, dataset: Dataset) -> list[Snapshot]:
        """The snapshots that live mounts show, or that mounts may show which are being made."""
        young = [snapshot for snapshot in dataset.snapshots.values() if snapshot.young]
        return list({s.number: s for s in (*self._shown_snapshots(dataset), *young)}.values())

    async def _compared(self, old: Snapshot, target: Snapshot) -> Counts:
        def work() -> Counts:
            with writable(target):
                return record_changes(old.catalogue, old.number, target.writer)

        with old.held(), target.held():
            return await trio.to_thread.run_sync(work, limiter=self._comparers)
