"""`forebay simulate` on what a mount's readers did, and on what a mount holds."""

import random
import signal
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay, wait_until

pytestmark = [pytest.mark.slow]


def _ratios(found: Any) -> dict[str, float]:
    return {cell["policy"]: cell["hit_ratio"] for cell in found["cells"]}


@pytest.mark.parametrize("open_mode", ["passthrough", "no-open"])
def test_a_recording_is_a_trace(forebay: Forebay, folder: Any, tmp_path: Path, open_mode: str) -> None:
    sizes = {f"file{n:02}": 5000 + n for n in range(20)}
    for name, size in sizes.items():
        folder.put(name, random.Random(size).randbytes(size))
    mount = forebay.mount(folder.source, "--open-mode", open_mode)
    recording = tmp_path / "recording"
    process = forebay.start("debug", "record", mount, recording)
    wait_until(lambda: list(recording.glob("*.fuse")), "it records")
    for name in sizes:
        assert len((mount / name).read_bytes()) == sizes[name]
    if open_mode == "passthrough":  # where a file is opened each time; with no-open it is in the page cache by now
        for name in sizes:
            (mount / name).read_bytes()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    args = ("simulate", recording, "--cache", "50%", "--policy", "epoch", "--policy", "lru", "--json")
    found = forebay.run(*args, "--mount", mount).json()
    assert "page cache" in found["note"]
    # Without --mount a size is what was read, in pages; a file that was put into the page cache ahead has no READ.
    by_pages = forebay.run(*args, "--item-size", "8KiB").json()
    assert (by_pages["files"], by_pages["bytes"]) == (found["files"], found["files"] * 8192)
    if open_mode == "passthrough":
        assert (found["files"], found["bytes"], found["accesses"]) == (20, sum(sizes.values()), 40)
        assert _ratios(found) == {"epoch": pytest.approx(0.25, abs=0.03), "lru": 0.0}
    else:
        assert 0 < found["files"] == found["accesses"] <= 20
        assert found["bytes"] == pytest.approx(5010 * found["files"], abs=200)
    # A mount is a distribution of sizes.
    whole = forebay.run("simulate", mount, "--cache", "50%", "--policy", "epoch", "--json").json()
    assert (whole["files"], whole["bytes"], whole["epochs"]) == (20, sum(sizes.values()), 4)
    assert forebay.run("simulate", recording, "--mount", tmp_path, code=1).err.startswith(f"forebay: {tmp_path} is not")
    forebay.umount(mount)


def test_a_recording_without_reads(forebay: Forebay, folder: Any, tmp_path: Path) -> None:
    folder.put("file", b"content")
    mount = forebay.mount(folder.source)
    recording = tmp_path / "recording"
    process = forebay.start("debug", "record", mount, recording)
    wait_until(lambda: list(recording.glob("*.fuse")), "it records")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert "no file is read in the recording" in forebay.run("simulate", recording, code=2).err
    forebay.umount(mount)
