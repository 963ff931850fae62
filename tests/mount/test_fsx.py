"""Random readers find what is there: on each engine and in each open mode, while the file comes in and when it is here.

Several processes with several handles each; see support/fsx.py. A run that fails names its seed and its last steps.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import tasks
from forebay_command import Forebay
from source_tree import MIB, payload

pytestmark = [pytest.mark.slow, pytest.mark.sides("modes")]

FILES = {"large": 9 * MIB + 4321, "border": 2 * MIB, "packed": 70_001, "tiny": 5}
WAYS = {
    "read", "pread", "preadv", "map", "mapped", "unmap", "seek", "seek_data", "open", "close", "dup", "fadvise",
    "madvise", "readahead", "sendfile", "splice", "stat",
}  # fmt: skip


def _run(forebay: Forebay, mount: Path, source: Path, runs: list[tuple[str, int]], steps: int, within_s: float) -> None:
    """Readers of (file, seed), all at once."""
    readers = [tasks.start("fsx.py", mount / name, source / name, str(seed), str(steps)) for name, seed in runs]
    ways: set[str] = set()
    for (name, seed), out in zip(runs, tasks.ends(readers, forebay.root, within_s), strict=True):
        found = json.loads(out)
        assert not found["wrong"], f"{name}, seed {seed}, step {found['steps']}: {found['wrong']}"
        assert found["steps"] == steps
        ways |= found["ways"].keys()
    assert ways == WAYS


@pytest.fixture
def mounted(forebay: Forebay, folder: Any, side: Any) -> Path:
    for name, size in FILES.items():
        folder.put(name, payload(name, size))
    return forebay.mount(folder.source, *side.args)


def test_random_readers(forebay: Forebay, folder: Any, mounted: Path, side: Any) -> None:
    """First while nothing is cached, then when all is: passed through where that is the mode."""
    runs = [("large", 1), ("large", 2), ("border", 3), ("packed", 4), ("tiny", 5)]
    _run(forebay, mounted, folder.root, runs, 200, 60.0)
    forebay.run("warmup", mounted)
    before = forebay.dataset(mounted)["counters"]["passthrough_opens"]
    _run(forebay, mounted, folder.root, [(name, seed + 100) for name, seed in runs[:3]], 400, 60.0)
    counters = forebay.dataset(mounted)["counters"]
    assert (counters["passthrough_opens"] > before) is (side.open_mode == "passthrough")
    assert counters["errors"] == 0


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_random_readers_for_long(forebay: Forebay, folder: Any, mounted: Path, seed: int) -> None:
    runs = [(name, 1000 * seed + number) for number, name in enumerate((*FILES, "large", "border"))]
    for turn in range(3):
        _run(forebay, mounted, folder.root, [(name, n + 100 * turn) for name, n in runs], 2000, 600.0)
    assert forebay.dataset(mounted)["counters"]["errors"] == 0
