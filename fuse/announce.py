"""What the kernel is to be told when a mount switches to another snapshot. Pure."""

from forebay.cacheruntime.catalogue_changes import Change, ChangeKind
from forebay.fuse import wire_reply


def notification(change: Change) -> bytes:
    """The message for one change.

    A name is forgotten whatever became of it: its next use looks it up. Data needs no word, for another version is
    another node. A directory loses its attributes and its cached listing.
    """
    if change.kind is ChangeKind.DIRECTORY:
        return wire_reply.notify_inval_inode(change.parent)
    return wire_reply.notify_inval_entry(change.parent, change.name)
