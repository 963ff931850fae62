"""The `forebay` command: arguments in, screens out. What it does lives in the packages below it.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from forebay.cli import dataset_app, inspect_app, security_app, simulate_app, warm_app, worker_app
from forebay.cli.check_app import check
from forebay.cli.options import SOURCE_HELP, CacheDir, Json, Options, Tiers

app = typer.Typer(
    name="forebay",
    help="Reads an object store as a folder: slow the first time, at local speed after.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def mount(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An empty folder.")],
    cache_dir: CacheDir = None,
    tier: Tiers = None,
    option: Options = None,
    owner: Annotated[
        str | None,
        typer.Option(
            metavar="UID:GID",
            help="Whose the files seem to be; names or numbers. Default: the dataset's owner, else you.",
        ),
    ] = None,
    umask: Annotated[str, typer.Option(metavar="OCTAL", help="Permission bits to take away.")] = "022",
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Let other users see the mount.")] = False,
    engine: Annotated[
        str, typer.Option(metavar="kernel|pyfuse3", help="FUSE engine; pyfuse3 is the way out when ours is at fault.")
    ] = "kernel",
    open_mode: Annotated[
        str,
        typer.Option(
            metavar="auto|passthrough|no-open|cached",
            help="How files are opened: passthrough is best for large files, no-open for millions of small ones;"
            " auto looks at the sizes.",
        ),
    ] = "auto",
    handlers: Annotated[
        str | None,
        typer.Option(
            metavar="MIN[:MAX]",
            help="Processes that serve the mount; the load decides between the bounds. Default: 1:4.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT|off",
            help="Serve /metrics for Prometheus there, on loopback without HOST; remembered with the cache folder.",
        ),
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT[,...]",
            help="This machine is a client of these workers: they read SOURCE, which has to be known to them."
            " Default: $FOREBAY_WORKER, else as the cache folder was used last.",
        ),
    ] = None,
    tls: worker_app.Bundle = None,
    insecure: worker_app.Insecure = False,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay until Ctrl-C, then unmount.")] = False,
) -> None:
    """Mount SOURCE on DIR, read-only. Returns when the mount is usable.

    Examples: forebay mount s3://my-bucket/imagenet /data/imagenet; forebay mount imagenet@3 /data/imagenet
    """
    from forebay.cli import commands

    commands.mount(
        source,
        directory,
        cache_dir,
        tier or [],
        option or [],
        owner,
        umask,
        allow_other,
        engine,
        open_mode,
        handlers,
        foreground,
        metrics,
        worker,
        tls,
        insecure,
    )


@app.command()
def umount(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where it is mounted.")],
    lazy: Annotated[
        bool, typer.Option("--lazy", "-l", help="Detach at once; what is open there stays readable until closed.")
    ] = False,
) -> None:
    """Unmount DIR. What is cached stays for the next mount. Works also after a crash."""
    from forebay.cli import commands

    commands.umount(directory, lazy)


@app.command()
def mounts(json: Json = False) -> None:
    """List the mounts of this machine: source, snapshot, mode, health, processes."""
    from forebay.cli import commands

    commands.mounts(json)


@app.command()
def status(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE|DIR", help="Only this one, or the dataset NAME; without it, all that is cached."
        ),
    ] = None,
    cache_dir: CacheDir = None,
    option: Options = None,
    path: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="In a cluster: what each worker holds below it; see --json."),
    ] = None,
    json: Json = False,
) -> None:
    """Show what the sources hold, how much of it each tier has, and the hit ratio of the mounts; in a cluster, of all
    workers."""
    from forebay.cli import commands

    commands.status(target, cache_dir, option or [], json, path)


@app.command()
def upgrade(
    directory: Annotated[
        str | None, typer.Argument(metavar="DIR", help="Only this mount; without it, all of them.")
    ] = None,
) -> None:
    """Replace the processes of mounts by the installed version, one after the other, while files are being read.

    Exit status: 0 when all are replaced; a mount that could not be goes on as before.
    """
    from forebay.cli import commands

    commands.upgrade(directory)


debug = typer.Typer(help="Look into a mount at work.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(debug, name="debug")


@debug.command()
def record(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where it is mounted.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="For the recordings, a file each handler.")],
    seconds: Annotated[float | None, typer.Option(metavar="S", min=0, help="Until Ctrl-C without it.")] = None,
) -> None:
    """Write down every message of the kernel to a mount. File names are in it, content is not."""
    from forebay.cli import debug_commands

    debug_commands.record(directory, folder, seconds)


@debug.command()
def replay(
    recording: Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER", help="Of `forebay debug record`.")],
    json: Json = False,
) -> None:
    """Feed recordings to the codec, and count what is in them.

    Exit status: 0 when every message was understood, 1 when not.
    """
    from forebay.cli import debug_commands

    debug_commands.replay(recording, json)


app.command()(check)
simulate_app.register(app)


@app.command()
def doctor(cache_dir: CacheDir = None, tier: Tiers = None, json: Json = False) -> None:
    """Try out what this machine allows, and say what is missing and what that costs.

    Exit status: 0 when mounts work, 1 when they do not.
    """
    from forebay.cli import commands

    commands.doctor(cache_dir, tier or [], json)


dataset_app.register(app)


@app.command()
def version() -> None:
    """Print the version."""
    from forebay.cacheruntime.version import VERSION

    print(f"forebay {VERSION}")


warm_app.register(app)
worker_app.register(app)
inspect_app.register(app, debug)
security_app.register(app)


def run() -> Any:
    """Entry point: errors of ours become one line on standard error and exit status 1 (2 for wrong usage)."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would write to our standard error
    from forebay.cacheruntime.errors import ForebayError, UsageError

    try:
        return app()
    except UsageError as error:
        trouble, code = error, 2
    except ForebayError as error:
        trouble, code = error, 1  # type: ignore[assignment]
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)  # the reader of our output left, as in `| head`
    print(f"forebay: {' '.join(str(trouble).split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    run()
