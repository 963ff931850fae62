"""Bytes are right: whatever the file, the source, the engine, the open mode and the way of reading."""

import hashlib
import mmap
import os
import random
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay
from source_tree import MIB, SourceTree, make_tree, payload

HOWS = ("read", "pread", "mmap", "sendfile", "direct")
READERS, WARM_READERS = 8, len(HOWS)

pytestmark = [pytest.mark.slow]


@dataclass(frozen=True)
class Tree:
    """A tree behind a source."""

    source: str
    args: tuple[str, ...]
    tree: SourceTree


def _upload(client: Any, bucket: str, root: Path, tree: SourceTree) -> None:
    client.create_bucket(Bucket=bucket)
    for path in tree.digests:
        with open(root / path, "rb") as body:
            client.put_object(Bucket=bucket, Key=f"tree/{path}", Body=body)


def _tree(kind: str, root: Path, client: Any, s3_options: tuple[str, ...], small: int, large: tuple[int, ...]) -> Tree:
    tree = make_tree(root, posix=kind == "file", small=small, large=large)
    if kind == "file":
        return Tree(f"file://{root}", (), tree)
    bucket = f"bytes-{root.parent.name}".lower().replace("_", "-")
    _upload(client, bucket, root, tree)
    return Tree(f"s3://{bucket}/tree", s3_options, tree)


@pytest.fixture(scope="module", params=["file", "s3"])
def tree(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    s3_client: Any,
    s3_options: tuple[str, ...],
) -> Tree:
    root = tmp_path_factory.mktemp(f"tree-{request.param}") / "root"
    return _tree(request.param, root, s3_client, s3_options, 290, (5 * MIB + 3, 40 * MIB + 4097))


def _tasks(mount: Path, tree: SourceTree, readers: int) -> list[dict[str, Any]]:
    """Each reader reads each file in another order and in another way; each file is read in every way."""
    tasks = []
    for reader in range(readers):
        paths = sorted(tree.digests)
        jobs = [[HOWS[(reader + number) % len(HOWS)], f"{mount}/{path}"] for number, path in enumerate(paths)]
        random.Random(reader).shuffle(jobs)
        tasks.append({"jobs": jobs, "seed": reader})
    return tasks


def _check(forebay: Forebay, mount: Path, tree: SourceTree, readers: int, timeout_s: float) -> None:
    results = forebay.read(_tasks(mount, tree, readers), timeout_s)
    wrong = []
    for result in results:
        path = os.path.relpath(result["path"], mount)
        if result.get("sha256") != tree.digests[path] or "error" in result:
            wrong.append(result)
    assert not wrong, f"{len(wrong)} of {len(results)} wrong, such as {wrong[:3]}"
    assert len(results) == readers * len(tree.digests)


def _names(mount: Path) -> tuple[set[str], set[str], dict[str, str]]:
    """Files, folders and links, by walking."""
    files, folders, links = set(), set(), {}
    for base, folder_names, file_names in os.walk(mount):
        for name in folder_names + file_names:
            full = os.path.join(base, name)
            path = os.path.relpath(full, mount)
            kind = stat.S_IFMT(os.lstat(full).st_mode)
            if kind == stat.S_IFLNK:
                links[path] = os.readlink(full)
            elif kind == stat.S_IFDIR:
                folders.add(path)
            else:
                files.add(path)
    return files, folders, links


def _check_all(forebay: Forebay, origin: Tree, side: Any, timeout_s: float) -> None:
    mount = forebay.mount(origin.source, *origin.args, *side.args)
    _check(forebay, mount, origin.tree, READERS, timeout_s)
    assert _names(mount) == (set(origin.tree.digests), origin.tree.folders, origin.tree.links)
    row = forebay.dataset(mount)
    assert row["cached_bytes"] == row["source_bytes"] == sum(origin.tree.sizes.values())
    assert row["source_files"] == len(origin.tree.digests)
    assert row["counters"]["errors"] == 0
    if side.engine == "kernel":  # what the page cache holds goes with the mount
        forebay.umount(mount)
        mount = forebay.mount(origin.source, *origin.args, *side.args, at=mount)
    _check(forebay, mount, origin.tree, WARM_READERS, timeout_s)
    counters = forebay.dataset(mount)["counters"]
    assert counters["errors"] == 0
    if side.engine == "kernel":
        assert counters["misses"] == 0, "something was cached and is lost"
    forebay.umount(mount)


@pytest.mark.sides("ways", soak="modes")
def test_every_file_every_way_cold_and_warm(
    forebay: Forebay, tree: Tree, side: Any, pytestconfig: pytest.Config
) -> None:
    """SHA-256 through the mount equals the source's, by 8 readers at once."""
    soak = "soak" in (pytestconfig.option.markexpr or "")
    if not soak and (side.engine == "pyfuse3") != bool(tree.args):
        pytest.skip("the source and the way of opening do not meet: all pairs are in the soak")
    _check_all(forebay, tree, side, 80)


