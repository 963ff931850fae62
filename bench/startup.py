"""How long a worker takes until it serves a cache of many small files, and to stop.

    python -m forebay.bench.startup [--files 10000000] [--folder DIR]

The index is made by the writer itself (`IndexWriter.add_packed`), many records to a transaction; of the packs there are
only names and lengths. Each start is timed from the process's begin to the line "ready", which is when its sockets are
there: on an empty cache, after an orderly stop, after `kill -9`, and with nothing of it in the page cache where
the machine lets us drop that.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from forebay.cacheruntime.config import CacheConfig, Medium, TierConfig
from forebay.cacheruntime.index import IndexWriter, Pack, PackNumber
from forebay.cacheruntime.keys import ContentId, dataset_id
from forebay.cacheruntime.tiers import open_folder, pack_path

FILE_BYTES = 100_000
FILES_IN_PACK = (256 << 20) // FILE_BYTES
_COMMIT_FILES = 50_000


class _Held:
    """An environment of LMDB whose transactions to write are one, until it is committed."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._txn = env.begin(write=True)

    def begin(self, write: bool = False, **others: Any) -> Any:
        return self._inner() if write else self._env.begin(**others)

    @contextmanager
    def _inner(self) -> Iterator[Any]:
        yield self._txn

    def commit(self) -> None:
        self._txn.commit()
        self._txn = self._env.begin(write=True)


def fill_index(config: CacheConfig, files: int) -> None:
    """Record that many files of 100 KB in packs of the first tier."""
    tier = config.tiers[0]
    uuid = open_folder(tier, config.cache_dir)
    writer = IndexWriter(config.index_dir, Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    number = writer.adopt_tier(uuid, tier.path)
    dataset = dataset_id("s3://bucket/train")
    env, held = writer._env, _Held(writer._env)
    writer._env = cast(Any, held)
    pack, step = Pack(PackNumber(0), number, 0, dataset), (1 << 128) // files
    for index in range(files):
        place = index % FILES_IN_PACK
        if place == 0:
            pack = Pack(writer.new_pack(number, dataset), number, 0, dataset)
            pack_path(tier.path, pack.number).touch()
        # In the order of the table: a million random records would take ten times as long, and start no other way.
        content = ContentId((index * step).to_bytes(16, "big"))
        writer.add_packed(content, FILE_BYTES, pack, place * FILE_BYTES, index)
        if index % _COMMIT_FILES == 0:
            held.commit()
    held._txn.commit()
    writer._env = env
    writer.close()


def start(config: CacheConfig) -> tuple[subprocess.Popen[bytes], float]:
    """A worker that serves, and how many seconds that took."""
    began = time.perf_counter()
    worker = subprocess.Popen(
        [sys.executable, "-m", "forebay.cacheruntime.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(config.to_json().encode())
    worker.stdin.close()
    line = worker.stdout.readline().decode().strip()
    took_s = time.perf_counter() - began
    if line != "ready":
        worker.kill()
        raise SystemExit(f"the worker does not serve: {line}")
    return worker, took_s


def end(worker: subprocess.Popen[bytes], number: signal.Signals) -> float:
    """End it; how many seconds that took."""
    began = time.perf_counter()
    worker.send_signal(number)
    worker.wait()
    if worker.stdout is not None:
        worker.stdout.close()
    return time.perf_counter() - began


def memory_mib(process: int) -> float:
    """What a process has that no file backs."""
    return int(Path(f"/proc/{process}/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024


def cache_in(folder: Path) -> CacheConfig:
    """A cache with one tier in a fresh folder."""
    (folder / "tier").mkdir(parents=True)
    tier = TierConfig(Medium.SSD, folder / "tier", 1 << 50)
    return CacheConfig(folder / "cache", (tier,), folder / "run", idle_exit_s=60.0)


def _drop_page_cache() -> bool:
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where to make the caches; a temporary folder by default")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        empty, full = cache_in(Path(made) / "empty"), cache_in(Path(made) / "full")
        worker, took_s = start(empty)
        print(f"empty cache: serves after {took_s:.2f} s; {memory_mib(worker.pid):.0f} MiB")
        end(worker, signal.SIGTERM)
        began = time.perf_counter()
        fill_index(full, asked.files)
        size = sum(path.stat().st_blocks * 512 for path in full.index_dir.iterdir())
        print(f"{asked.files} files recorded in {time.perf_counter() - began:.0f} s: {size >> 20} MiB of index")
        for words, number in (("an orderly stop", signal.SIGKILL), ("kill -9", signal.SIGTERM)):
            worker, took_s = start(full)
            print(f"after {words}: serves after {took_s:.2f} s; {memory_mib(worker.pid):.0f} MiB", end="")
            print(f"; ended in {end(worker, number):.2f} s")
        if _drop_page_cache():
            worker, took_s = start(full)
            print(f"nothing in the page cache: serves after {took_s:.2f} s")
            end(worker, signal.SIGTERM)


if __name__ == "__main__":
    main()
