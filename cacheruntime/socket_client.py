"""The worker over its fill socket alone: no gRPC and no thread, so that a process may fork while it has one.

For programs whose loading processes are forked or spawned (`forebay.torch`).
"""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from forebay.cacheruntime.client import start_worker
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import WorkerUnavailable
from forebay.cacheruntime.fill_socket import BlockingFills, FillsUnderWay
from forebay.proto import worker_pb2 as pb

_T = TypeVar("_T")

_REPLY_S = 120.0
"""Longer than any deadline of a miss: the worker answers before, with the reason."""

_PATIENCE_S = 60.0
"""For a worker to come back; as long as a reader of a mount waits for a miss."""


class SocketClient:
    """Any number of threads may use it; a forked child makes its own.

    Resources: `close` ends its connections; the next call makes others.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._fills = BlockingFills(config.fill_socket_path, _REPLY_S)

    def close(self) -> None:
        self._fills.close()

    def attach(
        self, spec: SourceSpec, *, list_tree: bool = False, snapshot: int = 0, cache_policy: str = ""
    ) -> pb.AttachReply:
        """See `Attach` in proto/worker.proto; starts a worker if there is none.

        Raises:
            ForebayError: what the worker raised, or why none could be started.
        """
        request = spec.attach_request(list_tree=list_tree, snapshot=snapshot, cache_policy=cache_policy)
        message = request.SerializeToString()
        return pb.AttachReply.FromString(self._with_worker(lambda: self._fills.call("Attach", message)))

    def begin(self, requests: Sequence[pb.FillRequest]) -> FillsUnderWay:
        """Ask for ranges at once; see `BlockingFills.begin`. Raises: WorkerUnavailable, there is none."""
        return self._fills.begin(requests)

    def _with_worker(self, ask: Callable[[], _T]) -> _T:
        """Ask, with a worker started where there is none."""
        deadline, delay_s = time.monotonic() + _PATIENCE_S, 0.02
        while True:
            try:
                return ask()
            except WorkerUnavailable:
                self._fills.close()  # connections to a worker that is gone
                if time.monotonic() > deadline:
                    raise
            start_worker(self._config)
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, 1.0)
