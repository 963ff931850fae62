"""Datasets of PyTorch over the node's cache: by number, and as a stream."""

import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from forebay.torch.files import Counts, Data, Files
from forebay.torch.orders import EpochOrder

_BATCH = 16
"""Files that a stream reads together: as many GETs as the worker has under way."""


class ForebayDataset(Dataset[Any]):
    """A map-style dataset: one sample for each file.

    Safe under fork and spawn; a pickle of it holds the options that it was given, and no keys that it found in the
    environment.
    """

    def __init__(
        self,
        source: str,
        *,
        options: Mapping[str, str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        snapshot: int = 0,
        pattern: str | None = None,
        suffix: str | Sequence[str] = (),
        views: bool = False,
        cache_policy: str = "",
        worker: str | None = None,
        tls: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        tier: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        target: Callable[[str], Any] | None = None,
    ) -> None:
        """
        Args:
            source, options, cache_dir, snapshot, pattern, suffix, views, cache_policy, worker, tls, insecure, tier: see
                `Files`.
            transform: makes a sample of a file's bytes (or view); without it these are the sample.
            target: makes a label of a file's path; with it samples are pairs of both.

        Raises:
            SourceError, UsageError: the source cannot be listed; nothing in it matches.
        """
        self.files = Files(
            source,
            options=options,
            cache_dir=cache_dir,
            snapshot=snapshot,
            pattern=pattern,
            suffix=suffix,
            views=views,
            cache_policy=cache_policy,
            worker=worker,
            tls=tls,
            insecure=insecure,
            tier=tier,
        )
        self.transform = transform
        self.target = target

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        """Raises: as `Files.read`."""
        return self._sample(index, self.files.read(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several samples; what is not cached comes at the same time. Data loaders call this for each batch."""
        return [self._sample(index, data) for index, data in zip(indices, self.files.read_each(indices), strict=True)]

    def path(self, index: int) -> str:
        """Path below the source's root."""
        return self.files.path(index)

    @property
    def counts(self) -> Counts:
        """What this process has read; loading processes count for themselves."""
        return self.files.counts

    def _sample(self, index: int, data: Data) -> Any:
        sample = data if self.transform is None else self.transform(data)
        return sample if self.target is None else (sample, self.target(self.files.path(index)))


class ForebayIterableDataset(IterableDataset[Any]):
    """The same samples as a stream, each of them in one loading process of one rank, in an order that is posted ahead.

    All ranks give the same number of samples: where they do not come out even, some are given twice, as by
    torch.utils.data.DistributedSampler.
    """

    def __init__(
        self,
        dataset: ForebayDataset,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """
        Args:
            dataset: what to give.
            shuffle: give another order in each epoch, else that of the dataset.
            seed: of the orders; the same on all ranks.
            rank, world_size: default: those of torch.distributed, or one rank.
        """
        self.dataset = dataset
        self._shuffle = shuffle
        self._seed = seed
        self._rank, self._world_size = ranks(rank, world_size)
        # Shared memory: loading processes that stay between epochs have to hear of it too.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._order: EpochOrder | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; to be called before each epoch, as for DistributedSampler."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        """Samples of one rank."""
        return -(-len(self.dataset) // self._world_size)

    def __iter__(self) -> Iterator[Any]:
        epoch = int(self._epoch[0])
        shard = self._shard(epoch)
        if self._order is None:
            self._order = EpochOrder(self.dataset.files)
        self._order.begin(shard, self._shard(epoch + 1))
        for start in range(0, len(shard), _BATCH):
            batch = shard[start : start + _BATCH]
            self._order.advance(start, start + len(batch))
            yield from self.dataset.__getitems__(batch)
        self._order.advance(len(shard), len(shard))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_order": None}

    def _shard(self, epoch: int) -> "array[int]":
        """The files of this loading process of this rank in an epoch."""
        order = permutation(len(self.dataset), self._shuffle, self._seed + epoch)
        order += order[: -len(order) % self._world_size]
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        return order[self._rank :: self._world_size][worker::workers]


def permutation(length: int, shuffle: bool, seed: int) -> "array[int]":
    """An order of that many files."""
    if not shuffle:
        return array("q", range(length))
    generator = torch.Generator()
    generator.manual_seed(seed)
    return array("q", torch.randperm(length, generator=generator).numpy().tobytes())


def ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process's rank and how many there are."""
    if rank is None and world_size is None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, world_size = rank or 0, 1 if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}; ranks count from 0")
    return rank, world_size
