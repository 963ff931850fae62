"""Directories that are read at random: the rest of them comes behind the readers, within bounds."""

import random
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay, wait_until
from source_tree import payload

from forebay.cacheruntime.client import WorkerClient
from forebay.cacheruntime.config import CacheConfig
from forebay.proto import worker_pb2 as pb

pytestmark = [pytest.mark.slow]

COUNT = 120


def _put(source: Any) -> dict[str, bytes]:
    contents = {f"{n:04}.jpg": payload(f"{n}", 20_000 + 37 * n) for n in range(COUNT)}
    for name, data in contents.items():
        source.put(f"images/{name}", data)
    return contents


def _gets(forebay: Forebay) -> int:
    config = CacheConfig(forebay.cache_dir, (), forebay.runtime_dir)
    client = WorkerClient(config)
    try:
        (dataset,) = client.call("Status", pb.StatusRequest()).datasets
        return int(dataset.gets)
    finally:
        client.close()


def _read(mount: Path, contents: dict[str, bytes], names: list[str]) -> None:
    for name in names:
        assert (mount / "images" / name).read_bytes() == contents[name]


@pytest.mark.semantics("P4")
@pytest.mark.parametrize("engine", ["kernel", "pyfuse3"])
def test_a_directory_read_at_random_is_fetched_whole(forebay: Forebay, bucket: Any, engine: str) -> None:
    contents = _put(bucket)
    mount = forebay.mount(bucket.source, *bucket.args, "--engine", engine)
    names = random.Random(3).sample(sorted(contents), COUNT)
    half = COUNT // 2
    _read(mount, contents, names[:half])
    wait_until(lambda: forebay.dataset(mount)["cached_files"] == COUNT, "the rest of the directory", 20)
    _read(mount, contents, names[half:])
    row = forebay.dataset(mount)
    assert _gets(forebay) == COUNT, "nothing is fetched twice"
    assert row["amplification"] == 1, "each byte that was asked for and missing was asked of the worker once"
    assert row["counters"]["errors"] == 0
    forebay.umount(mount)


@pytest.mark.semantics("P4")
def test_a_few_files_bring_a_few_more(forebay: Forebay, folder: Any) -> None:
    contents = _put(folder)
    mount = forebay.mount(folder.source)
    names = random.Random(4).sample(sorted(contents), 12)
    _read(mount, contents, names[:3])
    assert forebay.dataset(mount)["cached_files"] == 3
    _read(mount, contents, names[3:])
    # 8 to begin with, one for each further file, four for each that was foreseen; one handler.
    assert forebay.dataset(mount)["cached_files"] <= 12 + 8 + 5 * 9
    forebay.umount(mount)


def test_a_tier_without_room_ends_it(forebay: Forebay, folder: Any, tmp_path: Path) -> None:
    contents = _put(folder)
    mount = forebay.mount(folder.source, "--tier", f"SSD:{tmp_path / 'tier'}:1MiB")
    _read(mount, contents, random.Random(5).sample(sorted(contents), COUNT))
    row = forebay.dataset(mount)
    assert row["counters"]["errors"] == 0
    # Each file is read once, and what was fetched ahead for nothing is little.
    assert _gets(forebay) <= COUNT * 1.2
    forebay.umount(mount)
