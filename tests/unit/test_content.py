"""Reading cached bytes while files come, go and come again under the same name."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from cache_box import Box, bytes_of

from forebay.cacheruntime import content as content_module
from forebay.cacheruntime.config import KIB, MIB
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.index import Cached, Index, PackNumber
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.touch import slot_of
from forebay.cacheruntime.worker.fetch import SourceFile
from forebay.cacheruntime.worker.fill import Filler


class Hooked(Index):
    """An index that does something right after a look."""

    def __init__(self, real: Index) -> None:
        self.__dict__.update(vars(real))
        self.then: list[Callable[[], Any]] = []

    def find(self, content: ContentId) -> Cached | None:
        found = super().find(content)
        if self.then:
            self.then.pop(0)()
        return found


@pytest.fixture
def index(box: Box) -> Hooked:
    return Hooked(box.storage.index.reader)


@pytest.fixture
def reader(box: Box, index: Hooked) -> Any:
    made = ContentReader(index, box.storage.touch)
    yield made
    made.close()


def fill(box: Box, file: SourceFile, start: int = 0, end: int | None = None) -> None:
    async def test(filler: Filler) -> None:
        await filler.fill(file, start, (file.size if end is None else end) - start, 0)

    box.run(test)


def read(reader: ContentReader, file: SourceFile, start: int = 0, end: int | None = None) -> bytes | None:
    end = file.size if end is None else end
    place = reader.find(file.content, start, end)
    return None if place is None else os.pread(place.descriptor, end - start, place.base + start)


def data_of(box: Box, file: SourceFile) -> bytes:
    return box.store.files[file.path][0]


@pytest.mark.parametrize("size", [0, 1, 1000, MIB, 3 * MIB + 7])
def test_hit_and_miss(box: Box, reader: ContentReader, size: int) -> None:
    file = box.source("a", bytes_of(size))
    assert read(reader, file) is None
    assert not reader.is_whole(file.content)
    fill(box, file)
    if size:
        assert read(reader, file) == data_of(box, file)
        assert read(reader, file, size // 2) == data_of(box, file)[size // 2 :]
        assert reader.is_whole(file.content)


def test_partial_file(box: Box, reader: ContentReader) -> None:
    file = box.source("a", bytes_of(4 * MIB))
    fill(box, file, MIB, 2 * MIB)
    assert read(reader, file, MIB, 2 * MIB) == data_of(box, file)[MIB : 2 * MIB]
    assert read(reader, file, MIB, 2 * MIB + 1) is None
    assert read(reader, file, MIB - 1, MIB + 1) is None
    assert not reader.is_whole(file.content)


def test_hits_are_touched(box: Box, reader: ContentReader) -> None:
    file, small = box.source("a", bytes_of(MIB)), box.source("s", b"small")
    for each in (file, small):
        fill(box, each)
        cached = reader.cached(each.content)
        assert cached is not None
        slot = slot_of(each.content, cached.pack)
        for _ in range(2):
            assert not box.storage.touch.take(slot)
            read(reader, each)
            assert box.storage.touch.take(slot)


def test_what_is_only_looked_for_is_not_touched(box: Box, reader: ContentReader) -> None:
    file = box.source("f", bytes_of(MIB))
    fill(box, file)
    slot = slot_of(file.content, PackNumber(0))
    for _ in range(2):  # once with a look at the index, once without
        assert reader.find(file.content, 0, MIB, touch=False) is not None
    assert not box.storage.touch.take(slot)
    assert reader.find(file.content, 0, MIB) is not None
    assert box.storage.touch.take(slot)


def test_evicted_file_is_let_go_at_the_next_look(box: Box, reader: ContentReader) -> None:
    file = box.source("a", bytes_of(2 * MIB))
    fill(box, file)
    place = reader.find(file.content, 0, file.size)
    assert place is not None
    box.storage.drop_file(file.content)
    assert os.pread(place.descriptor, file.size, place.base) == data_of(box, file), "good until the next call"
    assert read(reader, file) is None
    assert reader._opened == {}


def test_a_reader_that_looks_at_other_files_gives_up_evicted_ones(box: Box, index: Hooked) -> None:
    now = [0.0]
    reader = ContentReader(index, box.storage.touch, lambda: now[0])
    files = [box.source(n, bytes_of(2 * MIB, ord(n))) for n in "ab"]
    for file in files:
        fill(box, file)
        read(reader, file)
    used = box.storage.tiers[0].used_bytes
    box.storage.drop_file(files[0].content)
    box.storage.tidy()
    assert box.storage.tiers[0].used_bytes == used, "it is open: its bytes are on the disk"
    now[0] += 1.0
    read(reader, files[1])
    box.storage.tidy()
    assert box.storage.tiers[0].used_bytes == used - 2 * MIB
    reader.close()


def test_sweep_keeps_what_is_there(box: Box, reader: ContentReader) -> None:
    files = [box.source(n, bytes_of(MIB, ord(n))) for n in "ab"]
    for file in files:
        fill(box, file)
        read(reader, file)
    box.storage.drop_file(files[0].content)
    reader.sweep()
    assert [read(reader, file) for file in files] == [None, data_of(box, files[1])]


def test_pack_is_one_descriptor(box: Box, reader: ContentReader) -> None:
    files = [box.source(str(n), bytes_of(100 + n, n)) for n in range(20)]
    for file in files:
        fill(box, file)
        assert read(reader, file) == data_of(box, file)
    assert len(reader._opened) == 1
    box.storage.drop_pack(box.storage.index.reader.packs()[0])
    assert [read(reader, file) for file in files] == [None] * 20


@pytest.mark.parametrize("whole", [False, True])
def test_regression_stale_descriptor_of_a_partial_file_is_never_read(
    box: Box, reader: ContentReader, whole: bool
) -> None:
    """With `whole`, the shortcut for complete files gave out the old descriptor: zeros where blocks came later."""
    file = box.source("a", bytes_of(3 * MIB))
    fill(box, file, 0, MIB)
    assert read(reader, file, 0, MIB) == data_of(box, file)[:MIB]
    box.storage.drop_file(file.content)
    fill(box, file, MIB, 3 * MIB)
    assert read(reader, file, 0, MIB) is None
    if whole:
        box.storage.drop_file(file.content)
        fill(box, file)
        assert read(reader, file) == data_of(box, file)
    else:
        assert read(reader, file, MIB) == data_of(box, file)[MIB:]


def test_regression_begun_anew_between_the_look_and_the_opening(box: Box, index: Hooked, reader: ContentReader) -> None:
    file = box.source("a", bytes_of(2 * MIB))
    fill(box, file)

    def anew() -> None:
        box.storage.drop_file(file.content)
        box.storage.place_file(box.target(file))

    index.then = [anew]
    assert read(reader, file) is None
    index.then = []
    fill(box, file)
    index.then = [anew]
    assert reader.whole_file(file.content, file.size) is None, "it would be passed through with holes"
    index.then = []
    fill(box, file)
    assert read(reader, file) == data_of(box, file)


def test_evicted_between_the_look_and_the_opening(box: Box, index: Hooked, reader: ContentReader) -> None:
    file = box.source("a", bytes_of(2 * MIB))
    for look in (lambda: read(reader, file), lambda: reader.whole_file(file.content, file.size)):
        fill(box, file)
        index.then = [lambda: box.storage.drop_file(file.content)]
        assert look() is None


def test_replaced_after_a_descriptor_was_opened(box: Box, index: Hooked, reader: ContentReader) -> None:
    """The record speaks of the new file, the open descriptor is of the old one."""
    file = box.source("a", bytes_of(2 * MIB))
    fill(box, file, 0, MIB)
    read(reader, file, 0, MIB)
    box.storage.drop_file(file.content)
    fill(box, file, MIB, 2 * MIB)
    assert read(reader, file, MIB) == data_of(box, file)[MIB:]


def test_whole_file(box: Box, reader: ContentReader) -> None:
    file, small = box.source("a", bytes_of(2 * MIB)), box.source("s", b"small")
    fill(box, file, 0, MIB)
    fill(box, small)
    assert reader.whole_file(file.content, file.size) is None, "partial"
    assert reader.whole_file(small.content, small.size) is None, "in a pack"
    fill(box, file)
    assert reader.whole_file(file.content, file.size + 1) is None, "another size"
    descriptor = reader.whole_file(file.content, file.size)
    assert descriptor is not None
    try:
        assert os.pread(descriptor, file.size, 0) == data_of(box, file)
    finally:
        os.close(descriptor)
    box.storage.drop_file(file.content)
    assert reader.whole_file(file.content, file.size) is None


def test_descriptors_are_bounded(box: Box, reader: ContentReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "_OPEN_FILES", 3)
    before = len(os.listdir("/proc/self/fd"))
    files = [box.source(str(n), bytes_of(MIB, n)) for n in range(8)]
    for file in files:
        fill(box, file)
    for file in files * 2:
        assert read(reader, file) == data_of(box, file)
        assert len(reader._opened) <= 3
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_pieces_of_another_index_do_not_count_for_a_record_of_this_one(
    box: Box, make_box: Callable[..., Box], index: Hooked, reader: ContentReader
) -> None:
    """Another thread takes the index that a worker has put in the place of the old one, between two looks at it."""
    other = make_box()
    file = box.source("a", bytes_of(2 * MIB))
    assert other.source("a", bytes_of(2 * MIB)).content == file.content
    fill(box, file, 200 * KIB, 328 * KIB)
    fill(other, file, 800 * KIB, 928 * KIB)
    assert read(reader, file, 200 * KIB, 328 * KIB) is not None

    def renew() -> None:
        opened = other.storage.index.reader._opened
        opened.generation = 1
        index._opened = opened

    index.then = [renew]
    assert read(reader, file, 800 * KIB, 928 * KIB) == data_of(box, file)[800 * KIB : 928 * KIB], "no hole of the old"
