"""Settings: sizes, tiers, the way to another process, and folders by environment."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.config import (
    GIB,
    MIB,
    CacheConfig,
    FillConfig,
    Medium,
    RetryConfig,
    TierConfig,
    default_cache_dir,
    default_runtime_dir,
    default_tier,
    parse_address,
    parse_duration,
    parse_size,
)
from forebay.cacheruntime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1048576", MIB),
        ("4GiB", 4 * GIB),
        ("4gib", 4 * GIB),
        (" 500 MB ", 500_000_000),
        ("1.5K", 1500),
        ("0.5GiB", GIB // 2),
        ("2T", 2 * 10**12),
        ("1TiB", 1 << 40),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "GiB", "-1", "0", "0.0001K", "1XB", "1,5G", "1 2", "1e3", "0x10", "nan", "4GiB/s"]
)
def test_not_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="write it like 4GiB, 500MB or 1048576"):
        parse_size(text)


def test_regression_size_beyond_a_float() -> None:
    with pytest.raises(UsageError):
        parse_size("9" * 400)


@given(st.integers(1, 2**50), st.sampled_from(["", "B", "KiB", "MiB"]))
def test_whole_sizes_are_exact(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * {"": 1, "B": 1, "KiB": 1024, "MiB": MIB}[unit]


def test_tier() -> None:
    assert TierConfig.parse("mem:/dev/shm/x:4GiB") == TierConfig(Medium.MEM, Path("/dev/shm/x"), 4 * GIB)
    assert TierConfig.parse("SSD:/a:b/../c:1G").path == Path("/c")
    assert TierConfig.parse("HDD:rel:1G").path == Path.cwd() / "rel"


@pytest.mark.parametrize(
    "text",
    ["", "SSD", "SSD:/x", "SSD:/x:", "SSD::1G", ":/x:1G", "RAM:/x:1G", "/x:1G", "SSD:/x:1G:", "SSD:/x:-1G", "SSD:/x:0"],
)
def test_not_tiers(text: str) -> None:
    with pytest.raises(UsageError):
        TierConfig.parse(text)


@given(st.sampled_from(Medium), st.text("ab:/ é", min_size=1, max_size=20), st.integers(1, 2**50))
def test_tier_round_trip(medium: Medium, path: str, quota: int) -> None:
    tier = TierConfig(medium, Path(os.path.abspath("/" + path)), quota)
    assert TierConfig.parse(str(tier)) == tier


def test_watermarks_of_a_tier() -> None:
    tier = TierConfig.parse("SSD:/var/cache:10GiB,low=0.5,high=0.75")
    assert (tier.quota_bytes, tier.high, tier.low) == (10 * GIB, 0.75, 0.5)
    assert TierConfig.parse(str(tier)) == tier
    assert TierConfig.parse("SSD:/var/cache:10GiB,high=1").low == TierConfig.parse("SSD:/v:1").low


@pytest.mark.parametrize(
    "tail", ["high", "high=", "high=x", "high=0.5,low=0.6", "low=0", "high=1.1", "hi=0.5", "high=nan"]
)
def test_watermarks_that_make_no_sense(tail: str) -> None:
    with pytest.raises(UsageError, match=r"only high=RATIO and low=RATIO with 0 < low <= high <= 1"):
        TierConfig.parse(f"SSD:/var/cache:10GiB,{tail}")


def _config(root: Path) -> CacheConfig:
    tiers = (TierConfig(Medium.MEM, root / "m:1", MIB), TierConfig(Medium.HDD, root / "\udcff", GIB))
    fill, retry = FillConfig(deadline_s=1.5, part_bytes=7), RetryConfig(first_delay_s=0.25)
    return CacheConfig(root / "\udcfe", tiers, root / "run", 0.25, 7.5, fill=fill, retry=retry)


def test_json_round_trip(tmp_path: Path) -> None:
    config = _config(tmp_path)
    assert CacheConfig.from_json(config.to_json()) == config
    config.to_json().encode()  # through a pipe, whatever bytes its paths hold


def _free_disk(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Every file system has `size` bytes free, in blocks of 4 KiB; the real one changes between two looks."""
    blocks = size // 4096
    stats = os.statvfs_result((4096, 4096, blocks, blocks, blocks, 9, 9, 9, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: stats)


def test_remembered_tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _free_disk(monkeypatch, 8 * GIB)
    config = replace(_config(tmp_path), cache_dir=tmp_path / "c")
    config = replace(config, tiers=(config.tiers[0],))
    assert config.with_remembered_tiers().tiers == (default_tier(config.cache_dir),)
    config.cache_dir.mkdir()
    config.remember_tiers()
    assert config.with_remembered_tiers() == config
    assert [p.name for p in config.cache_dir.iterdir()] == ["tiers"]


def test_socket_of_a_long_cache_dir(tmp_path: Path) -> None:
    run = tmp_path / "r"
    run.mkdir()
    config = replace(_config(tmp_path), cache_dir=Path("/" + "/".join(["d" * 49] * 4)), runtime_dir=run)
    assert len(str(config.cache_dir)) == 200
    assert len(str(config.socket_path)) - len(str(run)) == len("/worker-.sock") + 16
    usual = replace(config, runtime_dir=Path("/run/user/4294967295/forebay"))
    assert len(os.fsencode(usual.socket_path)) <= 107
    other = replace(config, cache_dir=config.cache_dir / "x")
    assert other.socket_path != config.socket_path
    if len(str(config.socket_path)) <= 107:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(config.socket_path))


def test_folders_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_cache_dir({"FOREBAY_CACHE_DIR": "/x/../y"}) == Path("/y")
    assert default_runtime_dir({"FOREBAY_RUNTIME_DIR": "/x"}) == Path("/x")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert (default_cache_dir({}), default_runtime_dir({})) == (Path("/var/cache/forebay"), Path("/run/forebay"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_cache_dir({"XDG_CACHE_HOME": "/c"}) == Path("/c/forebay")
    assert default_cache_dir({}) == Path.home() / ".cache" / "forebay"
    assert default_runtime_dir({"XDG_RUNTIME_DIR": "/r"}) == Path("/r/forebay")
    assert default_runtime_dir({}) == Path("/tmp/forebay-1000")


@pytest.mark.parametrize(("free", "quota"), [(8 * GIB, 4 * GIB), (GIB, GIB)])
def test_default_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, quota: int) -> None:
    _free_disk(monkeypatch, free)
    cache_dir = tmp_path / "not" / "there"
    assert default_tier(cache_dir) == TierConfig(Medium.SSD, cache_dir / "tier", quota)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1D", 86400), (" 3 s ", 3)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1s", "s", "5y", "1e3", "999999999999999999999d"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(UsageError, match="positive number with a unit"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("9321", ("127.0.0.1", 9321)),
        (":9321", ("127.0.0.1", 9321)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:0", ("::1", 0)),
    ],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert parse_address(text) == found


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", "1:65536"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="not HOST:PORT"):
        parse_address(text)
