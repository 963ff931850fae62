"""Meets files that were replaced, and looks at their names right after.

``python stale_names.py SOURCE MOUNT NAME...`` replaces each file of SOURCE, reads it on MOUNT through a handle from
before, by O_DIRECT (so that one request has one answer), and prints a JSON list: for each name the errno of the read,
and whether stat(2) then told the new size. Standard library only.
"""

import errno
import json
import mmap
import os
import sys

NEW_BYTES = 3
"""The old ones have another length."""


def meet(source: str, mount: str, name: str) -> tuple[str, bool]:
    path = os.path.join(mount, name)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with open(os.path.join(source, ".fresh"), "wb") as fresh:
        fresh.write(b"n" * NEW_BYTES)
    os.replace(os.path.join(source, ".fresh"), os.path.join(source, name))
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as buffer:
            os.preadv(handle, [buffer], 0)
    except OSError as error:
        return errno.errorcode[error.errno or 0], os.stat(path).st_size == NEW_BYTES
    finally:
        os.close(handle)
    return "", False


def main() -> None:
    source, mount, *names = sys.argv[1:]
    print(json.dumps([meet(source, mount, name) for name in names]))


if __name__ == "__main__":
    main()
