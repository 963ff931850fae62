"""`forebay warmup` and `forebay jobs` as a user has them: lists, limits, the background, workers that are killed."""

import json
import os
import signal
import time
from typing import Any

import pytest
from forebay_command import Forebay, wait_until
from source_tree import MIB, payload

pytestmark = [pytest.mark.slow]

SECRET = "SKTEST-very-secret"


def _fill(bucket: Any, count: int, size: int = 200_000) -> None:
    for number in range(count):
        bucket.put(f"d{number % 3}/{number:02d}", payload(number, size))


def _row(forebay: Forebay, number: int) -> Any:
    return forebay.run("jobs", str(number), "--json").json()


def _wait_state(forebay: Forebay, number: int, state: str) -> Any:
    return wait_until(lambda: (row := _row(forebay, number))["state"] == state and row, f"job {number} is {state}")


@pytest.mark.semantics("W1")
def test_background_cancel_and_resume(forebay: Forebay, bucket: Any) -> None:
    _fill(bucket, 30)
    bucket.link.hold_after(2 * MIB)
    assert forebay.run("jobs").out.startswith("no job yet")
    started = forebay.run("warmup", bucket.source, *bucket.args, "--background", "--jobs", "2")
    assert started.out == "1\n"
    row = wait_until(lambda: (row := _row(forebay, 1))["files_done"] and row, "something is done")
    assert (row["state"], row["files_total"], row["background"]) == ("running", 30, True)
    assert forebay.run("jobs").out.count("running") == 1
    assert forebay.run("jobs", "cancel", "1").out == "job 1 is cancelled\n"
    assert _row(forebay, 1)["state"] == "cancelled"
    bucket.link.release()
    done = forebay.run("jobs", "resume", "1", *bucket.args)
    assert "30 of 30 files" in done.out
    row = _row(forebay, 1)
    assert (row["state"], row["files_done"], row["failures"], row["eta_s"]) == ("done", 30, [], 0.0)
    assert row["bytes_fetched"] < row["bytes_done"], "what was cached before is not fetched again"
    text = "".join(path.read_text() for path in (forebay.cache_dir / "jobs").iterdir())
    assert SECRET not in text


@pytest.mark.semantics("W1")
def test_a_killed_worker_takes_its_background_jobs_up_again(forebay: Forebay, bucket: Any) -> None:
    _fill(bucket, 30)
    mount = forebay.mount(bucket.source, *bucket.args)
    assert len(os.listdir(mount / "d0")) == 10
    wait_until(lambda: forebay.dataset(mount)["listing"] == "complete", "listed")
    bucket.link.hold_after(2 * MIB)
    forebay.run("warmup", mount, "--background", "--jobs", "2")
    wait_until(lambda: _row(forebay, 1)["files_done"], "something is done")
    os.kill(forebay.pids(mount)["worker"], signal.SIGKILL)
    assert _wait_state(forebay, 1, "interrupted")["error"] == "the cache worker ended"
    assert "forebay jobs resume 1" in forebay.run("jobs", "1").out
    bucket.link.release()
    # Whoever needs the dataset attaches it: a reader, here.
    assert (mount / "d2" / "29").read_bytes() == payload(29, 200_000)
    watched = forebay.run("jobs", "1", "--watch")
    assert "30 of 30 files" in watched.out
    forebay.umount(mount)


def test_a_warmup_goes_on_with_the_next_worker(forebay: Forebay, bucket: Any) -> None:
    _fill(bucket, 30)
    mount = forebay.mount(bucket.source, *bucket.args)
    wait_until(lambda: forebay.dataset(mount)["listing"] == "complete", "listed")
    bucket.link.hold_after(2 * MIB)
    warmup = forebay.start("warmup", bucket.source, *bucket.args, "--json", "--jobs", "2")
    bucket.link.wait_held()
    os.kill(forebay.pids(mount)["worker"], signal.SIGKILL)
    bucket.link.release()
    out, err = warmup.communicate(timeout=60)
    assert (warmup.returncode, err) == (0, "")
    last = json.loads(out.splitlines()[-1])
    assert (last["job"], last["state"], last["files_done"], last["failures"]) == (1, "done", 30, [])
    forebay.umount(mount)


def test_ctrl_c_interrupts_and_says_how_to_go_on(forebay: Forebay, bucket: Any) -> None:
    _fill(bucket, 12)
    bucket.link.hold_after(1 * MIB)
    warmup = forebay.start("warmup", bucket.source, *bucket.args, "--json", "--jobs", "2")
    bucket.link.wait_held()
    wait_until(lambda: (forebay.cache_dir / "jobs" / "1.json").exists(), "its record")
    assert warmup.stdout is not None
    warmup.stdout.readline()
    warmup.send_signal(signal.SIGINT)
    _, err = warmup.communicate(timeout=20)
    assert warmup.returncode == 130
    assert "forebay jobs resume 1" in err
    assert _wait_state(forebay, 1, "interrupted")["background"] is False
    bucket.link.release()  # not before: what is all there is done
    assert forebay.run("jobs", "resume", "1", *bucket.args, "--json").out.splitlines()[-1].count('"done"') == 1


