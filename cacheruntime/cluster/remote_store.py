"""The cluster as an under-store: what a client node has in place of S3 and the rest, and of their credentials.

Names come from a member, which has them from its catalogue or its source. Bytes do not come this way: the filler asks
the owners (`peer_source.py`), and when none of them answers, there is no other source.
"""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from forebay.cacheruntime import rpc
from forebay.cacheruntime.entry_messages import entry_of
from forebay.cacheruntime.errors import SourceUnavailable, WorkerUnavailable
from forebay.cacheruntime.understore.base import Entry
from forebay.proto import peer_pb2 as pb
from forebay.proto import worker_pb2 as worker_pb

if TYPE_CHECKING:
    from typing_extensions import Buffer

_T = TypeVar("_T")

_CALL_S = 30.0
_PAGE_S = 120.0
"""A page of a listing; the first may take as long as the source's own listing."""

Members = Callable[[], list[Any]]
"""Stubs of the members, with their call metadata bound, in the order in which they are to be asked."""


class RemoteStore:
    """See `UnderStore`."""

    def __init__(self, url: str, dataset_id: str, path: str, members: Members) -> None:
        """
        Args:
            url: of the store that it stands for: content is named by it.
            dataset_id: under which the members know it.
            path: where the store is in the dataset; '' for its root.
            members: to ask.
        """
        self._url = url
        self._dataset_id = dataset_id
        self._path = path
        self._members = members
        self._listed = False

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
        self._ask(lambda stub: stub.Find(pb.FindRequest(dataset_id=self._dataset_id), timeout=_CALL_S))

    def list_tree(self) -> Iterator[list[Entry]]:
        """See `UnderStore.list_tree`. The first time as a member has it, after that as its source has it then."""
        request = pb.ListRequest(dataset_id=self._dataset_id, path=os.fsencode(self._path), fresh=self._listed)
        self._listed = True
        stream = self._ask(lambda stub: _begun(stub.List(request)))
        try:
            for page in stream:
                yield [entry_of(entry) for entry in page.entries]
        except grpc.RpcError as error:
            raise _unavailable(self._url, error) from error

    def list_directory(self, path: str) -> list[Entry]:
        """See `UnderStore.list_directory`."""
        return [entry_of(entry, self._path) for entry in self._look(path, True).children]

    def stat(self, path: str) -> Entry:
        """See `UnderStore.stat`."""
        return entry_of(self._look(path, False).entry, self._path)

    def read_range(self, path: str, start: int, length: int, version: str) -> "Iterator[Buffer]":
        """Raises: SourceUnavailable, for the owners were asked before."""
        raise SourceUnavailable(f"{self._url}: no worker of the cluster gives {path!r} now; see forebay status")

    def close(self) -> None:
        """See `UnderStore.close`. The channels are not its own."""

    def _look(self, path: str, children: bool) -> worker_pb.StatReply:
        whole = "/".join(filter(None, (self._path, path)))
        request = pb.LookRequest(dataset_id=self._dataset_id, path=os.fsencode(whole), children=children)
        reply: worker_pb.StatReply = self._ask(lambda stub: stub.Look(request, timeout=_CALL_S))
        return reply

    def _ask(self, call: Callable[[Any], _T]) -> _T:
        """Ask one member after the other until one answers, be it with an error of the source.

        Raises:
            SourceError: what the source raised. SourceUnavailable: none answered.
        """
        trouble: Exception = SourceUnavailable("no worker of the cluster is known")
        for stub in self._members():
            try:
                return call(stub)
            except (grpc.RpcError, ValueError) as error:
                failure = rpc.to_error(error)
                if not isinstance(failure, WorkerUnavailable):
                    raise failure from error
                trouble = failure
        raise SourceUnavailable(f"{self._url}: no worker of the cluster answers ({trouble})")


def _begun(stream: Any) -> Iterator[pb.ListPage]:
    """A stream whose first page has come: until then another member may be asked."""
    first = next(stream, None)

    def pages() -> Iterator[pb.ListPage]:
        if first is not None:
            yield first
            yield from stream

    return pages()


def _unavailable(url: str, error: grpc.RpcError) -> SourceUnavailable:
    return SourceUnavailable(f"{url}: the listing broke off ({rpc.to_error(error)})")
