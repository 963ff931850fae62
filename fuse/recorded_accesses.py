"""Which files were read, from recordings of a mount.

What a recording knows: the kernel's requests, not our replies. So a file is its node id, which names one version of it.
An access is an OPEN; in a mount in no-open mode, where there is none, it is a run of READs of one file, which ends when
the file is read from its beginning again, or not for a second. Sizes are the ends of READs, rounded up to a page by the
kernel. What came out of the page cache is in no recording (also what was put there ahead), nor are the READs of files
that were opened as passthrough.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path

from forebay.fuse import wire
from forebay.fuse.recorder import messages

_PAUSE_MS = 1000


@dataclass
class RecordedAccesses:
    """What was read, in order."""

    nodes: list[int] = field(default_factory=list)
    """For each access, the file's node id."""
    ends: dict[int, int] = field(default_factory=dict)
    """The largest end of a READ of each file, in bytes; files without one are not in it."""

    def sizes(self, known: Callable[[int], int | None]) -> list[int]:
        """Bytes for each access; 0 where they are not known.

        Args:
            known: the size of a file by its node id, where something other than the recording knows it.
        """
        by_node = {node: self._size(node, known) for node in set(self.nodes)}
        return [by_node[node] for node in self.nodes]

    def _size(self, node: int, known: Callable[[int], int | None]) -> int:
        size = known(node)
        return self.ends.get(node, 0) if size is None else size


def recorded_accesses(recordings: Sequence[Path]) -> RecordedAccesses:
    """The accesses of a mount, from the files of all its handlers.

    Messages that the codec refuses are passed over, as are those that were sent again because a handler died.

    Raises:
        ValueError: one is no recording.
        OSError: one cannot be read.
    """
    found = RecordedAccesses()
    opened: set[int] = set()
    runs: dict[int, tuple[int, bool]] = {}  # when the last READ was, and whether the beginning was read
    for when, node, request in merge(*map(_requests, recordings), key=lambda entry: entry[0]):
        if isinstance(request, wire.Open):
            opened.add(node)
            found.nodes.append(node)
            continue
        found.ends[node] = max(found.ends.get(node, 0), request.offset + request.size)
        if node in opened:
            continue
        # READs of one run may come out of order, from several handlers.
        run, begins = runs.get(node), request.offset == 0
        if run is None or (begins and run[1]) or when - run[0] > _PAUSE_MS:
            found.nodes.append(node)
            run = (when, False)
        runs[node] = when, begins or run[1]
    return found


def _requests(recording: Path) -> Iterator[tuple[int, int, wire.Open | wire.Read]]:
    for when, message in messages(recording):
        try:
            header, request = wire.parse(message)
        except wire.MalformedMessage:
            continue
        if isinstance(request, wire.Open | wire.Read) and not header.unique & wire.RESENT_UNIQUE_BIT:
            yield when, header.node, request
