"""Samplers that tell the worker their order ahead, and a data loader with one."""

from array import array
from collections.abc import Callable, Iterator, Sequence, Sized
from copy import deepcopy
from typing import Any

from torch import Generator
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from forebay.torch.dataset import ForebayDataset, permutation, ranks
from forebay.torch.orders import EpochOrder

_EPOCH_FILES = 1 << 22
"""A sampler is asked for so much of its order at most before the first batch; endless ones are told of by parts."""


_FROM_GENERATOR = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
"""PyTorch's own samplers whose order is that of their generator's numbers alone."""


class OrderedSampler(Sampler[int]):
    """A sampler whose order the worker knows ahead: it fetches by it, and the cache policy `next-use` evicts by it.

    Give it to a DataLoader as `sampler`; `data_loader` does that. The order is that of all loading processes together.
    An epoch's order is posted when the epoch begins, and the one after it at the same time where that is known: of our
    own shuffling, of samplers with `set_epoch` (DistributedSampler), and of PyTorch's own where they were given a
    generator. Else `next-use` hits some points less (docs/decisions/0022).
    """

    def __init__(
        self,
        dataset: "Dataset[Any]",
        sampler: Sampler[int] | None = None,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        in_flight: int = 512,
        batch_size: int = 1,
    ) -> None:
        """
        Args:
            dataset: a ForebayDataset, or a Subset of one.
            sampler: whose order to post; None: our own, which differs from epoch to epoch.
            shuffle, seed, rank, world_size: of our own order, shared out among ranks as DistributedSampler does.
            in_flight: samples that were drawn and may not have been read yet: batch size x (loading processes x
                prefetch factor + 1). Too few, and the policy takes files as read that are not.
            batch_size: samples that are drawn, and asked for, at once.

        Raises:
            TypeError: the dataset is of another kind.
        """
        self._dataset, self._index = _below(dataset)
        self._length = len(dataset)
        self._sampler = sampler
        self._shuffle, self._seed = shuffle, seed
        self._rank, self._world_size = ranks(rank, world_size)
        self._in_flight, self._batch_size = in_flight, batch_size
        self._foresees = True
        """A generator that others draw from too does not tell what comes next."""
        self._epoch = 0
        self._order = EpochOrder(self._dataset.files)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next epoch; without it each is another one than the last."""
        self._epoch = epoch
        if self._sampler is not None and hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        if self._sampler is None:
            return -(-self._length // self._world_size)
        assert isinstance(self._sampler, Sized)
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        source = iter(self._own(self._epoch) if self._sampler is None else self._sampler)
        self._epoch += self._sampler is None
        while part := _part(source):
            whole = len(part) < _EPOCH_FILES
            coming = self._coming() if whole else None
            self._foresees &= self._order.begin(self._files(part), self._files(coming) if coming is not None else None)
            for drawn, index in enumerate(part):
                if drawn % self._batch_size == 0:
                    asked = drawn + self._batch_size
                    self._order.advance(asked - self._in_flight, min(asked, len(part)))
                yield index
            if whole:
                return

    def close(self) -> None:
        """Tell the worker that this reader is gone; so does the end of the process."""
        self._order.close()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_order": EpochOrder(self._dataset.files)}

    def _own(self, epoch: int) -> "array[int]":
        order = permutation(self._length, self._shuffle, self._seed + epoch)
        order += order[: -len(order) % self._world_size]
        return order[self._rank :: self._world_size]

    def _coming(self) -> Sequence[int] | None:
        """The order of the next epoch, if it is known; to be called when that of this one was drawn."""
        if self._sampler is None:
            return self._own(self._epoch)
        if type(self._sampler) is SequentialSampler:
            return _part(iter(self._sampler))
        if type(self._sampler) in _FROM_GENERATOR:
            generator = getattr(self._sampler, "generator", None)
            if not self._foresees or not isinstance(generator, Generator):
                return None
            state = generator.get_state()
            try:
                return _part(iter(self._sampler))
            finally:
                generator.set_state(state)
        epoch = getattr(self._sampler, "epoch", None)
        if not hasattr(self._sampler, "set_epoch") or not isinstance(epoch, int):
            return None
        later = deepcopy(self._sampler)
        later.set_epoch(epoch + 1)
        return _part(iter(later))

    def _files(self, indices: Sequence[int]) -> Sequence[int]:
        return indices if self._index is None else [self._index(index) for index in indices]


def data_loader(
    dataset: "Dataset[Any]",
    batch_size: int = 1,
    *,
    shuffle: bool = False,
    sampler: Sampler[int] | None = None,
    seed: int = 0,
    num_workers: int = 0,
    prefetch_factor: int | None = None,
    **others: Any,
) -> "DataLoader[Any]":
    """A torch.utils.data.DataLoader whose order is posted ahead.

    Args:
        dataset: a ForebayDataset, or a Subset of one.
        batch_size, num_workers, prefetch_factor: of the DataLoader.
        shuffle: another order in each epoch, on each rank its share; else that of the dataset.
        sampler: an order of yours, such as a DistributedSampler; excludes `shuffle`.
        seed: of the shuffling.
        others: what else the DataLoader is to be given.

    Raises:
        ValueError: both shuffle and sampler are given.
    """
    if sampler is not None and shuffle:
        raise ValueError("a sampler has an order of its own: leave out shuffle=True")
    if num_workers and prefetch_factor is None:
        prefetch_factor = 2
    ordered = OrderedSampler(
        dataset,
        sampler,
        shuffle=shuffle,
        seed=seed,
        in_flight=batch_size * (num_workers * (prefetch_factor or 0) + 1),
        batch_size=batch_size,
    )
    return DataLoader(
        dataset, batch_size, sampler=ordered, num_workers=num_workers, prefetch_factor=prefetch_factor, **others
    )


def _below(dataset: "Dataset[Any]") -> tuple[ForebayDataset, Callable[[int], int] | None]:
    """The dataset that has the files, and which of them an index of this one means."""
    if isinstance(dataset, ForebayDataset):
        return dataset, None
    if isinstance(dataset, Subset):
        below, inner = _below(dataset.dataset)
        indices = dataset.indices
        return below, lambda index: indices[index] if inner is None else inner(indices[index])
    raise TypeError(f"{type(dataset).__name__} is neither a ForebayDataset nor a Subset of one")


def _part(source: Iterator[int]) -> "array[int]":
    """The next of an order."""
    part = array("q")
    for index in source:
        part.append(index)
        if len(part) >= _EPOCH_FILES:
            break
    return part
