"""The table of operations in docs/SEMANTICS.md, row by row, on each engine and in each open mode."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import operations
import pytest
import tasks
from forebay_command import Forebay
from operation_table import ROWS, Row

pytestmark = [pytest.mark.slow, pytest.mark.sides("modes")]

_TRY_S = 40.0


def test_document_and_program_have_the_same_rows() -> None:
    assert [row.name for row in ROWS] == list(operations.OPERATIONS)
    sides = {"passthrough", "no-open", "cached", "pyfuse3"}
    assert not [row for row in ROWS if not row.elsewhere.keys() <= sides]


def _mounted(forebay: Forebay, folder: Path, side: Any) -> Path:
    source = folder / "source"
    source.mkdir()
    operations.make_source(source)
    mount = forebay.mount(f"file://{source}", *side.args)
    forebay.run("warmup", mount)
    return mount


def _outcomes(forebay: Forebay, mount: Path) -> dict[str, str]:
    (out,) = tasks.ends([tasks.start("operations.py", mount)], forebay.root, _TRY_S)
    return dict(json.loads(line) for line in out.splitlines())


@pytest.fixture(scope="module")
def outcomes(shared_forebay: Forebay, side: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Id -> what the operation answered on a mount whose files are all cached."""
    mount = _mounted(shared_forebay, tmp_path_factory.mktemp("operations"), side)
    found = _outcomes(shared_forebay, mount)
    counters = shared_forebay.dataset(mount)["counters"]
    assert (counters["passthrough_opens"] > 0) is (side.open_mode == "passthrough")
    assert counters["errors"] == 0
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_operation(outcomes: dict[str, str], row: Row, side: Any) -> None:
    assert outcomes[row.name] == row.expected(side)


REMOUNTED = {"kernel": {"O61": "ENOTTY"}, "no-open": dict.fromkeys(("O1", "O2", "O3"), "works")}


@pytest.mark.sides("ways", soak="modes")
@pytest.mark.semantics("E1", "L1")
def test_remounted_to_write(forebay: Forebay, side: Any, tmp_path: Path) -> None:
    """The kernel sends the requests then, and the handler refuses each; the source stays as it is."""
    mount = _mounted(forebay, tmp_path, side)
    before = _tree(tmp_path / "source")
    subprocess.run(["mount", "-i", "-o", "remount,rw", mount], check=True, timeout=20)
    found = {name: word for name, word in _outcomes(forebay, mount).items() if name in operations.CHANGES}
    if side.engine == "kernel":
        exceptions = REMOUNTED["kernel"] | REMOUNTED.get(side.open_mode, {})
        assert found == dict.fromkeys(operations.CHANGES, "EROFS") | exceptions
        assert _write(mount) == "30 EROFS\n"
    assert not [name for name, word in found.items() if word.startswith(("wrong", "EIO"))]
    assert _tree(tmp_path / "source") == before
    assert _outcomes(forebay, mount)["O90"] == "works"
    assert forebay.dataset(mount)["counters"]["errors"] == 0


_WRITE = """
import errno, os, sys
try:
    os.write(os.open(sys.argv[1] + "/file", os.O_WRONLY), b"x")
except OSError as error:
    print(error.errno, errno.errorcode[error.errno])
"""


def _write(mount: Path) -> str:
    """What opening to write and writing says: in the mode no-open the first is not asked of the handler."""
    command = [sys.executable, "-S", "-E", "-c", _WRITE, str(mount)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout


def _tree(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, status.st_uid, data)
    return found
