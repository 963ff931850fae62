"""Processes die, and nobody loses a byte: kill -9 of each, unmounting in every state, and who ends when."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay, alive, wait_until
from fuse_mounts import mounts_below
from source_tree import MIB, payload

from forebay.cacheruntime.client import WorkerClient
from forebay.cacheruntime.config import CacheConfig, default_tier
from forebay.proto import worker_pb2 as pb

pytestmark = [pytest.mark.slow]

SIZE = 24 * MIB + 99
DATA = payload("survival", SIZE)
SHA = hashlib.sha256(DATA).hexdigest()


def _kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def _one_line(err: str) -> str:
    (line,) = err.splitlines()
    assert line.startswith("forebay: ")
    return line


@pytest.mark.sides("kernel", soak="engines")
@pytest.mark.semantics("D1", "D2")
def test_killed_worker_during_a_cold_read(forebay: Forebay, bucket: Any, side: Any) -> None:
    """Four readers go on, with the right bytes, and nothing that was cached is lost."""
    bucket.put("file", DATA)
    bucket.put("before", DATA[: 3 * MIB])
    mount = forebay.mount(bucket.source, *bucket.args, *side.args)
    assert (mount / "before").read_bytes() == DATA[: 3 * MIB]
    worker = forebay.pids(mount)["worker"]
    bucket.link.hold_after(8 * MIB)
    reading = forebay.start_reading(
        [
            {"jobs": [[how, str(mount / "file")]], "seed": n}
            for n, how in enumerate(("read", "pread", "mmap", "sendfile"))
        ]
    )
    bucket.link.wait_held()
    before = forebay.dataset(mount)["cached_bytes"]
    assert before >= 3 * MIB
    _kill(worker)
    wait_until(lambda: not alive(worker), "the worker ends")
    bucket.link.release()
    assert [result.get("sha256") for result in reading.results()] == [SHA] * 4
    row = forebay.dataset(mount)
    assert row["cached_bytes"] == row["source_bytes"] >= before
    assert row["counters"]["errors"] == 0
    assert forebay.pids(mount)["worker"] not in (worker, None)
    forebay.umount(mount)


@pytest.mark.soak
@pytest.mark.sides("kernel", soak="engines")
def test_hits_need_no_worker(forebay: Forebay, folder: Any, side: Any) -> None:
    folder.put("file", DATA)
    folder.put("small", b"small")
    mount = forebay.mount(folder.source, *side.args)
    forebay.run("warmup", mount)
    _kill(forebay.pids(mount)["worker"])
    results = forebay.read([{"jobs": [["read", str(mount / "file")], ["read", str(mount / "small")]]}])
    assert results[0].get("sha256") == SHA
    assert results[1].get("sha256") == hashlib.sha256(b"small").hexdigest()
    assert forebay.pids(mount)["worker"] is None
    forebay.umount(mount)


@pytest.mark.semantics("D2")
@pytest.mark.parametrize(
    ("mode", "warm"),
    [
        ("passthrough", False),
        pytest.param("no-open", True, marks=pytest.mark.soak),
        pytest.param("passthrough", True, marks=pytest.mark.soak),
        pytest.param("no-open", False, marks=pytest.mark.soak),
        pytest.param("cached", False, marks=pytest.mark.soak),
        pytest.param("cached", True, marks=pytest.mark.soak),
    ],
)
def test_killed_handler_during_reads(forebay: Forebay, bucket: Any, mode: str, warm: bool) -> None:
    """The next handler takes up what the dead one left: no error, right bytes."""
    names = [f"large{n}" for n in range(3)] + [f"small{n}" for n in range(20)]
    contents = {name: payload(name, 6 * MIB + 5 if "large" in name else 50_000) for name in names}
    for name, data in contents.items():
        bucket.put(name, data)
    mount = forebay.mount(bucket.source, *bucket.args, "--open-mode", mode)
    if warm:
        forebay.run("warmup", mount)
    hows = ("read", "pread", "sendfile", "direct", "mmap")
    reading = forebay.start_reading(
        [
            {"jobs": [[how, str(mount / n)] for n in names], "seed": number, "rounds": 4}
            for number, how in enumerate(hows)
        ]
    )
    killed = set()
    for _ in range(3):
        (handler,) = wait_until(
            lambda: [pid for pid in _handlers(forebay) if pid not in killed and alive(pid)], "there is a handler"
        )
        killed.add(handler)
        _kill(handler)
    results = reading.results()
    wrong = [r for r in results if r.get("sha256") != hashlib.sha256(contents[os.path.basename(r["path"])]).hexdigest()]
    assert not wrong, f"{len(wrong)} of {len(results)} wrong, such as {wrong[:3]}"
    wait_until(lambda: not killed & set(forebay.pids(mount)["handlers"]), "the state names the new handler")
    (row,) = forebay.run("mounts", "--json").json()
    assert row["healthy"], row
    forebay.umount(mount)


def _handlers(forebay: Forebay) -> list[int]:
    return [pid for pid, command in forebay.processes().items() if "forebay.fuse.handler" in command]


@pytest.mark.sides("kernel", soak="engines")
@pytest.mark.semantics("D1", "D7")
def test_umount_after_all_processes_were_killed(forebay: Forebay, folder: Any, side: Any) -> None:
    """It exits with 0, clears up, and a new mount finds what was cached."""
    folder.put("file", DATA)
    folder.put("small", b"small")
    mount = forebay.mount(folder.source, *side.args)
    forebay.run("warmup", mount)
    pids = forebay.pids(mount)
    _kill(pids["supervisor"], *pids["handlers"], pids["worker"])
    wait_until(lambda: not forebay.processes(), "all are gone")
    (row,) = forebay.run("mounts", "--json").json()
    assert (row["healthy"], row["pids"]["worker"]) == (False, None)
    forebay.umount(mount)
    assert forebay.leftovers() == []
    assert forebay.run("mounts", "--json").json() == []
    forebay.mount(folder.source, *side.args, at=mount)
    (result,) = forebay.read([{"jobs": [["read", str(mount / "file")]]}])
    assert result.get("sha256") == SHA
    row = forebay.dataset(mount)
    assert row["cached_bytes"] == row["source_bytes"]
    assert row["counters"]["misses"] == 0
    forebay.umount(mount)


@pytest.mark.soak
def test_mount_again_after_all_processes_were_killed(forebay: Forebay, folder: Any) -> None:
    """A dead mount still lies on the folder: mounting says so, and how to go on."""
    mount = forebay.mount(folder.source)
    pids = forebay.pids(mount)
    _kill(pids["supervisor"], *pids["handlers"], pids["worker"])
    wait_until(lambda: not forebay.processes(), "all are gone")
    line = _one_line(forebay.run("mount", folder.source, mount, code=1).err)
    assert f"forebay umount {mount}" in line
    forebay.umount(mount)
    assert forebay.leftovers() == []


@pytest.mark.soak
def test_umount_of_a_mount_that_hangs(forebay: Forebay, folder: Any) -> None:
    """Supervisor and handler are stopped: nobody answers or mends it; umount ends it all the same."""
    mount = forebay.mount(folder.source)
    pids = forebay.pids(mount)
    os.kill(pids["supervisor"], signal.SIGSTOP)
    os.kill(pids["handlers"][0], signal.SIGSTOP)
    try:
        (row,) = forebay.run("mounts", "--json").json()
        assert not row["healthy"]
        assert "does not answer" in row["trouble"]
        forebay.umount(mount)
        assert forebay.leftovers() == []
    finally:
        for pid in (pids["supervisor"], pids["handlers"][0]):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.sides("kernel", soak="engines")
@pytest.mark.semantics("D7")
def test_umount_of_a_busy_mount(forebay: Forebay, folder: Any, side: Any) -> None:
    """It names who holds it; --lazy detaches it, and what is open stays readable until it is closed."""
    folder.put("file", DATA)
    mount = forebay.mount(folder.source, *side.args)
    descriptor = os.open(mount / "file", os.O_RDONLY)
    try:
        assert os.pread(descriptor, 10, 0) == DATA[:10]
        line = _one_line(forebay.run("umount", mount, code=1).err)
        assert str(os.getpid()) in line
        assert "--lazy" in line
        assert len(mounts_below(mount)) == 1
        forebay.umount(mount, "--lazy")
        assert os.listdir(mount) == []
        for offset in (0, 9 * MIB, SIZE - 5):
            assert os.pread(descriptor, 10, offset) == DATA[offset : offset + 10], offset
    finally:
        os.close(descriptor)
    wait_until(lambda: not forebay.processes(), "all ended after the last close", 25)
    assert forebay.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_signal_to_the_supervisor_unmounts(forebay: Forebay, folder: Any, number: signal.Signals) -> None:
    mount = forebay.mount(folder.source)
    os.kill(forebay.pids(mount)["supervisor"], number)
    wait_until(lambda: not mounts_below(mount), "unmounted")
    wait_until(lambda: not forebay.processes(), "all ended, the idle worker too", 25)
    assert forebay.leftovers() == []


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.soak), signal.SIGINT])
def test_foreground(forebay: Forebay, folder: Any, number: signal.Signals) -> None:
    """It stays until it is told to end, and leaves nothing."""
    folder.put("file", b"content")
    mount = forebay.mount_point()
    process = forebay.start("mount", "--foreground", folder.source, mount)
    wait_until(lambda: mounts_below(mount), "mounted")
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"{folder.source} is mounted on {mount}")
    assert (mount / "file").read_bytes() == b"content"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert err == ""
    assert process.returncode in (0, 128 + number)
    assert forebay.leftovers() == []


def test_two_mounts_share_a_worker(forebay: Forebay, folder: Any, bucket: Any) -> None:
    """It ends with the last mount, and not before."""
    folder.put("file", b"of the folder")
    bucket.put("file", b"of the bucket")
    first, second = forebay.mount(folder.source), forebay.mount(bucket.source, *bucket.args)
    worker = forebay.pids(first)["worker"]
    assert forebay.pids(second)["worker"] == worker
    assert len([c for c in forebay.processes().values() if "cacheruntime.worker" in c]) == 1
    forebay.umount(first)
    assert alive(worker)
    assert (second / "file").read_bytes() == b"of the bucket"
    forebay.umount(second)
    assert not alive(worker)
    assert forebay.leftovers() == []


@pytest.mark.soak
def test_one_source_mounted_twice_is_fetched_once(forebay: Forebay, bucket: Any) -> None:
    bucket.put("file", DATA)
    first, second = (forebay.mount(bucket.source, *bucket.args) for _ in range(2))
    assert (first / "file").read_bytes() == DATA
    assert (second / "file").read_bytes() == DATA
    row = forebay.dataset(second)
    assert row["cached_bytes"] == SIZE
    forebay.umount(first)
    assert (second / "file").read_bytes() == DATA
    forebay.umount(second)


def test_mounts_started_at_once(forebay: Forebay, folder: Any) -> None:
    """Four at a time: one worker, four mounts."""
    folder.put("file", b"content")
    points = [forebay.mount_point() for _ in range(4)]
    started = [forebay.start("mount", folder.source, point) for point in points]
    for process in started:
        _, err = process.communicate(timeout=60)
        assert err == ""
        assert process.returncode == 0
    assert all((point / "file").read_bytes() == b"content" for point in points)
    assert len([c for c in forebay.processes().values() if "cacheruntime.worker" in c]) == 1


@pytest.mark.soak
def test_interrupted_mount_leaves_nothing(forebay: Forebay, bucket: Any) -> None:
    """Ctrl-C while the first contact with the source is held up."""
    bucket.put("file", b"content")
    mount = forebay.mount_point()
    bucket.link.hold_after(0)
    process = forebay.start("mount", bucket.source, mount, *bucket.args)
    bucket.link.wait_held()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (1, 130), err
    assert "Traceback" not in err
    assert not mounts_below(mount)
    bucket.link.release()
    wait_until(lambda: not forebay.processes(), "all ended", 25)
    assert forebay.leftovers() == []


@pytest.mark.sides("kernel", soak="engines")
def test_a_reader_that_is_killed_in_a_read(forebay: Forebay, bucket: Any, side: Any) -> None:
    """A process that waits for bytes can be ended, and others go on."""
    bucket.put("file", DATA)
    mount = forebay.mount(bucket.source, *bucket.args, *side.args)
    bucket.link.hold_after(MIB)
    reading = forebay.start_reading([{"jobs": [["read", str(mount / "file")]], "seed": n} for n in range(2)])
    bucket.link.wait_held()
    victim = reading.processes[0]
    victim.kill()
    victim.wait(10)
    bucket.link.release()
    reading.processes = reading.processes[1:]
    assert [result.get("sha256") for result in reading.results()] == [SHA]
    for stream in (victim.stdout, victim.stderr):
        assert stream is not None
        stream.close()


@pytest.mark.soak
def test_soak_everything_is_killed_again_and_again(forebay: Forebay, bucket: Any) -> None:
    """A minute of reading by eight, while worker and handler are killed by turns."""
    names = {f"{n}": payload(n, 10 * MIB + n) for n in range(12)}
    for name, data in names.items():
        bucket.put(name, data)
    mount = forebay.mount(bucket.source, *bucket.args)
    reading = forebay.start_reading(
        [{"jobs": [[how, str(mount / n)] for n in names], "seed": s, "rounds": 60}
         for s, how in enumerate(("read", "pread", "mmap", "sendfile", "direct") * 2)]
    )  # fmt: skip
    # For a minute, not until all have ended: nobody takes their words off them before, and a pipe holds 64 KiB.
    until = time.monotonic() + 60
    while time.monotonic() < until and any(p.poll() is None for p in reading.processes):
        time.sleep(0.7)
        for pid, command in forebay.processes().items():
            if "handler" in command or ("cacheruntime.worker" in command and time.monotonic() % 3 < 1):
                os.kill(pid, signal.SIGKILL)
    wrong = [
        r for r in reading.results(900)
        if r.get("sha256") != hashlib.sha256(names[Path(r["path"]).name]).hexdigest()
    ]  # fmt: skip
    assert not wrong, wrong[:3]


def test_mount_while_a_warmup_of_the_source_runs(forebay: Forebay, bucket: Any) -> None:
    """The mount's new snapshot takes nothing from the warm-up that reads the old one."""
    for number in range(12):
        bucket.put(f"{number:02d}", payload(number, 2 * MIB))
    bucket.link.hold_after(3 * MIB)
    warmup = forebay.start("warmup", bucket.source, *bucket.args, "--jobs", "2", "--json")
    bucket.link.wait_held()
    bucket.link.let_others_pass(64 << 10)  # the listing that the mount needs
    mount = forebay.mount_point()
    mounting = forebay.start("mount", bucket.source, mount, *bucket.args)
    wait_until(lambda: mounts_below(mount) or mounting.poll() is not None, "mounted, or given up")
    bucket.link.release()
    _, err = mounting.communicate(timeout=30)
    assert err == ""
    _, err = warmup.communicate(timeout=30)
    assert (warmup.returncode, err) == (0, "")
    assert (mount / "11").read_bytes() == payload(11, 2 * MIB)
    forebay.umount(mount)


def test_regression_a_worker_serves_though_who_started_it_was_killed(forebay: Forebay) -> None:
    """It ended when it could not say that it was ready."""
    config = CacheConfig(forebay.cache_dir, (default_tier(forebay.root),), forebay.runtime_dir)
    with subprocess.Popen(
        [sys.executable, "-m", "forebay.cacheruntime.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=forebay.environ, cwd="/", start_new_session=True,
    ) as worker:  # fmt: skip
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdout.close()
        worker.stdin.write(config.to_json().encode())
        worker.stdin.close()
        wait_until(config.fill_socket_path.exists, "its socket")
        time.sleep(0.5)
        client = WorkerClient(config)
        assert client.call("Status", pb.StatusRequest()).pid == worker.pid
        client.call("Retire", pb.RetireRequest())
        client.close()
        assert worker.wait(20) == 0
