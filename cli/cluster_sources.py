"""What a client node has to be told: which workers there are, and how to talk to them."""

import os
from dataclasses import replace
from pathlib import Path

import grpc

from forebay.cacheruntime import rpc
from forebay.cacheruntime.cluster.channels import Channels
from forebay.cacheruntime.cluster.directory import join_address, split_address
from forebay.cacheruntime.cluster.membership import Address
from forebay.cacheruntime.cluster.security import INSECURE, Security
from forebay.cacheruntime.config import CacheConfig, ClusterConfig
from forebay.cacheruntime.dataset_source import SourceSpec, StoreMount, Tree
from forebay.cacheruntime.errors import UsageError
from forebay.dataset_controller.dataset_rules import parse_name
from forebay.proto import peer_pb2 as pb

_FIND_S = 10.0


def bundle_setting(tls: Path | None, insecure: bool) -> str:
    """What `Security.from_setting` takes, from the options and the environment.

    Raises:
        UsageError: neither or both were given.
    """
    folder = str(tls) if tls else ("" if insecure else os.environ.get("FOREBAY_TLS", ""))
    if insecure and tls:
        raise UsageError("--tls and --insecure exclude each other")
    if not folder and not insecure and os.environ.get("FOREBAY_INSECURE") != "1":
        raise UsageError(
            "nodes talk by TLS: give --tls DIR (forebay certs init makes a private CA), or ask for plain text:"
            " --insecure"
        )
    return os.path.abspath(folder) if folder else INSECURE


def client_cluster(workers: str, tls: Path | None, insecure: bool) -> ClusterConfig:
    """The settings of a client node.

    Args:
        workers: HOST:PORT of one or more, with commas.

    Raises:
        UsageError: they are not addresses, or there is no word on TLS.
    """
    addresses = [join_address(*split_address(text)) for text in workers.split(",") if text]
    if not addresses:
        raise UsageError("--worker names no worker; write it like worker-1:7070")
    setting = bundle_setting(tls, insecure)
    return ClusterConfig(peers=f"static:{','.join(addresses)}", tls="" if setting == INSECURE else setting)


def remote_source(text: str, config: CacheConfig) -> SourceSpec:
    """What a dataset's name, or a URL, stands for on the workers of a client node.

    Raises:
        ForebayError: no worker answers, or they do not know it.
    """
    cluster = config.cluster
    assert cluster is not None
    source = text
    if "://" not in text:
        name = parse_name(text)
        if name is None or name[1]:
            raise UsageError(f"{text!r} is no dataset's name; a client node mounts NAME or the URL of a dataset")
        source = f"dataset://default/{name[0]}"
    elif text.startswith("dataset://") and text.count("/") == 2:
        source = f"dataset://default/{text.removeprefix('dataset://')}"
    reply = _find(cluster, source)
    made = reply.attach
    if not made.stores:
        return SourceSpec(made.source, dict(made.options), shown=text)
    tree = Tree(tuple(StoreMount.from_proto(store) for store in made.stores), made.cache_policy.policy or "epoch")
    return SourceSpec(made.source, {}, tree, shown=text)


def _find(cluster: ClusterConfig, source: str) -> pb.FindReply:
    channels = Channels(Security.from_setting(cluster.tls or INSECURE))
    try:
        trouble: Exception | None = None
        for address in cluster.peers.removeprefix("static:").split(","):
            try:
                found: pb.FindReply = channels.stub(Address(address)).Find(
                    pb.FindRequest(source=source), timeout=_FIND_S
                )
                return found
            except grpc.RpcError as error:
                trouble = rpc.to_error(error)
        assert trouble is not None
        raise trouble
    finally:
        channels.close()


def in_cluster(config: CacheConfig, cluster: ClusterConfig | None) -> CacheConfig:
    """The configuration with a cluster; None: the one that the cache folder was used in last, if any."""
    return replace(config, cluster=cluster or config.remembered_cluster())
