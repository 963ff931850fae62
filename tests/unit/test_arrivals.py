"""Waiting for bytes that are on their way, by looks at the index."""

import trio
import trio.testing

from forebay.cacheruntime.index import Cached, PackNumber, TierNumber
from forebay.cacheruntime.keys import ContentId, DatasetId
from forebay.fuse.arrivals import Arrivals

MIB = 1 << 20
A, B = ContentId(b"a" * 16), ContentId(b"b" * 16)


class Record:
    """An index of files of 8 blocks, of which some are there; counts the looks."""

    def __init__(self) -> None:
        self.blocks: dict[ContentId, int] = {}
        self.looks = 0

    def find(self, content: ContentId) -> Cached | None:
        self.looks += 1
        bits = self.blocks.get(content)
        if bits is None:
            return None
        return Cached(TierNumber(1), 8 * MIB, False, PackNumber(0), 0, DatasetId("d"), bytes([bits]))

    def has(self, content: ContentId, cached: Cached, start: int, end: int) -> bool:
        return cached.has(start, end)


def test_comes_and_does_not_come() -> None:
    record = Record()
    arrivals = Arrivals(record.find, record.has)
    seen: list[tuple[str, bool, float]] = []

    async def wait(name: str, content: ContentId, block: int, patience_s: float) -> None:
        here = await arrivals.wait(content, block * MIB, (block + 1) * MIB, patience_s)
        seen.append((name, here, round(trio.current_time(), 3)))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "comes", A, 1, 1.0)
            nursery.start_soon(wait, "in vain", A, 2, 0.05)
            nursery.start_soon(wait, "other file", B, 0, 1.0)
            await trio.sleep(0.0205)
            record.blocks[A] = 0b10
            await trio.sleep(0.1)
            record.blocks[B] = 0b1

    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(main, clock=clock)
    assert [(name, here) for name, here, _ in seen] == [("comes", True), ("in vain", False), ("other file", True)]
    assert [at for _, _, at in seen] == [0.021, 0.05, 0.121]


def test_one_looks_for_all() -> None:
    record = Record()
    arrivals = Arrivals(record.find, record.has)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for block in range(8):
                nursery.start_soon(arrivals.wait, A, block * MIB, (block + 1) * MIB, 1.0)
            await trio.sleep(0.0305)
            record.blocks[A] = 0xFF

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert record.looks == 31


def test_when_the_one_who_looks_leaves_another_goes_on() -> None:
    record = Record()
    arrivals = Arrivals(record.find, record.has)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def leaves() -> None:
                with scope:
                    await arrivals.wait(A, 0, MIB, 1.0)

            async def stays() -> None:
                assert await arrivals.wait(A, MIB, 2 * MIB, 1.0)
                assert trio.current_time() < 0.1

            nursery.start_soon(leaves)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(stays)
            await trio.sleep(0.01)
            scope.cancel()
            await trio.sleep(0.01)
            record.blocks[A] = 0b10

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_is_there_already_is_seen_at_the_first_look() -> None:
    record = Record()
    record.blocks[A] = 1

    async def main() -> None:
        assert await Arrivals(record.find, record.has).wait(A, 0, MIB, 1.0)
        assert trio.current_time() <= 0.001

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
