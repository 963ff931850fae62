"""Tiers that are too small or full: no read fails, no quota is exceeded, and it is said."""

import hashlib
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay
from fuse_mounts import detach
from source_tree import MIB, payload

pytestmark = [pytest.mark.slow]

CONTENTS = {f"large{n}": payload(n, 3 * MIB + n) for n in range(6)} | {
    f"small{n:02d}": payload(n, 100_000 + n) for n in range(40)
}
TOTAL = sum(map(len, CONTENTS.values()))
HOWS = ("read", "pread", "mmap", "sendfile", "direct")


def _held(folder: Path) -> int:
    """What the data in a tier occupies, in bytes; the last page of each file may be partly used."""
    found = 0
    for path in (*folder.glob("files/*/*"), *folder.glob("packs/*")):
        with suppress(FileNotFoundError):
            found += max(path.stat().st_blocks * 512 - 4096, 0)
    return found


class Gauge:
    """Watches how much a tier holds, while something goes on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self.most = 0
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.most = max(self.most, _held(self._folder))

    def __enter__(self) -> "Gauge":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.most = max(self.most, _held(self._folder))


def _read_all(forebay: Forebay, mount: Path, readers: int = 4) -> None:
    tasks = [
        {"jobs": [[HOWS[(reader + n) % 5], str(mount / name)] for n, name in enumerate(CONTENTS)], "seed": reader}
        for reader in range(readers)
    ]
    results = forebay.read(tasks)
    wrong = [r for r in results if r.get("sha256") != hashlib.sha256(CONTENTS[Path(r["path"]).name]).hexdigest()]
    assert not wrong, f"{len(wrong)} of {len(results)} wrong, such as {wrong[:3]}"


def _put_all(origin: Any) -> None:
    for name, data in CONTENTS.items():
        origin.put(name, data)


@pytest.mark.sides("kernel", soak="engines")
@pytest.mark.semantics("D3")
def test_quota_below_the_data(forebay: Forebay, folder: Any, side: Any) -> None:
    _put_all(folder)
    tier, quota = forebay.root / "tier", 8 * MIB
    assert quota < TOTAL / 2
    mount = forebay.mount(folder.source, "--tier", f"SSD:{tier}:8MiB", *side.args)
    with Gauge(tier) as gauge:
        _read_all(forebay, mount)
        done = forebay.run("warmup", mount, code=1)
        _read_all(forebay, mount)
    assert gauge.most <= quota
    assert "found no room" in done.out
    assert "Traceback" not in done.err
    status = forebay.status()
    (shown,) = status["tiers"]
    assert quota / 2 < shown["used_bytes"] <= shown["quota_bytes"] == quota
    assert status["datasets"][0]["counters"]["errors"] == 0
    assert status["datasets"][0]["cached_bytes"] == shown["used_bytes"]
    forebay.umount(mount)


def test_two_tiers_take_what_one_cannot(forebay: Forebay, folder: Any) -> None:
    _put_all(folder)
    first, second = forebay.root / "first", forebay.root / "second"
    tiers = ("--tier", f"MEM:{first}:8MiB", "--tier", f"SSD:{second}:100MiB")
    mount = forebay.mount(folder.source, *tiers)
    with Gauge(first) as gauge:
        _read_all(forebay, mount)
        forebay.run("warmup", mount)
    assert gauge.most <= 8 * MIB
    held = {tier["path"]: tier["used_bytes"] for tier in forebay.status()["tiers"]}
    assert sum(held.values()) == TOTAL
    assert held[str(first)] > 3 * MIB
    assert {os.getxattr(mount / name, "user.forebay.tier").decode() for name in CONTENTS} == {
        f"MEM:{first}", f"SSD:{second}"
    }  # fmt: skip
    forebay.umount(mount)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk], check=True)
    yield disk
    detach(str(disk))


def _fill_up(disk: Path) -> None:
    with suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(64 << 10))
    with suppress(OSError), open(disk / "filler", "ab", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@pytest.mark.soak
def test_disk_below_the_quota(forebay: Forebay, folder: Any, small_disk: Path) -> None:
    """The data has more than the disk, which the quota does not know."""
    _put_all(folder)
    mount = forebay.mount(folder.source, "--tier", f"SSD:{small_disk}/tier:1GiB")
    _read_all(forebay, mount)
    stats = os.statvfs(small_disk)
    assert stats.f_bavail > 0, "the reserve is used up"
    assert forebay.dataset(mount)["counters"]["errors"] == 0
    forebay.umount(mount)


@pytest.mark.sides("kernel", soak="engines")
@pytest.mark.semantics("D4")
def test_disk_filled_by_others_in_the_middle_of_a_fetch(
    forebay: Forebay, bucket: Any, small_disk: Path, side: Any
) -> None:
    """The worker has reserved room, and then the write fails with ENOSPC: the readers get their bytes all the same."""
    forebay.expect_log("No space left|full")
    _put_all(bucket)
    mount = forebay.mount(bucket.source, *bucket.args, "--tier", f"SSD:{small_disk}/tier:1GiB", *side.args)
    bucket.link.hold_after(MIB)
    names = [name for name in CONTENTS if "large" in name]
    reading = forebay.start_reading([{"jobs": [["read", str(mount / name)] for name in names]} for _ in range(2)])
    bucket.link.wait_held()
    _fill_up(small_disk)
    bucket.link.release()
    for result in reading.results():
        assert result.get("sha256") == hashlib.sha256(CONTENTS[Path(result["path"]).name]).hexdigest(), result
    _read_all(forebay, mount, 2)
    assert forebay.run("warmup", mount, code=1).out.count("found no room") == 1
    counters = forebay.dataset(mount)["counters"]
    assert counters["errors"] == 0
    (small_disk / "filler").unlink()
    _read_all(forebay, mount, 2)
    forebay.umount(mount)


@pytest.mark.soak
@pytest.mark.sides("kernel", soak="engines")
def test_tier_removed_under_the_worker(forebay: Forebay, folder: Any, side: Any) -> None:
    """Somebody empties the tier's folder: what was there comes again from the source."""
    forebay.expect_log("tier|removed|No such file")
    _put_all(folder)
    tier = forebay.root / "tier"
    mount = forebay.mount(folder.source, "--tier", f"SSD:{tier}:100MiB", *side.args)
    forebay.run("warmup", mount)
    forebay.umount(mount)
    subprocess.run(["rm", "-rf", tier], check=True)
    forebay.mount(folder.source, "--tier", f"SSD:{tier}:100MiB", *side.args, at=mount)
    _read_all(forebay, mount, 2)
    forebay.umount(mount)


def test_regression_tier_file_removed_under_a_sequential_reader(forebay: Forebay, folder: Any) -> None:
    """What was fetched ahead was looked for in the index again and again, which did not know that it was gone: EIO."""
    forebay.expect_log("was removed from outside")
    data = payload("sequence", 32 * MIB)
    folder.put("file", data)
    mount = forebay.mount(folder.source, "--open-mode", "cached")
    descriptor = os.open(mount / "file", os.O_RDONLY | os.O_DIRECT)
    try:
        for step in range(24):
            with mmap.mmap(-1, MIB) as buffer:
                assert os.preadv(descriptor, [buffer], step * MIB) == MIB
                assert buffer[:] == data[step * MIB : (step + 1) * MIB]
            if step >= 8 and not step % 4:
                time.sleep(0.1)  # what was asked for ahead is there
                for path in (forebay.cache_dir / "tier" / "files").glob("*/*"):
                    path.unlink()
    finally:
        os.close(descriptor)
    forebay.umount(mount)
