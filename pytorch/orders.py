"""The order of a loader's epochs, as the worker is told of it. Needs no PyTorch."""

from collections.abc import Sequence

from forebay.cacheruntime.order_client import OrderPoster
from forebay.torch.files import Files


class EpochOrder:
    """The orders of one loader's epochs, one behind the other, and how far it has come.

    The epoch after the current one may be told of before it begins. When it then begins with another order, the loader
    goes on as another reader, for what was told of the old one is wrong.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._poster: OrderPoster | None = None
        self._base = 0
        """Position at which the current epoch begins."""
        self._length = 0
        self._coming: Sequence[int] | None = None
        """What was posted for the epoch behind the current one."""

    def begin(self, indices: Sequence[int], coming: Sequence[int] | None = None) -> bool:
        """An epoch begins.

        Args:
            indices: of its files, in order.
            coming: those of the next epoch, as far as they are known.

        Returns:
            False when another order than this was told of for it.
        """
        foreseen, self._coming = self._coming, None
        as_foreseen = self._poster is None or foreseen is None or foreseen == indices
        if not as_foreseen:
            self.close()
        if self._poster is None:
            files = self._files
            self._poster = OrderPoster(files.config.fill_socket_path, files.spec, files.dataset_id, files.snapshot)
            self._base = self._length = 0
        else:
            self._base += self._length
        self._length = len(indices)
        self._poster.advance(self._base, self._base)  # also past what was left of an epoch that was broken off
        if self._poster.end < self._base + self._length:
            self._poster.post(self._files.node_ids(indices))
        if coming is not None:
            self._coming = coming
            self._poster.post(self._files.node_ids(coming))
        return as_foreseen

    def advance(self, read: int, asked: int) -> None:
        """How far the loader is in the current epoch: so many are read, so many read or asked for."""
        if self._poster is not None:
            self._poster.advance(self._base + max(0, read), self._base + asked)

    def close(self) -> None:
        """The loader is gone."""
        if self._poster is not None:
            self._poster.close()
            self._poster = None
        self._coming = None
