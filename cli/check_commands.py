"""What `forebay check` does."""

import json as jsonlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from forebay.cacheruntime.client import WorkerClient
from forebay.cacheruntime.config import parse_size
from forebay.cli.commands import cache_config
from forebay.cli.screens import errors, size_text
from forebay.fuse import lifecycle
from forebay.proto import worker_pb2 as pb


def check(deep: bool, repair: bool, rate: str | None, cache_dir: Path | None, json: bool) -> None:
    request = pb.CheckRequest(deep=deep, repair=repair, bytes_s=parse_size(rate) if rate else 0)
    client = WorkerClient(cache_config(cache_dir, []))
    try:
        client.connect()
        shown = _collect(client.stream("Check", request), quiet=json)
    finally:
        lifecycle.retire(client)
        client.close()
    if json:
        print(jsonlib.dumps(shown, indent=2))
    else:
        _print(shown)
    if any(not finding["repaired"] for finding in shown["findings"]):
        sys.exit(1)


def _collect(updates: Iterable[pb.CheckProgress], quiet: bool) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    files = size = 0
    for update in _with_bar(updates, quiet):
        files, size = update.files, update.bytes
        found += ({"kind": f.kind, "what": f.what, "repaired": f.repaired} for f in update.findings)
    return {"files": files, "compared_bytes": size, "findings": found}


def _with_bar(updates: Iterable[pb.CheckProgress], quiet: bool) -> Iterator[pb.CheckProgress]:
    """Show how far it is, on a terminal."""
    if quiet or not errors.is_terminal:
        yield from updates
        return
    with errors.status("checking") as status:
        for update in updates:
            status.update(f"{update.files} files looked at, {size_text(update.bytes)} compared")
            yield update


def _print(shown: dict[str, Any]) -> None:
    for finding in shown["findings"]:
        print(f"{'repaired' if finding['repaired'] else 'WRONG'}  {finding['kind']}: {finding['what']}")
    wrong = sum(not finding["repaired"] for finding in shown["findings"])
    looked = f"{shown['files']} files looked at, {size_text(shown['compared_bytes'])} compared with their checksums"
    if wrong:
        print(f"{looked}; {wrong} things are wrong: forebay check --repair drops them, to be fetched again")
    elif shown["findings"]:
        print(f"{looked}; {len(shown['findings'])} things were repaired")
    else:
        print(f"{looked}; all is well")
