"""How a node is told which cluster it is in: by options, by the environment, or by what its cache folder remembers."""

import os
from collections.abc import Mapping

from forebay.cacheruntime.cluster.directory import join_address, split_address
from forebay.cacheruntime.cluster.security import INSECURE
from forebay.cacheruntime.config import CacheConfig, ClusterConfig
from forebay.cacheruntime.errors import UsageError


def bundle_setting(tls: str | os.PathLike[str] | None, insecure: bool, environ: Mapping[str, str]) -> str:
    """What `Security.from_setting` takes, from options and environment.

    Args:
        tls: folder of a bundle (`--tls`); default: FOREBAY_TLS.
        insecure: plain text was asked for (`--insecure`); default: FOREBAY_INSECURE is 1.
        environ: of this process.

    Raises:
        UsageError: neither or both were given.
    """
    if insecure and tls:
        raise UsageError("--tls and --insecure exclude each other")
    if insecure:
        return INSECURE
    folder = str(tls or environ.get("FOREBAY_TLS", ""))
    if folder:
        return os.path.abspath(folder)
    if environ.get("FOREBAY_INSECURE") == "1":
        return INSECURE
    raise UsageError(
        "nodes talk by TLS: give --tls DIR (forebay certs init makes a private CA), or ask for plain text: --insecure"
    )


def node_cluster(
    config: CacheConfig,
    environ: Mapping[str, str],
    worker: str | None = None,
    tls: str | os.PathLike[str] | None = None,
    insecure: bool = False,
) -> ClusterConfig | None:
    """The cluster of a node: the one that is named, else the one that its cache folder was used in last.

    Args:
        config: of the cache folder.
        environ: of this process.
        worker: HOST:PORT of one or more members, with commas; default: FOREBAY_WORKER.
        tls, insecure: see `bundle_setting`.

    Returns:
        None: the node is alone.

    Raises:
        UsageError: no addresses, no word on TLS, or the cache folder is a member's.
    """
    remembered = config.remembered_cluster()
    if remembered is not None and remembered.is_member:
        if worker:
            raise UsageError(
                f"{config.cache_dir} is the cache of a worker of the cluster; leave out --worker, or name another"
                " --cache-dir"
            )
        return remembered
    workers = worker or environ.get("FOREBAY_WORKER")
    if not workers:
        if tls or insecure:
            raise UsageError("--tls and --insecure say how to talk to workers; name one by --worker HOST:PORT")
        return remembered
    addresses = [join_address(*split_address(text.strip())) for text in workers.split(",") if text.strip()]
    if not addresses:
        raise UsageError("--worker names no worker; write it like worker-1:7070")
    setting = bundle_setting(tls, insecure, environ)
    return ClusterConfig(peers=f"static:{','.join(addresses)}", tls="" if setting == INSECURE else setting)
