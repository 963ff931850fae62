"""Orders: what travels in the ioctl, and the window that a loader posts ahead."""

import errno
import os
from pathlib import Path

import pytest

from forebay.fuse import order
from forebay.fuse.order import MESSAGE_BYTES, Progress, ahead, names_of_order, post


class Mount:
    """The other end of the ioctl."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 1 << 30) -> None:
        self.posted: list[str] = []
        self.calls = 0
        self.most = most
        self.old = False
        """It does not know who reads."""
        self.progress: list[Progress] = []
        monkeypatch.setattr(order.fcntl, "ioctl", self._ioctl)

    def _ioctl(self, _: int, command: int, payload: bytearray, mutate: bool) -> int:
        found = names_of_order(command, bytes(payload))
        if found is None or (self.old and found[1] is not None):
            raise OSError(errno.ENOTTY, "")
        names, progress = found
        assert len(payload) <= MESSAGE_BYTES
        assert command >> 30 == 1, "_IOC_WRITE: the kernel copies the input for us"
        assert command >> 16 & 0x3FFF == len(payload)
        if progress is not None:
            assert progress.first == len(self.posted)
            self.progress.append(progress)
        taken = names[: self.most]
        self.posted += [os.fsdecode(name) for name in taken]
        self.calls += 1
        return len(taken)


def test_every_name_arrives_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount(monkeypatch)
    names = [f"class-{n % 10}/image {n} \udcff.jpg" for n in range(5000)]
    assert post(0, names) == 5000
    assert mount.posted == names
    assert mount.calls > 1


def test_the_mount_takes_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount(monkeypatch, most=10)
    assert post(0, [b"x"] * 30) == 10
    assert mount.calls == 1
    assert post(0, []) == 0


def test_a_name_that_fits_in_no_message() -> None:
    with pytest.raises(ValueError, match="8000 is the most"):
        post(0, ["x" * 8000])


@pytest.mark.parametrize("command", [0, 0x5401, 0x400546B1, 0x400546B2, 0x400346B0])
def test_other_commands(command: int) -> None:
    assert names_of_order(command, b"a\0b\0\0") is None


def test_a_local_folder_is_no_mount(tmp_path: Path) -> None:
    assert list(ahead(tmp_path, ["a", "b", "c"])) == ["a", "b", "c"]
    descriptor = os.open(tmp_path, os.O_RDONLY)
    assert post(descriptor, ["a"]) == 0
    os.close(descriptor)


@pytest.mark.parametrize("count", [0, 1, 2, 9, 10, 11, 1000])
@pytest.mark.parametrize("window", [2, 3, 10])
def test_each_name_is_posted_once_and_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, window: int
) -> None:
    mount = Mount(monkeypatch)
    names = [str(n) for n in range(count)]
    given = 0
    for given, name in enumerate(ahead(tmp_path, iter(names), window), 1):
        assert name == names[given - 1]
        assert len(mount.posted) >= min(given + window // 2 - 1, count), "posted before it is wanted"
        assert len(mount.posted) <= given + window, "and not the whole epoch at once"
    assert given == count
    assert mount.posted == names


def test_who_reads_says_how_far_he_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount(monkeypatch)
    for _ in ahead(tmp_path, (str(n) for n in range(1000)), 100):
        assert len({progress.reader for progress in mount.progress}) == 1
    assert [p.position for p in mount.progress[:3]] == [0, 50, 100]
    assert [p.first for p in mount.progress[:3]] == [0, 100, 150]
    assert mount.progress[-1][1:] == (1000, 1000, True)
    first = mount.progress[0].reader
    broken_off = ahead(tmp_path, ["a", "b", "c"], 2)
    mount.posted.clear()
    next(broken_off)
    broken_off.close()
    assert mount.progress[-1].done
    assert mount.progress[-1].reader != first


def test_a_mount_of_an_older_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount(monkeypatch)
    mount.old = True
    names = [str(n) for n in range(1000)]
    assert list(ahead(tmp_path, names, 100)) == names == mount.posted


def test_a_window_of_one_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 is the least"):
        next(ahead(tmp_path, ["a"], 1))


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        next(ahead(tmp_path / "none", ["a"]))
