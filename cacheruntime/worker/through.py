"""Bytes that no tier had room for: kept in memory for a while, as the reader's next request is next to this one."""

from collections import OrderedDict

from forebay.cacheruntime.blocks import BLOCK_BYTES, Span
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.worker.fetch_queue import Part


class KeptBlocks:
    """The newest blocks past the tiers, within a share of the memory budget; of a block, the last that came of it. One
    event loop.

    Read-ahead into memory that is under way counts too; it has half of the share at most.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._blocks: OrderedDict[tuple[ContentId, int], tuple[Span, bytes]] = OrderedDict()
        self.kept_bytes = 0
        self.coming_bytes = 0
        """Of read-ahead that is under way."""

    def get(self, content: ContentId, number: int) -> tuple[Span, bytes] | None:
        """What is kept of a block, and where that is in the file."""
        return self._blocks.get((content, number))

    def drop(self, content: ContentId, number: int) -> None:
        """It is in a tier now, or more of it comes."""
        dropped = self._blocks.pop((content, number), None)
        if dropped is not None:
            self.kept_bytes -= len(dropped[1])

    def room_ahead_blocks(self) -> int:
        """How many more blocks may be read ahead into memory."""
        return max(0, self._most // 2 - self.coming_bytes) // BLOCK_BYTES

    def begins(self, part: Part) -> None:
        """A part is on its way."""
        self.coming_bytes += part.memory_ahead_bytes

    def ended(self, part: Part) -> None:
        """It has come, or will not."""
        self.coming_bytes -= part.memory_ahead_bytes

    def keep(self, content: ContentId, span: Span, data: bytes) -> None:
        """Take bytes of a block in; the oldest go."""
        self.drop(content, span.block)
        self._blocks[content, span.block] = span, data
        self.kept_bytes += len(data)
        while self._blocks and self.kept_bytes + self.coming_bytes > self._most:
            _, (_, dropped) = self._blocks.popitem(last=False)
            self.kept_bytes -= len(dropped)
