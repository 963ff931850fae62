"""The commands of `forebay debug`: for looking into a mount at work."""

import json as jsonlib
import sys
import time
from pathlib import Path

from forebay.cacheruntime import mounts as register
from forebay.cacheruntime.errors import MountError, UsageError
from forebay.cli.commands import cache_config, mounted_at, stop_signals
from forebay.fuse import recorder

_LOOK_S = 0.1


def record(directory: str, folder: Path, seconds: float | None) -> None:
    config = cache_config(None, [])
    state = mounted_at(directory, config)
    if state is None:
        raise MountError(f"{directory} is not mounted; `forebay mounts` lists what is")
    if state.engine != "kernel":
        raise UsageError(f"only mounts with the engine kernel can be recorded; {directory} has {state.engine}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}; name a folder of yours") from error
    before = set(folder.iterdir())
    mount_folder = register.mount_folder(config.runtime_dir, state.dir)
    stopped = stop_signals()  # before anything is written: who sees the first file may stop us
    recorder.begin(mount_folder, folder.resolve())
    try:
        _wait(seconds, mount_folder, stopped)
    finally:
        recorder.end(mount_folder)
    time.sleep(2 * _LOOK_S)  # a handler looks a few times a second whether to go on
    for path in sorted(set(folder.iterdir()) - before):
        print(f"{path}: {sum(1 for _ in recorder.messages(path))} messages")


def _wait(seconds: float | None, mount_folder: Path, stopped: list[int]) -> None:
    """Until the time is over, somebody presses Ctrl-C, or the mount is gone."""
    end = time.monotonic() + seconds if seconds is not None else float("inf")
    while not stopped and time.monotonic() < end and register.read_state(mount_folder) is not None:
        time.sleep(_LOOK_S)


def replay(recordings: list[Path], json: bool) -> None:
    files = [file for path in recordings for file in (sorted(path.glob("*.fuse")) if path.is_dir() else [path])]
    if not files:
        raise UsageError("there is no recording; name .fuse files or a folder of `forebay debug record`")
    try:
        found = recorder.replay(files)
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{error}; record one with: forebay debug record DIR FOLDER") from error
    if json:
        print(jsonlib.dumps({"requests": dict(found.requests), "malformed": found.malformed}, indent=2))
    else:
        for name, number in found.requests.most_common():
            print(f"{number:10,} {name}")
        for line in found.malformed:
            print(f"malformed: {line}", file=sys.stderr)
    if found.malformed:
        sys.exit(1)
