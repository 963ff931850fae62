"""`forebay simulate`: its arguments.

A group whose words are looked up first; what does not begin with one of them is for `cache`. A trace of such a name is
written ./cluster.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from forebay.cli.options import Json


class _CacheByDefault(TyperGroup):
    """`forebay simulate TRACE` is `forebay simulate cache TRACE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["cache", *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        cls=_CacheByDefault, help="Predict what a cache, or a cluster's scheduler, would do.", rich_markup_mode=None
    )
    group.command("cache")(simulate)
    group.command("cluster")(cluster)
    app.add_typer(group, name="simulate")


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
    """Predict what a cache would hit, by policy and size; the word cache may be left out.

    Example: forebay simulate 1000000x110KiB --jobs 2 --cache 25% --cache 50%
    """
    from forebay.cli import simulate_commands

    simulate_commands.simulate(
        simulate_commands.Request(
            what, policy or [], cache or [], jobs, epochs, seed, posted, item_size, mount, plot, json
        )
    )


def cluster(
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="fifo, label, topology, joint, gate, prefetch, ordered, backfill; several times, or with commas."
            " Default: all.",
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(metavar="N", min=1, help="With 8 GPUs each, 50 to a rack.")] = 1000,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="That arrive.")] = 10_000,
    load: Annotated[float, typer.Option(metavar="L", help="GPU time asked for, of that there is.")] = 0.9,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Of everything that is made up.")] = 1,
    datasets: Annotated[int, typer.Option(metavar="N", min=0, help="0: one for 50 jobs.")] = 0,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="With the CSVs of Alibaba's gpu-v2023 trace. Default: its 40 most frequent shapes."
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Arms at once. Default: one for each core.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png|svg", help="Draw the comparison; needs forebay[plot].")
    ] = None,
    json: Json = False,
) -> None:
    """Compare schedulers of a GPU cluster on one workload: completion, waits, GPUs that idle for data, fairness.

    Exit status: 0; 2 when an argument is wrong; 130 after Ctrl-C.

    Example: forebay simulate cluster --nodes 1000 --jobs 10000 --arm label,prefetch
    """
    from forebay.cli import cluster_commands

    cluster_commands.simulate(
        cluster_commands.Request(arm or [], nodes, jobs, load, seed, datasets, trace, processes, plot, json)
    )
