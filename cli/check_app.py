"""`forebay check`."""

from typing import Annotated

import typer

from forebay.cli.options import CacheDir, Json


def check(
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare all bytes with their checksums, read from the disks.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop what is wrong, so that it is fetched again, and count anew.")
    ] = False,
    rate: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Read at most this much a second, like 200MiB.")
    ] = None,
    cache_dir: CacheDir = None,
    json: Json = False,
) -> None:
    """Hold the cache against the description of its storage formats, while mounts go on.

    Exit status: 0 when all is well or was repaired, 1 when something is wrong.
    """
    from forebay.cli import check_commands

    check_commands.check(deep, repair, rate, cache_dir, json)
