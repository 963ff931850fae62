"""Readers without a mount: `forebay.torch` in the reading process, and a training but for its arithmetic."""

import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from forebay.bench.reader import Done
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
        opening, files = self._opening, self._files
        order, count, size = EpochOrder(files), 0, 0
        began = self._clock()
        coming = self._shuffled(0)
        for epoch in range(opening.epochs):
            indices, coming = coming, self._shuffled(epoch + 1)
            order.begin(indices, coming)
            for start in range(0, len(indices), opening.batch):
                batch = indices[start : start + opening.batch]
                order.advance(start, start + len(batch))
                size += sum(len(data) for data in files.read_each(batch))
                count += len(batch)
                if opening.files_per_s:
                    time.sleep(max(0.0, began + count / opening.files_per_s - self._clock()))
            order.advance(len(indices), len(indices))
        order.close()
        return Done(count, size, waited=files.counts.misses)

    def _shuffled(self, epoch: int) -> list[int]:
        indices = list(range(len(self._files)))
        random.Random(f"{self._opening.seed} {epoch}").shuffle(indices)
        return indices
