"""Fixtures of the unit tests. Their helpers are beside them and in tests/model."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "model")]

from cache_box import Box  # noqa: E402 (from the folders above)
from check import check_storage  # noqa: E402

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture
def make_box(tmp_path: Path) -> Iterator[Callable[..., Box]]:
    """Makes caches; each is checked and closed at the end."""
    made: list[Box] = []

    def make(*quotas: int, **more: Any) -> Box:
        made.append(Box(tmp_path / f"box{len(made)}", *quotas, **more))
        return made[-1]

    yield make
    for box in made:
        check_storage(box.storage)
        box.storage.close()


@pytest.fixture
def box(make_box: Callable[..., Box]) -> Box:
    """A cache with one tier of 1 GiB."""
    return make_box()