@pytest.mark.soak
@pytest.mark.sides("modes")
@pytest.mark.parametrize("kind", ["file", "s3"])
def test_soak_5000_files(
    forebay: Forebay, tmp_path: Path, s3_client: Any, s3_options: tuple[str, ...], side: Any, kind: str
) -> None:
    """The same with 5,000 files of 0 bytes to 1 GiB."""
    large = (100 * MIB + 1, 300 * MIB + 4095, 1 << 30)
    origin = _tree(kind, tmp_path / "root", s3_client, s3_options, 4900, large)
    _check_all(forebay, origin, side, 1800)


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, bytes]:
    """A folder with one file of 24 MiB and a bit, and its bytes."""
    data = payload("large", 24 * MIB + 777)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "large.bin").write_bytes(data)
    return tmp_path / "source", data


@pytest.mark.semantics("L2", "L3")
def test_a_wholly_cached_large_file_is_passed_through(forebay: Forebay, large: tuple[Path, bytes]) -> None:
    """After a warm-up the kernel reads it by itself: the handler sees an open and no read."""
    source, data = large
    mount = forebay.mount(f"file://{source}", "--open-mode", "passthrough")
    forebay.run("warmup", mount)
    before = forebay.dataset(mount)["counters"]
    for how in HOWS:
        (result,) = forebay.read([{"jobs": [[how, str(mount / "large.bin")]]}])
        assert result["sha256"] == hashlib.sha256(data).hexdigest()
    after = forebay.dataset(mount)["counters"]
    assert after["passthrough_opens"] == before["passthrough_opens"] + len(HOWS)
    assert after["passthrough_granted_bytes"] == before["passthrough_granted_bytes"] + len(HOWS) * len(data)
    assert (after["hits"], after["misses"]) == (before["hits"], before["misses"])


def test_a_file_that_was_opened_cold_goes_on_when_it_is_whole(forebay: Forebay, large: tuple[Path, bytes]) -> None:
    """Opens of one inode never mix modes: the second open follows the first, and passthrough comes after both."""
    source, data = large
    mount = forebay.mount(f"file://{source}", "--open-mode", "passthrough")
    path = mount / "large.bin"
    first = os.open(path, os.O_RDONLY)
    try:
        assert os.pread(first, 10, 0) == data[:10]
        forebay.run("warmup", mount)
        second = os.open(path, os.O_RDONLY)
        try:
            assert os.pread(second, 1000, 20 * MIB) == data[20 * MIB : 20 * MIB + 1000]
            assert os.pread(first, 1000, 21 * MIB) == data[21 * MIB : 21 * MIB + 1000]
        finally:
            os.close(second)
    finally:
        os.close(first)
    assert forebay.dataset(mount)["counters"]["passthrough_opens"] == 0
    assert path.read_bytes() == data
    assert forebay.dataset(mount)["counters"]["passthrough_opens"] == 1


@pytest.mark.sides("engines", soak="modes")
def test_random_reads_of_a_cold_file(forebay: Forebay, large: tuple[Path, bytes], side: Any) -> None:
    """Reads at random offsets and of random sizes, also across the end, while most of the file is not there."""
    source, data = large
    mount = forebay.mount(f"file://{source}", *side.args)
    rng = random.Random(3)
    descriptor = os.open(mount / "large.bin", os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(150):
            offset = rng.randrange(len(data) + 5000)
            size = rng.choice((1, 511, 4096, 70_000, 300_000, 3 * MIB))
            assert os.pread(descriptor, size, offset) == data[offset : offset + size], (offset, size)
    finally:
        os.close(descriptor)


def test_auto_picks_a_mode_by_size(forebay: Forebay, large: tuple[Path, bytes], tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for number in range(20):
        (small / f"{number}").write_bytes(b"x" * 1000)
    first, second = forebay.mount(f"file://{large[0]}"), forebay.mount(f"file://{small}")
    modes = {row["dir"]: row["open_mode"] for row in forebay.run("mounts", "--json").json()}
    assert modes == {str(first): "passthrough", str(second): "no-open"}
    assert all((second / f"{number}").read_bytes() == b"x" * 1000 for number in range(20))


@pytest.mark.sides("modes")
def test_pieces_here_and_there(forebay: Forebay, folder: Any, side: Any) -> None:
    """Each of many files is read in a few places, by pread, mmap and O_DIRECT; then whole."""
    chance = random.Random(28)
    contents = {f"f{number:02}": payload(number, MIB + chance.choice([0, 1, 5000, MIB])) for number in range(40)}
    for name, data in contents.items():
        folder.put(name, data)
    mount = forebay.mount(folder.source, *side.args)
    for _ in range(3):
        for name in chance.sample(sorted(contents), len(contents)):
            data = contents[name]
            descriptor = os.open(mount / name, os.O_RDONLY | chance.choice([0, 0, os.O_DIRECT]))
            try:
                at = chance.randrange(len(data) // 4096) * 4096
                buffer = mmap.mmap(-1, chance.choice([4096, 128 << 10, 300 << 10]))
                got = os.preadv(descriptor, [buffer], at)
                assert buffer[:got] == data[at : at + len(buffer)]
            finally:
                os.close(descriptor)
    partial = [int(os.getxattr(mount / name, "user.forebay.cached").partition(b"/")[0]) for name in contents]
    assert sum(partial) < 0.9 * sum(map(len, contents.values()))
    forebay.run("check", "--deep", code=None)
    for name, data in contents.items():
        assert (mount / name).read_bytes() == data
    forebay.umount(mount)
