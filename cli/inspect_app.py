"""Looking inside: arguments in; see `inspect_commands.py`, `live_commands.py` and `bundle_commands.py`."""

from pathlib import Path
from typing import Annotated

import typer

from forebay.cli.options import CacheDir, Json, Options

_Where = Annotated[str, typer.Argument(metavar="PATH|SOURCE|DIR", help="A path in a mount, or a source as for mount.")]
_Paths = Annotated[list[str] | None, typer.Argument(metavar="[PATH]...", help="Only these, below it.")]
_Interval = Annotated[float, typer.Option("--interval", "-i", metavar="S", help="Seconds between lines.", min=0.1)]


def register(app: typer.Typer, debug: typer.Typer) -> None:
    """Add the commands."""
    for command in (info, evict, pin, unpin, stats, profile):
        app.command()(command)
    debug.command()(bundle)


def info(
    where: _Where,
    path: Annotated[str | None, typer.Argument(metavar="[PATH]", help="Below the source or mount.")] = None,
    checksums: Annotated[bool, typer.Option("--checksums", help="Also the checksum of each cached block.")] = False,
    cache_dir: CacheDir = None,
    option: Options = None,
    json: Json = False,
) -> None:
    """Show what is known of a file or directory: version, source, snapshot, and how much of it is cached where.

    Example: forebay info /data/imagenet/train/n01440764/n01440764_10026.JPEG
    """
    from forebay.cli import inspect_commands

    inspect_commands.info(where, path, cache_dir, option or [], checksums=checksums, json=json)


def evict(
    where: _Where,
    path: _Paths = None,
    glob: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only what matches, such as 'val/**/*.jpg'; may be given several times."),
    ] = None,
    pinned: Annotated[bool, typer.Option("--pinned", help="Also what is pinned.")] = False,
    cache_dir: CacheDir = None,
    option: Options = None,
    json: Json = False,
) -> None:
    """Take files out of the cache. What is open stays readable until it is closed.

    Example: forebay evict /data/imagenet/val
    """
    from forebay.cli import pin_commands

    pin_commands.evict(where, path or [], glob or [], cache_dir, option or [], pinned=pinned, json=json)


def pin(
    where: _Where,
    path: _Paths = None,
    listed: Annotated[bool, typer.Option("--list", help="Only show what is pinned of it.")] = False,
    cache_dir: CacheDir = None,
    option: Options = None,
    json: Json = False,
) -> None:
    """Never evict what is below a path: what is cached of it, and what will be. It brings nothing; warmup does.

    Example: forebay pin /data/imagenet/train
    """
    from forebay.cli import pin_commands

    pin_commands.pin(where, path or [], cache_dir, option or [], listed=listed, json=json)


def unpin(
    where: _Where,
    path: _Paths = None,
    every: Annotated[bool, typer.Option("--all", help="All pins of the source.")] = False,
    cache_dir: CacheDir = None,
    option: Options = None,
    json: Json = False,
) -> None:
    """Let what was pinned be evicted again. What is cached stays until its room is needed."""
    from forebay.cli import pin_commands

    pin_commands.unpin(where, path or [], cache_dir, option or [], every=every, json=json)


def stats(
    where: Annotated[
        str | None, typer.Argument(metavar="DIR", help="One mount; without it, all mounts of the cache folder.")
    ] = None,
    interval: _Interval = 1.0,
    count: Annotated[int, typer.Option("--count", "-c", metavar="N", help="Lines; without it, until Ctrl-C.")] = 0,
    cache_dir: CacheDir = None,
    json: Json = False,
) -> None:
    """A line each second: reads from the cache and past it, how long they waited, and what came from the source.

    What the kernel reads by itself (page cache, files that are passed through) makes no request and is not in it.
    """
    from forebay.cli import live_commands

    live_commands.stats(where, cache_dir, interval, count, json=json)


def profile(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where it is mounted.")],
    seconds: Annotated[float, typer.Option(metavar="S", help="Look for so long; Ctrl-C ends it.", min=0.1)] = 10.0,
    json: Json = False,
) -> None:
    """Why was this slow? Where the bytes of reads came from meanwhile, and how long each kind took.

    Example: forebay profile /data/imagenet --seconds 30
    """
    from forebay.cli import live_commands

    live_commands.profile(directory, seconds, json=json)


def bundle(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar.gz", help="Is made anew.")], cache_dir: CacheDir = None
) -> None:
    """Gather what a report of a fault needs: versions, kernel, findings of doctor, mounts, status, jobs, ends of logs.

    No credentials and no content of files are in it; names of sources, folders and files may be, in logs.
    """
    from forebay.cli import bundle_commands

    bundle_commands.bundle(file, cache_dir)
