"""Reading cached bytes again to compare them with the checksums that were taken when they came."""

import os

import xxhash

from forebay.cacheruntime.index import BLOCK_BYTES, block_count
from forebay.cacheruntime.keys import ContentId
from forebay.cacheruntime.tiers import cached_path
from forebay.cacheruntime.worker.storage import Storage


def is_damaged(storage: Storage, content: ContentId) -> bool | None:
    """Whether some cached byte of a file is another than was fetched; None when nothing of it is cached. In a thread.

    What is evicted meanwhile counts as not cached.
    """
    reader = storage.index.reader
    cached = reader.find(content)
    if cached is None:
        return None
    try:
        descriptor = os.open(
            cached_path(storage.tier(cached.tier).config.path, content, cached.pack), os.O_RDONLY | os.O_CLOEXEC
        )
    except OSError:
        return None if reader.find(content) is None else True
    try:
        for block in range(1 if cached.pack else block_count(cached.size)):
            start = block * BLOCK_BYTES
            end = cached.size if cached.pack else min(start + BLOCK_BYTES, cached.size)
            if not cached.has(start, end):
                continue
            try:
                data = os.pread(descriptor, end - start, cached.offset + start)
            except OSError:
                data = b""  # the disk cannot read it
            if xxhash.xxh3_64_intdigest(data) != reader.checksum(content, block):
                now = reader.find(content)
                return None if now is None or (now.pack, now.offset) != (cached.pack, cached.offset) else True
    finally:
        os.close(descriptor)
    return False
