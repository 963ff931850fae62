"""`forebay simulate`: its arguments.

One command today. When it gets a second word (`forebay simulate cluster`), this module makes it a group whose words are
looked up first, and whose command without one of them is this one; a trace of that name is then written ./cluster.
"""

from pathlib import Path
from typing import Annotated

import typer

from forebay.cli.options import Json


def register(app: typer.Typer) -> None:
    app.command()(simulate)


def simulate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="TRACE|SIZES",
            help="A trace: a file of lines key[,size] (or with a header of key,size,reader,time), an oracleGeneral or"
            " Parquet file, or the folder of `forebay debug record`. Or sizes of files, read in shuffled epochs:"
            " 100000x100KiB, lognormal:COUNT,MEDIAN,SIGMA, uniform:COUNT,MIN,MAX, several with + between them, the"
            " Parquet export of a snapshot, or the folder where a source is mounted.",
        ),
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="epoch, sieve, lru or next-use; may be given several times. Default: all of them."
        ),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE|PERCENT",
            help="Of the cache, like 200GiB or 25% of all that is read; several times, or with commas."
            " Default: 10%,25%,50%,75%,90%.",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=64, help="Readers of shuffled epochs. Default: 1.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(metavar="E", min=1, help="Of each; the first fills the cache and is not counted. Default: 4."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Of the orders and sizes.")] = 0,
    posted: Annotated[
        str,
        typer.Option(
            metavar="all|next|epoch|N",
            help="What next-use knows of a reader's order: all of it, this epoch and the next, this epoch, or so many"
            " files ahead.",
        ),
    ] = "all",
    item_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of files whose size is not in the trace.")
    ] = None,
    mount: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where a recording was made: sizes come from its catalogue.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png|svg", help="Draw the curves; needs forebay[plot].")
    ] = None,
    json: Json = False,
) -> None:
    """Predict what a cache would hit, by policy and size.

    Example: forebay simulate 1000000x110KiB --jobs 2 --cache 25% --cache 50%
    """
    from forebay.cli import simulate_commands

    simulate_commands.simulate(
        simulate_commands.Request(
            what, policy or [], cache or [], jobs, epochs, seed, posted, item_size, mount, plot, json
        )
    )
