"""`forebay warmup` and `forebay jobs`: arguments in; see `warm_commands.py`."""

from typing import Annotated

import typer

from forebay.cli.options import CacheDir, Json, Options


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(warmup)
    app.command()(jobs)


def warmup(
    target: Annotated[
        str, typer.Argument(metavar="SOURCE|DIR", help="A source as for mount, or where one is mounted.")
    ],
    path: Annotated[list[str] | None, typer.Argument(metavar="PATH", help="Only these, below it.")] = None,
    listed: Annotated[
        str | None, typer.Option("--from", metavar="FILE|-", help="Also the paths in this file, a line each.")
    ] = None,
    glob: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Also what matches, such as 'train/**/*.jpg'; may be given several times."
        ),
    ] = None,
    snapshot: Annotated[int, typer.Option(metavar="N", help="Of this snapshot; without it, the newest.", min=0)] = 0,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", metavar="N", help="Files at once. Default: 8 large, 256 small.", min=1, max=256),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="SIZE", help="At most this much a second from the source, like 100MB.")
    ] = None,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEDIUM",
            help="Only into tiers of this medium: MEM, SSD or HDD. With MEDIUM:FOLDER:SIZE, a tier as for mount.",
        ),
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Never evict it, until `forebay unpin`.")] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Afterwards read all of it from the cache again, and compare checksums."),
    ] = False,
    metadata_only: Annotated[
        bool, typer.Option("--metadata-only", help="Wait for the listing, and bring no data.")
    ] = False,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Leave files alone of which a part is cached; whole ones always are."),
    ] = False,
    local: Annotated[
        bool,
        typer.Option("--local", help="In a cluster: into this machine's own tiers, not into those of the owners."),
    ] = False,
    deadline: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop after this time, like 90s, 30m or 2h.")
    ] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Print the job's number and return; see `forebay jobs`.")
    ] = False,
    cache_dir: CacheDir = None,
    option: Options = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print progress as JSON, a line each, instead of a bar.")
    ] = False,
) -> None:
    """Bring files into the cache ahead of their readers. What is cached already is not fetched again.

    Exit status: 0 when all of it is cached, 1 when something failed or did not fit, 130 after Ctrl-C.

    Example: forebay warmup s3://my-bucket/imagenet train --rate 200MB --background
    """
    from forebay.cli import warm_commands

    wish = warm_commands.Wish(
        tuple(path or ()), listed, tuple(glob or ()), snapshot, jobs or 0, rate, tuple(tier or ()), pin, verify,
        metadata_only, skip_existing, deadline, local,
    )  # fmt: skip
    warm_commands.warmup(target, wish, cache_dir, option or [], background=background, json=json)


def jobs(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID] | cancel ID | resume ID", help="One job; without it, all that are known."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until the job has ended.")] = False,
    background: Annotated[bool, typer.Option("--background", help="With resume: do not wait for it.")] = False,
    cache_dir: CacheDir = None,
    option: Options = None,
    json: Json = False,
) -> None:
    """Show warm-ups: how far they are, what failed; cancel one, or go on with one that broke off.

    Exit status with --watch or resume: as that of warmup.
    """
    from forebay.cli import warm_commands

    warm_commands.jobs(words or [], cache_dir, option or [], watch=watch, background=background, json=json)
