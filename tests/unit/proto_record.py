"""What `forebay.cache.v1` is on the wire, as JSON: each message with all its fields set, and the number of each name.

`python tests/unit/proto_record.py` writes the record of this version; each release keeps its own.
"""

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from forebay.cacheruntime.version import VERSION
from forebay.proto import peer_pb2, worker_pb2

FOLDER = Path(__file__).parent / "recordings" / "forebay.cache.v1"
FILES = (peer_pb2.DESCRIPTOR, worker_pb2.DESCRIPTOR)

_INNER = 2
"""Levels of messages in messages: StoreMount holds itself."""

_SCALARS: dict[int, Callable[[int], object]] = {
    FieldDescriptor.CPPTYPE_STRING: "text-{}".format,
    FieldDescriptor.CPPTYPE_BOOL: lambda _: True,
    FieldDescriptor.CPPTYPE_DOUBLE: lambda number: number + 0.5,
    FieldDescriptor.CPPTYPE_UINT32: lambda number: 2**31 + number,
    FieldDescriptor.CPPTYPE_UINT64: lambda number: 2**63 + number,
    FieldDescriptor.CPPTYPE_INT64: lambda number: -(2**62) - number,
    FieldDescriptor.CPPTYPE_ENUM: lambda _: 1,
}


def messages() -> dict[str, type[Message]]:
    """Of both files, by name."""
    return {name: GetMessageClass(found) for file in FILES for name, found in file.message_types_by_name.items()}


def full(made: type[Message], numbers: Iterator[int] | None = None, level: int = 0) -> Message:
    """A message with a value of its own in each field."""
    numbers = numbers or count(1)
    message = made()
    for field in made.DESCRIPTOR.fields:
        if field.message_type is None:
            value = _scalar(field, next(numbers))
            if field.is_repeated:
                getattr(message, field.name).extend([value, _scalar(field, next(numbers))])
            else:
                setattr(message, field.name, value)
        elif field.message_type.GetOptions().map_entry:
            getattr(message, field.name)[f"key-{next(numbers)}"] = f"value-{next(numbers)}"
        elif level < _INNER:
            inner = full(GetMessageClass(field.message_type), numbers, level + 1)
            (getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name)).CopyFrom(inner)
    return message


def _scalar(field: FieldDescriptor, number: int) -> object:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"\xff\x00" + bytes([number % 256])
    return _SCALARS[field.cpp_type](number)


def shape() -> dict[str, str]:
    """Each field, value of an enum and method, and what must never change of it."""
    found: dict[str, str] = {}
    for file in FILES:
        for message in file.message_types_by_name.values():
            found.update(_fields(message))
        for enum in file.enum_types_by_name.values():
            found.update({f"{enum.name}.{value.name}": str(value.number) for value in enum.values})
        for service in file.services_by_name.values():
            for method in service.methods:
                found[f"{service.full_name}/{method.name}"] = " -> ".join(
                    ("stream " if streaming else "") + kind.full_name
                    for kind, streaming in (
                        (method.input_type, method.client_streaming), (method.output_type, method.server_streaming),
                    )
                )  # fmt: skip
    return found


def _fields(message: Descriptor) -> dict[str, str]:
    kinds = {getattr(FieldDescriptor, name): name[5:].lower() for name in dir(FieldDescriptor) if name[:5] == "TYPE_"}
    found = {}
    for field in message.fields:
        of = field.message_type or field.enum_type
        words = [str(field.number), "repeated" if field.is_repeated else "", kinds[field.type], of.name if of else ""]
        words += ["optional"] if field.has_presence and field.message_type is None else []
        found[f"{message.name}.{field.name}"] = " ".join(filter(None, words))
    for nested in message.nested_types:
        found.update({f"{message.name}.{name}": what for name, what in _fields(nested).items()})
    return found


def record() -> dict[str, Any]:
    """Of this version."""
    written = {}
    for name, made in sorted(messages().items()):
        message = full(made)
        values = json_format.MessageToDict(message, preserving_proto_field_name=True)
        written[name] = {"bytes": message.SerializeToString(deterministic=True).hex(), "values": values}
    return {"shape": shape(), "messages": written}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{VERSION}.json").write_text(json.dumps(record(), indent=1) + "\n")
