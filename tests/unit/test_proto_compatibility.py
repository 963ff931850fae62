"""What other versions have written is understood, and what a version does not know it keeps."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from proto_record import FOLDER, full, messages, record, shape

from forebay.cacheruntime.cluster.peer_wire import parse_header
from forebay.cacheruntime.version import VERSION
from forebay.proto import peer_pb2 as pb

RECORDS = sorted(FOLDER.glob("*.json"))
MESSAGES = messages()

FUTURE = {
    "varint": bytes.fromhex("f8ff07 2a".replace(" ", "")),
    "fixed64": bytes.fromhex("f9ff07 0102030405060708".replace(" ", "")),
    "bytes": bytes.fromhex("faff07 03 616263".replace(" ", "")),
    "fixed32": bytes.fromhex("fdff07 01020304".replace(" ", "")),
}
"""Field 16383, of each wire type: tag, then the value."""

each_record = pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def test_this_version_is_recorded() -> None:
    assert VERSION in [path.stem for path in RECORDS], "run python tests/unit/proto_record.py"


@each_record
def test_no_number_or_type_has_changed(path: Path) -> None:
    now = shape()
    changed = {name: (was, now.get(name)) for name, was in read(path)["shape"].items() if now.get(name) != was}
    assert not changed, "within v1 fields, values and methods are only added"


@each_record
def test_recorded_messages_are_understood(path: Path) -> None:
    for name, recorded in read(path)["messages"].items():
        message = MESSAGES[name].FromString(bytes.fromhex(recorded["bytes"]))
        assert json_format.MessageToDict(message, preserving_proto_field_name=True) == recorded["values"]


def test_a_change_is_noticed() -> None:
    """The record would be worth nothing otherwise."""
    recorded = record()
    for name, made in MESSAGES.items():
        if not made.DESCRIPTOR.fields:
            continue
        assert len(full(made).ListFields()) == len(made.DESCRIPTOR.fields), name
        assert recorded["messages"][name]["values"]
    assert recorded["shape"]["Want.offset"] == "5 uint64"
    assert recorded["shape"]["StatEntry.mode"] == "7 uint32 optional"
    assert recorded["shape"]["AttachRequest.OptionsEntry.key"] == "1 string"
    assert recorded["shape"]["forebay.cache.v1.Peer/Load"].endswith("LoadRequest -> stream forebay.cache.v1.LoadReply")


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_fields_of_a_later_version_survive(name: str) -> None:
    for more in (*FUTURE.values(), b"".join(FUTURE.values())):
        plain = full(MESSAGES[name])
        later = MESSAGES[name].FromString(plain.SerializeToString(deterministic=True) + more)
        assert later.ListFields() == plain.ListFields()
        copy = MESSAGES[name]()
        copy.CopyFrom(later)
        for kept in (later, copy):
            assert kept.SerializeToString(deterministic=True).endswith(more)


def test_fields_of_a_later_version_survive_inside() -> None:
    want = pb.Want.FromString(pb.Want(offset=7).SerializeToString() + FUTURE["bytes"])
    request = pb.ReadRequest(wants=[want])
    again = pb.ReadRequest.FromString(request.SerializeToString())
    assert again.wants[0].SerializeToString().endswith(FUTURE["bytes"])


def test_values_of_a_later_version_are_kept() -> None:
    header = parse_header(b"\x10\x63")
    assert header.state == 99
    assert header.SerializeToString() == b"\x10\x63"


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_what_is_absent_is_zero(name: str) -> None:
    """An earlier version writes no field that came later."""
    message: Message = MESSAGES[name].FromString(b"")
    assert not message.ListFields()
    assert json_format.MessageToDict(message) == {}
