"""How long a worker takes until it serves a cache of many small files, and to stop.

    python -m forebay.bench.startup [--files 10000000] [--folder DIR]

The index is made by the writer itself (`IndexWriter.add_packed`), a pack of records to a transaction; the packs are
empty files. Each start is timed from the process's begin to the line "ready", which is when its sockets are there: on
an empty cache, after an orderly stop, after `kill -9`, with nothing of it in the page cache where the machine lets us
drop that, and after a power loss, when the last checkpoint takes the index's place.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from forebay.cacheruntime.config import CacheConfig, Medium, TierConfig
from forebay.cacheruntime.keys import ContentId, dataset_id
from forebay.cacheruntime.tiers import open_folder, pack_path
from forebay.cacheruntime.worker.index_writer import Appended
from forebay.cacheruntime.worker.ledger import Ledger, close_index, open_index

FILE_BYTES = 100_000
FILES_IN_PACK = (256 << 20) // FILE_BYTES
_CHECKPOINT_PACKS = 100


def fill_index(config: CacheConfig, files: int) -> None:
    """Record that many files of 100 KB in packs of the first tier, with a checkpoint now and then."""
    tier = config.tiers[0]
    uuid = open_folder(tier, config.cache_dir)
    index = open_index(config, Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    ledger = Ledger(config, index)
    number = index.adopt_tier(uuid, tier.path)
    dataset, step = dataset_id("s3://bucket/train"), (1 << 128) // files
    for count, first in enumerate(range(0, files, FILES_IN_PACK), start=1):
        pack = index.new_pack(number, dataset)
        pack_path(tier.path, pack).touch()
        # In the order of the table: records in random order would take several times as long, and start no other way.
        index.add_packed(
            pack,
            [
                Appended(ContentId((at * step).to_bytes(16, "big")), FILE_BYTES, (at - first) * FILE_BYTES, at)
                for at in range(first, min(first + FILES_IN_PACK, files))
            ],
        )
        if count % _CHECKPOINT_PACKS == 0:
            ledger.take(ledger.begin(), [])
    ledger.take(ledger.begin(), [])
    ledger.close()
    close_index(config, index)


def lose_power(config: CacheConfig) -> None:
    """Leave the index as one that another boot's worker wrote to and did not close."""
    child = os.fork()
    if not child:
        open_index(config, "another boot")
        os._exit(0)
    os.waitpid(child, 0)


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
            end(worker, signal.SIGKILL)
        lose_power(full)
        worker, took_s = start(full)
        print(f"after a power loss: serves after {took_s:.2f} s; {memory_mib(worker.pid):.0f} MiB")
        end(worker, signal.SIGTERM)


if __name__ == "__main__":
    main()
