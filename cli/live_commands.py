"""What `forebay stats` and `forebay profile` do: looks at counters, twice, and the difference."""

import json as jsonlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from forebay.cacheruntime import mounts as register
from forebay.cacheruntime.client import WorkerClient, worker_pid
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.counters import SAMPLED, Counts, Source, SourceTimes, read_counts, read_sources
from forebay.cacheruntime.errors import ForebayError, MountError
from forebay.cacheruntime.histogram import Histogram
from forebay.cli import inspect_screens
from forebay.cli.commands import cache_config, mounted_at, stop_signals
from forebay.proto import worker_pb2 as pb

_WAITS = (Source.AHEAD, Source.STORE, Source.MEMORY)

_HEADER_EVERY = 20

_NAMES = {
    Source.TIER: "cache",
    Source.AHEAD: "read ahead, on its way",
    Source.STORE: "source, then cache",
    Source.MEMORY: "source, no room in tiers",
}


@dataclass
class Look:
    """All counters at one moment."""

    at_s: float = field(default_factory=time.monotonic)
    counts: Counts = field(default_factory=Counts)
    sources: dict[Source, SourceTimes] = field(default_factory=lambda: {source: SourceTimes() for source in Source})
    gets: int = 0
    get_bytes: int = 0
    get_errors: int = 0
    get_times: Histogram = field(default_factory=Histogram)
    queue_times: Histogram = field(default_factory=Histogram)

    def since(self, before: "Look") -> "Look":
        """What came in between. A worker that is new began to count anew."""
        counts = Counts(**{one.name: max(getattr(self.counts, one.name) - getattr(before.counts, one.name), 0)
                           for one in fields(Counts)})  # fmt: skip
        fresh = self.gets < before.gets
        return Look(
            self.at_s - before.at_s, counts,
            {source: self.sources[source] - before.sources[source] for source in Source},
            self.gets if fresh else self.gets - before.gets,
            self.get_bytes if fresh else self.get_bytes - before.get_bytes,
            self.get_errors if fresh else self.get_errors - before.get_errors,
            self.get_times - before.get_times, self.queue_times - before.queue_times,
        )  # fmt: skip


class _Looker:
    """Looks at the mounts of a cache folder (or one of them) and at its worker, without starting one."""

    def __init__(self, config: CacheConfig, state: register.MountState | None) -> None:
        self._config = config
        self._state = state
        self._client = WorkerClient(config)

    def look(self) -> Look:
        found = Look()
        for folder, state in register.registered(self._config.runtime_dir):
            if state.cache_dir != str(self._config.cache_dir) or (self._state and state.dir != self._state.dir):
                continue
            counts = read_counts(folder)
            for one in fields(Counts):
                setattr(found.counts, one.name, getattr(found.counts, one.name) + getattr(counts, one.name))
            for source, times in read_sources(folder).items():
                found.sources[source] += times
        if worker_pid(self._config) is None:
            self._client.close()
            return found
        try:
            traffic: pb.TrafficReply = self._client.call("Traffic", pb.TrafficRequest(), timeout_s=5.0)
        except ForebayError:
            return found  # it is leaving
        for one_source in traffic.sources:
            if self._state is not None and one_source.dataset_id != self._state.dataset_id:
                continue
            found.gets += one_source.gets
            found.get_bytes += one_source.bytes
            found.get_errors += one_source.errors
            found.get_times += Histogram.of(one_source.get_counts, int(one_source.get_sum_s * 1e9))
            found.queue_times += Histogram.of(one_source.queue_counts, int(one_source.queue_sum_s * 1e9))
        return found

    def close(self) -> None:
        self._client.close()


def _mount_at(directory: str, cache_dir: Path | None) -> tuple[CacheConfig, register.MountState]:
    """A mount, and the configuration of its cache. Raises: MountError, nothing is mounted there."""
    state = mounted_at(directory, cache_config(cache_dir, []))
    if state is None:
        raise MountError(f"nothing is mounted on {directory}; `forebay mounts` lists what is")
    return cache_config(Path(state.cache_dir), []), state


def stats(where: str | None, cache_dir: Path | None, interval_s: float, count: int, *, json: bool) -> None:
    config, state = _mount_at(where, cache_dir) if where is not None else (cache_config(cache_dir, []), None)
    looker = _Looker(config, state)
    try:
        before, lines = looker.look(), 0
        while not count or lines < count:
            time.sleep(interval_s)
            now = looker.look()
            row = stats_row(now.since(before))
            if json:
                print(jsonlib.dumps(row), flush=True)
            else:
                if lines % _HEADER_EVERY == 0:
                    print(inspect_screens.STATS_HEADER)
                inspect_screens.stats(row)
            before, lines = now, lines + 1
    finally:
        looker.close()


