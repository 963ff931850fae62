"""``python -m forebay.cacheruntime.worker.check_catalogues FOLDER``: open every catalogue below a folder, and walk its
names.

A process of its own: LMDB must not be opened twice in one, and a catalogue that is torn may end it.
"""

import sys
from pathlib import Path

import lmdb

from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.keys import ROOT_NODE


def trouble(folder: Path) -> str | None:
    """What is wrong with one catalogue, or None."""
    try:
        catalogue = Catalogue(folder)
    except CacheFormatError as error:
        return str(error)
    try:
        found = sum(1 for _ in catalogue.files_below(ROOT_NODE))
        totals = catalogue.totals()
        if totals.complete and found != totals.files:
            return f"{folder}: its totals say {totals.files} files, there are {found}"
    except (lmdb.Error, ValueError, KeyError, IndexError) as error:
        return f"{folder} cannot be read: {error}"
    finally:
        catalogue.close()
    return None


def main() -> None:
    for folder in sorted(Path(sys.argv[1]).glob("*/*")):
        if folder.name.isdigit():
            print(f"looking at {folder}", flush=True)
            found = trouble(folder)
            if found is not None:
                print(f"wrong {found}", flush=True)
    print("done")


if __name__ == "__main__":
    main()
