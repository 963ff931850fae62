"""Tiers: room, the pause after a full disk, and folders that cannot be used."""

import errno
import os
from pathlib import Path

import pytest

from forebay.cacheruntime.config import GIB, MIB, Medium, TierConfig
from forebay.cacheruntime.errors import TierUnusable
from forebay.cacheruntime.index import PackNumber, TierNumber
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.tiers import check_writable, file_path, open_folder, pack_path
from forebay.cacheruntime.worker.tier import FULL_PAUSE_S, Tier


def config(path: Path, quota: int = 10 * MIB) -> TierConfig:
    return TierConfig(Medium.SSD, path, quota)


def test_paths() -> None:
    content = ContentId(bytes.fromhex("ab" * 15 + "cd"))
    assert file_path(Path("/t"), content) == Path("/t/files/ab/" + "ab" * 15 + "cd")
    assert pack_path(Path("/t"), PackNumber(31)) == Path("/t/packs/0000001f")


def test_room_is_what_the_quota_leaves(tmp_path: Path) -> None:
    tier = Tier(config(tmp_path), TierNumber(1), b"u", 4 * MIB, 0.0)
    assert tier.room_bytes() == 6 * MIB
    tier.take(6 * MIB)
    assert tier.room_bytes() == 0
    tier.take(1)
    assert tier.room_bytes() == 0
    tier.give_back(MIB + 1)
    assert tier.room_bytes() == MIB
    assert tier.state == "normal"


def test_reserve_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [1000]

    def statvfs(path: object) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 10_000, free[0], free[0], 9, 9, 9, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    tier = Tier(config(tmp_path, GIB), TierNumber(1), b"u", 0, 0.05)
    assert tier.room_bytes() == 500 * 4096
    free[0] = 500
    assert (tier.room_bytes(), tier.state) == (0, "full")


def test_no_inodes_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for files, left, room in ((100, 0, 0), (0, 0, 10 * MIB), (100, 1, 10 * MIB)):
        stats = os.statvfs_result((4096, 4096, 99_999, 99_999, 99_999, files, left, left, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda path, stats=stats: stats)
        assert Tier(config(tmp_path), TierNumber(1), b"u", 0, 0.0).room_bytes() == room


def test_pause_after_a_full_disk(tmp_path: Path) -> None:
    now = [100.0]
    tier = Tier(config(tmp_path), TierNumber(1), b"u", 0, 0.0, clock=lambda: now[0])
    tier.failed(OSError(errno.ENOSPC, "full"))
    assert (tier.room_bytes(), tier.state) == (0, "full")
    now[0] += FULL_PAUSE_S - 0.1
    assert tier.room_bytes() == 0
    now[0] += 0.2
    assert (tier.room_bytes(), tier.state) == (10 * MIB, "normal")


def test_no_pause_in_the_first_seconds_after_boot(tmp_path: Path) -> None:
    tier = Tier(config(tmp_path), TierNumber(1), b"u", 0, 0.0, clock=lambda: 1.0)
    assert tier.state == "normal"


def test_folder_gone_is_no_room(tmp_path: Path) -> None:
    assert Tier(config(tmp_path / "none"), TierNumber(1), b"u", 0, 0.0).room_bytes() == 0


def test_open_folder_keeps_its_uuid(tmp_path: Path) -> None:
    first = open_folder(config(tmp_path / "t"), tmp_path / "cache")
    assert open_folder(config(tmp_path / "t"), tmp_path / "cache") == first
    assert len(first) == 16
    assert sorted(os.listdir(tmp_path / "t")) == ["departed", "files", "forebay-tier", "packs"]
    assert open_folder(config(tmp_path / "u"), tmp_path / "cache") != first


def test_open_folder_of_another_cache(tmp_path: Path) -> None:
    open_folder(config(tmp_path / "t"), tmp_path / "cache")
    with pytest.raises(TierUnusable, match=r"belongs to the cache in .*/cache; give each"):
        open_folder(config(tmp_path / "t"), tmp_path / "other")


@pytest.mark.parametrize("text", ["", "abc", "x" * 32, "a" * 32 + "\nb\nc\n"])
def test_damaged_marker(tmp_path: Path, text: str) -> None:
    (tmp_path / "forebay-tier").write_text(text)
    with pytest.raises(TierUnusable, match="is damaged; empty the folder"):
        open_folder(config(tmp_path), tmp_path / "cache")


def test_folder_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for use in (lambda c: open_folder(c, tmp_path), check_writable):
        with pytest.raises(TierUnusable, match="is a file, not a folder"):
            use(config(tmp_path / "file" / "t"))


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    check_writable(config(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []
