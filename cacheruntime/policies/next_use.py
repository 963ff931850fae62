"""Farthest next use goes first, over the orders that all readers have posted."""

import math
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import ClassVar, Generic

from forebay.cacheruntime.policies.base import Item, one_by_one
from forebay.cacheruntime.policies.posted import NOBODY, PostedOrder

_WINDOW = 1024
"""Positions, for each reader on the average, after which speeds are looked at anew; older ones count half."""

_ALIKE = 0.1
"""Readers within this of the mean are taken to be equally fast: in a window, chance alone makes 3 %."""

_SLOWEST = 1 / 16
"""A reader that stands still is not taken to be slower than this, against the mean: it may go on at any moment."""

_SPARE = 64
"""Untrue entries that a queue may hold beyond as many as it has true ones."""

_BITS = 32
_MASK = (1 << _BITS) - 1


class _Queue:
    """Cached items by a key, the largest first; entries that are no longer true lie in it until they come up.

    An entry is ``-(key << 32 | number)``: one integer takes a third of a tuple's memory, and compares faster.
    """

    __slots__ = ("heap", "live")

    def __init__(self) -> None:
        self.heap: list[int] = []
        self.live = 0


class _Reader(PostedOrder):
    """A reader's order, its speed, and the cached items that are looked up by their next use by it."""

    def __init__(self, numbers: int, moved: float) -> None:
        super().__init__(numbers)
        self.queue = _Queue()
        self.speed = 1.0
        """Positions it passes while a reader of the mean speed passes one."""
        self.moved = moved
        """Positions in the recent window."""
        self.asked = 0
        """What is before it gets to the reader whether it is kept or not."""


