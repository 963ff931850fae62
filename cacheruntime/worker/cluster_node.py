"""This worker in its cluster: who it is, whom it knows, what it serves to others and reads from them."""

import logging
import os
import queue
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import grpc
import trio

from forebay.cacheruntime import rpc
from forebay.cacheruntime.cluster.certs import SERVER_NAME
from forebay.cacheruntime.cluster.channels import Channels
from forebay.cacheruntime.cluster.directory import join_address, parse_directory
from forebay.cacheruntime.cluster.health import Health
from forebay.cacheruntime.cluster.limits import Share
from forebay.cacheruntime.cluster.membership import DRAINING, SERVING, Address, Known, Membership, worker_id
from forebay.cacheruntime.cluster.peer_client import PeerClient
from forebay.cacheruntime.cluster.placement import Placement, slice_of
from forebay.cacheruntime.cluster.remote_store import RemoteStore
from forebay.cacheruntime.cluster.routing import Router
from forebay.cacheruntime.cluster.security import INSECURE, Security
from forebay.cacheruntime.cluster.tokens import Authorizer
from forebay.cacheruntime.config import CacheConfig, ClusterConfig
from forebay.cacheruntime.dataset_reference import plain_name
from forebay.cacheruntime.dataset_source import ClusterView
from forebay.cacheruntime.durable import write_durably
from forebay.cacheruntime.entry_messages import entry_message
from forebay.cacheruntime.errors import (
    AccessDenied,
    ForebayError,
    LimitReached,
    NotAttached,
    SourceNotFound,
    SourceStale,
    UsageError,
    WorkerUnavailable,
)
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.cacheruntime.understore.address import without_userinfo
from forebay.cacheruntime.understore.base import Entry, UnderStore
from forebay.cacheruntime.understore.factory import canonical_source
from forebay.cacheruntime.understore.retry import RetryingStore
from forebay.cacheruntime.worker.catalogue_tree import CatalogueTree
from forebay.cacheruntime.worker.cluster_report import peer_traffic, report, survey
from forebay.cacheruntime.worker.copies import Copies
from forebay.cacheruntime.worker.dataset import Dataset
from forebay.cacheruntime.worker.definitions import definition_of, refuse_local, take_secrets_away
from forebay.cacheruntime.worker.memory import Lease
from forebay.cacheruntime.worker.peer_gate import DATASET_SCHEME, PeerGate, client_side
from forebay.cacheruntime.worker.peer_loads import load, note_stale, refuse_outside, wanted
from forebay.cacheruntime.worker.peer_reads import NotOurs, PeerReads
from forebay.cacheruntime.worker.peer_server import DataPort
from forebay.cacheruntime.worker.peer_service import set_health, start_peer_server
from forebay.cacheruntime.worker.peer_source import PeerSource
from forebay.cacheruntime.worker.rebalance import Rebalance
from forebay.cacheruntime.worker.spread import failed
from forebay.proto import peer_pb2 as pb
from forebay.proto import worker_pb2 as worker_pb

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.core import Core

log = logging.getLogger(__name__)

_STOP_GRACE_S = 2.0
_DEFINE_S = 5.0
_ANSWER_S = 5.0
"""A client node looks so long for its workers before it serves."""


@dataclass
class Listing:
    """A snapshot that is being sent. `end` in the event loop."""

    number: int
    tree: CatalogueTree
    held: AbstractContextManager[None]

    def end(self) -> None:
        self.held.__exit__(None, None, None)

    def pages(self) -> Iterator[list[Entry]]:
        return self.tree.list_tree()


