"""Which worker of the cluster holds how much of what: each tells of itself, and who is asked gathers."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from forebay.cacheruntime import rpc
from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.cluster.membership import Address
from forebay.cacheruntime.errors import ForebayError, NotAttached
from forebay.cacheruntime.index import Index
from forebay.cacheruntime.selection import Selection
from forebay.proto import peer_pb2 as pb
from forebay.proto import worker_pb2 as worker_pb

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.cluster_node import ClusterNode
    from forebay.cacheruntime.worker.core import Core

_REPORT_S = 10.0


async def report(
    core: "Core", node: "ClusterNode", request: pb.ReportRequest, may_list: Callable[[str], bool]
) -> pb.ReportReply:
    """What this worker holds.

    Args:
        core, node: of this worker.
        request: of what.
        may_list: says of a dataset's name whether the caller may know of it.
    """
    mine = node.membership.mine
    assert mine is not None
    status = await core.status(worker_pb.StatusRequest())
    reply = pb.ReportReply(
        id=mine.id, version=mine.version, state=mine.state, tiers=status.tiers, left_bytes=node.rebalance.left_bytes
    )
    for traffic in core.filler.traffic.values():
        reply.gets += traffic.gets
        reply.fetched_bytes += traffic.bytes
    for held in {holding.dataset for holding in core.storage.index.reader.holdings()}:
        name = node.name_of(held)
        if (request.dataset_id and held != request.dataset_id) or not may_list(name):
            continue
        shown = reply.datasets.add(dataset_id=held, name=name)
        for size, files in core.storage.held_of(held).values():
            shown.bytes += size
            shown.files += files
        shown.replica_bytes = core.storage.rooms.replicas.bytes_of(held)
    if request.dataset_id and request.path and reply.datasets:
        # Nobody may know any more what the dataset is made of: it was not attached since the worker started.
        with suppress(NotAttached):
            (shown,) = reply.datasets
            shown.path_bytes, shown.path_files = await _below(core, node, request.dataset_id, request.path)
    reply.peers.extend(peer_traffic(node))
    return reply


def peer_traffic(node: "ClusterNode") -> list[worker_pb.PeerTraffic]:
    """What was read from each other worker, and how that went."""
    return [
        worker_pb.PeerTraffic(
            id=worker, requests=peer.requests, bytes=peer.bytes, errors=peer.errors, wrong=peer.wrong,
            usable=node.source.usable(worker), header_counts=peer.times.counts, header_sum_s=peer.times.sum_s,
        )
        for worker, peer in node.source.traffic.items()
    ]  # fmt: skip


async def _below(core: "Core", node: "ClusterNode", dataset_id: str, path: bytes) -> tuple[int, int]:
    """Bytes and files that are cached below a path, by the newest whole snapshot that this worker has or can list."""
    dataset = await node.dataset(dataset_id)
    snapshot = core.datasets.snapshot_of(dataset, False, stored=True)
    index = core.storage.index.reader
    with snapshot.held():
        await snapshot.ended.wait()
        return await trio.to_thread.run_sync(_held_below, snapshot.catalogue, index, path)


def _held_below(catalogue: Catalogue, index: Index, path: bytes) -> tuple[int, int]:
    size = files = 0
    for _, node in Selection([path.strip(b"/")] if path.strip(b"/") else [], []).files(catalogue):
        cached = index.find(node.content)
        if cached is not None:
            size += cached.cached_bytes()
            files += 1
    return size, files


async def survey(core: "Core", node: "ClusterNode", request: worker_pb.MembersRequest) -> worker_pb.MembersReply:
    """What all workers say, each within a deadline."""
    asked = pb.ReportRequest(dataset_id=request.dataset_id, path=request.path)
    found: dict[Address, worker_pb.Member] = {}

    async def ask(address: Address) -> None:
        mine = node.membership.mine
        try:
            if mine is not None and address == mine.address:
                reply = await report(core, node, asked, lambda _: True)
            else:
                reply = await rpc.call(node.channels.stub(address).Report, asked, _REPORT_S)
        except ForebayError as error:
            found[address] = worker_pb.Member(address=address, state="away", trouble=str(error))
            return
        found[address] = worker_pb.Member(
            id=reply.id, address=address, state=reply.state, version=reply.version, me=reply.id == node.id,
            tiers=reply.tiers, datasets=reply.datasets, gets=reply.gets, fetched_bytes=reply.fetched_bytes,
            left_bytes=reply.left_bytes,
        )  # fmt: skip

    async with trio.open_nursery() as nursery:
        for address in node.membership.addresses():
            nursery.start_soon(ask, address)
    for worker in node.membership.view.workers.values():
        if worker.address in found and not found[worker.address].id:
            found[worker.address].id = worker.id
    # A worker may stand in the list by several names: shown is the one by which it is asked.
    asked_by = {worker.address for worker in node.membership.view.workers.values()}
    if node.membership.mine is not None:
        asked_by.add(node.membership.mine.address)
    members: dict[str, worker_pb.Member] = {}
    for address in sorted(found, key=lambda address: address not in asked_by):
        members.setdefault(found[address].id or address, found[address])
    shown = sorted(members.values(), key=lambda member: member.address)
    return worker_pb.MembersReply(members=shown)
