"""Large trees are scanned by a second process: the same entries, errors and log; and nothing of it is left."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.cacheruntime.config import RetryConfig
from forebay.cacheruntime.errors import SourceTimeout, SourceUnavailable
from forebay.cacheruntime.understore import posix, scanner
from forebay.cacheruntime.understore.base import Entry
from forebay.cacheruntime.understore.posix import PosixStore
from forebay.cacheruntime.understore.retry import Retrier

RETRIER = Retrier(RetryConfig(first_delay_s=0.005, deadline_s=0.1))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PosixStore:
    """A tree of which all but the first folder goes to the scanner."""
    monkeypatch.setattr(posix, "ALONE_ENTRIES", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    root = tmp_path / "tree"
    for folder in ("a", "b/c", "odd \udcff\n"):
        (root / folder).mkdir(parents=True)
        for number in range(30):
            (root / folder / f"{number}").write_bytes(bytes(number))
    (root / "b/link").symlink_to("../a")
    return PosixStore(str(root), f"file://{root}", RETRIER)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The scanners; at the end none may run."""
    made: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            made.append(self)

    monkeypatch.setattr(scanner.subprocess, "Popen", Noted)
    yield made
    assert made
    assert all(process.returncode is not None for process in made)


def _listed(store: PosixStore) -> list[Entry]:
    return sorted((entry for page in store.list_tree() for entry in page), key=lambda entry: entry.path)


def test_the_same_as_alone(
    store: PosixStore, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = _listed(store)
    assert len(started) == 1
    monkeypatch.setattr(posix, "ALONE_ENTRIES", 10**9)
    assert apart == _listed(store)
    assert len(started) == 1
    assert len(apart) == 95


def test_left_early(store: PosixStore, started: list[subprocess.Popen[bytes]]) -> None:
    pages = store.list_tree()
    while not started:
        next(pages)
    pages.close()  # type: ignore[attr-defined]


def _scanner_that(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put some lines before the scanner's own."""
    real = subprocess.Popen
    whole = f"import os, sys\nfrom forebay.cacheruntime.understore import posix, scanner\n{code}\n"
    whole += "scanner.scan(sys.stdin.buffer, sys.stdout.buffer)"
    monkeypatch.setattr(
        scanner.subprocess, "Popen", lambda program, **kwargs: real([sys.executable, "-c", whole], **kwargs)
    )


def test_killed(tmp_path: Path, store: PosixStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a tree would look like deletions."""
    die = "real = posix.os.scandir\n"
    die += (
        "def die(path):\n    sys.stdout.flush()\n    return os.kill(os.getpid(), 9) if '/b' in path else real(path)\n"
    )
    _scanner_that(f"{die}scanner._FRAME_ENTRIES = 1\nposix.os.scandir = die", monkeypatch)
    with pytest.raises(SourceUnavailable, match="ended before it was done"):
        list(scanner.pages_of_scanner(str(tmp_path / "tree"), ["b", "a"], 0.1))


def test_a_folder_that_is_gone_is_left_out(store: PosixStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a word in the worker's log."""
    caplog.set_level(logging.WARNING)
    pages = scanner.pages_of_scanner(str(tmp_path / "tree"), ["a", "absent"], 0.1)
    assert sorted(entry.path for page in pages for entry in page) == sorted(f"a/{number}" for number in range(30))
    assert "left out of the listing" in caplog.text


def test_a_folder_that_fails_breaks_the_listing_off(
    store: PosixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scanner_that("def fail(path): raise OSError(5, 'Input/output error')\nposix.os.scandir = fail", monkeypatch)
    with pytest.raises(SourceTimeout, match="Input/output error"):
        list(scanner.pages_of_scanner(str(tmp_path / "tree"), ["a"], 0.1))
