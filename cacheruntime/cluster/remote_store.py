"""The cluster as an under-store: what a client node has in place of S3 and the rest, and of their credentials.

Names come from a member, which has them from its catalogue or its source. Bytes do not come this way: the filler asks
the owners (`peer_source.py`), and when none of them answers, there is no other source.
"""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from forebay.cacheruntime import rpc
from forebay.cacheruntime.dataset_source import ClusterView
from forebay.cacheruntime.entry_messages import entry_of
from forebay.cacheruntime.errors import NotAttached, SourceNotFound, SourceUnavailable, WorkerUnavailable
from forebay.cacheruntime.keys import DatasetId
from forebay.cacheruntime.understore.base import Entry
from forebay.proto import peer_pb2 as pb
from forebay.proto import worker_pb2 as worker_pb

if TYPE_CHECKING:
    from typing_extensions import Buffer

_T = TypeVar("_T")

_CALL_S = 30.0

Members = Callable[[], list[Any]]
"""Stubs of the members, with their call metadata bound, in the order in which they are to be asked."""


class RemoteStore:
    """See `UnderStore`."""

    def __init__(self, url: str, view: ClusterView, members: Members, take_anew: Callable[[DatasetId], bool]) -> None:
        """
        Args:
            url: of the store that it stands for: content is named by it.
            view: where that is in a dataset of the cluster.
            members: to ask.
            take_anew: whether the listing that begins is to be one of the source; it is not asked twice.
        """
        self._url = url
        self._view = view
        self._members = members
        self._take_anew = take_anew

    @property
    def url(self) -> str:
        """See `UnderStore.url`."""
        return self._url

    @property
    def pins_version(self) -> bool:
        """Yes: a member gives out what it has verified."""
        return True

    @property
    def lists_in_key_order(self) -> bool:
        """No: a catalogue has the names of a directory together."""
        return False

    def probe(self) -> None:
        """See `UnderStore.probe`."""
        self._ask(lambda stub: stub.Find(pb.FindRequest(dataset_id=self._view.dataset_id), timeout=_CALL_S))

    def list_tree(self) -> Iterator[list[Entry]]:
        """See `UnderStore.list_tree`. As a worker has it, unless it is to be listed anew."""
        view = self._view
        fresh = not view.snapshot and self._take_anew(view.dataset_id)
        request = pb.ListRequest(
            dataset_id=view.dataset_id, path=os.fsencode(view.path), fresh=fresh, snapshot=view.snapshot
        )
        stream = self._ask(lambda stub: _begun(stub.List(request)))
        try:
            for page in stream:
                yield [entry_of(entry) for entry in page.entries]
        except grpc.RpcError as error:
            raise SourceUnavailable(f"{self._url}: the listing broke off ({rpc.to_error(error)})") from error

    def list_directory(self, path: str) -> list[Entry]:
        """See `UnderStore.list_directory`."""
        return [entry_of(entry, self._view.path) for entry in self._look(path, True).children]

    def stat(self, path: str) -> Entry:
        """See `UnderStore.stat`."""
        return entry_of(self._look(path, False).entry, self._view.path)

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """Raises: SourceUnavailable, for the owners were asked before."""
        raise SourceUnavailable(f"{self._url}: no worker of the cluster gives {path!r} now; see forebay status")

    def close(self) -> None:
        """See `UnderStore.close`. The channels are not its own."""

    def _look(self, path: str, children: bool) -> worker_pb.StatReply:
        view = self._view
        request = pb.LookRequest(
            dataset_id=view.dataset_id, path=os.fsencode(view.below(path)), children=children, snapshot=view.snapshot
        )
        reply: worker_pb.StatReply = self._ask(lambda stub: stub.Look(request, timeout=_CALL_S))
        return reply

    def _ask(self, call: Callable[[Any], _T]) -> _T:
        """Ask one member after the other until one answers, be it with an error of the source.

        Raises:
            SourceError: what the source raised. AccessDenied: the member lets us not.
            SourceUnavailable: none answered that knows the dataset.
        """
        trouble, missing = "", None
        for stub in self._members():
            try:
                return call(stub)
            except (grpc.RpcError, ValueError) as error:
                failure = rpc.to_error(error)
                if isinstance(failure, NotAttached):  # says more than that another one is away
                    trouble = str(failure)
                elif isinstance(failure, SourceNotFound) and self._view.snapshot:
                    missing = failure  # each worker has snapshots of its own
                elif isinstance(failure, WorkerUnavailable):
                    trouble = trouble or f"no worker of the cluster answers ({failure})"
                else:
                    raise failure from error
        if missing is not None:
            raise missing
        raise SourceUnavailable(f"{self._url}: {trouble or 'no worker of the cluster is known'}")


def _begun(stream: Any) -> Iterator[pb.ListPage]:
    """A stream whose first page has come: until then another member may be asked."""
    first = next(stream, None)

    def pages() -> Iterator[pb.ListPage]:
        if first is not None:
            yield first
            yield from stream

    return pages()
