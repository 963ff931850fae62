"""Readers without a mount: `forebay.torch` in the reading process, and a training but for its arithmetic."""

import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from forebay.bench.reader import Done
from forebay.cacheruntime.client import WorkerClient
from forebay.proto import worker_pb2 as pb
from forebay.torch.files import Files
from forebay.torch.orders import EpochOrder


@dataclass(frozen=True)
class Opening:
    """How a reader opens the files; as JSON, it is a job's folder."""

    source: str
    options: Mapping[str, str]
    cache_dir: str
    environ: Mapping[str, str] = field(repr=False)
    """Where the worker is, and keys."""
    policy: str = ""
    epochs: int = 1
    """That are counted; a training has one more before them, in which the cache fills."""
    seed: int = 0
    files_per_s: float = 0.0
    """Pace of a training; 0: as fast as it can."""
    batch: int = 32

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def open_files(folder: str) -> Files:
    """The files that an `Opening` in JSON means."""
    opening = Opening(**json.loads(folder))
    os.environ.update(opening.environ)
    return Files(opening.source, options=opening.options, cache_dir=opening.cache_dir, cache_policy=opening.policy)


class Training:
    """Epochs, each in an order of its own that is posted ahead, as `OrderedSampler` does; batches at a steady pace."""

    def __init__(self, folder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._opening = Opening(**json.loads(folder))
        self._files = open_files(folder)
        self._clock = clock

    def run(self) -> Done:
        """All epochs; a reading's `waited` are the files that were not there in time."""
        files, epochs = self._files, self._opening.epochs
        order, client = EpochOrder(files), WorkerClient(files.config)
        began = self._clock()
        coming = self._shuffled(0)
        size = waited = 0
        fetched = 0.0
        for epoch in range(1 + epochs):
            if epoch == 1:
                size, waited, fetched = 0, files.counts.misses, _fetched(client)
            indices, coming = coming, self._shuffled(epoch + 1)
            order.begin(indices, coming)
            size += self._read(order, indices, began, epoch * len(indices))
            order.advance(len(indices), len(indices))
        done = Done(epochs * len(files), size, waited=files.counts.misses - waited, fetched=_fetched(client) - fetched)
        order.close()
        client.close()
        return done

    def _read(self, order: EpochOrder, indices: Sequence[int], began: float, before: int) -> int:
        """One epoch; the bytes in it."""
        size, opening = 0, self._opening
        for start in range(0, len(indices), opening.batch):
            batch = indices[start : start + opening.batch]
            order.advance(start, start + len(batch))
            size += sum(len(data) for data in self._files.read_each(batch))
            if opening.files_per_s:
                due = began + (before + start + len(batch)) / opening.files_per_s
                time.sleep(max(0.0, due - self._clock()))
        return size

    def _shuffled(self, epoch: int) -> list[int]:
        indices = list(range(len(self._files)))
        random.Random(f"{self._opening.seed} {epoch}").shuffle(indices)
        return indices


def _fetched(client: WorkerClient) -> float:
    """Bytes that the worker has had from the store."""
    (dataset,) = client.call("Status", pb.StatusRequest()).datasets or [pb.DatasetStatus()]
    return float(dataset.fetched_bytes)
