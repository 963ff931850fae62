"""The worker's gRPC face towards other nodes: `proto/peer.proto`. What is for this node alone is in `server.py`."""

import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc
import trio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from forebay.cacheruntime import rpc
from forebay.cacheruntime.cluster.certs import Identity
from forebay.cacheruntime.cluster.guard import Guard
from forebay.cacheruntime.cluster.limits import Share, server_options
from forebay.cacheruntime.cluster.peer_client import READ_METHOD
from forebay.cacheruntime.cluster.peer_wire import PeerBroken
from forebay.cacheruntime.entry_messages import entry_message
from forebay.cacheruntime.errors import ForebayError, UsageError
from forebay.cacheruntime.worker.peer_gate import PeerGate
from forebay.cacheruntime.worker.peer_reads import MOST_WANTS, PeerReads
from forebay.cacheruntime.worker.peer_server import pieces_of
from forebay.proto import peer_pb2 as pb
from forebay.proto import peer_pb2_grpc
from forebay.proto import worker_pb2 as worker_pb

if TYPE_CHECKING:
    from forebay.cacheruntime.worker.cluster_node import ClusterNode

_THREADS_PER_STREAM = 4
"""Four parties may have all the streams that they may have, and Identify is still answered."""

_LOOK_S = 0.5
"""Whether the caller is still there."""
_SERVICE = pb.DESCRIPTOR.services_by_name["Peer"].full_name


class PeerService(peer_pb2_grpc.PeerServicer):
    """Passes requests to the node's event loop. Who may ask was looked at before (`PeerGate.rules`)."""

    def __init__(self, node: "ClusterNode", gate: PeerGate, token: trio.lowlevel.TrioToken) -> None:
        self._node = node
        self._gate = gate
        self._token = token

    def Identify(self, request: pb.IdentifyRequest, context: grpc.ServicerContext) -> pb.IdentifyReply:
        """See proto/peer.proto; so below."""
        return self._node.identify()

    def Define(self, request: pb.DefineRequest, context: grpc.ServicerContext) -> pb.DefineReply:
        return rpc.enter(self._token, self._node.define, context, request)

    def Find(self, request: pb.FindRequest, context: grpc.ServicerContext) -> pb.FindReply:
        return rpc.enter(self._token, self._node.find, context, request)

    def List(self, request: pb.ListRequest, context: grpc.ServicerContext) -> Iterator[pb.ListPage]:
        with self._stream(context):
            listing = rpc.enter(self._token, self._node.begin_list, context, request)
            try:
                for page in listing.pages():
                    yield pb.ListPage(entries=[entry_message(entry) for entry in page], snapshot=listing.number)
            except ForebayError as error:
                rpc.abort(context, error)
            finally:
                rpc.in_loop(self._token, listing.end)

    def Look(self, request: pb.LookRequest, context: grpc.ServicerContext) -> worker_pb.StatReply:
        return rpc.enter(self._token, self._node.look, context, request)

    def Load(self, request: pb.LoadRequest, context: grpc.ServicerContext) -> Iterator[pb.LoadReply]:
        if len(request.wants) > MOST_WANTS:
            rpc.abort(context, UsageError(f"{len(request.wants)} pieces in one request; {MOST_WANTS} are the most"))
        replies: queue.SimpleQueue[pb.LoadReply] = queue.SimpleQueue()

        fills = Share(self._gate.fills, self._gate.security.identity_of_call(context))

        async def begin() -> trio.CancelScope:
            return self._node.begin_load(request, replies, fills)

        with self._stream(context):
            scope = rpc.enter(self._token, begin, context)
            try:
                left = len(request.wants)
                while left and context.is_active():
                    with suppress(queue.Empty):
                        yield replies.get(timeout=_LOOK_S)
                        left -= 1
            finally:
                rpc.in_loop(self._token, scope.cancel)

    def Drain(self, request: pb.DrainRequest, context: grpc.ServicerContext) -> Iterator[pb.DrainProgress]:
        with self._stream(context):
            drain = rpc.enter(self._token, self._node.begin_drain, context, request)
            try:
                while True:
                    ended = drain.ended
                    progress = drain.progress()
                    yield progress
                    if progress.finished or not context.is_active():
                        return
                    if ended:
                        rpc.abort(context, UsageError("the drain was ended by another one, or undone"))
                    time.sleep(_LOOK_S)
            finally:
                rpc.in_loop(self._token, drain.scope.cancel)

    def Report(self, request: pb.ReportRequest, context: grpc.ServicerContext) -> pb.ReportReply:
        allowed = self._gate.lists(context)
        return rpc.enter(self._token, self._node.report, context, request, allowed)

    @contextmanager
    def _stream(self, context: grpc.ServicerContext) -> Iterator[None]:
        """A thread that a caller has for as long as he likes to read: each party has so many."""
        identity = self._gate.security.identity_of_call(context)
        try:
            self._gate.streams.take(identity)
        except ForebayError as error:
            rpc.abort(context, error)
        try:
            yield
        finally:
            self._gate.streams.give_back(identity)


class _RawReads(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The data path by gRPC: see proto/peer.proto."""

    def __init__(self, reads: PeerReads, gate: PeerGate) -> None:
        self._reads = reads
        self._gate = gate

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != READ_METHOD:
            return None
        return grpc.unary_stream_rpc_method_handler(self._read)

    def _read(self, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            request = pb.ReadRequest.FromString(message)
            identity = self._gate.security.identity_of_call(context)
            with self._gate.streams.held(identity):
                yield from self._frames(request, identity)
        except DecodeError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no ReadRequest")
        except ForebayError as error:
            rpc.abort(context, error)

    def _frames(self, request: pb.ReadRequest, identity: Identity) -> Iterator[bytes]:
        with closing(self._reads.answer(request, identity)) as answers:
            for header, payload in answers:
                try:
                    yield header.SerializeToString()
                    if payload is not None:
                        yield from pieces_of(payload)
                except PeerBroken:
                    return
                finally:
                    if payload is not None:
                        payload.done()


def start_peer_server(
    node: "ClusterNode", gate: PeerGate, reads: PeerReads, address: str
) -> tuple[grpc.Server, health.HealthServicer, int]:
    """Serve the Peer service, raw reads, health and reflection on HOST:PORT; returns the port too.

    Raises:
        UsageError: the address cannot be used.
    """
    threads = _THREADS_PER_STREAM * gate.limits.streams
    server = grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="peer-rpc"),
        options=server_options(gate.limits),
        maximum_concurrent_rpcs=2 * threads,
        handlers=[_RawReads(reads, gate)],
        interceptors=[Guard(gate.security, gate.authorizer, gate.rules())],
    )
    service = PeerService(node, gate, trio.lowlevel.current_trio_token())
    peer_pb2_grpc.add_PeerServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = gate.security.bind(server, address)
    server.start()
    set_health(checks, serving=True)
    return server, checks, port


def set_health(checks: health.HealthServicer, *, serving: bool) -> None:
    """Say by gRPC's health service whether new requests are welcome."""
    state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", _SERVICE):
        with suppress(ValueError):
            checks.set(name, state)
