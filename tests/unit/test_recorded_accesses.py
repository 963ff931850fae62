"""File accesses out of recordings: messages as the kernel sends them, by several handlers."""

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from forebay.fuse import recorder
from forebay.fuse.recorded_accesses import recorded_accesses
from forebay.fuse.wire import RESENT_UNIQUE_BIT

Message = tuple[int, bytes]


def opened(when: int, node: int, unique: int = 6) -> Message:
    return when, struct.pack("=IIQQIII4xII", 48, 14, unique, node, 0, 0, 5, 0, 0)


def read(when: int, node: int, offset: int, size: int) -> Message:
    return when, struct.pack("=IIQQIII4xQQIIQII", 80, 15, 8, node, 0, 0, 5, 0, offset, size, 0, 0, 0, 0)


def recording(path: Path, messages: Sequence[Message]) -> Path:
    path.write_bytes(recorder._MAGIC + b"".join(recorder._FRAME.pack(w, len(m)) + m for w, m in messages))
    return path


def test_each_open_is_an_access_and_reads_tell_the_size(tmp_path: Path) -> None:
    file = recording(
        tmp_path / "1.fuse",
        [
            opened(5, 70),
            read(6, 70, 0, 4096),
            read(7, 70, 4096, 8192),
            opened(8, 71),
            opened(9, 70),
            read(9, 70, 0, 4096),
        ],
    )
    found = recorded_accesses([file])
    assert found.nodes == [70, 71, 70]
    assert found.sizes({71: 5}.get) == [12288, 5, 12288]
    assert found.sizes({}.get) == [12288, 0, 12288]


def test_without_opens_a_run_of_reads_is_an_access(tmp_path: Path) -> None:
    """From the beginning again, or after a pause; READs of one run may come out of order."""
    messages = [
        read(1, 7, 4096, 4096),
        read(1, 7, 0, 4096),
        read(2, 8, 0, 10),
        read(3, 7, 0, 4096),
        read(1500, 7, 9, 1),
    ]
    found = recorded_accesses([recording(tmp_path / "1.fuse", messages)])
    assert found.nodes == [7, 8, 7, 7]


def test_handlers_are_merged_by_time_and_nothing_counts_twice(tmp_path: Path) -> None:
    one = recording(tmp_path / "1.fuse", [opened(5, 70), opened(9, 72)])
    two = recording(tmp_path / "2.fuse", [opened(7, 71), (8, b"\0" * 40), opened(9, 70, 6 | RESENT_UNIQUE_BIT)])
    assert recorded_accesses([one, two]).nodes == [70, 71, 72]


def test_no_recording(tmp_path: Path) -> None:
    (tmp_path / "1.fuse").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no recording of a mount"):
        recorded_accesses([tmp_path / "1.fuse"])
