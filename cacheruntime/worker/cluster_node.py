"""This worker in its cluster: who it is, whom it knows, what it serves to others and reads from them."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from forebay.cacheruntime import rpc
from forebay.cacheruntime.cluster.channels import Channels
from forebay.cacheruntime.cluster.directory import join_address, parse_directory, split_address
from forebay.cacheruntime.cluster.membership import Address, Known, Membership, worker_id
from forebay.cacheruntime.cluster.peer_source import PeerSource
from forebay.cacheruntime.cluster.remote_store import RemoteStore
from forebay.cacheruntime.cluster.security import Security
from forebay.cacheruntime.config import CacheConfig, ClusterConfig
from forebay.cacheruntime.errors import ForebayError, NotAttached, SourceNotFound, SourceUnavailable
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.understore.base import Entry, UnderStore
from forebay.cacheruntime.worker.catalogue_tree import CatalogueTree
from forebay.cacheruntime.worker.peer_gate import PeerGate
from forebay.cacheruntime.worker.peer_reads import PeerReads
from forebay.cacheruntime.worker.peer_server import DataPort
from forebay.cacheruntime.worker.peer_service import set_health, start_peer_server
from forebay.proto import peer_pb2 as pb
from forebay.proto import worker_pb2 as worker_pb

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.core import Core
    from forebay.cacheruntime.worker.snapshot import Snapshot

log = logging.getLogger(__name__)

_STOP_GRACE_S = 2.0
_DEFINE_S = 5.0


@dataclass
class Listing:
    """A snapshot that is being sent. `end` in the event loop."""

    number: int
    tree: CatalogueTree
    end: Callable[[], None]

    def pages(self) -> Iterator[list[Entry]]:
        return self.tree.list_tree()