@pytest.mark.semantics("W4")
def test_lists_patterns_rate_and_deadline(forebay: Forebay, folder: Any) -> None:
    for number in range(12):
        folder.put(f"d{number % 3}/{number:02d}.bin", payload(number, 200_000))
    mount = forebay.mount(folder.source)
    listed = forebay.root / "list"
    listed.write_text(f"d0/00.bin\n\n{mount}/d0/03.bin\nd0/gone.bin\n")
    done = forebay.run("warmup", mount, "--from", listed, "--json", code=1)
    last = json.loads(done.out.splitlines()[-1])
    assert (last["files_done"], last["files_failed"]) == (2, 1)
    assert last["failures"] == ["d0/gone.bin: not in snapshot 1"]
    assert "3 of 3 files" in forebay.run("warmup", mount, "--glob", "d1/0?.bin", "--verify").out
    began = time.monotonic()
    forebay.run("warmup", mount, "d2", "--rate", "400kB")
    assert time.monotonic() - began >= 1.4, "the last of 4 files of 200 kB is asked for after 1.5 s"
    late = forebay.run("warmup", mount, "--rate", "100kB", "--deadline", "1s", code=1)
    assert "the deadline of 1 s came first" in late.err
    assert "asked for" in forebay.run("jobs", "4").out
    forebay.umount(mount)


def test_wrong_words(forebay: Forebay, folder: Any) -> None:
    folder.put("a", b"1")
    for args, words in (
        (("warmup", folder.source, "--rate", "fast"), "size 'fast'"),
        (("warmup", folder.source, "--deadline", "soon"), "time 'soon'"),
        (("warmup", folder.source, "--tier", "TAPE"), "TAPE"),
        (("warmup", folder.source, "--from", forebay.root / "none"), "cannot be read"),
        (("warmup", folder.source, "--from", os.devnull), "there is no path in it"),
        (("warmup", folder.source, "../x"), "leaves the dataset"),
        (("jobs", "x"), "'x' is not the number of a job"),
        (("jobs", "7"), "there is no job 7"),
        (("jobs", "cancel"), "forebay jobs cancel 3"),
        (("jobs", "cancel", "7"), "there is no job 7"),
        (("jobs", "resume", "7"), "there is no job 7"),
    ):
        done = forebay.run(*args, code=2)
        assert words in done.err
        assert len(done.err.splitlines()) == 1
    assert "there is no 'gone'" in forebay.run("warmup", folder.source, "gone", code=1).err


@pytest.mark.semantics("W3")
def test_evict_and_pin(forebay: Forebay, folder: Any) -> None:
    contents = {f"d{number % 2}/{number}": payload(number, 300_000 + number) for number in range(6)}
    contents |= {f"big{number}": payload(number, 2 * MIB) for number in range(2)}
    for path, data in contents.items():
        folder.put(path, data)
    mount = forebay.mount(folder.source, "--open-mode", "cached")
    forebay.run("warmup", mount)
    whole = forebay.dataset(mount)["cached_bytes"]
    assert whole == sum(map(len, contents.values()))
    assert forebay.run("pin", mount / "d0").out == "pinned: d0\n"
    assert forebay.run("pin", folder.source, "big0", "--json").json() == {"pins": ["big0", "d0"]}
    assert forebay.run("info", mount / "d0" / "2", "--json").json()["pinned"] is True
    assert forebay.run("info", mount / "d1" / "1", "--json").json()["pinned"] is False
    with (mount / "big1").open("rb") as opened:
        done = forebay.run("evict", mount, "--json").json()
        assert opened.read() == contents["big1"], "what is open stays readable"
    pinned = sum(len(data) for path, data in contents.items() if path.startswith("d0/") or path == "big0")
    assert (done["files"], done["pinned"]) == (4, 4)
    assert done["bytes"] == whole - pinned
    again = forebay.run("evict", mount / "d0", "--pinned", "--json").json()
    assert (again["files"], again["pinned"]) == (3, 0)
    assert forebay.run("unpin", mount / "d0").out == "pinned: big0\n"
    assert "was not pinned" in forebay.run("unpin", mount / "d0", code=1).err
    assert forebay.run("unpin", mount, "--all").out == "nothing is pinned\n"
    assert forebay.run("evict", mount, "--glob", "big?", "--json").json()["files"] >= 1
    assert "there is no 'gone'" in forebay.run("evict", mount / "gone", code=1).err
    for path, data in contents.items():
        assert (mount / path).read_bytes() == data
    forebay.run("warmup", mount, "d1", "--pin")
    assert forebay.run("evict", mount / "d1", "--json").json() == {"files": 0, "bytes": 0, "pinned": 3}
    assert "--pin goes with paths" in forebay.run("warmup", mount, "--glob", "*", "--pin", code=2).err
    forebay.umount(mount)


def test_a_warmup_into_one_medium(forebay: Forebay, folder: Any) -> None:
    for number in range(4):
        folder.put(f"small{number}", payload(number, 50_000))
    folder.put("big", payload(9, 2 * MIB))
    tiers = [w for name in ("MEM", "SSD") for w in ("--tier", f"{name}:{forebay.root / name}:64MiB")]
    mount = forebay.mount(folder.source, *tiers)
    forebay.run("warmup", mount, "--tier", "SSD")
    held = {row["medium"]: row["bytes"] for row in forebay.dataset(mount)["tiers"]}
    assert held == {"SSD": 2 * MIB + 200_000}
    assert "no tier of medium HDD" in forebay.run("warmup", mount, "--tier", "HDD", code=2).err
    forebay.umount(mount)
