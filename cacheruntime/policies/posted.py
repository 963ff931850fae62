"""What one reader has said it will read, by position, and how far it has come."""

from array import array
from collections.abc import Sequence

NOBODY = -1
"""Instead of an item's number or a position: there is none, or it is not known."""

_TRIM = 1 << 16
"""Positions that were read are forgotten so many at a time at least."""

_HOLE = 1 << 20
"""A post this far behind the end of what is known: the reader has begun at another place."""


class PostedOrder:
    """Positions of a reader and the numbers of the items there. Numbers are small integers that the policy gives out.

    Memory: 16 bytes for each position from the reader's on, and 16 bytes for each number there is.
    """

    def __init__(self, numbers: int) -> None:
        self.position = 0
        """Everything before it has been read."""
        self.told = False
        """Whether `position` was ever told; if not, the first post tells it."""
        self._base = 0
        """Position of the first entries in the two arrays."""
        self._numbers = array("q")
        self._later = array("q")
        """The next position of the same item."""
        self.next = array("q", [NOBODY]) * numbers
        """By number: where the item is read next, not before `position`."""
        self._last = array("q", [NOBODY]) * numbers
        """By number: where it is read last of all that is known."""

    def another_number(self) -> None:
        self.next.append(NOBODY)
        self._last.append(NOBODY)

    def post(self, first: int, numbers: Sequence[int]) -> tuple[list[int], list[int]]:
        """Items at the positions from `first`; what was posted there before is overwritten, what is before stays.

        Returns:
            The numbers of which a use was added, and those of which one was taken away, once for each position; those
            at positions that were read already are in neither.
        """
        gone: list[int] = []
        if not self.told or first > self._base + len(self._numbers) + _HOLE:
            gone = self.pass_to(first)
        end = self._base + len(self._numbers)
        numbers = numbers[max(0, self.position - first) :]
        first = max(first, self.position)
        if not numbers:
            return [], gone
        if first > end:
            self._numbers.extend([NOBODY] * (first - end))
            self._later.extend([NOBODY] * (first - end))
            end = first
        overlap = min(end - first, len(numbers))
        for position in range(first, first + overlap):
            if (number := self._numbers[position - self._base]) != NOBODY:
                self._unlink(position, number)
                gone.append(number)
        room = first + len(numbers) - end
        if room > 0:
            self._numbers.extend([NOBODY] * room)
            self._later.extend([NOBODY] * room)
        for position, number in enumerate(numbers, first):
            self._link(position, number)
        return list(numbers), gone

    def _link(self, position: int, number: int) -> None:
        self._numbers[position - self._base] = number
        last = self._last[number]
        if last == NOBODY:
            self.next[number] = self._last[number] = position
        elif last < position:
            self._later[last - self._base] = position
            self._last[number] = position
        elif position < (after := self.next[number]):
            self._later[position - self._base] = after
            self.next[number] = position
        else:
            before = self._before(position, number)
            self._later[position - self._base] = self._later[before - self._base]
            self._later[before - self._base] = position

    def _unlink(self, position: int, number: int) -> None:
        later = self._later[position - self._base]
        if self.next[number] == position:
            before = NOBODY
            self.next[number] = later
        else:
            before = self._before(position, number)
            self._later[before - self._base] = later
        if self._last[number] == position:
            self._last[number] = before
        self._numbers[position - self._base] = self._later[position - self._base] = NOBODY

    def _before(self, position: int, number: int) -> int:
        """The item's use before that position, when there is one. O(uses): only orders that are changed need it."""
        before = self.next[number]
        while NOBODY < (later := self._later[before - self._base]) < position:
            before = later
        return before

    def pass_to(self, position: int) -> list[int]:
        """Go on to a position; the numbers of what was read on the way, one for each position that is known.

        A position before that of now is ignored.
        """
        self.told = True
        if position <= self.position:
            return []
        passed: list[int] = []
        start, self.position = self.position - self._base, position
        end = min(position - self._base, len(self._numbers))
        for index in range(start, end):
            number = self._numbers[index]
            if number != NOBODY:
                later = self._later[index]
                self.next[number] = later
                if later == NOBODY:
                    self._last[number] = NOBODY
                passed.append(number)
        if end == len(self._numbers) or end >= max(_TRIM, len(self._numbers) // 2):
            del self._numbers[:end], self._later[:end]
            self._base = position
        return passed

    def forget(self, position: int) -> int:
        """It has been read before what is ahead of it; the number of what was there, `NOBODY` if nothing is known."""
        index = position - self._base
        if not self.position <= position < self._base + len(self._numbers):
            return NOBODY
        number = self._numbers[index]
        if number != NOBODY:
            self._unlink(position, number)
        return number

    def next_from(self, number: int, position: int) -> int:
        """Where an item is read next, not before that position. O(uses before it)."""
        found = self.next[number]
        while NOBODY < found < position:
            found = self._later[found - self._base]
        return found

    def pending(self) -> list[int]:
        """The numbers of all that is still to be read, once for each position."""
        return [number for number in self._numbers[self.position - self._base :] if number != NOBODY]
