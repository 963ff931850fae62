"""A training job's reader: reads the files of a `FileSet` in random order and checks every byte. A program.

Reads a JSON task from standard input; `epoch.py` says what it holds. Prints one JSON report at the end; see there, too.
Standard library only.
"""

import errno
import json
import mmap
import os
import random
import sys
import time

from named_files import FileSet, content, size_of

_PIECE_BYTES = 1 << 20
_EXAMPLES = 20


def check(path: str, name: str) -> list[object] | None:
    """Where a file is not as its name says, or None.

    Raises:
        OSError: it cannot be read; `at` tells from where on.
    """
    at, size = 0, size_of(name)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = os.fstat(descriptor).st_size
        if found != size:
            return [name, f"has {found} bytes"]
        while True:
            try:
                piece = os.read(descriptor, _PIECE_BYTES)
            except OSError as error:
                error.filename = at
                raise
            wanted = content(name, at, at + len(piece))
            if piece != wanted:
                first = next((n for n, (x, y) in enumerate(zip(piece, wanted, strict=False)) if x != y), len(wanted))
                return [name, at + first]
            at += len(piece)
            if not piece:
                return None if at == size else [name, f"ends at {at}"]
    finally:
        os.close(descriptor)


def main() -> None:
    task = json.load(sys.stdin)
    names = FileSet(task["small"], tuple(task["large"]), task["seed"]).names
    part, parts = task["share"]
    failed: list[list[object]] = []
    wrong: list[list[object]] = []
    slowest = (0.0, "")
    read, begun = 0, time.monotonic()
    with open(task["progress"], "r+b") as file, mmap.mmap(file.fileno(), 8) as progress:
        for epoch in range(task["epochs"]):
            order = list(names)
            random.Random(f"{task['order']}:{epoch}").shuffle(order)
            for name in order[part::parts]:
                asked = time.monotonic()
                try:
                    if where := check(os.path.join(task["root"], name), name):
                        wrong.append(where)
                except OSError as error:
                    failed.append([name, errno.errorcode.get(error.errno or 0, str(error)), str(error.filename)])
                slowest = max(slowest, (time.monotonic() - asked, name))
                read += 1
                progress[:] = read.to_bytes(8, "little")
    report = {
        "files": read, "failed": len(failed), "wrong": len(wrong), "examples": (failed + wrong)[:_EXAMPLES],
        "seconds": time.monotonic() - begun, "slowest_s": slowest[0], "slowest": slowest[1],
    }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
