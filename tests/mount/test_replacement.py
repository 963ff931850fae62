"""Every process of a mount is replaced under its readers: killed, stopped, upgraded, added, and taken away."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay, alive, wait_until
from source_tree import MIB, payload

pytestmark = [pytest.mark.slow]

HOWS = ("read", "pread", "mmap", "sendfile", "direct", "read", "mmap", "pread")


def _contents() -> dict[str, bytes]:
    large = {f"large{n}": payload(f"large{n}", 6 * MIB + n) for n in range(3)}
    return large | {f"small{n:02}": payload(f"small{n}", 40_000 + n) for n in range(30)}


def _put(source: Any) -> dict[str, bytes]:
    contents = _contents()
    for name, data in contents.items():
        source.put(name, data)
    return contents


def _eight(forebay: Forebay, mount: Path, names: list[str], rounds: int) -> Any:
    return forebay.start_reading(
        [
            {"jobs": [[how, str(mount / name)] for name in names], "seed": seed, "rounds": rounds}
            for seed, how in enumerate(HOWS)
        ]
    )


def _check(results: list[dict[str, Any]], contents: dict[str, bytes]) -> None:
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    wrong = [r for r in results if r.get("sha256") != sums[os.path.basename(r["path"])]]
    assert results
    assert not wrong, f"{len(wrong)} of {len(results)} wrong, such as {wrong[:3]}"


def _pids(forebay: Forebay, mount: Path) -> dict[str, Any]:
    return forebay.pids(mount)


@pytest.mark.sides("kernel", soak="engines")
@pytest.mark.semantics("D9")
def test_killed_supervisor(forebay: Forebay, folder: Any, side: Any) -> None:
    """A handler calls another one, which keeps the handlers that are there, and replaces them when they die."""
    forebay.expect_log("supervisor .* is gone: calling another")
    contents = _put(folder)
    mount = forebay.mount(folder.source, *side.args)
    before = _pids(forebay, mount)
    os.kill(before["supervisor"], signal.SIGKILL)
    _check(forebay.read([{"jobs": [["read", str(mount / "large0")]]}]), contents)
    after = wait_until(
        lambda: (now := _pids(forebay, mount))["supervisor"] != before["supervisor"] and now, "there is another"
    )
    assert after["handlers"] == before["handlers"]
    if side.engine == "kernel":
        os.kill(after["handlers"][0], signal.SIGKILL)
        _check(forebay.read([{"jobs": [["mmap", str(mount / "large1")]]}]), contents)
    (row,) = forebay.run("mounts", "--json").json()
    assert row["healthy"], row
    forebay.umount(mount)
    assert forebay.leftovers() == []


@pytest.mark.semantics("D9")
def test_stopped_handler(forebay: Forebay, folder: Any) -> None:
    """It hangs, and is replaced within five seconds, with its readers unharmed."""
    contents = _put(folder)
    mount = forebay.mount(folder.source, "--handlers", "1")
    (handler,) = _pids(forebay, mount)["handlers"]
    os.kill(handler, signal.SIGSTOP)
    started = time.monotonic()
    _check(forebay.read([{"jobs": [["read", str(mount / "small01")]]}]), contents)
    assert time.monotonic() - started < 5
    wait_until(lambda: not alive(handler), "the old one has ended")
    forebay.umount(mount)


_TRACER = """
import ctypes, os, signal, sys, time
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
SEIZE, INTERRUPT, TRACEEXIT = 0x4206, 0x4207, 0x40
pid = int(sys.argv[1])
assert ptrace(SEIZE, pid, 0, TRACEEXIT) == 0, os.strerror(ctypes.get_errno())
assert ptrace(INTERRUPT, pid, 0, 0) == 0
print("traced", flush=True)
sys.stdin.read()
"""


@pytest.mark.semantics("D9")
def test_handler_that_cannot_even_be_killed(forebay: Forebay, folder: Any) -> None:
    """A debugger holds it in the middle of dying: it is replaced all the same, and a sync does not wait for it."""
    contents = _put(folder)
    mount = forebay.mount(folder.source, "--handlers", "1")
    (handler,) = _pids(forebay, mount)["handlers"]
    command = [sys.executable, "-c", _TRACER, str(handler)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "traced\n"
        _check(forebay.read([{"jobs": [["read", str(mount / "small02")]]}]), contents)
        folder.put("added", b"added")
        forebay.run("sync", mount)
        assert (mount / "added").read_bytes() == b"added"
        assert Path(f"/proc/{handler}").exists(), "it is still held"
        tracer.communicate(timeout=10)
    forebay.umount(mount)
    assert forebay.leftovers() == []


@pytest.mark.semantics("D2", "D9")
@pytest.mark.parametrize(
    "mode",
    ["passthrough", "no-open", pytest.param("cached", marks=pytest.mark.soak)],
)
def test_all_handlers_killed_under_eight_readers(forebay: Forebay, bucket: Any, mode: str) -> None:
    """Three handlers serve a mount, and all of them are killed at once, again and again."""
    contents = _put(bucket)
    mount = forebay.mount(bucket.source, *bucket.args, "--open-mode", mode, "--handlers", "3")
    wait_until(lambda: len(_pids(forebay, mount)["handlers"]) == 3, "three handlers")
    reading = _eight(forebay, mount, list(contents), rounds=6)
    for _ in range(3):
        seen = wait_until(
            lambda: (now := _pids(forebay, mount)["handlers"]) and len(now) == 3 and all(map(alive, now)) and now,
            "three that live",
        )
        for pid in seen:
            os.kill(pid, signal.SIGKILL)
    _check(reading.results(), contents)
    forebay.umount(mount)
    assert forebay.leftovers() == []


@pytest.mark.semantics("D10")
@pytest.mark.parametrize("mode", ["passthrough", pytest.param("no-open", marks=pytest.mark.soak)])
def test_upgrade_under_eight_readers(forebay: Forebay, bucket: Any, mode: str) -> None:
    """Supervisor, handlers and worker are replaced while files are being read; nothing of the old ones stays."""
    contents = _put(bucket)
    mount = forebay.mount(bucket.source, *bucket.args, "--open-mode", mode, "--handlers", "2")
    wait_until(lambda: len(_pids(forebay, mount)["handlers"]) == 2, "two handlers")
    reading = _eight(forebay, mount, list(contents), rounds=10)
    before = _pids(forebay, mount)
    out = forebay.run("upgrade", mount).out
    assert out.startswith(f"{mount} is served by new processes: supervisor ")
    after = _pids(forebay, mount)
    old = {before["supervisor"], before["worker"], *before["handlers"]}
    assert after["supervisor"] not in old
    assert not old & set(after["handlers"])
    assert len(after["handlers"]) == 2
    wait_until(lambda: not any(map(alive, old)), "the old processes have ended")
    _check(reading.results(), contents)
    assert forebay.run("upgrade").out.count("is served by new processes") == 1
    forebay.umount(mount)
    assert forebay.leftovers() == []


def test_upgrade_of_nothing(forebay: Forebay, tmp_path: Path) -> None:
    assert forebay.run("upgrade").out == "nothing is mounted\n"
    err = forebay.run("upgrade", tmp_path, code=1).err
    assert err == f"forebay: {tmp_path} is not mounted; `forebay mounts` lists what is\n"


@pytest.mark.semantics("D10")
def test_a_successor_that_fails_changes_nothing(forebay: Forebay, folder: Any) -> None:
    folder.put("file", b"content")
    mount = forebay.mount(folder.source)
    before = _pids(forebay, mount)
    (control,) = forebay.runtime_dir.glob("mounts/*/control.sock")
    control.unlink()
    err = forebay.run("upgrade", mount, code=1).err
    assert err.startswith(f"forebay: {mount} goes on as before")
    assert _pids(forebay, mount) == before
    assert (mount / "file").read_bytes() == b"content"
    forebay.umount(mount)
    assert forebay.leftovers() == []


_HAMMER = """
import mmap, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
page, end = mmap.mmap(-1, 4096), time.monotonic() + 40
while time.monotonic() < end:
    os.preadv(descriptor, [page], 0)
