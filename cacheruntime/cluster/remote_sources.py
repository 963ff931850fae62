"""What a name or a URL stands for on a client node: the workers of its cluster are asked.

NAME is the dataset as the workers have it. NAME@N, dataset://NAME/sub and a URL inside a dataset's are views of one
(`ClusterView`): N is a snapshot of the workers; the client's own listings have numbers of their own.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import grpc

from forebay.cacheruntime import rpc
from forebay.cacheruntime.cluster.channels import Channels
from forebay.cacheruntime.cluster.membership import Address
from forebay.cacheruntime.cluster.security import INSECURE, Security
from forebay.cacheruntime.config import ClusterConfig
from forebay.cacheruntime.dataset_reference import DEFAULT_NAMESPACE, parse_name, parse_reference
from forebay.cacheruntime.dataset_source import ClusterView, SourceSpec, StoreMount, Tree
from forebay.cacheruntime.errors import AccessDenied, ForebayError, SourceNotFound, UsageError, WorkerUnavailable
from forebay.cacheruntime.keys import DatasetId
from forebay.proto import peer_pb2 as pb

_FIND_S = 10.0
"""Of one worker; a person waits."""


@dataclass(frozen=True)
class RemoteSource:
    """A dataset of the cluster, and where in it something is."""

    reply: pb.FindReply
    below: str
    """Path in the dataset."""
    rest: str
    """The end of that which is also the end of what the user wrote."""
    snapshot: int
    """Of the workers; 0: the newest."""

    def root(self) -> "RemoteSource":
        """What `rest` is in."""
        return replace(self, below=self.below.removesuffix(self.rest).rstrip("/"), rest="")

    def spec(self, shown: str) -> SourceSpec:
        """To attach what is at that path, of that snapshot.

        Args:
            shown: as the user wrote it.

        Raises:
            SourceNotFound: no store of the dataset is there.
        """
        made = self.reply.attach
        stores = tuple(StoreMount.from_proto(store) for store in made.stores)
        policy = made.cache_policy.policy or "epoch"
        whole = SourceSpec(made.source, dict(made.options), Tree(stores, policy) if stores else None, shown=shown)
        if not self.below and not self.snapshot:
            return whole
        view = ClusterView(DatasetId(self.reply.dataset_id), self.below, self.snapshot)
        seen = tuple(StoreMount(path, url) for path, url in whole.roots.below(self.below))
        if not seen:
            raise SourceNotFound(f"{whole.url} has nothing at /{self.below}")
        name = whole.url + (f"@{self.snapshot}" if self.snapshot else "") + (f"/{self.below}" if self.below else "")
        return SourceSpec(name, {}, Tree(seen, policy, view=view), shown=shown)


def remote_spec(text: str, cluster: ClusterConfig) -> SourceSpec:
    """What a dataset's name, or a URL, stands for on the workers of a client node.

    Raises:
        ForebayError: no worker answers, or they do not know it.
    """
    return find_remote(text, cluster).spec(text)


def find_remote(text: str, cluster: ClusterConfig) -> RemoteSource:
    """The dataset of the cluster that a text names.

    Args:
        text: NAME, NAME@N, dataset://NAME[@N][/sub], or a URL that is in a dataset's.
        cluster: of a client node.

    Raises:
        UsageError: it is neither. ForebayError: no worker answers, or they do not know it.
    """
    wanted = list(_candidates(text))
    channels = Channels(Security.from_setting(cluster.tls or INSECURE))
    try:
        given = [Address(each) for each in cluster.peers.removeprefix("static:").split(",")]
        asked: set[Address] = set()
        trouble: ForebayError | None = None
        left = list(given)
        while left:
            asked |= set(left)
            for address in left:
                for source, below, snapshot in wanted:
                    try:
                        reply = _call(address, channels.stub(address).Find, pb.FindRequest(source=source))
                        return RemoteSource(reply, reply.path or below, reply.rest or below, snapshot)
                    except ForebayError as error:
                        trouble = _worse(trouble, error)
            left = _unasked(channels, asked) if isinstance(trouble, SourceNotFound) else []
        assert trouble is not None
        raise trouble
    finally:
        channels.close()


def _candidates(text: str) -> Iterator[tuple[str, str, int]]:
    """What to ask for, the path below that and the snapshot, what counts first comes first."""
    if "://" in text and not text.startswith("dataset://"):
        yield text, "", 0
        return
    if "://" not in text and parse_name(text) is None:
        raise UsageError(
            f"{text!r} is no dataset's name; on a client node of a cluster a source is the NAME or the URL of a dataset"
            " that its workers have"
        )
    reference = parse_reference(text if "://" in text else f"dataset://{text}")
    assert reference is not None
    found = list(reference.candidates(DEFAULT_NAMESPACE))
    for (namespace, name), snapshot, below in found:
        yield f"dataset://{namespace}/{name}", below, snapshot
    (_, name), snapshot, below = found[0]
    yield f"dataset://{name}", below, snapshot


def _unasked(channels: Channels, asked: set[Address]) -> list[Address]:
    """Members that those who were asked know of."""
    for address in sorted(asked):
        with suppress(ForebayError):
            known = _call(address, channels.stub(address).Identify, pb.IdentifyRequest()).members
            return [Address(each) for each in known if each not in asked]
    return []


def _call(address: Address, method: Any, request: Any) -> Any:
    try:
        return method(request, timeout=_FIND_S)
    except grpc.RpcError as error:
        failure = rpc.to_error(error)
        if not isinstance(failure, WorkerUnavailable):
            raise failure from error
        if "handshake failed" in str(failure).lower():
            raise WorkerUnavailable(
                f"the TLS handshake with worker {address} failed: it and this machine need certificates of one CA"
                " (--tls DIR; forebay certs show DIR), or both --insecure"
            ) from error
        raise WorkerUnavailable(
            f"worker {address} does not answer; see that it runs (forebay worker) and that its port can be reached"
        ) from error


def _worse(known: ForebayError | None, error: ForebayError) -> ForebayError:
    """The error that says more: who knows the source said something of it, others are only away."""
    for kind in (AccessDenied, SourceNotFound):
        if isinstance(known, kind):
            return known
        if isinstance(error, kind):
            return error
    return known or error
