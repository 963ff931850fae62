"""What `forebay evict`, `pin` and `unpin` do."""

import json as jsonlib
import os
import sys
from pathlib import Path

from forebay.cli.commands import cache_config
from forebay.cli.inspect_commands import mount_over
from forebay.cli.reach import below, reached
from forebay.cli.screens import size_text
from forebay.fuse import mounting
from forebay.proto import worker_pb2 as pb


def _place(where: str, paths: list[str], cache_dir: Path | None) -> tuple[str, list[str]]:
    """Mount or source, and the paths below it that are meant."""
    state = mount_over(where, cache_config(cache_dir, []))
    if state is None:
        return where, paths or [""]
    inside = mounting.real_directory(where)[len(state.dir) :].strip("/")
    return state.dir, ["/".join(filter(None, (inside, path))) for path in paths or [""]]


def evict(
    where: str,
    paths: list[str],
    globs: list[str],
    cache_dir: Path | None,
    options: list[str],
    *,
    pinned: bool,
    json: bool,
) -> None:
    target, chosen = _place(where, paths, cache_dir)
    with reached(target, cache_dir, [], options) as found:
        if globs and not paths:
            globs = [f"{chosen[0]}/{glob}" if chosen[0] else glob for glob in globs]
            chosen = []
        request = pb.EvictRequest(
            dataset_id=found.dataset_id, paths=[below(path, None) for path in chosen],
            globs=[below(glob, None) for glob in globs], snapshot=found.snapshot, pinned=pinned,
        )  # fmt: skip
        reply = found.persist(lambda: found.client.call("Evict", request, None))
    if json:
        print(jsonlib.dumps({"files": reply.files, "bytes": reply.bytes, "pinned": reply.pinned}))
        return
    print(f"{reply.files} files, {size_text(reply.bytes)} taken out of the cache", end="")
    print(f"; {reply.pinned} stay as they are pinned (--pinned takes these too)" if reply.pinned else "")


def pin(where: str, paths: list[str], cache_dir: Path | None, options: list[str], *, listed: bool, json: bool) -> None:
    target, chosen = _place(where, paths, cache_dir)
    with reached(target, cache_dir, [], options) as found:
        names = [] if listed else [below(path, None) for path in chosen]
        request = pb.PinRequest(dataset_id=found.dataset_id, paths=names, snapshot=found.snapshot)
        reply = found.persist(lambda: found.client.call("Pin", request, None))
    _pins(reply, json)


def unpin(where: str, paths: list[str], cache_dir: Path | None, options: list[str], *, every: bool, json: bool) -> None:
    target, chosen = _place(where, paths, cache_dir)
    with reached(target, cache_dir, [], options) as found:
        names = [] if every else [below(path, None) for path in chosen]
        request = pb.PinRequest(dataset_id=found.dataset_id, paths=names, unpin=True, snapshot=found.snapshot)
        reply = found.persist(lambda: found.client.call("Pin", request, None))
    _pins(reply, json)
    for path in reply.unknown:
        print(
            f"forebay: {os.fsdecode(path) or '/'} was not pinned; `forebay pin --list` shows what is", file=sys.stderr
        )
    if reply.unknown:
        sys.exit(1)


def _pins(reply: pb.PinReply, json: bool) -> None:
    pins = sorted(os.fsdecode(path) for path in reply.pins)
    if json:
        print(jsonlib.dumps({"pins": pins}))
    else:
        print("pinned: " + ", ".join(path or "/" for path in pins) if pins else "nothing is pinned")
