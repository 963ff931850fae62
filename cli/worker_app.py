"""`forebay worker`: arguments in; see `worker_commands.py`."""

from pathlib import Path
from typing import Annotated

import typer

from forebay.cli.options import CacheDir, Json, Tiers

Bundle = Annotated[
    Path | None,
    typer.Option(
        "--tls",
        metavar="DIR",
        help="Folder with this party's certificate (forebay certs issue). Default: $FOREBAY_TLS.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Talk in plain text; everybody who can reach a worker may read all that it has."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(worker)
    app.command()(drain)


def worker(
    listen: Annotated[
        str, typer.Option(metavar="[HOST:]PORT", help="Where others reach this worker by gRPC.")
    ] = "7070",
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="static:HOST:PORT,... | dns:NAME:PORT | kubernetes:NAMESPACE/SERVICE",
            help="Who is in the cluster. The list may name this worker too. Default: nobody else.",
        ),
    ] = None,
    tier: Tiers = None,
    cache_dir: CacheDir = None,
    tls: Bundle = None,
    insecure: Insecure = False,
    advertise: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="By which others reach it, and as it stands in the list. Default: what --listen says; without a host"
            " there, this machine's name.",
        ),
    ] = None,
    replicas: Annotated[
        int, typer.Option(metavar="N", min=1, max=16, help="Workers that keep each piece of data; the same on all.")
    ] = 1,
    data_port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="For the bytes; 0: any free one.")
    ] = 0,
) -> None:
    """Serve this machine's cache to others, and the datasets that were applied here. Stays until Ctrl-C or SIGTERM.

    Example: forebay worker --listen 7070 --tier SSD:/data/forebay:500GiB --peers dns:forebay.internal:7070 --tls certs
    """
    from forebay.cli import worker_commands

    worker_commands.worker(listen, peers, tier or [], cache_dir, tls, insecure, advertise, replicas, data_port)


def drain(
    address: Annotated[str, typer.Argument(metavar="WORKER", help="HOST:PORT of the worker that is to leave.")],
    undo: Annotated[bool, typer.Option("--undo", help="It stays after all, and owns a share again.")] = False,
    tls: Bundle = None,
    insecure: Insecure = False,
    json: Json = False,
) -> None:
    """Have the other workers load what only WORKER holds, so that it can be ended; reads go on meanwhile.

    Ctrl-C stops the moving. Exit status: 0 when everything has found room with the others.
    """
    from forebay.cli import worker_commands

    worker_commands.drain(address, tls, insecure, undo=undo, json=json)
