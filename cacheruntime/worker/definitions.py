"""What a dataset is made of, as a message for other nodes: with its credentials for workers, without for clients."""

from collections.abc import Iterator

from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.understore.address import without_userinfo
from forebay.cacheruntime.understore.credentials import without_secrets
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.proto import worker_pb2 as pb

_LOCAL = ("file", "local", "pvc")
"""Schemes of folders of this machine; a path without a scheme is one too."""


def definition_of(dataset: Dataset) -> pb.AttachRequest:
    """All of it, credentials included."""
    made = dataset.definition
    return pb.AttachRequest(
        source=made.source, options=made.options, stores=[store.to_proto() for store in made.stores],
        cache_policy=dataset.policy,
    )  # fmt: skip


def _parts(made: pb.AttachRequest) -> Iterator[pb.AttachRequest | pb.StoreMount]:
    yield made
    pending = list(made.stores)
    while pending:
        store = pending.pop()
        yield store
        pending += store.stores


def take_secrets_away(made: pb.AttachRequest) -> bool:
    """Leave only what tells which data it is; says whether there was more."""
    had = False
    for part in _parts(made):
        kept = without_secrets(part.options)
        source = without_userinfo(part.source)
        had = had or len(kept) < len(part.options) or source != part.source
        part.options.clear()
        part.options.update(kept)
        part.source = source
    return had


def refuse_local(made: pb.AttachRequest) -> None:
    """A folder of this machine is not opened because another machine says so.

    Raises:
        UsageError: the dataset has one.
    """
    for part in _parts(made):
        # Such as simplecache::file:///x, which fsspec takes.
        links = part.source.split("::")
        if part.source and any(link.partition("://")[0].lower() in _LOCAL or link.startswith("/") for link in links):
            raise UsageError(
                f"{part.source} is a folder of each machine: attach it on this worker too, by forebay apply or mount"
            )
