"""Training programs are processes of their own, as a process that forks must not share a test's threads."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forebay_command import Forebay

sys.path.insert(0, str(Path(__file__).parent))

from programs import COUNT, PROGRAM, content


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """300 files of 2,016 bytes in three folders, and something else."""
    root = tmp_path / "source"
    for number in range(COUNT):
        folder = root / f"class-{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04}.bin").write_bytes(content(number))
    (root / "read me.txt").write_text("not a sample")
    (root / "class-0" / "empty.bin").touch()
    return root


@pytest.fixture
def program(forebay: Forebay, tree: Path) -> Callable[..., str]:
    """Runs a program over the tree; returns what it prints."""

    def run(code: str, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM + code, str(tree), *args],
            env=forebay.environ,
            capture_output=True,
            text=True,
            timeout=80,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr, done.stderr
        return done.stdout.strip()

    return run