@dataclass
class Drain:
    """One that is under way."""

    rebalance: Rebalance
    finished: bool = False
    ended: bool = False
    """Finished, or somebody has ended it."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def run(self) -> None:
        try:
            with self.scope:
                await self.rebalance.drain()
                self.finished = True
        finally:
            self.ended = True

    def progress(self) -> pb.DrainProgress:
        return pb.DrainProgress(
            left_bytes=self.rebalance.left_bytes, moved_bytes=self.rebalance.moved_bytes,
            lost_bytes=self.rebalance.lost_bytes, finished=self.finished,
        )  # fmt: skip


@dataclass
class _Defining:
    """A dataset that others are asked for."""

    ended: trio.Event = field(default_factory=trio.Event)
    error: ForebayError | None = None


class ClusterNode:
    """See the module. For the worker's event loop, but for what says otherwise.

    Resources: `start` begins to serve, `stop` ends it.
    """

    def __init__(self, config: CacheConfig, cluster: ClusterConfig, core: "Core", nursery: trio.Nursery) -> None:
        """
        Raises:
            UsageError: the directory, an address or the TLS bundle is not what it should be.
        """
        self.cluster = cluster
        self.nursery = nursery
        self._config = config
        self._core = core
        self._token = trio.lowlevel.current_trio_token()
        self.security = Security.from_setting(cluster.tls or INSECURE)
        self.channels = Channels(self.security)
        self._server: grpc.Server | None = None
        self._checks: Any = None
        self._data: DataPort | None = None
        self._defining: dict[str, _Defining] = {}
        self._anew: set[DatasetId] = set()
        self.id = worker_id(config.cache_dir)
        mine = None
        if cluster.is_member:
            host, port = self.security.listen_address(cluster.listen)
            self._host, self._port = host, port
            own = Address(cluster.advertise or join_address(host, port))
            capacity = sum(tier.quota_bytes for tier in config.tiers)
            mine = Known(self.id, own, 0, capacity, SERVING, core.version)
        self.membership = Membership(
            parse_directory(cluster.peers), mine, self.channels.stub, config.cache_dir / "peers.json",
            learn=not cluster.is_member,
        )  # fmt: skip
        rng = random.Random(self.id)
        router = Router(self.id, Health(rng), rng, has_store=cluster.is_member)
        wrap = client_side(self.security, SERVER_NAME)
        self.source = PeerSource(
            router, self.membership,
            lambda known: PeerClient(known, self.channels.get, wrap, lambda: self.security.token() or ""),
            replicas=cluster.replicas, alone_s=config.retry.deadline_s,
        )  # fmt: skip
        self.membership.on_seen = self.source.seen
        self.rebalance = Rebalance(core, self)
        self._drain: Drain | None = None
        """The last one."""
        self.copies = Copies(core, self)
        self._draining_path = config.cache_dir / "draining"

    @property
    def has_store(self) -> bool:
        """Whether this node reads under-stores itself; a client node does not."""
        return self.cluster.is_member

    @property
    def is_draining(self) -> bool:
        mine = self.membership.mine
        return mine is not None and mine.state == DRAINING

    async def start(self) -> None:
        """Serve, and look who else is there."""
        if self.cluster.is_member:
            if self._draining_path.exists():
                self.membership.set_mine(state=DRAINING)
            self._serve()
            self.nursery.start_soon(self.rebalance.run)
            self.nursery.start_soon(self.copies.run)
        self.source.see()
        self.nursery.start_soon(self._follow)
        self.nursery.start_soon(self.membership.run)
        if not self.cluster.is_member:
            with trio.move_on_after(_ANSWER_S):
                await self.membership.looked.wait()

    def _serve(self) -> None:
        storage = self._core.storage
        authorizer = Authorizer(self.security.folder)
        gate = PeerGate(self.security, authorizer, self.cluster.limits, self.named, self.name_asked)
        reads = PeerReads(self, storage.index.reader, storage.touch, self._token, gate.fills)
        self._data = self._open_data_port(reads, gate)
        assert self.membership.mine is not None
        self.membership.set_mine(data_port=self._data.port)
        self._server, self._checks, port = start_peer_server(self, gate, reads, join_address(self._host, self._port))
        if not self._port:
            self._port = port
            self.membership.set_mine(address=Address(join_address(self._host, port)))
        log.info("serving others on %s, data on port %d, as %s", self.membership.mine.address, self._data.port, self.id)

    def _open_data_port(self, reads: PeerReads, gate: PeerGate) -> DataPort:
        """Without a port of the user's, the one of last time: others come back to it at once after a restart."""
        if self.cluster.data_port:
            return DataPort(reads, gate, self._host, self.cluster.data_port)
        memory = self._config.cache_dir / "data-port"
        with suppress(OSError, ValueError, UsageError):
            return DataPort(reads, gate, self._host, int(memory.read_text()))
        data = DataPort(reads, gate, self._host, 0)
        write_durably(memory, f"{data.port}\n")
        return data

    async def _follow(self) -> None:
        shown = None
        while True:
            changed = self.membership.changed
            self.source.see()
            if self.cluster.is_member and self.source.placement.members != shown:
                shown = self.source.placement.members
                self._core.storage.rooms.replicas.follow(self._owns)
            await changed.wait()

    def _owns(self, content: ContentId, slice_: int, copies: int) -> bool:
        return self.id in self.source.placement.owners(content, slice_, copies or self.cluster.replicas)

    async def stop(self) -> None:
        """No more for others. What they have under way gets a moment."""
        if self._checks is not None:
            set_health(self._checks, serving=False)
        if self._server is not None:
            stopped = self._server.stop(_STOP_GRACE_S)
            await trio.to_thread.run_sync(stopped.wait, _STOP_GRACE_S + 1)
        if self._data is not None:
            await trio.to_thread.run_sync(self._data.close, _STOP_GRACE_S)
        self.channels.close()

    # Asked by other nodes

    def identify(self) -> pb.IdentifyReply:
        """In any thread."""
        mine = self.membership.mine
        assert mine is not None
        return pb.IdentifyReply(
            id=mine.id, version=mine.version, state=mine.state, capacity_bytes=mine.capacity_bytes,
            data_port=mine.data_port, members=self.membership.addresses(),
        )  # fmt: skip

    def name_of(self, dataset_id: str) -> str:
        """The name that a token must be for: NAME, NAMESPACE/NAME, or a URL. In any thread."""
        dataset = self._core.datasets.all.get(DatasetId(dataset_id))
        return _name(dataset) if dataset is not None else dataset_id

    def name_asked(self, request: pb.FindRequest) -> str:
        """The name that a token must be for. As `named`."""
        found = self._found(request)
        if found is not None:
            return _name(found[0])
        return self.named(request.dataset_id) if request.dataset_id else plain_name(request.source)

    def _found(self, request: pb.FindRequest) -> tuple[Dataset, str, str] | None:
        """The dataset that is asked for, the path in it, and the part of that below a store. In any thread."""
        known = list(self._core.datasets.all.values())
        if request.dataset_id:
            return next(((each, "", "") for each in known if each.id == request.dataset_id), None)
        if request.source.startswith(DATASET_SCHEME):
            named = [each for each in known if each.store.url.startswith(DATASET_SCHEME)]
            alone = f"/{request.source.removeprefix(DATASET_SCHEME)}"
            of_all = [each for each in named if each.store.url.endswith(alone)]
            found = [each for each in named if each.store.url == request.source] or (of_all if len(of_all) == 1 else [])
            return (max(found, key=lambda each: each.last_used), "", "") if found else None
        best: tuple[int, bool] = (0, False)
        inside: tuple[Dataset, str, str] | None = None
        for sought in _spellings(request.source):
            for dataset in known:
                for path, url in _places(dataset):
                    rank = len(url), not dataset.definition.stores
                    if rank > best and f"{sought}/".startswith(f"{url}/"):
                        rest = sought[len(url) :].strip("/")
                        best, inside = rank, (dataset, "/".join(filter(None, (path, rest))), rest)
        return inside

    def may_read(self, dataset_id: str, owner: DatasetId, want: pb.Want) -> bool:
        """Whether what is cached as one dataset's is to be had through another: it has that very file too. In any
        thread."""
        if dataset_id == owner:
            return True
        dataset = self._core.datasets.all.get(DatasetId(dataset_id))
        if dataset is None or owner in dataset.owners:
            return dataset is not None
        with suppress(ForebayError):
            return dataset.file(os.fsdecode(want.path), want.size, want.version).content == want.content
        return False

    def spread_of(self, content: ContentId, offset: int, size: int) -> int:
        """In any thread."""
        return self.source.served(content, slice_of(offset), size)

    def suspect(self, content: ContentId) -> None:
        """Somebody was sent wrong bytes of it."""
        self._core.filler.verifier.verify_soon(content)

    def lease(self) -> Lease:
        return self._core.filler.lease()

    async def fill(
        self, request: pb.ReadRequest, want: pb.Want, offset: int, upto: int, end: int, lease: Lease
    ) -> bytes | None:
        """Have [offset, upto) of what another node wants, up to `end`, in the cache; see `Filler.fill`.

        Raises:
            NotOurs: somebody fetches it who may be waiting for us. ForebayError: as `Filler.fill`.
        """
        with self._core.busy():
            dataset = await self.dataset(request.dataset_id)
            path = os.fsdecode(want.path)
            file = wanted(dataset, want, request.hops)
            if self._core.filler.waits_for_peer(file.content, offset, upto, request.hops):
                raise NotOurs
            if want.suspect and offset == want.offset:
                self._core.filler.verifier.suspected.add(file.content)
            try:
                window = min(end - offset, self._core.filler.window_bytes)
                return await self._core.filler.fill(file, offset, upto - offset, window, lease=lease)
            except SourceStale:
                await self._core.datasets.refresh_file(dataset, path)
                raise

    async def load_one(self, dataset_id: str, want: pb.Want, medium: str, skip_existing: bool) -> pb.LoadReply:
        """Bring a piece into this worker's own tiers; what goes wrong is in the reply."""
        path = os.fsdecode(want.path)
        try:
            with self._core.busy():
                dataset = await self.dataset(dataset_id)
                file = wanted(dataset, want, 1)
                return await load(self._core, file, want, medium, skip_existing)
        except ForebayError as error:
            await note_stale(self._core, error, dataset_id, path)
            return failed(error)

    def begin_load(
        self, request: pb.LoadRequest, replies: "queue.SimpleQueue[pb.LoadReply]", share: Share
    ) -> trio.CancelScope:
        """Bring all pieces of a request, as many at once as its sender may have, and put a reply for each into the
        queue."""
        scope = trio.CancelScope()

        async def one(number: int, want: pb.Want, ended: trio.Event) -> None:
            try:
                reply = await self.load_one(request.dataset_id, want, request.medium, request.skip_existing)
            finally:
                share.give_back()
                del running[ended]
                ended.set()
            reply.want = number
            replies.put(reply)

        async def begin(nursery: trio.Nursery, number: int, want: pb.Want) -> None:
            while True:
                try:
                    share.take()
                    break
                except LimitReached as error:
                    if not running:
                        reply = failed(error)
                        reply.want = number
                        replies.put(reply)
                        return
                    await next(iter(running)).wait()
            running[ended := trio.Event()] = None
            nursery.start_soon(one, number, want, ended)

        running: dict[trio.Event, None] = {}

        async def run() -> None:
            with scope:
                async with trio.open_nursery() as nursery:
                    for number, want in enumerate(request.wants):
                        await begin(nursery, number, want)

        self.nursery.start_soon(run)
        return scope

    async def define(self, request: pb.DefineRequest) -> pb.DefineReply:
        """What a dataset is made of, with credentials where these may travel."""
        dataset = self._core.datasets.get(request.dataset_id)
        made = definition_of(dataset)
        if not self.security.may_send_credentials(self._host) and take_secrets_away(definition_of(dataset)):
            raise AccessDenied(
                f"the credentials of {dataset.store.url} are not sent in plain text: attach it on each worker by"
                " forebay apply, or give the cluster certificates (forebay certs init)"
            )
        return pb.DefineReply(attach=made)

    async def find(self, request: pb.FindRequest) -> pb.FindReply:
        """A dataset for a client node."""
        found = self._found(request)
        if found is None and not request.dataset_id:
            raise SourceNotFound(f"the workers have no dataset {plain_name(request.source)!r}")
        dataset, path, rest = found or (await self.dataset(request.dataset_id), "", "")
        made = definition_of(dataset)
        take_secrets_away(made)
        newest = self._core.datasets.history.stored(dataset)
        whole = [stored.number for stored in newest if stored.complete]
        newest_whole = whole[-1] if whole else 0
        return pb.FindReply(attach=made, dataset_id=dataset.id, snapshot=newest_whole, path=path, rest=rest)

    async def begin_list(self, request: pb.ListRequest) -> Listing:
        """A whole snapshot for another node; it is held until the listing's `end`."""
        with self._core.busy():
            dataset = await self.dataset(request.dataset_id)
            if request.fresh:
                snapshot = (await self._core.syncs.sync(dataset)).snapshot
            else:
                snapshot = self._core.datasets.snapshot_of(
                    dataset, False, request.snapshot, stored=True, pinned=bool(request.snapshot)
                )
            held = snapshot.held()
            held.__enter__()
            try:
                await snapshot.ended.wait()
                if snapshot.failure is not None:
                    raise snapshot.failure
            except BaseException:
                held.__exit__(None, None, None)
                raise
            tree = CatalogueTree(dataset.store.url, snapshot.catalogue, os.fsdecode(request.path))
            return Listing(snapshot.number, tree, held)

    async def begin_drain(self, request: pb.DrainRequest) -> "Drain":
        """Own nothing from now on, also after a restart, and have the others load what is here; or undo that."""
        if request.undo:
            self._draining_path.unlink(missing_ok=True)
            self.membership.set_mine(state=SERVING)
        else:
            if not self.membership.view.workers:
                raise UsageError("there is no other worker that could take what is here")
            write_durably(self._draining_path, "")
            self.membership.set_mine(state=DRAINING)
        if self._drain is not None:
            self._drain.scope.cancel()
        drain = self._drain = Drain(self.rebalance, finished=request.undo)
        if not request.undo:
            self.nursery.start_soon(drain.run)
        return drain

    async def report(self, request: pb.ReportRequest, may_list: Callable[[str], bool]) -> pb.ReportReply:
        """See `cluster_report.report`."""
        return await report(self._core, self, request, may_list)

    def add_traffic(self, reply: worker_pb.TrafficReply) -> None:
        """What was read from other workers."""
        reply.peers.extend(peer_traffic(self))
        reply.peer_requests, reply.hedges = self.source.hedges
        reply.certificate_left_s = self.security.expires_in_s() or 0.0

    async def survey(self, request: worker_pb.MembersRequest) -> worker_pb.MembersReply:
        """See `cluster_report.survey`."""
        return await survey(self._core, self, request)

    async def look(self, request: pb.LookRequest) -> worker_pb.StatReply:
        """One file or directory as the source has it now, or a snapshot of it."""
        refuse_outside(request.path)
        dataset = await self.dataset(request.dataset_id)
        if not request.snapshot:
            return await self._core.stat(
                worker_pb.StatRequest(dataset_id=dataset.id, path=request.path, children=request.children)
            )
        with self._core.busy():
            snapshot = self._core.datasets.snapshot_of(dataset, False, request.snapshot, pinned=True)
            with snapshot.held():
                tree = CatalogueTree(dataset.store.url, snapshot.catalogue, "")
                path = os.fsdecode(request.path)
                if request.children:
                    found = await trio.to_thread.run_sync(tree.list_directory, path)
                    return worker_pb.StatReply(children=[entry_message(entry) for entry in found])
                return worker_pb.StatReply(entry=entry_message(tree.stat(path)))

    # Asking other nodes

    async def dataset(self, name: str) -> Dataset:
        """A dataset by its id, attached as another worker knows it if this one does not.

        Raises:
            NotAttached: nobody knows it.
        """
        while DatasetId(name) not in self._core.datasets.all:
            under_way = self._defining.get(name)
            if under_way is not None:  # with its sources, it may take seconds
                await under_way.ended.wait()
                if under_way.error is not None:
                    raise NotAttached(str(under_way.error))
                continue
            under_way = self._defining[name] = _Defining()
            try:
                await self._define_from_others(name)
            except ForebayError as error:
                under_way.error = error
                raise
            finally:
                del self._defining[name]
                under_way.ended.set()
        return self._core.datasets.get(name)

    def named(self, dataset_id: str) -> str:
        """As `name_of`, of a dataset that only others know too. In any thread but the event loop's; waits for it."""
        if DatasetId(dataset_id) not in self._core.datasets.all:
            with suppress(ForebayError, trio.RunFinishedError, trio.Cancelled):
                trio.from_thread.run(self.dataset, dataset_id, trio_token=self._token)
        return self.name_of(dataset_id)

    async def _define_from_others(self, name: str) -> None:
        trouble: ForebayError = NotAttached(f"dataset {name} is not attached")
        workers = self.membership.view.workers.values()
        for known in sorted(workers, key=lambda known: self.membership.is_away(known.address)):
            try:
                reply = await rpc.call(
                    self.channels.stub(known.address).Define, pb.DefineRequest(dataset_id=name), _DEFINE_S
                )
                refuse_local(reply.attach)
                await self._core.attach(reply.attach)
                return
            except ForebayError as error:
                if not isinstance(error, NotAttached | WorkerUnavailable):
                    trouble = error
        raise NotAttached(f"dataset {name} is not known here ({trouble})")

    def open_remote(self, url: str, view: ClusterView, *, leads: bool) -> UnderStore:
        """What stands for a store on a client node.

        Args:
            url: of the store.
            view: of the cluster's dataset.
            leads: it is the first of the dataset's stores that is listed: the workers list all of them for it.
        """
        store = RemoteStore(url, view, lambda: self._stubs(view.dataset_id), self._take_anew if leads else _never)
        return RetryingStore(store, self._config.retry)

    def list_anew(self, dataset: Dataset) -> None:
        """The next listing of a dataset is to be one of its source, not what the workers remember of it."""
        self._anew.add(dataset.in_cluster.dataset_id)

    def _take_anew(self, dataset_id: DatasetId) -> bool:
        """In any thread."""
        wanted = dataset_id in self._anew
        self._anew.discard(dataset_id)
        return wanted

    def _stubs(self, dataset_id: DatasetId) -> list[Any]:
        """Those who have answered lately first, and of these the dataset's first owner. In any thread.

        All client nodes ask him as long as he is there, for each worker has snapshots of its own.
        """
        rank = Placement(replace(known.member, weight=1.0) for known in self.membership.view.workers.values())
        order = {
            self.membership.view.workers[id_].address: place
            for place, id_ in enumerate(rank.rank(ContentId(dataset_id.encode()), 0, len(rank)))
            if id_ in self.membership.view.workers
        }
        addresses = sorted(
            self.membership.addresses(), key=lambda each: (self.membership.is_away(each), order.get(each, len(order)))
        )
        return [self.channels.stub(address) for address in addresses]


def _never(dataset_id: DatasetId) -> bool:
    return False


def _name(dataset: Dataset) -> str:
    return plain_name(dataset.store.url)


def _places(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Path and URL of each store, the URL as it is and as it was written."""
    for path, url in dataset.roots.by_path:
        yield os.fsdecode(path), url.rstrip("/")
    for store in dataset.definition.stores:
        if store.source:
            yield store.path, without_userinfo(store.source).rstrip("/")
    if not dataset.definition.stores:
        yield "", without_userinfo(dataset.definition.source).rstrip("/")


def _spellings(source: str) -> set[str]:
    """A URL as it came, and as under-stores write it."""
    found = {source.rstrip("/")}
    with suppress(UsageError):
        found.add(canonical_source(source, {}).rstrip("/"))
    return found
