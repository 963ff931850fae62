"""One snapshot of a dataset in the worker: its catalogue, its listing while that is under way, and waits for it."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import lmdb
import trio

from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.catalogue_writer import CatalogueWriter
from forebay.cacheruntime.errors import CacheError, ForebayError
from forebay.cacheruntime.keys import node_id
from forebay.cacheruntime.listing_order import ListingOrder

_STALLED_S = 2.0
"""A listing that has brought nothing for so long is not waited for: ten times what S3 takes for a page, and more."""

_REGISTER_S = 60.0
"""A mount has registered the snapshot that it reads by then."""


@dataclass
class Snapshot:
    """One listing of a dataset, under way or ended."""

    number: int
    writer: CatalogueWriter
    catalogue: Catalogue
    ended: trio.Event = field(default_factory=trio.Event)
    """The background listing is over, well or not."""
    first_page: trio.Event = field(default_factory=trio.Event)
    """Something is there to see, or the listing is over."""
    order: ListingOrder | None = None
    """How far the background listing is; None where its store promises no order."""
    moved: trio.Event = field(default_factory=trio.Event)
    """Set and replaced when the background listing has written something, or is over."""
    users: int = 0
    """Tasks of this worker that read or write it."""
    asked_for: float = 0.0
    """When a client was last told of it (monotonic): a mount that is being made is on no register yet."""
    pinned_at: float = 0.0
    """When a client last asked for just this one, to be shown as it is (monotonic)."""
    failure: ForebayError | None = None
    """Why the background listing broke off, when it did."""

    @property
    def young(self) -> bool:
        """Whether a mount that is on no register yet may read it."""
        return bool(self.asked_for) and time.monotonic() - self.asked_for < _REGISTER_S

    @property
    def being_pinned(self) -> bool:
        """Whether a pinned mount that is on no register yet may read it."""
        return bool(self.pinned_at) and time.monotonic() - self.pinned_at < _REGISTER_S

    def has_moved(self) -> None:
        """Wake those who wait for the background listing."""
        moved, self.moved = self.moved, trio.Event()
        moved.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it open meanwhile."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1


async def about_to_come(snapshot: Snapshot, path: bytes) -> None:
    """Wait for a directory as long as the background listing brings it sooner than a listing of its own would.

    That is while the listing is among the directory's own entries and goes on: what is left to list of them is the same
    either way, and two listings at a time are slower than one. The entries of a subdirectory may be any number, and a
    listing of its own leaves them out. A directory is also waited for when the listing has it but has not written it
    yet, or comes to it next; but not for longer than that takes, for it may turn out to be another.
    """
    node, chances = node_id(path, b""), 2
    while snapshot.order is not None and not snapshot.ended.is_set() and not snapshot.catalogue.is_settled(node):
        if not snapshot.order.kept:
            return
        if not snapshot.order.stands_in(path):
            if not chances or not (snapshot.order.is_behind(path) or _comes_next(snapshot, path)):
                return
            chances -= 1
        moved = snapshot.moved
        with trio.move_on_after(_STALLED_S) as patience:
            await moved.wait()
        if patience.cancelled_caught:
            return


def _comes_next(snapshot: Snapshot, path: bytes) -> bool:
    """Whether the first name behind the one at which the listing is, in the same directory, is that one."""
    above, _, name = path.rpartition(b"/")
    inside = above + b"/" if above else b""
    if snapshot.order is None or not path or not snapshot.order.key.startswith(inside):
        return False
    catalogue, directory = snapshot.catalogue, node_id(above, b"")
    at = catalogue.child(directory, snapshot.order.key[len(inside) :].partition(b"/")[0])
    return at is not None and next((node.name == name for node in catalogue.children(directory, at.node)), False)


@contextmanager
def writable(snapshot: Snapshot) -> Iterator[None]:
    """Raise CacheError, with the cure, when its catalogue cannot be written."""
    try:
        yield
    except (OSError, lmdb.Error) as error:
        raise CacheError(f"{snapshot.writer.folder} cannot be written: {error}; make room there") from error


@contextmanager
def all_held(snapshots: list[Snapshot]) -> Iterator[None]:
    """Keep all of them open meanwhile."""
    with ExitStack() as stack:
        for snapshot in snapshots:
            stack.enter_context(snapshot.held())
        yield
