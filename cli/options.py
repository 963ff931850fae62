"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="PATH",
        help="Folder of the cache's index (and of its data, without --tier). One worker serves all mounts of it."
        " Default: $FOREBAY_CACHE_DIR, else /var/cache/forebay for root, ~/.cache/forebay for others.",
    ),
]
Tiers = Annotated[
    list[str] | None,
    typer.Option(
        "--tier",
        metavar="MEDIUM:FOLDER:SIZE",
        help="Where cached data goes, fastest first; may be given several times. MEDIUM is MEM, SSD or HDD."
        " Example: --tier MEM:/dev/shm/forebay:4GiB --tier SSD:/var/cache/forebay/ssd:100GiB."
        " none keeps nothing. Default: one SSD tier in the cache folder, half of the free space there.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="KEY=VALUE",
        help="For the source, may be given several times: endpoint, region, anon=true, profile, access_key_id, ..."
        " The usual AWS_* variables are read too.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SOURCE_HELP = (
    "s3://bucket/prefix, gs://, az://, oss://, https://..., file:///path, pvc://claim, hdfs://, any fsspec URL, or the"
    " NAME of a dataset (also NAME@SNAPSHOT, dataset://NAME/sub). What exists as a path is a path: write"
    " dataset://NAME then."
)
TARGET_HELP = "A source as for mount, the NAME of a dataset, or where one is mounted."
