"""The commands for datasets and their snapshots: arguments and options; dataset_commands.py and snapshot_commands.py do
what they say."""

from pathlib import Path
from typing import Annotated

import typer

from forebay.cli.options import TARGET_HELP, CacheDir, Json, Options

_FILES_HELP = "YAML, any number of documents; '-' is standard input. May be given several times."
Files = Annotated[list[str] | None, typer.Option("--filename", "-f", metavar="FILE", help=_FILES_HELP)]
Target = Annotated[str, typer.Argument(metavar="NAME|DIR|SOURCE", help=TARGET_HELP)]
Limit = Annotated[int, typer.Option(metavar="N", min=0, help="Names to show of each kind; 0: all.")]
SnapshotNumber = Annotated[
    int | None, typer.Option("--snapshot", metavar="N", min=1, help="Of a DIR or SOURCE; a NAME takes NAME@N.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (apply, get, describe, delete, sync, snapshots, diff, export):
        app.command()(command)


def apply(files: Files = None) -> None:
    """Keep the datasets of YAML files on this machine, so that they can be mounted by name.

    All documents are checked before anything is kept. Mounts that are there go on as they are until the next sync.

    Example: forebay apply -f dataset.yaml
    """
    from forebay.cli import dataset_commands

    dataset_commands.apply(files or [])


def get(
    name: Annotated[
        list[str] | None, typer.Argument(metavar="[datasets] [NAME...]", help="Without a name: all datasets.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="table|wide|yaml|json|name", help="What to print.")
    ] = "table",
    cache_dir: CacheDir = None,
) -> None:
    """List datasets, or print their manifests."""
    from forebay.cli import dataset_commands

    dataset_commands.get(name or [], output, cache_dir)


def describe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a dataset.")], cache_dir: CacheDir = None
) -> None:
    """Show all about one dataset: stores, options (secrets hidden), snapshots, cache, mounts, and who refers to it."""
    from forebay.cli import dataset_commands

    dataset_commands.describe(name, cache_dir)


def delete(
    name: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Of datasets.")] = None,
    files: Files = None,
    purge: Annotated[bool, typer.Option("--purge", help="Remove also what is cached of them.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Forget datasets and their snapshots. What is cached stays, and is found again by who mounts the same stores.

    Refused while one is mounted, or while another dataset refers to it.
    """
    from forebay.cli import dataset_commands

    dataset_commands.delete(name or [], files or [], purge, cache_dir)


def sync(
    target: Annotated[str, typer.Argument(metavar="NAME|DIR", help="Of a dataset, or where something is mounted.")],
    option: Options = None,
    show: Annotated[bool, typer.Option("--show", help="Print the names that differ.")] = False,
    limit: Limit = 100,
    cache_dir: CacheDir = None,
    json: Json = False,
) -> None:
    """List a source again, and show what was added, changed and removed in all its mounts.

    Open files keep what they were opened with, and pinned mounts (NAME@N) what they show. When the source cannot be
    listed, all stays as it was.
    """
    from forebay.cli import snapshot_commands

    snapshot_commands.sync(target, option or [], show, limit, cache_dir, json)


def snapshots(
    target: Target,
    gc: Annotated[bool, typer.Option("--gc", help="Remove old ones; those in use and pinned stay.")] = False,
    keep: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --gc: at most so many. Default: 8.")
    ] = None,
    older_than: Annotated[str | None, typer.Option(metavar="AGE", help="With --gc: such as 12h or 30d.")] = None,
    cache_dir: CacheDir = None,
    option: Options = None,
    json: Json = False,
) -> None:
    """List the snapshots of a dataset: when each was taken, what it holds, who shows it."""
    from forebay.cli import snapshot_commands

    snapshot_commands.snapshots(target, gc, keep, older_than, cache_dir, option or [], json)


def diff(
    target: Target,
    old: Annotated[int, typer.Argument(metavar="A", min=1, help="Number of a snapshot.")],
    new: Annotated[int, typer.Argument(metavar="B", min=1, help="Number of another one.")],
    limit: Limit = 0,
    cache_dir: CacheDir = None,
    option: Options = None,
    json: Json = False,
) -> None:
    """Show what was added (+), changed (~) and removed (-) from one snapshot to another."""
    from forebay.cli import snapshot_commands

    snapshot_commands.diff(target, old, new, limit, cache_dir, option or [], json)


def export(
    target: Target,
    file: Annotated[Path, typer.Argument(metavar="FILE.parquet", help="Is replaced whole, or stays as it was.")],
    snapshot: SnapshotNumber = None,
    cache_dir: CacheDir = None,
    option: Options = None,
) -> None:
    """Write a snapshot's listing as Parquet: path, kind, size, mtime, version, where each file comes from."""
    from forebay.cli import snapshot_commands

    snapshot_commands.export(target, file, snapshot, cache_dir, option or [])