def stats_row(seen: Look) -> dict[str, Any]:
    """Rates of one interval."""
    waits = sum((seen.sources[source].times for source in _WAITS), Histogram())
    counts, took = seen.counts, seen.at_s
    return {
        "seconds": took,
        "hits_s": counts.hits / took,
        "hit_bytes_s": counts.hit_bytes / took,
        "misses_s": counts.misses / took,
        "miss_bytes_s": counts.miss_bytes / took,
        "hit_ratio": counts.hit_ratio,
        "wait_p50_s": waits.quantile_s(0.5),
        "wait_p99_s": waits.quantile_s(0.99),
        "store_requests_s": seen.gets / took,
        "store_bytes_s": seen.get_bytes / took,
        "store_p50_s": seen.get_times.quantile_s(0.5),
        "store_p99_s": seen.get_times.quantile_s(0.99),
        "store_errors_s": seen.get_errors / took,
        "passthrough_opens_s": counts.passthrough_opens / took,
        "pushed_files_s": counts.pushes / took,
        "errors_s": counts.errors / took,
    }


def profile(directory: str, seconds: float, *, json: bool) -> None:
    config, state = _mount_at(directory, None)
    looker = _Looker(config, state)
    try:
        before = looker.look()
        _sleep(seconds, lambda: register.read_state(register.mount_folder(config.runtime_dir, state.dir)) is None)
        seen = looker.look().since(before)
    finally:
        looker.close()
    shown = {"dir": state.dir} | profile_of(seen)
    print(jsonlib.dumps(shown, indent=2)) if json else inspect_screens.profile(shown)


def _sleep(seconds: float, is_over: Callable[[], bool]) -> None:
    """Ctrl-C ends the look, not the command."""
    stopped = stop_signals()
    end = time.monotonic() + seconds
    while not stopped and time.monotonic() < end and not is_over():
        time.sleep(min(0.1, max(end - time.monotonic(), 0)))


def profile_of(seen: Look) -> dict[str, Any]:
    """The difference of two looks as `forebay profile` shows it."""
    rows: list[dict[str, Any]] = []
    totals: dict[Source, float] = {}
    for source, found in seen.sources.items():
        sample = found.times.count
        reads, size, time_s = sample, found.bytes, found.times.sum_s
        if source is Source.TIER:
            reads, size = max(seen.counts.hits, sample), max(seen.counts.hit_bytes, found.bytes)
            time_s = time_s / sample * reads if sample else 0.0
        totals[source] = time_s
        rows.append(
            {
                "source": source.value, "name": _NAMES[source], "reads": reads, "bytes": size,
                "p50_s": found.times.quantile_s(0.5), "p99_s": found.times.quantile_s(0.99), "time_s": time_s,
                "sampled": SAMPLED if source is Source.TIER else 1,
            }
        )  # fmt: skip
    whole = sum(totals.values())
    for row in rows:
        row["time_ratio"] = row["time_s"] / whole if whole else None
    worker = [
        {
            "name": name, "count": times.count, "bytes": size, "p50_s": times.quantile_s(0.5),
            "p99_s": times.quantile_s(0.99), "sum_s": times.sum_s,
        }
        for name, times, size in (
            ("queueing", seen.queue_times, None), ("GETs of the source", seen.get_times, seen.get_bytes),
        )
    ]  # fmt: skip
    return {
        "seconds": seen.at_s,
        "requests": seen.counts.requests,
        "sources": rows,
        "worker": worker,
        "passthrough_opens": seen.counts.passthrough_opens,
        "passthrough_granted_bytes": seen.counts.passthrough_granted_bytes,
        "verdict": _verdict(seen, totals),
    }


def _verdict(seen: Look, totals: dict[Source, float]) -> str:
    """The one sentence that the figures come to."""
    whole = sum(totals.values())
    if not whole:
        return "no reads were seen; what was read came from the page cache or was passed through"
    waited = sum(totals[source] for source in _WAITS)
    if waited < whole / 2:
        return f"{1 - waited / whole:.0%} of the time went into reading the cache's own tiers"
    queue, get = seen.queue_times, seen.get_times
    if totals[Source.MEMORY] > waited / 2:
        return "most waits were for files that no tier has room for: give the cache more room (forebay status)"
    if queue.count and get.count and queue.sum_s / queue.count > get.sum_s / get.count:
        return "fetches waited longer for their turn than the source took: it is asked for more than it gives at once"
    share = waited / whole
    return f"{share:.0%} of the time was waiting for the source; warm up ahead of the readers: forebay warmup"
