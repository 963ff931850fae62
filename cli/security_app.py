"""`forebay certs` and `forebay token`: arguments in; see `security_commands.py`."""

from pathlib import Path
from typing import Annotated

import typer

from forebay.cli.options import Json

certs = typer.Typer(
    help="Certificates by which the parties of a cluster know one another.", no_args_is_help=True, rich_markup_mode=None
)
token = typer.Typer(
    help="Tokens that say which datasets a client may use.", no_args_is_help=True, rich_markup_mode=None
)

Authority = Annotated[Path, typer.Argument(metavar="DIR", help="The authority's folder; keep it off the nodes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(certs, name="certs")
    app.add_typer(token, name="token")


@certs.command()
def init(
    folder: Authority,
    days: Annotated[int, typer.Option(metavar="N", help="How long the authority lasts.")] = 3650,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there; all it has issued and signed is void then.")
    ] = False,
) -> None:
    """Make a private certificate authority, and the key that signs tokens, in DIR.

    Who has an authority needs none of it: see docs/how-to/secure-a-cluster.md for what a certificate must have, and
    `forebay token init` for the key of tokens alone.
    """
    from forebay.cli import security_commands

    security_commands.init_certs(folder, days, force)


@certs.command()
def issue(
    folder: Authority,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is for, such as the node's name.")],
    worker: Annotated[bool, typer.Option("--worker", help="For a worker: it may do everything.")] = False,
    client: Annotated[bool, typer.Option("--client", help="For a client: it may do what its token says.")] = False,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME_OR_IP",
            help="A name or address of a worker, for programs of others that verify it; may be given several times."
            " Forebay itself verifies the role, so addresses may change.",
        ),
    ] = None,
    days: Annotated[int, typer.Option(metavar="N", help="How long it lasts.")] = 365,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="For the bundle. Default: DIR/NAME.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a bundle that is there; running processes take the new one.")
    ] = False,
) -> None:
    """Make the bundle of one worker or client: a folder with ca.crt, tls.crt and tls.key (tokens.pub too for workers).

    Example: forebay certs issue ca node-7 --worker
    """
    from forebay.cli import security_commands

    security_commands.issue_certs(folder, name, worker, client, host or [], days, out, force)


@certs.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An authority's folder, or a bundle.")],
    json: Json = False,
) -> None:
    """Show whose certificates lie in DIR, when they end, and whether they can be used.

    Exit status: 0 when all is well, 1 when something is wrong.
    """
    from forebay.cli import security_commands

    security_commands.show_certs(folder, json)


@token.command("init")
def init_token(
    folder: Authority,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make another key; tokens of the former one last until they end.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Make another key; tokens of the former ones are void.")
    ] = False,
) -> None:
    """Make the key that signs tokens, tokens.key, and tokens.pub, which goes into the bundle of each worker."""
    from forebay.cli import security_commands

    security_commands.init_tokens(folder, rotate, force)


@token.command()
def create(
    ca: Annotated[Path, typer.Option("--ca", metavar="DIR", help="Folder with tokens.key: the authority's.")],
    dataset: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="A dataset's name, or a pattern: 'imagenet-*', '**' for all; may be given several times.",
        ),
    ],
    verb: Annotated[
        list[str],
        typer.Option(
            metavar="read|list|warm|admin",
            help="What it allows; may be given several times. A mount needs read and list.",
        ),
    ],
    ttl: Annotated[str, typer.Option(metavar="TIME", help="How long it lasts, like 30m, 12h or 7d.")] = "12h",
    client: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the client with this name in its certificate may use it.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it there, mode 0600; `token` in the client's bundle."),
    ] = None,
    force: Force = False,
) -> None:
    """Make a token for clients, and print it unless --out is given.

    Example: forebay token create --ca ca --dataset imagenet --verb read --verb list --out node-9/token
    """
    from forebay.cli import security_commands

    security_commands.create_token(ca, dataset, verb, ttl, client, out, force)