class NextUse(Generic[Item]):
    """Policy `next-use`: Belady's rule over what readers have posted, with bypass.

    An item's next use is the nearest over all readers. For a reader it is the distance from its position, in positions,
    divided by its speed relative to the mean of the readers; speeds are estimated from how far each advanced of late.
    Items without a known next use are farther than all with one. Among those, the most recently accessed goes first:
    what was brought in for one use and had it goes before what has been kept from the epoch before, so an order that
    is posted a window at a time does not wash the cache out.
    What comes is weighed without the uses that readers are asking for: they get it whether it is kept or not.

    Each item lies in one queue: that of a reader that will read it, by its position there, or that of items nobody will
    read, by recency. Positions do not change while readers advance, and the distance for any one reader is an upper
    bound of the distance to the next use. So the farthest of the queues' heads is the farthest item, if the bound is
    its true distance; else it goes over to the queue of the reader that is nearer. It is exact for all speeds.

    Costs, for n items and r readers: O(r + log n) for each insertion, access, victim (amortised), and position that is
    posted or passed; O(n log n) for `leave`, over what the reader has still to read. With a million items and four
    readers that have posted all of them: 1 to 8 microseconds for each, 15 for a victim, a second for `leave`.
    Memory: 180 bytes an item, and 50 for each position that is posted and not read.
    """

    replaces: ClassVar[bool] = True

    def __init__(self) -> None:
        self._readers: dict[str, _Reader] = {}
        self._moved = 0.0
        self._nobodys = _Queue()
        self._changes = 0
        self._clock = 0
        self._cached = 0
        # Items have numbers while they are cached or posted: in arrays by number they take little memory.
        self._number: dict[Item, int] = {}
        self._item: list[Item | None] = []
        self._free: list[int] = []
        self._posted: list[int] = []
        """Positions of all readers that are still to be read."""
        self._queue: list[_Queue | None] = []
        """Where it lies; None: it is not cached."""
        self._key: list[int] = []
        """By which it lies there: a position, or the time of the last access."""
        self._size: list[int] = []
        self._access: list[int] = []
        """When it was last accessed, by a clock that ticks with each access; 0: never."""

    # What is cached

    def inserted(self, item: Item, size: int) -> None:
        number = self._number_of(item)
        self._size[number] = size
        if self._queue[number] is None:
            self._changes += 1
            self._cached += 1
            self._touch(number)
            self._place(number)

    def accessed(self, item: Item) -> None:
        number = self._number.get(item)
        if number is not None and self._queue[number] is not None:
            self._changes += 1
            self._touch(number)
            if self._queue[number] is self._nobodys:
                self._put(number, self._nobodys, self._access[number])

    def removed(self, item: Item) -> None:
        number = self._number.get(item)
        if number is not None and (queue := self._queue[number]) is not None:
            self._queue[number] = None
            self._cached -= 1
            self._left(queue)
            self._release(number)

    def __len__(self) -> int:
        return self._cached

    def __contains__(self, item: object) -> bool:
        number = self._number.get(item)  # type: ignore[arg-type]
        return number is not None and self._queue[number] is not None

    # What readers say

    def post(self, reader: str, first: int, items: Sequence[Item]) -> None:
        """`items[i]` is what `reader` reads at position `first + i`; extends or overwrites its order.

        A reader's first post says also where it stands, when `advance` has not. Positions before its own are ignored; a
        reader that starts again leaves first. A gap is allowed; after one of more than a million positions the reader
        is taken to stand at `first`.
        """
        self._changes += 1
        order = self._reader(reader)
        numbers = [self._number_of(item) for item in items]
        for number in numbers:
            self._posted[number] += 1
        added, gone = order.post(first, numbers)
        for number in added:
            # Now rather than when it comes up: a million that wait in another queue would come up all at once.
            if self._queue[number] is not None:
                self._place(number)
        for number in gone:
            if self._queue[number] is order.queue and self._key[number] != order.next[number]:
                self._place(number)
        for number in [*numbers[: len(numbers) - len(added)], *gone]:
            self._posted[number] -= 1
            self._release(number)

    def advance(self, reader: str, position: int, asked: int = 0) -> None:
        """`reader` has come further. Going back is ignored.

        Args:
            reader: who.
            position: everything before it has been read: an access, too.
            asked: everything before it has been read or is being asked for. It stays if it is in, but it is no reason
                to come in.
        """
        self._changes += 1
        order = self._reader(reader)
        order.asked = max(order.asked, asked)
        before = order.position if order.told else position
        passed = order.pass_to(position)
        for number in passed:
            self._posted[number] -= 1
            self._touch(number)
        for number in passed:
            queue = self._queue[number]
            if queue is None:
                self._release(number)
            elif queue is order.queue and self._key[number] < order.position:
                self._place(number)
        self._pace(order, order.position - before)

    def read(self, reader: str, position: int) -> None:
        """`reader` has read what is at that position, though not yet all before it: an access, too."""
        order = self._readers.get(reader)
        number = order.forget(position) if order is not None else NOBODY
        if order is None or number == NOBODY:
            return
        self._changes += 1
        self._posted[number] -= 1
        self._touch(number)
        if self._queue[number] is None:
            self._release(number)
        elif self._queue[number] is order.queue and self._key[number] == position:
            self._place(number)

    def leave(self, reader: str) -> None:
        """The reader reads no more; nothing happens when it is not known."""
        order = self._readers.pop(reader, None)
        if order is None:
            return
        self._changes += 1
        self._moved -= order.moved
        for number in order.pending():
            self._posted[number] -= 1
            self._release(number)
        for number in {-entry & _MASK for entry in order.queue.heap}:
            if self._queue[number] is order.queue:
                self._place(number)

    # Who goes

    def victims(self, coming: Item | None = None) -> Iterator[Item]:
        return one_by_one(self, self._front, lambda: self._changes, coming)

    def admits(self, item: Item, size: int) -> bool:
        """Whether everybody who would have to go for `size` bytes has a farther next use than `item`.

        Uses that are being asked for already do not count for it. Not when even all of them would not free so much. An
        item without a known next use is never worth it: it would be the first to go itself.
        """
        number = self._number.get(item)
        own = math.inf if number is None else self._nearest_unasked(number)
        if own == math.inf:
            return False
        for victim in self.victims(item):
            number = self._number[victim]
            if self._nearest(number)[0] <= own:
                return False
            size -= self._size[number]
            if size <= 0:
                return True
        return False

    def _front(self, given: set[Item | None], count: int) -> list[Item]:
        held: list[tuple[_Queue, int]] = []
        found: dict[Item, None] = {}  # an item may lie in a queue twice with the same key
        while len(found) < count and (queue := self._farthest()) is not None:
            entry = heappop(queue.heap)
            held.append((queue, entry))
            item = self._item[-entry & _MASK]
            if item is not None and item not in given:
                found[item] = None
        for queue, entry in held:
            heappush(queue.heap, entry)
        return list(found)

    def _farthest(self) -> _Queue | None:
        """The queue at whose head the farthest item is; items that come up and are nearer go to their queues."""
        while True:
            if self._clean(self._nobodys):
                return self._nobodys
            farthest, bound = None, -1.0
            for reader in self._readers.values():
                if heap := self._clean(reader.queue):
                    distance = ((-heap[0] >> _BITS) - reader.position) / reader.speed
                    if distance > bound:
                        farthest, bound = reader, distance
            if farthest is None:
                return None
            number = -farthest.queue.heap[0] & _MASK
            distance, nearest = self._nearest(number)
            if nearest is None or distance >= bound:
                return farthest.queue
            self._put(number, nearest.queue, nearest.next[number])

    def _nearest(self, number: int) -> tuple[float, _Reader | None]:
        """The distance to the next use, and who reads it then."""
        nearest, least = None, math.inf
        for reader in self._readers.values():
            position = reader.next[number]
            if position != NOBODY and (distance := (position - reader.position) / reader.speed) < least:
                nearest, least = reader, distance
        return least, nearest

    def _nearest_unasked(self, number: int) -> float:
        """The distance to the next use that nobody asks for yet."""
        least = math.inf
        for reader in self._readers.values():
            position = reader.next_from(number, reader.asked)
            if position != NOBODY:
                least = min(least, (position - reader.position) / reader.speed)
        return least

    # Queues

    def _place(self, number: int) -> None:
        _, nearest = self._nearest(number)
        if nearest is None:
            queue, key = self._nobodys, self._access[number]
        else:
            queue, key = nearest.queue, nearest.next[number]
        if self._queue[number] is not queue or self._key[number] != key:
            self._put(number, queue, key)

    def _put(self, number: int, queue: _Queue, key: int) -> None:
        old = self._queue[number]
        self._queue[number], self._key[number] = queue, key
        if old is not None:
            self._left(old)
        queue.live += 1
        heappush(queue.heap, -(key << _BITS | number))
        self._shrink(queue)

    def _left(self, queue: _Queue) -> None:
        """One of its entries is no longer true; when most are not, they go."""
        queue.live -= 1
        self._shrink(queue)

    def _shrink(self, queue: _Queue) -> None:
        if len(queue.heap) > 2 * queue.live + _SPARE:
            queue.heap = list({entry for entry in queue.heap if self._is_true(queue, entry)})
            heapify(queue.heap)

    def _is_true(self, queue: _Queue, entry: int) -> bool:
        number = -entry & _MASK
        return self._queue[number] is queue and self._key[number] == -entry >> _BITS

    def _clean(self, queue: _Queue) -> list[int]:
        """Its heap, with a true entry at the head."""
        heap = queue.heap
        while heap and not self._is_true(queue, heap[0]):
            heappop(heap)
        return heap

    # Numbers, time, speeds

    def _number_of(self, item: Item) -> int:
        number = self._number.get(item)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._item[number] = item
            else:
                number = len(self._item)
                self._item.append(item)
                self._posted.append(0)
                self._queue.append(None)
                self._key.append(0)
                self._size.append(0)
                self._access.append(0)
                for reader in self._readers.values():
                    reader.another_number()
            self._number[item] = number
        return number

    def _release(self, number: int) -> None:
        """Forget an item that is neither cached nor posted."""
        if not self._posted[number] and self._queue[number] is None and (item := self._item[number]) is not None:
            del self._number[item]
            self._item[number] = None
            self._free.append(number)

    def _touch(self, number: int) -> None:
        self._clock += 1
        self._access[number] = self._clock

    def _reader(self, name: str) -> _Reader:
        reader = self._readers.get(name)
        if reader is None:
            mean = self._moved / len(self._readers) if self._readers else 0.0
            reader = self._readers[name] = _Reader(len(self._item), mean)
            self._moved += mean
        return reader

    def _pace(self, reader: _Reader, steps: int) -> None:
        """Count steps, and now and then see who is how fast."""
        reader.moved += steps
        self._moved += steps
        if self._moved < _WINDOW * len(self._readers):
            return
        mean = self._moved / len(self._readers)
        for each in self._readers.values():
            speed = each.moved / mean
            each.speed = 1.0 if abs(speed - 1) <= _ALIKE else max(speed, _SLOWEST)
            each.moved /= 2
        self._moved /= 2
