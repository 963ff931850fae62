"""Finding mounts in mountinfo: the pure part. (Mounting itself is in tests/mount.)"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forebay.fuse import mounting
from forebay.fuse.mount_spec import MountSpec
from forebay.fuse.mounting import Mounted, all_mounted, mounted, real_directory

_LINE = b"36 35 %s / %s rw,noatime %s- %s %s rw,errors=continue\n"


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Stands in for /proc/self/mountinfo."""
    monkeypatch.setattr(mounting, "Path", lambda path: tmp_path / "mountinfo")
    return lambda text: (tmp_path / "mountinfo").write_bytes(text) and None


def _line(directory: bytes, source: bytes = b"src", device: bytes = b"0:42", optional: bytes = b"") -> bytes:
    return _LINE % (device, directory, optional, b"fuse.forebay", source)


def test_fields(mountinfo: Callable[[bytes], None]) -> None:
    mountinfo(_line(b"/a") + _line(b"/b", optional=b"master:1 shared:7 ") + _line(b"/c", b"none", b"98:0"))
    assert all_mounted() == [
        Mounted("/a", "0:42", "fuse.forebay", "src"),
        Mounted("/b", "0:42", "fuse.forebay", "src"),
        Mounted("/c", "98:0", "fuse.forebay", "none"),
    ]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (rb"/a\040b", "/a b"),
        (rb"/a\011b\012c", "/a\tb\nc"),
        (rb"/a\134b", "/a\\b"),
        (rb"/a\134040b", "/a\\040b"),
        (rb"/a\134134b", "/a\\134b"),
        (b"/\xff-\xc3\xa9", "/\udcff-é"),
        (rb"/-\040-\040-", "/- - -"),
    ],
)
def test_escapes(mountinfo: Callable[[bytes], None], written: bytes, meant: str) -> None:
    mountinfo(_line(written))
    assert [entry.directory for entry in all_mounted()] == [meant]
    assert mounted(meant) is not None


@pytest.mark.parametrize("name", [b"a\rb", b"a\x0bb", b"a\x0cb", "a\u2028b".encode(), "a\x85b".encode()])
def test_regression_names_with_other_line_ends(mountinfo: Callable[[bytes], None], name: bytes) -> None:
    """One such mount anywhere on the machine, and every command ends in an IndexError."""
    mountinfo(_line(b"/" + name) + _line(b"/next"))
    assert [entry.directory for entry in all_mounted()] == ["/" + os.fsdecode(name), "/next"]


def test_regression_number_sign_in_a_source(mountinfo: Callable[[bytes], None]) -> None:
    mountinfo(_line(b"/a", rb"s3://b/x\043y"))
    assert all_mounted()[0].source == "s3://b/x#y"


def test_the_topmost_mount_counts(mountinfo: Callable[[bytes], None]) -> None:
    mountinfo(_line(b"/a", b"first") + _line(b"/b") + _line(b"/a", b"second"))
    found = mounted("/a")
    assert found is not None
    assert found.source == "second"
    assert mounted("/") is None


def test_the_real_one() -> None:
    assert any(entry.directory == "/" for entry in all_mounted())


def test_real_directory_does_not_look_at_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "away").symlink_to("/")
    base = os.path.realpath(tmp_path)
    assert real_directory(f"{tmp_path}/link/mnt") == f"{base}/real/mnt"
    assert real_directory(f"{tmp_path}/link/mnt/") == f"{base}/real/mnt"
    assert real_directory(f"{tmp_path}/link/away") == f"{base}/real/away"
    assert real_directory(f"{tmp_path}/link/../real/none") == f"{base}/real/none"
    monkeypatch.chdir(tmp_path / "link")
    assert real_directory("mnt") == f"{base}/real/mnt"
    assert real_directory("/") == "/"


def test_mount_spec_through_memory() -> None:
    values: dict[str, Any] = dict.fromkeys(MountSpec.__dataclass_fields__, "x")
    values |= {"options": {"k": "secret \udcff"}, "snapshot": 3, "uid": 1, "gid": 2, "umask": 18, "allow_other": True}
    spec = MountSpec(**values)
    descriptor = spec.to_memory()
    try:
        assert MountSpec.from_memory(descriptor) == spec
        assert MountSpec.from_memory(descriptor) == spec, "each handler reads it anew"
        assert os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)
    assert "secret" not in repr(spec)
