"""The memory that listings into the catalogue take. Their speed is for `python -m forebay.bench.catalogue` to tell."""

from pathlib import Path

import pytest

from forebay.bench.catalogue import make_files, measured_apart

MOST_MIB = 100
"""Twice what was measured (51 MiB), as the allocator's habits differ."""


@pytest.mark.slow
def test_a_folder_is_listed_whole(tmp_path: Path) -> None:
    make_files(tmp_path / "files", 25_000)  # enough for the scanner
    found = measured_apart(str(tmp_path / "files"), 0, tmp_path)
    assert found.entries == 25_000
    assert found.memory_mib < MOST_MIB


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_keys(tmp_path: Path) -> None:
    _compare(tmp_path, 300_000, 500_000)  # below, a transaction does not touch all the pages that it may


@pytest.mark.soak
def test_memory_does_not_grow_with_the_number_of_keys_soak(tmp_path: Path) -> None:
    _compare(tmp_path, 1_000_000, 2_000_000)


def _compare(folder: Path, few: int, many: int) -> None:
    small, large = (measured_apart("made-up", entries, folder) for entries in (few, many))
    assert (small.entries, large.entries) == (few, many)
    assert large.memory_mib < MOST_MIB
    assert large.memory_mib < small.memory_mib * 1.25 + 5