"""


_WITHOUT_RESEND = """
import sys
from dataclasses import replace
from forebay.fuse import lifecycle
from forebay.cli.main import app

spec_of = lifecycle._spec
lifecycle._spec = lambda *args: replace(spec_of(*args), resend=False)
app(sys.argv[1:])
"""


@pytest.mark.semantics("D11")
def test_without_resend_what_was_taken_ends_with_an_error(forebay: Forebay, bucket: Any) -> None:
    """As on Linux before 6.9: the reads that a dying handler has taken fail, none hangs, and the mount goes on."""
    bucket.put("file", payload("file", 8 * MIB))
    mount = forebay.mount_point()
    command = [sys.executable, "-c", _WITHOUT_RESEND, "mount", bucket.source, str(mount), *bucket.args]
    done = subprocess.run(
        [*command, "--handlers", "1"], env=forebay.environ, check=False, timeout=60, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    bucket.link.hold_after(0)
    reading = forebay.start_reading([{"jobs": [["direct", str(mount / "file")]]}])
    bucket.link.wait_held()
    (handler,) = _pids(forebay, mount)["handlers"]
    os.kill(handler, signal.SIGKILL)
    (result,) = reading.results(20)
    assert result.get("errno") == "ECONNABORTED", result
    bucket.link.release()
    (result,) = forebay.read([{"jobs": [["read", str(mount / "file")]]}])
    assert result.get("sha256") == hashlib.sha256(payload("file", 8 * MIB)).hexdigest()
    forebay.umount(mount)


def test_handlers_come_with_load(forebay: Forebay, folder: Any) -> None:
    """One at first; under load as many as are allowed."""
    folder.put("file", payload("d", 20_000))
    mount = forebay.mount(folder.source, "--handlers", "1:2", "--open-mode", "cached")
    assert len(_pids(forebay, mount)["handlers"]) == 1
    readers = [subprocess.Popen([sys.executable, "-c", _HAMMER, str(mount / "file")]) for _ in range(6)]
    try:
        wait_until(lambda: len(_pids(forebay, mount)["handlers"]) == 2, "a second one", 35)
    finally:
        for reader in readers:
            reader.kill()
            reader.wait(10)
    forebay.umount(mount)


@pytest.mark.parametrize("text", ["0", "2:1", "x", "1:x", "1:99", ":2"])
def test_wrong_number_of_handlers(forebay: Forebay, tmp_path: Path, text: str) -> None:
    err = forebay.run("mount", f"file://{tmp_path}", tmp_path, "--handlers", text, code=2).err
    assert err.startswith(f"forebay: --handlers {text!r}")


def test_recording(forebay: Forebay, folder: Any, tmp_path: Path) -> None:
    folder.put("file", b"content")
    mount = forebay.mount(folder.source)
    out = tmp_path / "recording"
    process = forebay.start("debug", "record", mount, out)
    wait_until(lambda: list(out.glob("*.fuse")), "it records")
    assert (mount / "file").read_bytes() == b"content"
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert said.endswith(" messages\n")
    counts = forebay.run("debug", "replay", out, "--json").json()
    assert counts["malformed"] == []
    assert {"Lookup", "Open", "Read"} <= set(counts["requests"])
    (file,) = out.glob("*.fuse")
    file.write_bytes(file.read_bytes()[:-1] + b"\xff\xff")
    assert "Lookup" in forebay.run("debug", "replay", file).out
    assert forebay.run("debug", "replay", mount / "file", code=2).err.count("is no recording of a mount") == 1
    forebay.umount(mount)


def _supervisors(forebay: Forebay) -> list[int]:
    """Those that the register names and that run."""
    rows = forebay.run("mounts", "--json").json()
    return [row["pids"]["supervisor"] for row in rows if alive(row["pids"]["supervisor"])]


def _is_healthy(forebay: Forebay) -> bool:
    (row,) = forebay.run("mounts", "--json").json()
    return bool(row["healthy"])


@pytest.mark.soak
def test_soak_everything_is_replaced_again_and_again(forebay: Forebay, bucket: Any) -> None:
    """Two minutes of reading by eight, while something is killed, stopped or upgraded all the time."""
    forebay.expect_log("supervisor .* is gone: calling another")
    contents = _put(bucket)
    mount = forebay.mount(bucket.source, *bucket.args, "--handlers", "1:3")
    reading = _eight(forebay, mount, list(contents), rounds=400)
    stop, turn = threading.Event(), 0
    while not stop.wait(0.5) and any(p.poll() is None for p in reading.processes) and turn < 240:
        turn += 1
        if turn % 16 == 5:  # with all handlers killed as well, before another is there, the mount would be gone (D9)
            wait_until(lambda: _is_healthy(forebay), "a handler that serves")
        for pid, command in forebay.processes().items():
            what = "supervisor" if turn % 16 == 5 else "worker" if turn % 8 == 3 else "handler"
            if f"forebay.fuse.{what}" in command or f"forebay.cacheruntime.{what}" in command:
                os.kill(pid, signal.SIGSTOP if turn % 16 == 9 else signal.SIGKILL)
        if turn % 16 == 5:
            wait_until(lambda: _supervisors(forebay), "another supervisor")
        if turn % 16 == 13:
            forebay.run("upgrade", code=None)
    _check(reading.results(900), contents)
    assert _is_healthy(forebay)
    forebay.umount(mount)
    assert forebay.leftovers() == []
