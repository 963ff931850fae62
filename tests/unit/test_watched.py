"""Files that change under a process: what is taken, and when."""

import logging
import os
from pathlib import Path

import pytest

from forebay.cacheruntime.cluster.watched import Contents, Watched
from forebay.cacheruntime.errors import UsageError


def pair(contents: Contents) -> str:
    """Two files belong together when they say the same."""
    first, second = contents["a"], contents["b"]
    if first is None or first != second:
        raise UsageError("a and b do not belong together")
    return first.decode()


def replace(path: Path, text: str) -> None:
    draft = path.with_name("draft")
    draft.write_text(text)
    os.replace(draft, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).write_text("one")
    return tmp_path


def test_a_pair_is_taken_once_it_belongs_together(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(folder, ("a", "b"), pair)
    with caplog.at_level(logging.INFO):
        replace(folder / "a", "two")
        assert [watched.get() for _ in range(5)] == ["one"] * 5
        assert watched.generation == 0
        assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"
        replace(folder / "b", "two")
        assert watched.get() == "two"
        assert watched.generation == 1
        replace(folder / "b", "three")
        watched.get()
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]


def test_what_is_written_twice_within_a_tick_of_the_clock_is_seen(folder: Path) -> None:
    watched = Watched(folder, ("a", "b"), pair)
    times = {name: (folder / name).stat() for name in ("a", "b")}
    for name, stat in times.items():
        with open(folder / name, "r+") as file:
            file.write("two")
        os.utime(folder / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert watched.get() == "two"


def test_a_fault_that_passes_is_tried_again(folder: Path) -> None:
    """As of a network file system: the files are as they were, and can be read again."""
    is_faulty = [False]

    def parse(contents: Contents) -> str:
        if is_faulty[0]:
            raise UsageError("it cannot be read")
        return pair(contents)

    watched = Watched(folder, ("a", "b"), parse)
    is_faulty[0] = True
    for name in ("a", "b"):
        replace(folder / name, "two")
        os.utime(folder / name, (10**9, 10**9))
    assert [watched.get() for _ in range(3)] == ["one"] * 3
    is_faulty[0] = False
    assert watched.get() == "two"


def test_a_folder_that_is_swapped_by_a_link(tmp_path: Path) -> None:
    """As Kubernetes mounts secrets: tls.crt -> ..data/tls.crt, ..data -> ..2026_11_27."""
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        for name in ("a", "b"):
            (tmp_path / version / name).write_text(version)
            os.utime(tmp_path / version / name, (10**9, 10**9))
    (tmp_path / "data").symlink_to("one")
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(f"data/{name}")
    watched = Watched(tmp_path, ("a", "b"), pair)
    assert watched.get() == "one"
    (tmp_path / "next").symlink_to("two")
    os.replace(tmp_path / "next", tmp_path / "data")
    assert watched.get() == "two"


def test_the_same_again_is_nothing_new(folder: Path) -> None:
    watched = Watched(folder, ("a", "b"), pair)
    replace(folder / "a", "one")
    assert watched.get() == "one"
    assert watched.generation == 0


def test_files_that_go_or_grow(folder: Path) -> None:
    watched = Watched(folder, ("a", "b"), pair)
    (folder / "a").unlink()
    assert watched.get() == "one"
    (folder / "a").mkdir()
    assert watched.get() == "one"
    (folder / "a").rmdir()
    (folder / "a").write_bytes(b"x" * (1 << 21))
    assert watched.get() == "one"
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        Watched(folder, ("a", "b"), pair)
    for name in ("a", "b"):
        replace(folder / name, "two")
    assert watched.get() == "two"
