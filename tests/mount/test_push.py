"""Small files are in memory before their reader comes: by a posted order, and by the order of a directory."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay, wait_until
from fuse_mounts import mounts_below
from source_tree import payload

pytestmark = [pytest.mark.slow]

COUNT = 600

_LOADER = """
import hashlib, json, os, random, sys
from forebay.fuse.order import ahead

folder, how, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = sorted(os.listdir(folder))  # the kernel knows only what it has listed
for entry in os.scandir(folder):
    entry.stat()
if how == "posted":
    random.Random(5).shuffle(names)
found = {}
for number in range(rounds):
    for name in ahead(folder, names, 64) if how == "posted" else names:
        with open(os.path.join(folder, name), "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        assert found.setdefault(name, digest) == digest
print(json.dumps(found))
"""


def _put(source: Any) -> dict[str, str]:
    contents = {f"{n:04}.jpg": payload(f"{n}", 20_000 + 37 * n) for n in range(COUNT)}
    for name, data in contents.items():
        source.put(f"images/{name}", data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def _load(mount: Path, how: str, rounds: int = 1) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _LOADER, str(mount / "images"), how, str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _result(process: "subprocess.Popen[str]") -> dict[str, str]:
    out, err = process.communicate(timeout=80)
    assert process.returncode == 0, err
    found: dict[str, str] = json.loads(out)
    return found


@pytest.mark.semantics("P1", "P2")
@pytest.mark.parametrize("how", ["posted", "listed"])
@pytest.mark.parametrize("mode", ["no-open", pytest.param("passthrough", marks=pytest.mark.soak)])
def test_most_files_are_there_already(forebay: Forebay, folder: Any, how: str, mode: str) -> None:
    """In a second mount, so that the tiers have the files and the kernel has none of them."""
    sums = _put(folder)
    first = forebay.mount(folder.source)
    forebay.run("warmup", first)
    forebay.umount(first)
    mount = forebay.mount(folder.source, "--open-mode", mode, "--handlers", "1")
    assert _result(_load(mount, how)) == sums
    counters = forebay.dataset(mount)["counters"]
    # How many depends on who is faster; that none is would be a fault.
    assert counters["pushes"] >= COUNT / 4, counters
    assert counters["hits"] <= COUNT - counters["pushes"] / 2, counters
    assert (counters["errors"], counters["misses"]) == (0, 0)
    before = counters["pushes"]
    assert _result(_load(mount, how)) == sums
    assert forebay.dataset(mount)["counters"]["pushes"] - before < COUNT / 10, "what the kernel has is not put again"
    forebay.umount(mount)


@pytest.mark.semantics("P1")
def test_a_posted_order_brings_cold_files(forebay: Forebay, bucket: Any) -> None:
    """Several at a time, ahead of a reader that asks for one after the other."""
    sums = _put(bucket)
    mount = forebay.mount(bucket.source, *bucket.args, "--open-mode", "no-open")
    assert _result(_load(mount, "posted")) == sums
    counters = forebay.dataset(mount)["counters"]
    assert counters["errors"] == 0
    assert counters["pushes"] > COUNT / 10, counters
    row = forebay.dataset(mount)
    assert row["cached_files"] == COUNT
    forebay.umount(mount)


def test_handlers_killed_while_files_are_put_ahead(forebay: Forebay, folder: Any) -> None:
    """A thread that waits in the kernel for a page keeps its process from ending: another comes all the same."""
    sums = _put(folder)
    mount = forebay.mount(folder.source, "--open-mode", "no-open", "--handlers", "1")
    forebay.run("warmup", mount)
    loaders = [_load(mount, "posted", 8), _load(mount, "listed", 8)]
    (entry,) = mounts_below(mount)
    killed: set[int] = set()
    for _ in range(6):
        fresh = wait_until(
            lambda: [p for p, c in forebay.processes().items() if "fuse.handler" in c and p not in killed],
            "another handler",
            5,
        )
        for pid in fresh:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    for loader in loaders:
        assert _result(loader) == sums
    assert entry
    forebay.umount(mount)
    assert forebay.leftovers() == []


def test_an_order_for_what_is_not_there(forebay: Forebay, folder: Any) -> None:
    """Names that are unknown, directories, and paths that lead out are passed over."""
    folder.put("a/b", b"content")
    mount = forebay.mount(folder.source)
    script = (
        "import os, sys; from forebay.fuse.order import post; d = os.open(sys.argv[1], os.O_RDONLY);"
        "print(post(d, ['none', 'a', 'a/b', '../x', '/etc/passwd', '', 'a//b', 'x' * 5000]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(mount)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == 7, "the empty one is none"
    assert (mount / "a/b").read_bytes() == b"content"
    forebay.umount(mount)


def test_an_order_reaches_the_worker(forebay: Forebay, folder: Any) -> None:
    """With who reads and how far he has come, for the policy that evicts by it."""
    wanted = _put(folder)
    mount = forebay.mount(folder.source)
    for _ in range(2):
        assert _result(_load(mount, "posted")) == wanted
    log = forebay.cache_dir / "worker.log"
    wait_until(lambda: log.read_text().count(f"left at position {COUNT}") == 2, "both readers say that they are done")
    assert log.read_text().count("has an order") == 2
    forebay.umount(mount)
