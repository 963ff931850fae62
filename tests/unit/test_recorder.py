"""Recordings: begun and ended from outside, read back whole, played to the codec."""

import struct
from pathlib import Path

import pytest

from forebay.fuse import recorder, wire
from forebay.fuse.recorder import Recorder, messages, replay

STATFS = struct.pack("=IIQQIII4x", 40, 17, 6, 1, 0, 0, 5)
LOOKUP = struct.pack("=IIQQIII4x", 45, 1, 8, 1, 0, 0, 5) + b"name\0"
BROKEN = struct.pack("=IIQQIII4x", 40, 15, 6, 1, 0, 0, 5)


@pytest.fixture
def made(tmp_path: Path) -> Recorder:
    (tmp_path / "mount").mkdir()
    (tmp_path / "out").mkdir()
    return Recorder(tmp_path / "mount", 7)


def test_a_recording(made: Recorder, tmp_path: Path) -> None:
    made.look()
    assert not made.active
    for message in (STATFS, LOOKUP):
        recorder.begin(tmp_path / "mount", tmp_path / "out")
        made.look()
        assert made.active
        made.record(message)
        recorder.end(tmp_path / "mount")
        made.look()
        assert not made.active
    file = tmp_path / "out" / "7.fuse"
    assert [message for _, message in messages(file)] == [STATFS, LOOKUP]
    found = replay([file])
    assert (dict(found.requests), found.malformed) == ({"Statfs": 1, "Lookup": 1}, [])


def test_what_the_codec_refuses_is_named(made: Recorder, tmp_path: Path) -> None:
    recorder.begin(tmp_path / "mount", tmp_path / "out")
    made.look()
    made.record(BROKEN)
    made.record(STATFS)
    made.close()
    found = replay([tmp_path / "out" / "7.fuse"])
    assert found.requests["Statfs"] == 1
    (line,) = found.malformed
    assert line.startswith("7.fuse: READ of 40 bytes")


def test_cut_short_by_a_crash(made: Recorder, tmp_path: Path) -> None:
    recorder.begin(tmp_path / "mount", tmp_path / "out")
    made.look()
    made.record(STATFS)
    made.record(LOOKUP)
    made.close()
    file = tmp_path / "out" / "7.fuse"
    whole = file.read_bytes()
    for length in range(len(whole) - len(LOOKUP), len(whole)):
        file.write_bytes(whole[:length])
        assert [message for _, message in messages(file)] == [STATFS]


def test_no_recording(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no recording"):
        replay([tmp_path / "x"])


def test_a_folder_that_is_gone_ends_it(made: Recorder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder.begin(tmp_path / "mount", tmp_path / "none")
    made.look()
    assert not made.active
    assert "nothing is recorded" in caplog.text
    made.look()
    assert caplog.text.count("nothing is recorded") == 1


def test_what_a_kernel_said() -> None:
    """A recorded session of Linux 6.18: every kind of request that a reader of a small tree caused."""
    found = replay([Path(__file__).parent / "recordings" / "every-operation.fuse"])
    assert found.malformed == []
    assert found.requests == {
        "Readdirplus": 4, "Opendir": 3, "Releasedir": 3, "Lookup": 2, "Open": 2, "Read": 2, "Fsync": 2, "Lseek": 2,
        "Ioctl": 2, "Release": 2, "Getxattr": 2, "Getattr": 1, "Readlink": 1, "Statfs": 1, "Listxattr": 1,
    }  # fmt: skip


def test_a_recorded_message_cut_short_or_long_is_refused() -> None:
    for _, message in messages(Path(__file__).parent / "recordings" / "every-operation.fuse"):
        for damaged in (message[:-1], message + b"\0"):
            sized = struct.pack("=I", len(damaged)) + damaged[4:]
            with pytest.raises(wire.MalformedMessage):
                wire.parse(sized)
            with pytest.raises(wire.MalformedMessage, match="header"):
                wire.parse(damaged)
