"""Whatever somebody does to the files of a cache under live mounts: readers get the source's bytes, and no error."""

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay, alive, wait_until
from source_tree import MIB, payload

from forebay.cacheruntime.worker.ledger import sync_file_system

pytestmark = [pytest.mark.slow]

CONTENTS = {f"large{n}": payload(n, 2 * MIB + n) for n in range(3)} | {
    f"small{n:02d}": payload(n, 100_000 + n) for n in range(12)
}
HOWS = ("read", "pread", "mmap", "sendfile", "direct")


def _read_all(forebay: Forebay, mount: Path, how: str) -> None:
    _forget_pages(mount)
    results = forebay.read([{"jobs": [[how, str(mount / name)] for name in CONTENTS], "seed": 1}])
    wrong = [r for r in results if r.get("sha256") != hashlib.sha256(CONTENTS[Path(r["path"]).name]).hexdigest()]
    assert not wrong, f"{len(wrong)} of {len(results)} wrong, such as {wrong[:3]}"


def _forget_pages(mount: Path) -> None:
    """Have the kernel forget what it has of these files, so that the next read goes to the cache's files."""
    program = (
        "import os, sys\n"
        "for name in os.listdir(sys.argv[1]):\n"
        "    found = os.open(os.path.join(sys.argv[1], name), os.O_RDONLY)\n"
        "    os.posix_fadvise(found, 0, 0, os.POSIX_FADV_DONTNEED)\n"
        "    os.close(found)\n"
    )
    subprocess.run(["python3", "-c", program, str(mount)], check=True, timeout=30)


def _cache_files(tier: Path) -> list[Path]:
    return [path for path in (*tier.glob("files/*/*"), *tier.glob("packs/*")) if path.stat().st_size]


def _flip(tier: Path) -> None:
    chance = random.Random(1)
    for path in _cache_files(tier):
        with path.open("r+b") as opened:
            for _ in range(30):
                at = chance.randrange(path.stat().st_size)
                opened.seek(at)
                byte = opened.read(1)
                opened.seek(at)
                opened.write(bytes([byte[0] ^ 1 << chance.randrange(8)]))


def _truncate(tier: Path) -> None:
    for path in _cache_files(tier):
        os.truncate(path, path.stat().st_size // 2)


def _swap(tier: Path) -> None:
    files = sorted(tier.glob("files/*/*"))
    draft = tier / "draft"
    files[0].rename(draft)
    files[1].rename(files[0])
    draft.rename(files[1])


def _remove(tier: Path) -> None:
    for path in _cache_files(tier):
        path.unlink()


def _give_away(tier: Path) -> None:
    for path in _cache_files(tier):
        os.chown(path, 65534, 65534)


@pytest.mark.sides("modes")
@pytest.mark.parametrize("tamper", [_flip, _truncate, _swap, _remove, _give_away])
@pytest.mark.semantics("I1")
def test_tampered(forebay: Forebay, folder: Any, side: Any, tamper: Callable[[Path], None]) -> None:
    forebay.expect_log("damaged|removed from outside|takes no data|changed by somebody else")
    for name, data in CONTENTS.items():
        folder.put(name, data)
    tier = forebay.root / "tier"
    mount = forebay.mount(folder.source, "--tier", f"SSD:{tier}:1GiB", *side.args)
    forebay.run("warmup", mount)
    for how in HOWS[:2]:
        _read_all(forebay, mount, how)
    wait_until(lambda: forebay.run("check", code=None).code == 0, "everything has its seal")
    tamper(tier)
    found = forebay.run("check", "--deep", "--json", code=1).json()
    assert found["findings"]
    for how in HOWS:
        _read_all(forebay, mount, how)
    forebay.run("check", "--repair")
    forebay.run("check", "--deep")
    _read_all(forebay, mount, "read")


@pytest.mark.sides("kernel")
def test_index_damaged(forebay: Forebay, folder: Any, side: Any) -> None:
    forebay.expect_log("the cache index is not to be believed")
    for name, data in CONTENTS.items():
        folder.put(name, data)
    tier = forebay.root / "tier"
    args = ("--tier", f"SSD:{tier}:1GiB", *side.args)
    mount = forebay.mount(folder.source, *args)
    forebay.run("warmup", mount)
    forebay.umount(mount)
    index = next(forebay.root.rglob("index/data.mdb"))
    wait_until(lambda: (index.parent.parent / "index.seal").exists(), "the worker has stopped")
    chance = random.Random(2)
    with index.open("r+b") as opened:
        for _ in range(200):
            opened.seek(chance.randrange(8192, index.stat().st_size))
            opened.write(bytes([chance.randrange(256)]))
    mount = forebay.mount(folder.source, *args)
    for how in HOWS:
        _read_all(forebay, mount, how)
    forebay.run("check", "--repair")
    forebay.run("check", "--deep")


@pytest.mark.sides("modes")
def test_index_removed_under_a_live_mount(forebay: Forebay, folder: Any, side: Any) -> None:
    """The worker goes on from its last checkpoint, and so do the mount and a program that had the index open."""
    forebay.expect_log("the cache index is not to be believed")
    for name, data in CONTENTS.items():
        folder.put(name, data)
    mount = forebay.mount(folder.source, *side.args)
    _read_all(forebay, mount, "read")
    worker = forebay.pids(mount)["worker"]
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not alive(worker), "the worker is gone")
    shutil.rmtree(next(forebay.root.rglob("index/data.mdb")).parent)
    forebay.run("warmup", mount)
    worker = forebay.pids(mount)["worker"]
    os.kill(worker, signal.SIGSTOP)
    try:
        for how in HOWS:
            _read_all(forebay, mount, how)
    finally:
        os.kill(worker, signal.SIGCONT)


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An ext4 on a loop device, and the file behind it: cut that off, and reading fails with EIO."""
    if not all(shutil.which(tool) for tool in ("mkfs.ext4", "losetup")):
        pytest.skip("needs the tools of ext4 and loop devices")
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    image.touch()
    os.truncate(image, 64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", str(image)], check=True, timeout=60)
    if subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=False, timeout=60).returncode:
        pytest.skip("loop devices cannot be mounted here")
    yield image, folder
    subprocess.run(["umount", "-l", str(folder)], check=False, timeout=60)


@pytest.mark.sides("modes")
@pytest.mark.semantics("D4")
def test_bad_disk(forebay: Forebay, folder: Any, side: Any, failing_disk: tuple[Path, Path]) -> None:
    forebay.expect_log(".")
    image, disk = failing_disk
    for name, data in CONTENTS.items():
        folder.put(name, data)
    mount = forebay.mount(folder.source, "--tier", f"SSD:{disk}/tier:40MiB", *side.args)
    forebay.run("warmup", mount)
    sync_file_system(disk)  # not sync(2), which waits for every disk and mount of the machine
    # From here on ext4 writes nothing more: that would make the file as long as it was, with zeros for data.
    subprocess.run(["mount", "-o", "remount,abort", str(disk)], check=False, timeout=60)
    os.truncate(image, 1 << 20)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    worker = forebay.pids(mount)["worker"]
    for how in HOWS if side.open_mode != "passthrough" else HOWS[:1]:
        try:
            _read_all(forebay, mount, how)
        except AssertionError as error:
            # A file that was passed through already is the kernel's.
            if side.open_mode != "passthrough" or str(errno.EIO) not in str(error):
                raise
    os.kill(worker, signal.SIGCONT)
