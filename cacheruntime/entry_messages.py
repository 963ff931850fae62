"""Entries of under-stores as messages, and back."""

import os

from forebay.cacheruntime.understore.base import Entry, Kind
from forebay.proto import worker_pb2 as pb


def entry_message(entry: Entry) -> pb.StatEntry:
    """An entry as a message."""
    return pb.StatEntry(
        path=os.fsencode(entry.path), kind=entry.kind.value, size=entry.size, mtime_ns=entry.mtime_ns,
        version=entry.version, target=os.fsencode(entry.target), mode=entry.mode,
    )  # fmt: skip


def entry_of(message: pb.StatEntry, below: str = "") -> Entry:
    """The entry that a message stands for; with its path relative to `below`, which it is in."""
    path = os.fsdecode(message.path)
    if below:
        path = path.removeprefix(below + "/")
    mode = message.mode if message.HasField("mode") else None
    return Entry(
        path, Kind(message.kind), message.size, message.mtime_ns, message.version, os.fsdecode(message.target), mode
    )
