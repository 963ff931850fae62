"""What /metrics says: what the worker knows, and the shared counters of the mounts of its cache folder.

The names carry their units. Collecting happens in prometheus_client's thread, which asks the worker's loop.
"""

from collections.abc import Awaitable, Callable, Iterator

import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from forebay.cacheruntime import mounts
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.counters import Counts, Source, read_counts, read_sources
from forebay.cacheruntime.histogram import BUCKETS, Histogram, upper_s
from forebay.cacheruntime.jobs import JobState, JobStore
from forebay.proto import worker_pb2 as pb

Status = Callable[[pb.StatusRequest], Awaitable[pb.StatusReply]]
Traffic = Callable[[pb.TrafficRequest], Awaitable[pb.TrafficReply]]

_TIER = ["medium", "folder"]
_DATASET = ["dataset", "source"]
_MOUNT = ["mount", "dataset"]

_COUNTS = {
    "hits": ("read_hits", "READ requests answered from the cache"),
    "hit_bytes": ("read_hit_bytes", "Bytes of READ requests answered from the cache"),
    "misses": ("read_misses", "READ requests that waited for the source"),
    "miss_bytes": ("read_miss_bytes", "Bytes of READ requests that waited for the source"),
    "passthrough_opens": ("passthrough_opens", "Opens that the kernel reads by itself from then on"),
    "passthrough_granted_bytes": ("passthrough_granted_bytes", "Sizes of the files that were passed through"),
    "passthrough_refused": ("passthrough_refusals", "Times that the kernel would not register a file"),
    "pushes": ("pushed_files", "Small files put into the page cache ahead of their reader"),
    "pushed_bytes": ("pushed_bytes", "Bytes put into the page cache ahead of their reader"),
    "pushes_lost": ("pushed_files_lost", "Files put ahead that the reader asked for all the same"),
    "push_pauses": ("push_pauses", "Times that nothing was put ahead for a while, as memory was short"),
    "requests": ("requests", "All FUSE requests"),
    "errors": ("errors", "Requests answered with EIO, ETIMEDOUT or ESTALE"),
    "cold_bytes": ("cold_read_bytes", "Bytes asked for of files that were not wholly cached"),
    "cold_fetched_bytes": ("cold_fetched_bytes", "Bytes that these reads had fetched, read-ahead included"),
}
"""Field of `Counts` -> name behind ``forebay_mount_`` and what it counts."""


