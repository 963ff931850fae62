"""The register of mounts."""

import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from forebay.cacheruntime import mounts
from forebay.cacheruntime.mounts import MountState, mount_folder, mount_id, start_time


def state(**changes: object) -> MountState:
    made = MountState(
        dir="/mnt/é",
        source="s3://b",
        url="s3://b",
        dataset_id="00" * 8,
        snapshot=3,
        catalogue="/c",
        cache_dir="/cache",
        engine="kernel",
        open_mode="cached",
        open_mode_reason="asked for",
        supervisor=os.getpid(),
        supervisor_start=start_time(os.getpid()) or 0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def register(runtime: Path, made: MountState) -> Path:
    folder = mount_folder(runtime, made.dir)
    folder.mkdir(parents=True)
    mounts.write_state(folder, made)
    return folder


def test_round_trip(tmp_path: Path) -> None:
    made = state(note="why", handlers=(4, 5))
    folder = register(tmp_path, made)
    assert mounts.read_state(folder) == made
    assert [p.name for p in folder.iterdir()] == ["state.json"]


def test_ids() -> None:
    assert mount_id("/a") != mount_id("/a/")
    assert len(mount_id("/\udcff" * 2000)) == 16


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"handlers": 3}', '{"handlers": [], "unknown": 1}'])
def test_state_that_is_none(tmp_path: Path, text: str) -> None:
    assert mounts.read_state(tmp_path) is None
    (tmp_path / "state.json").write_text(text)
    assert mounts.read_state(tmp_path) is None


def test_registered_and_live(tmp_path: Path) -> None:
    assert list(mounts.registered(tmp_path)) == []
    running = state()
    gone = state(dir="/b", supervisor_start=running.supervisor_start + 1)
    for made in (running, gone):
        register(tmp_path, made)
    (tmp_path / "mounts" / "half").mkdir()
    assert {s.dir for _, s in mounts.registered(tmp_path)} == {"/mnt/é", "/b"}
    assert [s for _, s in mounts.live(tmp_path)] == [running]
    assert set(asdict(running)) == set(MountState.__dataclass_fields__)


def test_start_time() -> None:
    mine = start_time(os.getpid())
    assert mine is not None
    assert mine == start_time(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as other:
        started = start_time(other.pid)
        assert started is not None
        assert started >= mine
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert start_time(other.pid) is None, "a zombie is gone"
    assert start_time(other.pid) is None
    assert start_time(0) is None


@pytest.fixture
def comm() -> "object":
    path = Path("/proc/self/comm")
    before = path.read_bytes()
    yield path
    path.write_bytes(before.strip())


def test_start_time_of_an_odd_name(comm: Path) -> None:
    expected = start_time(os.getpid())
    comm.write_bytes(b"a) R (b c)")
    assert start_time(os.getpid()) == expected


def test_regression_start_time_of_a_name_that_is_not_utf8(comm: Path) -> None:
    expected = start_time(os.getpid())
    comm.write_bytes(b"\xff")
    assert start_time(os.getpid()) == expected
