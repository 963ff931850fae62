"""Training without a mount: samples out of the cache in the training process, and orders that are posted ahead."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from forebay.bench.crew import Total, run_readers, share
from forebay.bench.dataset import Sample, make_images, shuffled
from forebay.bench.groups import SEED, Place, Sizes, measured, per_gib, warm
from forebay.bench.in_process import Opening
from forebay.bench.reader import Job
from forebay.bench.sendfile_endpoint import LATENCY_S
from forebay.bench.sheet import LOCAL, OURS, Aim, LineSpec, Reading
from forebay.bench.sides import Dataset, Forebay, Side
from forebay.cacheruntime.client import WorkerClient
from forebay.cacheruntime.config import CacheConfig, Medium, TierConfig
from forebay.proto import worker_pb2 as pb

_READERS = (1, 2)

_EPOCHS_READ = 8
"""In one process, one behind the other: one that has just begun maps pages that a training has mapped long ago."""

_PACE = 200.0
"""Files a second of all trainings together: what must be fetched is below what 16 GETs of 20 ms each can bring."""

_EPOCHS = 3
_POLICY = "next-use"

FRACTIONS = (0.25, 0.5, 0.75)
BELADY = {0.1: 0.31, 0.25: 0.50, 0.5: 0.73, 0.75: 0.88}
"""Cache as a share of the data -> hit ratio of offline Belady, two jobs with shuffles of their own (simulated)."""


class InProcess:
    """Warm samples, read by `forebay.torch` and, as files of a folder, from the local file system."""

    name = "in-process"
    distant = False
    columns: tuple[str, ...] = (LOCAL, OURS)
    lines = tuple(
        LineSpec(
            f"in-process-{readers}",
            f"warm 100 KiB samples in the training process, {readers} process{'es' if readers > 1 else ''}",
            "files/s",
            (Aim(1.0, (LOCAL,)),),
        )
        for readers in _READERS
    )

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        return make_images(folder, min(sizes.small_files, 1500), SEED)

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        warm(side, dataset)

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        found = {}
        for readers in _READERS:
            keys: tuple[str, ...] = ()
            for epoch in range(_EPOCHS_READ):
                keys += tuple(s.key for s in shuffled(list(dataset.samples), 100 * number + epoch))
            job = Job("load_files", str(side.directory), keys)
            if isinstance(side, Forebay):
                run = str(side.node.folder / "run")
                opening = _opening(dataset, side.node.cache_dir, run)
                job = replace(job, do="load_in_process", folder=opening.to_json())
            total, used = measured(side, share(job, readers))
            found[f"in-process-{readers}"] = Reading(total.count / total.seconds, per_gib(used, total.size))
        return found


class Posted:
    """Epochs with an order that is posted ahead, in a cache that is smaller than the data; from S3 with latency.

    Each figure is of one run, of three epochs behind one that is not counted, by the same readers: what the cache has
    then is what their orders want, as in the simulation. Runs are long, and counts scatter little.
    """

    name = "posted"
    distant = True
    columns: tuple[str, ...] = (OURS,)
    lines = (
        *(
            LineSpec(
                f"posted-{fraction}",
                f"posted order, cache {fraction:.0%} of the data, {LATENCY_S * 1000:g} ms added: reads that waited",
                "%",
                less_is_better=True,
                at_most={"waited %": 1.0, "fetched / not held": 1.03},
            )
            for fraction in FRACTIONS
        ),
        *(
            LineSpec(
                f"jobs-{fraction}",
                f"two jobs with shuffles of their own, orders posted, cache {fraction:.0%}: hit ratio",
                "%",
                at_most={"points below Belady": 3.0},
            )
            for fraction in BELADY
        ),
    )

    def __init__(self) -> None:
        self._found: dict[str, Reading] = {}

    def make(self, folder: Path, sizes: Sizes) -> list[Sample]:
        return make_images(folder, min(sizes.small_files, 1500), SEED)

    def begin(self, place: Place, side: Side, dataset: Dataset) -> None:
        """Nothing: each figure has a cache of its own."""

    def turn(self, place: Place, side: Side, dataset: Dataset, number: int) -> Mapping[str, Reading]:
        if not self._found:
            for fraction in FRACTIONS:
                place.step(f"{self.name}: one job, cache {fraction:.0%}")
                self._found[f"posted-{fraction}"] = _one_job(place, dataset, fraction)
            for fraction, best in BELADY.items():
                place.step(f"{self.name}: two jobs, cache {fraction:.0%}")
                self._found[f"jobs-{fraction}"] = _two_jobs(place, dataset, fraction, best)
        return self._found


def _one_job(place: Place, dataset: Dataset, fraction: float) -> Reading:
    total = _train(place, dataset, fraction, f"one-{fraction}", [1])
    waited = 100 * total.waited / total.count
    unheld = (1 - fraction) * sum(sample.size for sample in dataset.samples)
    facts = {"waited %": waited, "fetched / not held": total.fetched / _EPOCHS / unheld}
    return Reading(waited, None, {**facts, "MiB fetched an epoch": total.fetched / _EPOCHS / (1 << 20)})


def _two_jobs(place: Place, dataset: Dataset, fraction: float, best: float) -> Reading:
    total = _train(place, dataset, fraction, f"two-{fraction}", [1, 2])
    hits = 1 - total.fetched / total.size
    waited = 100 * total.waited / total.count
    return Reading(100 * hits, None, {"points below Belady": 100 * (best - hits), "waited %": waited})


def _train(place: Place, dataset: Dataset, fraction: float, name: str, seeds: Sequence[int]) -> Total:
    """Train in a cache of its own; what the readers did once it was full."""
    folder = place.folder / dataset.name / name
    folder.mkdir()
    quota = int(fraction * sum(sample.size for sample in dataset.samples))
    tier = TierConfig(Medium.SSD, folder / "tier", quota)
    config = CacheConfig(folder / "cache", (tier,), folder / "run")
    config.cache_dir.mkdir()
    config.remember_tiers()
    opening = replace(
        _opening(dataset, config.cache_dir, str(config.runtime_dir)), policy=_POLICY, files_per_s=_PACE / len(seeds)
    )
    client = WorkerClient(config)
    try:
        total = run_readers([Job("train", replace(opening, epochs=_EPOCHS, seed=seed).to_json()) for seed in seeds])
        place.watchdog.pat()
        return total
    finally:
        client.call("Retire", pb.RetireRequest())
        client.close()


def _opening(dataset: Dataset, cache_dir: Path, runtime_dir: str) -> Opening:
    endpoint = dataset.endpoint
    options = dict(word.split("=", 1) for word in endpoint.options())
    environ = {**endpoint.environ, "FOREBAY_RUNTIME_DIR": runtime_dir}
    return Opening(endpoint.source(dataset.name), options, str(cache_dir), environ)
