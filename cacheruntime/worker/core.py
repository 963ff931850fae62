"""The worker's core: what each RPC does, in the trio loop, and when the worker may leave."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from forebay.cacheruntime import mounts
from forebay.cacheruntime.config import KEPT_SNAPSHOTS, CacheConfig, ClusterConfig
from forebay.cacheruntime.dataset_source import ClusterView, StoreMount
from forebay.cacheruntime.entry_messages import entry_message
from forebay.cacheruntime.errors import NotAttached, SourceStale, SourceUnavailable
from forebay.cacheruntime.keys import DatasetId
from forebay.cacheruntime.policies.next_use import NextUse
from forebay.cacheruntime.selection import Selection
from forebay.cacheruntime.snapshot_history import Keep
from forebay.cacheruntime.worker import pins
from forebay.cacheruntime.worker.check import Check
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.datasets import Datasets
from forebay.cacheruntime.worker.fill import Filler
from forebay.cacheruntime.worker.index_writer import IndexUnwritable
from forebay.cacheruntime.worker.jobs import Job, Jobs
from forebay.cacheruntime.worker.keeper import Keeper
from forebay.cacheruntime.worker.memory import Lease
from forebay.cacheruntime.worker.metrics_server import Metrics
from forebay.cacheruntime.worker.orders import Orders, OrderSink, SeveralSinks
from forebay.cacheruntime.worker.prefetch import Prefetcher
from forebay.cacheruntime.worker.small_files import SmallFiles
from forebay.cacheruntime.worker.snapshot import Snapshot
from forebay.cacheruntime.worker.storage import Storage
from forebay.cacheruntime.worker.sync import Syncs
from forebay.cacheruntime.worker.verify import Pace
from forebay.proto import worker_pb2 as pb

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.cluster_node import ClusterNode

log = logging.getLogger(__name__)

_WATCH_INTERVAL_S = 0.5

IN_USE_S = 60.0
"""A dataset counts as in use for this long after its last request: a pause in reading must not cost its data."""

_FIRST_PAGE_S = 5.0
"""`Attach` waits this long for something to show; a mount is usable before, by directory."""


class Core:
    """State of a running worker."""

    def __init__(self, config: CacheConfig, storage: Storage, nursery: trio.Nursery, version: str) -> None:
        self._config = config
        self._storage = storage
        self.version = version
        self._nursery = nursery
        self._calls = 0
        self._idle_since = time.monotonic()
        self._retiring = False
        self.datasets = Datasets(config, nursery, self._mounts)
        self.syncs = Syncs(self.datasets, self._snapshots_shown)
        storage.idle = self._idle
        self.filler = Filler(storage, config.fill, nursery)
        self.keeper = Keeper(storage, self.filler.verifier)
        self.small_files = SmallFiles(self.filler, nursery)
        self.jobs = Jobs(config, self.datasets, self.filler, self.small_files, storage, nursery, self.busy)
        self._began = time.monotonic()
        self.metrics = Metrics(config, self.status, self.traffic, self.jobs.store)
        self.orders = Orders()
        self.orders.sink = self._sink
        self.prefetcher = Prefetcher(self.orders, self.filler, storage)
        self.orders.moved = self.prefetcher.wake
        storage.rooms.note_reads = self.orders.note_reads
        self.cluster = self._cluster_node(config.cluster) if config.cluster is not None else None
        self.datasets.cluster = self.jobs.cluster = self.cluster

    def _cluster_node(self, cluster: ClusterConfig) -> "ClusterNode":
        # What it imports takes a fifth of a second, which a node that is alone need not wait for.
        from forebay.cacheruntime.worker.cluster_node import ClusterNode

        return ClusterNode(self._config, cluster, self, self._nursery)

    @property
    def storage(self) -> Storage:
        return self._storage

    async def attach(self, request: pb.AttachRequest) -> pb.AttachReply:
        with self.busy():
            stores = tuple(StoreMount.from_proto(store) for store in request.stores)
            view = ClusterView.from_proto(request.view) if request.HasField("view") else None
            dataset = await self.datasets.attach(request.source, dict(request.options), stores, view)
            if request.HasField("retention"):
                dataset.keep = _keep(request.retention)
            policy = request.cache_policy if request.HasField("cache_policy") else None
            dataset.policy = policy or dataset.policy
            fresh, gone = self._storage.set_policy(dataset.id, policy) if policy is not None else ([], [])
            reply = pb.AttachReply(dataset_id=dataset.id)
            if request.list:
                snapshot = self.datasets.snapshot_of(
                    dataset, request.relist, request.snapshot, stored=request.stored, pinned=request.pinned
                )
                with trio.move_on_after(_FIRST_PAGE_S):
                    await snapshot.first_page.wait()
                totals = snapshot.catalogue.totals()
                if totals.error and not totals.files:
                    raise SourceUnavailable(f"{dataset.store.url} cannot be listed: {totals.error}")
                reply.snapshot = snapshot.number
                reply.catalogue = str(snapshot.writer.folder)
                self.jobs.attached(dataset)
                if fresh or gone:
                    followed = trio.Event()
                    self._nursery.start_soon(self._follow_pins, dataset, snapshot, fresh, gone, followed)
                    if snapshot.ended.is_set():
                        with trio.move_on_after(_FIRST_PAGE_S):
                            await followed.wait()  # so that who evicts next finds what he has asked for
            return reply

    async def _follow_pins(
        self, dataset: Dataset, snapshot: Snapshot, fresh: list[bytes], gone: list[bytes], followed: trio.Event
    ) -> None:
        try:
            with snapshot.held():
                await pins.follow_manifest(self._storage, dataset, snapshot, fresh, gone)
        except IndexUnwritable as error:
            self._storage.index_failed(error)  # the next one who attaches brings it about
        finally:
            followed.set()

    async def fill(self, request: pb.FillRequest, lease: Lease | None = None) -> bytes | None:
        """See `Filler.fill`."""
        with self.busy():
            dataset = self.datasets.get(request.dataset_id)
            ref = request.file
            path = os.fsdecode(ref.path)
            file = dataset.file(path, ref.size, ref.version)
            if request.suspect:
                self.filler.verifier.suspected.add(file.content)
            try:
                with self.filler.traced(file, request.offset, request.length, request.traceparent):
                    return await self.filler.fill(
                        file, request.offset, request.length, request.window,
                        background=request.background, through=not request.ahead, lease=lease,
                    )  # fmt: skip
            except SourceStale:
                await self.datasets.refresh_file(dataset, path)
                raise

    async def list_directory(self, request: pb.ListDirectoryRequest) -> pb.ListDirectoryReply:
        with self.busy():
            await self.datasets.list_directory(self.datasets.get(request.dataset_id), request.path, request.name)
            return pb.ListDirectoryReply()

    async def sync(self, request: pb.SyncRequest) -> pb.SyncReply:
        with self.busy():
            outcome = await self.syncs.sync(self.datasets.get(request.dataset_id))
            previous, counts = outcome.since(request.shown)
            return pb.SyncReply(
                snapshot=outcome.snapshot.number,
                catalogue=str(outcome.snapshot.writer.folder),
                added=counts.added,
                changed=counts.changed,
                removed=counts.removed,
                previous=previous,
            )

    async def stat(self, request: pb.StatRequest) -> pb.StatReply:
        with self.busy():
            store = self.datasets.get(request.dataset_id).store
            path = os.fsdecode(request.path)
            if not request.children:
                return pb.StatReply(entry=entry_message(await trio.to_thread.run_sync(store.stat, path)))
            entries = await trio.to_thread.run_sync(store.list_directory, path)
            return pb.StatReply(children=[entry_message(entry) for entry in entries])

    async def start_warmup(self, request: pb.WarmupRequest, background: bool = False) -> Job:
        """Start a warm-up; it ends by itself or with its scope's cancellation (the client went away)."""
        with self.busy():
            return self.jobs.start(request, background=background)

    async def start_job(self, request: pb.WarmupRequest) -> pb.StartJobReply:
        """A warm-up that goes on without its client."""
        job = await self.start_warmup(request, True)
        return pb.StartJobReply(job=job.record.id)

    async def cancel_job(self, request: pb.CancelJobRequest) -> pb.CancelJobReply:
        with self.busy():
            return pb.CancelJobReply(state=await self.jobs.cancel(request.job))

    async def evict(self, request: pb.EvictRequest) -> pb.EvictReply:
        with self.busy():
            dataset = self.datasets.get(request.dataset_id)
            snapshot = self.datasets.chosen(dataset, request.snapshot)
            selection = Selection(list(request.paths), list(request.globs))
            with snapshot.held():
                files, size, kept = await pins.evict(self._storage, dataset, snapshot, selection, pinned=request.pinned)
            return pb.EvictReply(files=files, bytes=size, pinned=kept)

    async def pin(self, request: pb.PinRequest) -> pb.PinReply:
        with self.busy():
            dataset = self.datasets.get(request.dataset_id)
            snapshot = self.datasets.chosen(dataset, request.snapshot)
            unknown: list[bytes] = []
            with snapshot.held():
                if request.unpin:
                    unknown = await pins.unpin(self._storage, dataset, snapshot, list(request.paths))
                elif request.paths:
                    await pins.pin(self._storage, dataset, snapshot, list(request.paths))
            return pb.PinReply(pins=self._storage.pins(dataset.id), unknown=unknown)

    async def traffic(self, request: pb.TrafficRequest) -> pb.TrafficReply:
        """What came from under-stores; asking keeps no worker alive."""
        reply = pb.TrafficReply(uptime_s=time.monotonic() - self._began)
        for dataset, traffic in self.filler.traffic.items():
            reply.sources.add(
                dataset_id=dataset, gets=traffic.gets, bytes=traffic.bytes, errors=traffic.errors,
                get_counts=traffic.get_times.counts, get_sum_s=traffic.get_times.sum_s,
                queue_counts=traffic.queue_times.counts, queue_sum_s=traffic.queue_times.sum_s,
                peer_reads=traffic.peer_reads, peer_bytes=traffic.peer_bytes,
            )  # fmt: skip
        if self.cluster is not None:
            self.cluster.add_traffic(reply)
        return reply

    async def serve_metrics(self, request: pb.ServeMetricsRequest) -> pb.ServeMetricsReply:
        with self.busy():
            return pb.ServeMetricsReply(address=await self.metrics.serve(request.address))

    async def start_check(self, request: pb.CheckRequest) -> Check:
        """Start a check; it ends by itself or with its scope's cancellation (the client went away)."""
        pace = Pace(request.bytes_s, time.monotonic, time.sleep)
        check = Check(self._storage, deep=request.deep, repair=request.repair, pace=pace)
        self._nursery.start_soon(self._run_check, check)
        return check

    async def _run_check(self, check: Check) -> None:
        with self.busy(), check.scope:
            await check.run()

    async def status(self, request: pb.StatusRequest) -> pb.StatusReply:
        damage = self._storage.damage
        reply = pb.StatusReply(
            pid=os.getpid(), version=self.version, damaged_blocks=damage.blocks, damaged_files=damage.files,
            damaged_records=damage.records, moved_bytes=self.keeper.mover.moved_bytes,
            scrubbed_bytes=self.keeper.scrubbed_bytes, checkpoints=self.keeper.checkpoints,
            cluster=self._config.cluster.to_json() if self._config.cluster is not None else "",
        )  # fmt: skip
        position = {}
        for number, tier in enumerate(self._storage.tiers):
            position[tier.number] = number
            reply.tiers.add(
                medium=tier.config.medium.value,
                path=str(tier.config.path),
                quota_bytes=tier.config.quota_bytes,
                used_bytes=tier.used_bytes,
                state=tier.state,
            )
        for dataset in self.datasets.all.values():
            traffic = self.filler.traffic.get(dataset.id)
            shown = reply.datasets.add(dataset_id=dataset.id, source=dataset.store.url)
            if traffic is not None:
                shown.gets, shown.fetched_bytes = traffic.gets, traffic.bytes
            if dataset.newest is not None:
                totals = dataset.newest.catalogue.totals()
                shown.snapshot, shown.listing = dataset.newest.number, not dataset.newest.ended.is_set()
                shown.listing_error, shown.skipped = totals.error, totals.skipped
                shown.files, shown.bytes = totals.files, totals.bytes
            for number, (size, files) in self._storage.held_of(dataset.id).items():
                if number in position:
                    shown.holdings.add(tier=position[number], bytes=size, files=files)
            shown.replica_bytes = self._storage.rooms.replicas.bytes_of(dataset.id)
        return reply

    async def members(self, request: pb.MembersRequest) -> pb.MembersReply:
        """What each worker of the cluster holds; nothing when this one is alone."""
        with self.busy():
            return await self.cluster.survey(request) if self.cluster is not None else pb.MembersReply()

    async def post_order(self, request: pb.PostOrderRequest, holder: object | None = None) -> pb.PostOrderReply:
        """See `Orders.post`.

        Args:
            request: see proto/worker.proto.
            holder: the connection that it came by, with whose end the reader is gone; None: gRPC.
        """
        with self.busy():
            dataset = self.datasets.get(request.dataset_id)
            snapshot = self.datasets.opened(dataset, request.snapshot)
            if snapshot is None:
                raise NotAttached(f"{dataset.store.url} has no snapshot {request.snapshot} any more")
            if request.done:
                self.orders.finish(request.reader, request.position)
                return pb.PostOrderReply()
            known = await self.orders.post(
                dataset, snapshot, request.reader, request.nodes, request.first,
                request.position, request.asked, holder,
            )  # fmt: skip
            return pb.PostOrderReply(known=known)

    def _sink(self, dataset: Dataset) -> OrderSink | None:
        """The policies `next-use` of the datasets that what is read belongs to: a view caches for others."""
        names = sorted({dataset.id, *map(DatasetId, dataset.owners)})
        policies = [self._storage.space(name).policy for name in names]
        sinks = tuple(policy for policy in policies if isinstance(policy, NextUse))
        return SeveralSinks(sinks) if len(sinks) > 1 else next(iter(sinks), None)

    def reader_left(self, holder: object) -> None:
        """A connection of the fill socket ended."""
        self.orders.connection_ended(holder)

    async def collect_snapshots(self, request: pb.CollectSnapshotsRequest) -> pb.CollectSnapshotsReply:
        with self.busy():
            removed = self.datasets.history.collect_by_id(DatasetId(request.dataset_id), _keep(request.retention))
            return pb.CollectSnapshotsReply(removed=removed)

    async def forget(self, request: pb.ForgetRequest) -> pb.ForgetReply:
        with self.busy():
            names, count = self.datasets.history.forget(request.name)
            reply = pb.ForgetReply(snapshots=count)
            if request.purge:
                for name in names:
                    reply.bytes += self._storage.held_bytes(name)
                    for _ in self._storage.dropping(name):
                        await trio.lowlevel.checkpoint()
            return reply

    async def retire(self, request: pb.RetireRequest) -> pb.RetireReply:
        """Leave as soon as no mount, no reader with an order and no call is left, without the grace period."""
        leaving = self._calls == 0 and not self._serves_others and not self.orders.active and not self._has_mounts()
        self._retiring = leaving
        return pb.RetireReply(leaving=leaving)

    async def wait_unneeded(self) -> None:
        """Return once there was no mount and no call for the configured time."""
        while True:
            await trio.sleep(_WATCH_INTERVAL_S)
            self.orders.expire()
            if self._calls or self.orders.active or self._has_mounts():
                self._idle_since = time.monotonic()
                self._retiring = False
            elif self._serves_others:
                continue
            elif self._retiring or time.monotonic() - self._idle_since > self._config.idle_exit_s:
                await self.keeper.checkpoint()
                if not self._calls and not self._has_mounts():
                    return

    @property
    def _serves_others(self) -> bool:
        return self.cluster is not None and self.cluster.cluster.is_member

    def _has_mounts(self) -> bool:
        return any(True for _ in self._mounts())

    def _mounts(self) -> Iterator[mounts.MountState]:
        cache_dir = str(self._config.cache_dir)
        return (state for _, state in mounts.live(self._config.runtime_dir) if state.cache_dir == cache_dir)

    def _snapshots_shown(self, dataset: DatasetId) -> set[int]:
        """By mounts that take the next one."""
        return {state.snapshot for state in self._mounts() if state.dataset_id == dataset and not state.pinned}

    def _idle(self, dataset: DatasetId) -> float | None:
        used = self.datasets.last_used(dataset)
        if used and time.monotonic() - used < IN_USE_S:
            return None
        if any(job.record.request.dataset_id == dataset for job in self.jobs.running.values()):
            return None  # what a warm-up loaded a minute ago would count as idle
        if self.orders.reads(dataset):
            return None
        if any(state.uses(dataset) for state in self._mounts()):
            return None
        return used

    @contextmanager
    def busy(self) -> Iterator[None]:
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._idle_since = time.monotonic()


def _keep(asked: pb.Retention) -> Keep:
    return Keep(asked.count or KEPT_SNAPSHOTS, asked.age_s, frozenset(asked.pinned))
