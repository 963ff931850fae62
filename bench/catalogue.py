"""How fast the worker lists a source into the catalogue, in how much memory, and how fast that is read.

    python -m forebay.bench.catalogue [--entries 1000000] [--folder DIR]

Each measurement runs in a process of its own, through the worker's own path (`worker/datasets.py`): a listing in a
thread, its pages gathered, a transaction for each. Sources: files of this machine, made for it, and a store whose pages
are made of nothing, which leaves only the catalogue. Memory is the most that was not backed by files (RssAnon), above
that before the listing; an LMDB map is, and the kernel takes it back at will.
"""

import argparse
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from forebay.cacheruntime.catalogue import Catalogue, Node
from forebay.cacheruntime.config import CacheConfig, RetryConfig
from forebay.cacheruntime.keys import Roots, dataset_id
from forebay.cacheruntime.understore.base import Entry, Kind, UnderStore
from forebay.cacheruntime.understore.factory import open_store
from forebay.cacheruntime.worker.dataset import Dataset, Definition
from forebay.cacheruntime.worker.datasets import Datasets

FOLDER_FILES = 1000
_LOOKUPS = 100_000


@dataclass(frozen=True)
class Outcome:
    """One listing."""

    source: str
    entries: int
    entries_per_s: float
    cpu_us: float
    """Of this process for each entry; what a process that scans takes is not in it."""
    memory_mib: float
    """The most above what there was before."""
    lookups_per_s: float
    listed_per_s: float


class MadeUp:
    """A store of so many small files, in key order, in pages of a thousand."""

    url = "made-up://store"
    pins_version = True
    lists_in_key_order = True

    def __init__(self, entries: int) -> None:
        self._entries = entries

    def list_tree(self) -> Iterator[list[Entry]]:
        for first in range(0, self._entries, FOLDER_FILES):
            folder = f"train/{first // FOLDER_FILES:06}"
            yield [
                Entry(f"{folder}/sample-{number:09}.jpg", Kind.FILE, 100_000, 10**18 + number, f'"{number:032x}"')
                for number in range(first, min(first + FOLDER_FILES, self._entries))
            ]


def make_files(folder: Path, entries: int) -> None:
    """As many empty files, a thousand to a folder."""
    for number in range(entries):
        inside = folder / f"{number // FOLDER_FILES:06}"
        if number % FOLDER_FILES == 0:
            inside.mkdir(parents=True)
        os.close(os.open(inside / f"sample-{number:09}.jpg", os.O_CREAT | os.O_WRONLY))


def measure(store: UnderStore, cache_dir: Path) -> Outcome:
    """List a store into a fresh catalogue, in this process, and read it."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # as the worker
    config = CacheConfig(cache_dir=cache_dir, runtime_dir=cache_dir / "run", tiers=())
    before, peak, over = _anonymous_mib(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], _anonymous_mib())

    async def list_all() -> tuple[float, float, Catalogue]:
        async with trio.open_nursery() as nursery:
            datasets = Datasets(config, nursery, list)
            name = dataset_id(store.url)
            dataset = datasets.all[name] = Dataset(name, Definition(store.url, {}), store, Roots(store.url))
            began, cpu = time.perf_counter(), time.process_time()
            snapshot = datasets.next_snapshot(dataset)
            await snapshot.ended.wait()
            if snapshot.failure is not None:
                raise snapshot.failure
            return time.perf_counter() - began, time.process_time() - cpu, snapshot.catalogue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        took_s, cpu_s, catalogue = trio.run(list_all)
    finally:
        over.set()
        watcher.join()
    entries = catalogue.totals().files
    lookups, listed = _read(catalogue)
    catalogue.close()
    return Outcome(
        store.url, entries, entries / took_s, cpu_s / entries * 1e6, max(0.0, peak[0] - before), lookups, listed
    )


def _read(catalogue: Catalogue) -> tuple[float, float]:
    """Look-ups of names in random order, and entries of whole directories, a second each."""
    folders = {found.parent for found in _first_files(catalogue)}
    pairs = [(folder, entry[1]) for folder in folders for entry in catalogue.listing(folder)][:_LOOKUPS]
    random.Random(1).shuffle(pairs)
    began = time.perf_counter()
    for folder, name in pairs:
        catalogue.entry(folder, name)
    lookups = len(pairs) / (time.perf_counter() - began)
    began = time.perf_counter()
    count = sum(1 for folder in folders for _ in catalogue.listing(folder))
    return lookups, count / (time.perf_counter() - began)


def _first_files(catalogue: Catalogue) -> Iterator[Node]:
    root = catalogue.resolve(b"")
    assert root is not None
    for number, found in enumerate(catalogue.files_below(root.node)):
        if number >= _LOOKUPS:
            return
        if number % (FOLDER_FILES // 2) == 0:
            yield found


def _anonymous_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def measured_apart(kind: str, entries: int, folder: Path) -> Outcome:
    """The same in a process of its own.

    Args:
        kind: "made-up", or the path of a folder to list.
        entries: of the store that is made up.
        folder: to work in.
    """
    program = [sys.executable, "-m", "forebay.bench.catalogue", "--alone", kind, "--entries", str(entries)]
    done = subprocess.run([*program, "--folder", str(folder)], stdout=subprocess.PIPE, check=True)
    return Outcome(**json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to make files and catalogues; a temporary folder by default")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        folder = Path(made)
        if asked.alone:
            store: UnderStore = (
                MadeUp(asked.entries)  # type: ignore[assignment]
                if asked.alone == "made-up"
                else open_store(asked.alone, {}, RetryConfig())
            )
            print(json.dumps(asdict(measure(store, folder / "cache"))))
            return
        make_files(folder / "files", asked.entries)
        print(f"{'source':30} {'entries':>10} {'entries/s':>10} {'us CPU':>7} {'MiB':>6} {'look-ups/s':>11} listed/s")
        for kind in ("made-up", str(folder / "files")):
            for entries in (asked.entries, 2 * asked.entries) if kind == "made-up" else (asked.entries,):
                found = measured_apart(kind, entries, folder)
                print(
                    f"{kind[-30:]:30} {found.entries:10} {found.entries_per_s:10.0f} {found.cpu_us:7.2f} "
                    f"{found.memory_mib:6.0f} {found.lookups_per_s:11.0f} {found.listed_per_s:8.0f}"
                )
        with suppress(OSError):
            shutil.rmtree(folder / "files")


if __name__ == "__main__":
    main()
