"""Trees of files to mount, with their checksums. The same seed makes the same bytes."""

import hashlib
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20

EDGE_SIZES = (0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 12345, 7 * MIB + 1)
ODD_NAMES = (
    "with space", " leading and trailing ", "ümlaut-日本語-🐟", "e\u0301 decomposed", "hash#tag", "per%cent",
    "per%20cent",
    "plus+sign", "question?mark", "quote'\"`", "back\\slash", "semi;colon&amp", "dollar$(x)", "star*[a]{b}", "~tilde",
    "-dash", ".hidden", "...", "x" * 255, "日" * 85, "a=b,c:d@e", "<tag>", "UPPER", "upper",
)  # fmt: skip
POSIX_NAMES = (
    "new\nline",
    "tab\tname",
    "\x01control\x7f",
    os.fsdecode(b"latin-\xe9\xff"),
    os.fsdecode(b"\xf0\x28\x8c"),
)
"""What a file system takes and an object store's XML listing does not."""


@dataclass
class SourceTree:
    """Paths relative to the root, and what is there."""

    digests: dict[str, str] = field(default_factory=dict)
    """Path -> SHA-256 in hex."""
    sizes: dict[str, int] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    """Path -> target."""
    folders: set[str] = field(default_factory=set)


def payload(seed: str | int, size: int) -> bytes:
    """Bytes that do not repeat, from a seed."""
    return random.Random(seed).randbytes(size)


def make_tree(root: Path, *, posix: bool, small: int, large: tuple[int, ...]) -> SourceTree:
    """Make a tree.

    Args:
        root: where; made.
        posix: with names and links that only a file system has.
        small: files of up to 60 kB, besides those with edge sizes and odd names.
        large: sizes of large files.
    """
    tree = SourceTree()
    rng = random.Random(7)
    names = ODD_NAMES + (POSIX_NAMES if posix else ())
    files = [(f"edge/{size:010d}.bin", size) for size in EDGE_SIZES]
    files += [(f"odd/{name}", 1000 + number) for number, name in enumerate(names)]
    files += [(f"{name}/{name}", 5000 + number) for number, name in enumerate(names) if len(os.fsencode(name)) < 100]
    files += [(f"small/{n % 7}/{n % 5}/{n:05d}", rng.randrange(60_000)) for n in range(small)]
    files += [(f"large/{number}.bin", size) for number, size in enumerate(large)]
    for path, size in files:
        full = root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with open(full, "wb") as out:
            for start in range(0, size, 64 * MIB) or [0]:
                piece = payload(f"{path}:{start}".encode("utf-8", "surrogateescape"), min(64 * MIB, size - start))
                out.write(piece)
                digest.update(piece)
        tree.digests[path], tree.sizes[path] = digest.hexdigest(), size
    if posix:
        (root / "empty").mkdir()
        tree.links = {
            "links/relative": "../edge/0000000001.bin", "links/folder": "../small", "links/dangling": "no/such",
            "links/odd": "../odd/with space", "links/absolute": "/nowhere/at/all", "links/itself": "itself",
        }  # fmt: skip
        (root / "links").mkdir()
        for path, target in tree.links.items():
            os.symlink(target, root / path)
    tree.folders = {
        os.path.relpath(os.path.join(base, folder), root) for base, folders, _ in os.walk(root) for folder in folders
    } - set(tree.links)
    return tree