class Numbers(Collector):
    """Collects in prometheus_client's thread, for a registry."""

    def __init__(self, config: CacheConfig, status: Status, traffic: Traffic, jobs: JobStore) -> None:
        """Args: as of `Metrics`."""
        self._config = config
        self._status = status
        self._traffic = traffic
        self._jobs = jobs
        self._token = trio.lowlevel.current_trio_token()

    def describe(self) -> list[Metric]:
        """None: registering must not ask a loop that is busy registering."""
        return []

    def collect(self) -> Iterator[Metric]:
        try:
            status = trio.from_thread.run(self._status, pb.StatusRequest(), trio_token=self._token)
            traffic = trio.from_thread.run(self._traffic, pb.TrafficRequest(), trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            return  # it is leaving
        yield from worker_metrics(status, traffic)
        yield from _job_metrics(self._jobs)
        yield from mount_metrics(self._config)


def worker_metrics(status: pb.StatusReply, traffic: pb.TrafficReply) -> Iterator[Metric]:
    """Tiers, datasets and the under-stores."""
    info = GaugeMetricFamily("forebay_worker_info", "The worker that answers", labels=["version"])
    info.add_metric([status.version], 1)
    yield info
    yield GaugeMetricFamily("forebay_worker_uptime_seconds", "Since the worker started", traffic.uptime_s)
    damaged = CounterMetricFamily("forebay_damaged", "Found wrong, dropped and fetched again", labels=["what"])
    for what in ("blocks", "files", "records"):
        damaged.add_metric([what], getattr(status, f"damaged_{what}"))
    yield damaged
    yield CounterMetricFamily("forebay_moved_bytes", "Between tiers", status.moved_bytes)
    yield CounterMetricFamily("forebay_scrubbed_bytes", "Compared in the background", status.scrubbed_bytes)
    yield CounterMetricFamily("forebay_checkpoints", "Taken", status.checkpoints)
    used = GaugeMetricFamily("forebay_tier_used_bytes", "Held by a tier", labels=_TIER)
    quota = GaugeMetricFamily("forebay_tier_quota_bytes", "What a tier may hold", labels=_TIER)
    normal = GaugeMetricFamily("forebay_tier_normal", "1 while a tier takes data, else 0", labels=_TIER)
    for tier in status.tiers:
        labels = [tier.medium, tier.path]
        used.add_metric(labels, tier.used_bytes)
        quota.add_metric(labels, tier.quota_bytes)
        normal.add_metric(labels, tier.state == "normal")
    yield from (used, quota, normal)
    yield from _dataset_metrics(status)
    yield from _store_metrics(status, traffic)
    if status.cluster:
        yield from peer_metrics(traffic)


def peer_metrics(traffic: pb.TrafficReply) -> Iterator[Metric]:
    """What came from other workers of the cluster."""
    requests = CounterMetricFamily("forebay_peer_requests", "Reads from another worker", labels=["peer"])
    size = CounterMetricFamily("forebay_peer_bytes", "Read from another worker", labels=["peer"])
    errors = CounterMetricFamily("forebay_peer_errors", "Reads that a worker did not answer well", labels=["peer"])
    wrong = CounterMetricFamily(
        "forebay_peer_wrong_replies", "Whose bytes were not what their checksums said", labels=["peer"]
    )
    usable = GaugeMetricFamily("forebay_peer_usable", "1 while a worker is asked, 0 while set aside", labels=["peer"])
    times = HistogramMetricFamily(
        "forebay_peer_header_duration_seconds", "From a request to the first word of its answer", labels=["peer"]
    )
    for peer in traffic.peers:
        requests.add_metric([peer.id], peer.requests)
        size.add_metric([peer.id], peer.bytes)
        errors.add_metric([peer.id], peer.errors)
        wrong.add_metric([peer.id], peer.wrong)
        usable.add_metric([peer.id], peer.usable)
        _add(times, [peer.id], Histogram.of(peer.header_counts, int(peer.header_sum_s * 1e9)))
    yield from (requests, size, errors, wrong, usable, times)
    yield CounterMetricFamily("forebay_peer_hedges", "Second requests for what came late", traffic.hedges)
    if traffic.certificate_left_s:
        yield GaugeMetricFamily(
            "forebay_certificate_left_seconds", "Until this node's certificate ends", traffic.certificate_left_s
        )


def _dataset_metrics(status: pb.StatusReply) -> Iterator[Metric]:
    files = GaugeMetricFamily("forebay_dataset_source_files", "In the newest snapshot", labels=_DATASET)
    size = GaugeMetricFamily("forebay_dataset_source_bytes", "In the newest snapshot", labels=_DATASET)
    where = [*_DATASET, *_TIER]
    held_files = GaugeMetricFamily("forebay_dataset_cached_files", "Wholly or partly cached, by tier", labels=where)
    held_bytes = GaugeMetricFamily("forebay_dataset_cached_bytes", "Cached, by tier", labels=where)
    replicas = GaugeMetricFamily(
        "forebay_dataset_replica_bytes", "Cached here, and owned by other workers of the cluster", labels=_DATASET
    )
    ratio = GaugeMetricFamily("forebay_dataset_cached_ratio", "Cached bytes / bytes of the snapshot", labels=_DATASET)
    for dataset in status.datasets:
        labels = [dataset.dataset_id, dataset.source]
        files.add_metric(labels, dataset.files)
        size.add_metric(labels, dataset.bytes)
        for held in dataset.holdings:
            tier = status.tiers[held.tier]
            held_files.add_metric([*labels, tier.medium, tier.path], held.files)
            held_bytes.add_metric([*labels, tier.medium, tier.path], held.bytes)
        replicas.add_metric(labels, dataset.replica_bytes)
        if dataset.bytes:
            ratio.add_metric(labels, sum(held.bytes for held in dataset.holdings) / dataset.bytes)
    yield from (files, size, held_files, held_bytes, replicas, ratio)


def _store_metrics(status: pb.StatusReply, traffic: pb.TrafficReply) -> Iterator[Metric]:
    urls = {dataset.dataset_id: dataset.source for dataset in status.datasets}
    gets = CounterMetricFamily("forebay_store_requests", "GETs of the source", labels=_DATASET)
    size = CounterMetricFamily("forebay_store_bytes", "Fetched from the source", labels=_DATASET)
    errors = CounterMetricFamily("forebay_store_errors", "GETs that failed, tries again included", labels=_DATASET)
    times = HistogramMetricFamily(
        "forebay_store_request_duration_seconds", "Of GETs, tries again included", labels=_DATASET
    )
    waits = HistogramMetricFamily(
        "forebay_store_queue_duration_seconds", "That fetches waited for their turn", labels=_DATASET
    )
    for source in traffic.sources:
        labels = [source.dataset_id, urls.get(source.dataset_id, "")]
        gets.add_metric(labels, source.gets)
        size.add_metric(labels, source.bytes)
        errors.add_metric(labels, source.errors)
        _add(times, labels, Histogram.of(source.get_counts, int(source.get_sum_s * 1e9)))
        _add(waits, labels, Histogram.of(source.queue_counts, int(source.queue_sum_s * 1e9)))
    yield from (gets, size, errors, times, waits)


def _job_metrics(store: JobStore) -> Iterator[Metric]:
    states = GaugeMetricFamily("forebay_jobs", "Warm-ups on record, by state", labels=["state"])
    done = GaugeMetricFamily("forebay_job_done_ratio", "Bytes done / bytes wanted of a running warm-up", labels=["job"])
    failed = GaugeMetricFamily("forebay_job_failed_files", "Of a running warm-up", labels=["job"])
    counts = dict.fromkeys(JobState, 0)
    for record in store.all():
        counts[record.state] += 1
        if record.state is JobState.RUNNING:
            total = record.progress.bytes_total
            done.add_metric([str(record.id)], record.progress.bytes_done / total if total else 0.0)
            failed.add_metric([str(record.id)], record.progress.files_failed)
    for state, count in counts.items():
        states.add_metric([state.value], count)
    yield from (states, done, failed)


def mount_metrics(config: CacheConfig) -> Iterator[Metric]:
    """The shared counters of the mounts of a cache folder."""
    counters = {
        field: CounterMetricFamily(f"forebay_mount_{name}", text, labels=_MOUNT)
        for field, (name, text) in _COUNTS.items()
    }
    ratio = GaugeMetricFamily("forebay_mount_hit_ratio", "Reads and passthrough opens without a wait", labels=_MOUNT)
    size = CounterMetricFamily("forebay_mount_read_source_bytes", "By where they came from", labels=[*_MOUNT, "from"])
    times = HistogramMetricFamily(
        "forebay_mount_read_duration_seconds",
        "Of READ requests, by where their bytes came from; those from a tier are a sample of one in 16",
        labels=[*_MOUNT, "from"],
    )
    for folder, state in mounts.live(config.runtime_dir):
        if state.cache_dir != str(config.cache_dir):
            continue
        labels = [state.dir, state.dataset_id]
        counts: Counts = read_counts(folder)
        for field, counter in counters.items():
            counter.add_metric(labels, getattr(counts, field))
        if counts.hit_ratio is not None:
            ratio.add_metric(labels, counts.hit_ratio)
        for source, found in read_sources(folder).items():
            # Of a tier's, one in so many is timed, but all are counted.
            size.add_metric([*labels, source.value], counts.hit_bytes if source is Source.TIER else found.bytes)
            _add(times, [*labels, source.value], found.times)
    yield from (*counters.values(), ratio, size, times)


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    below, buckets = 0, []
    for bucket in range(BUCKETS):
        below += histogram.counts[bucket]
        bound = upper_s(bucket)
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(below)))
    family.add_metric(labels, buckets, histogram.sum_s)
