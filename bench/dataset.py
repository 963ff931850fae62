"""Data to read: real JPEG images of about 100 KiB, and large binary files.

No two files and no two blocks are alike, so that neither a mix-up nor a cache of equal bytes goes unseen.
"""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import xxhash
from PIL import Image

MIB = 1 << 20

_ENCODED = 32
"""Pictures that are encoded; encoding takes some 5 ms, so the others are these with a comment of their own."""

_SIDE = 480  # pixels; with the noise below this gives about 100 KiB at quality 80


@dataclass(frozen=True)
class Sample:
    """One file of a dataset."""

    key: str
    path: Path
    """Its local copy."""
    size: int
    digest: int
    """XXH3-64 of all its bytes."""


def make_images(folder: Path, count: int, seed: int, classes: int = 10) -> list[Sample]:
    """Write `count` JPEG files below a folder, in one subfolder for each class (none with `classes` 0)."""
    encoded = list(_pictures(random.Random(seed)))
    samples = []
    for label in range(classes):
        (folder / f"class-{label:02}").mkdir(parents=True)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = f"{number:06}.jpg"
        key = f"class-{number % classes:02}/{name}" if classes else name
        # A COM segment (ITU-T T.81, B.2.4.5) behind the start marker: another file, still a whole JPEG.
        comment = f"image {number} of seed {seed}".encode()
        picture = encoded[number % len(encoded)]
        data = picture[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + picture[2:]
        samples.append(_write(folder, key, data))
    return samples


def make_large(folder: Path, name: str, size_bytes: int, seed: int) -> Sample:
    """Write a binary file of whole MiB; each MiB starts with its number and the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed).randbytes(MIB)
    hasher = xxhash.xxh3_64()
    path = folder / name
    with path.open("wb", buffering=0) as output:
        for number in range(size_bytes // MIB):
            block = struct.pack("<QQ", number, seed) + noise[16:]
            hasher.update(block)
            output.write(block)
    return Sample(name, path, size_bytes, hasher.intdigest())


def shuffled(samples: list[Sample], seed: int) -> list[Sample]:
    """The samples in the order of an epoch."""
    order = list(samples)
    random.Random(seed).shuffle(order)
    return order


def by_key(samples: list[Sample]) -> dict[str, Path]:
    """As `Endpoint.publish` takes them."""
    return {sample.key: sample.path for sample in samples}


def _pictures(chance: random.Random) -> Iterator[bytes]:
    """Encoded crops of one noisy base image."""
    base = Image.effect_noise((2 * _SIDE, 2 * _SIDE), 40.0).convert("L")
    gradient = Image.linear_gradient("L").resize(base.size)
    for _ in range(_ENCODED):
        left, top = chance.randrange(_SIDE), chance.randrange(_SIDE)
        box = (left, top, left + _SIDE, top + _SIDE)
        first, second = base.crop(box), gradient.crop(box)
        colour = Image.merge("RGB", (first, Image.blend(first, second, 0.3), Image.blend(first, second, 0.6)))
        memory = BytesIO()
        colour.save(memory, "JPEG", quality=80)
        yield memory.getvalue()


def _write(folder: Path, key: str, data: bytes) -> Sample:
    path = folder / key
    path.write_bytes(data)
    return Sample(key, path, len(data), xxhash.xxh3_64_intdigest(data))
