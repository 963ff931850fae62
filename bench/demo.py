"""`make demo`: an S3 bucket mounted, read twice as training reads it, beside the local disk and the bare client; then
shared by three workers.

Needs no account and no network: the S3 service is moto on loopback. All of it lives in one temporary folder, which is
gone at the end, also after Ctrl-C.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
import xxhash
from obstore.store import S3Store
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TransferSpeedColumn
from rich.text import Text

from forebay.bench.dataset import Sample, by_key, make_images, make_large, shuffled
from forebay.bench.demo_cluster import Shared, client_environ, mount, summary, workers
from forebay.bench.endpoint import Endpoint, moto_endpoint
from forebay.bench.measure import Reader
from forebay.bench.node import CommandFailed, Node, Watchdog, signals_end
from forebay.bench.reader import READ_BYTES
from forebay.bench.table import Speeds, held_words, mib_words, speeds_table

_DATASET = "training"
_SEED = 20
_LARGE_BYTES = 256 << 20
_LARGE_FROM = 1 << 20
_BARE_IMAGES = 500  # of the same order; moto's rate does not depend on how many, and the demo is to be short
_HANG_S = 120.0


@dataclass
class Clock:
    """Time, files and bytes of one kind of file in one pass."""

    seconds: float = 0.0
    files: int = 0
    bytes: int = 0


@dataclass
class Pass:
    """What one pass over the files took."""

    small: Clock = field(default_factory=Clock)
    large: Clock = field(default_factory=Clock)
    wrong: list[str] = field(default_factory=list)
    """Files whose bytes were not those that were uploaded."""

    def speeds(self, name: str) -> Speeds:
        """As a row of the table."""
        return Speeds(name, self.small.files / self.small.seconds, self.large.bytes / self.large.seconds / 1e9)


class BytesColumn(ProgressColumn):
    """Bytes so far; rich's own column is too wide for 80 characters."""

    def render(self, task: Task) -> Text:
        return Text(f"{mib_words(int(task.completed)):>9}")


class Screen:
    """Progress bars; also pats the watchdog, since what moves the bar moves."""

    def __init__(self, progress: Progress, watchdog: Watchdog) -> None:
        self._progress = progress
        self._watchdog = watchdog

    def bar(self, words: str, samples: list[Sample]) -> tuple[Callable[[int], None], Callable[[], None]]:
        """A new bar over these files: (bytes came, a file is done)."""
        count, total = len(samples), sum(sample.size for sample in samples)
        task = self._progress.add_task(words, total=total, files=f"0/{count} files")
        files, held, shown = 0, 0, time.monotonic()

        def moved(size: int) -> None:
            nonlocal held, shown
            held += size
            now = time.monotonic()
            if now - shown > 0.1:  # rich takes some 20 us for each update: too much for each read
                self._progress.update(task, advance=held, files=f"{files}/{count} files")
                self._watchdog.pat()
                held, shown = 0, now

        def file_done() -> None:
            nonlocal files, held
            files += 1
            if files == count:
                self._progress.update(task, advance=held, files=f"{files}/{count} files")
                held = 0

        return moved, file_done


Read = Callable[[Sample, Callable[[int], None]], int | None]
"""Reads one file; its digest, or None where bytes are not looked at."""


def one_pass(screen: Screen, words: str, order: list[Sample], read: Read) -> Pass:
    """Read the files in order, one after the other."""
    moved, file_done = screen.bar(words, order)
    result = Pass()
    for sample in order:
        started = time.perf_counter()
        digest = read(sample, moved)
        took = time.perf_counter() - started
        clock = result.large if sample.size >= _LARGE_FROM else result.small
        clock.seconds += took
        clock.files += 1
        clock.bytes += sample.size
        if digest is not None and digest != sample.digest:
            result.wrong.append(sample.key)
        file_done()
    return result


def bare_read(store: S3Store) -> Read:
    """The bare client: obstore alone, one GET for each object, its bytes hashed like those of the cold epoch."""

    def read(sample: Sample, moved: Callable[[int], None]) -> int:
        hasher = xxhash.xxh3_64()
        for piece in obstore.get(store, sample.key).stream(min_chunk_size=READ_BYTES):
            hasher.update(piece)
            moved(len(piece))
        value: int = hasher.intdigest()
        return value

    return read


def run(console: Console, image_count: int, environ: Mapping[str, str]) -> int:
    """The whole demo; its exit status."""
    with ExitStack() as stack:
        stack.enter_context(signals_end())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forebay-demo-")))
        watchdog = stack.enter_context(Watchdog(_HANG_S).watching())
        columns = (TextColumn("{task.description:<31}"), BarColumn(12), TextColumn("{task.fields[files]:>15}"))
        progress = Progress(*columns, BytesColumn(), TransferSpeedColumn(), console=console, refresh_per_second=5)
        screen = Screen(stack.enter_context(progress), watchdog)
        endpoint = stack.enter_context(moto_endpoint(folder))
        samples = _publish(screen, endpoint, folder / "local", image_count)
        environ = {**environ, **endpoint.environ}
        node = stack.enter_context(Node(folder / "node", environ))
        watchdog.guard(node)
        try:
            directory = node.mount("mount", endpoint.source(_DATASET), endpoint.options())
            passes = _read_all(screen, directory, endpoint, samples)
            status = node.status()
            node.umount(directory)
            shared = _share(stack, screen, endpoint, folder, samples, environ)
        except (OSError, CommandFailed, subprocess.SubprocessError) as error:
            console.print(f"[red]{'the watchdog ended it' if watchdog.bitten else 'it failed'}: {error}")
            return 3 if watchdog.bitten else 1
        progress.stop()
        return _tell(console, passes, status, len(samples)) or _tell_shared(console, shared)


@dataclass
class _SharedRead:
    """What came of the cluster."""

    wrong: list[str]
    bytes: int
    by_workers: Shared


def _share(
    stack: ExitStack,
    screen: Screen,
    endpoint: Endpoint,
    folder: Path,
    samples: list[Sample],
    environ: Mapping[str, str],
) -> _SharedRead:
    """Two machines without keys read the bucket through three workers, one after the other."""
    addresses = stack.enter_context(workers(folder / "cluster", endpoint, _DATASET, environ))
    large = [sample for sample in samples if sample.size >= _LARGE_FROM]
    order = [sample for sample in shuffled(samples, _SEED + 12) if sample not in large[1:]]
    wrong: list[str] = []
    for number in range(2):
        node = stack.enter_context(Node(folder / f"client-{number}", client_environ(environ)))
        directory = mount(node, addresses)
        reader = Reader()

        def read(
            sample: Sample, moved: Callable[[int], None], reader: Reader = reader, directory: Path = directory
        ) -> int:
            return reader.digest(directory / sample.key, moved)

        wrong += one_pass(screen, f"machine {number + 1}, through three workers", order, read).wrong
        found = summary(node)
        node.umount(directory)
    return _SharedRead(wrong, sum(sample.size for sample in order), found)


def _tell_shared(console: Console, shared: _SharedRead) -> int:
    if shared.wrong:
        console.print(f"[red]{len(shared.wrong)} files had other bytes through the workers, such as {shared.wrong[0]}")
        return 1
    held = ", ".join(mib_words(size) for size in shared.by_workers.held_bytes)
    console.print(
        f"Then two machines without keys read {mib_words(shared.bytes)} each through three workers, which fetched"
        f" {mib_words(shared.by_workers.fetched_bytes)} from S3 together, and hold {held} of it."
    )
    return 0


def _publish(screen: Screen, endpoint: Endpoint, local: Path, image_count: int) -> list[Sample]:
    samples = make_images(local / "images", image_count, _SEED)
    samples = [Sample(f"images/{s.key}", s.path, s.size, s.digest) for s in samples]
    for number in range(2):
        large = make_large(local / "shards", f"shard-{number}.bin", _LARGE_BYTES, _SEED + number)
        samples.append(Sample(f"shards/{large.key}", large.path, large.size, large.digest))
    moved, file_done = screen.bar("upload to S3 (moto on loopback)", samples)

    def done(size: int) -> None:
        file_done()
        moved(size)

    endpoint.publish(_DATASET, by_key(samples), done)
    return samples


def _read_all(screen: Screen, directory: Path, endpoint: Endpoint, samples: list[Sample]) -> dict[str, Pass]:
    """All passes, each file in the same random order within its epoch."""
    reader = Reader()
    first, second = shuffled(samples, _SEED + 10), shuffled(samples, _SEED + 11)
    images = [sample for sample in first if sample.size < _LARGE_FROM]
    some = {sample.key for sample in images[:_BARE_IMAGES]}
    fewer = [sample for sample in first if sample.key in some or sample.size >= _LARGE_FROM]

    def mount_digest(sample: Sample, moved: Callable[[int], None]) -> int:
        return reader.digest(directory / sample.key, moved)

    def mount_read(sample: Sample, moved: Callable[[int], None]) -> None:
        reader.read(directory / sample.key, moved)

    def local_read(sample: Sample, moved: Callable[[int], None]) -> None:
        reader.read(sample.path, moved)

    return {
        "cold": one_pass(screen, "first epoch through the mount", first, mount_digest),
        "warm": one_pass(screen, "second epoch through the mount", second, mount_read),
        "local": one_pass(screen, "the same from the local disk", second, local_read),
        "check": one_pass(screen, "check every byte (not timed)", samples, mount_digest),
        "bare": one_pass(screen, "some of it with the bare client", fewer, bare_read(endpoint.store(_DATASET))),
    }


def _tell(console: Console, passes: Mapping[str, Pass], status: Mapping[str, Any], count: int) -> int:
    cold, warm = passes["cold"].speeds("mount, first epoch (cold)"), passes["warm"].speeds("mount, second epoch (warm)")
    local, bare = passes["local"].speeds("local disk"), passes["bare"].speeds("S3 client alone (obstore)")
    console.print(speeds_table([cold, warm, local, bare]))
    console.print(f"The cache holds {held_words(status)}.")
    wrong = sorted({key for one in passes.values() for key in one.wrong})
    if wrong:
        console.print(f"[red]{len(wrong)} files had other bytes than were uploaded, such as {wrong[0]}")
        return 1
    total = passes["check"]
    console.print(
        "The first epoch came from S3 and was kept; the second came from this machine,"
        f" {_times(warm.images, cold.images)} as fast for images and {_times(warm.large, cold.large)} for large files:"
        f" {warm.images / local.images:.0%} and {warm.large / local.large:.0%} of the local disk's speed."
        f" All {count} files ({mib_words(total.small.bytes + total.large.bytes)}) had the bytes that were uploaded,"
        " in the first epoch and in a check after the second."
    )
    return 0


def _times(new: float, old: float) -> str:
    return f"{new / old:.0f} times" if new > 2 * old else f"{new / old:.1f} times"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="forebay.bench.demo", description=__doc__)
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="images of about 100 KiB (2000)")
    chosen = parser.parse_args()
    if chosen.images < 1:
        parser.error(f"--images {chosen.images}: at least 1")
    return run(Console(), chosen.images, os.environ)


if __name__ == "__main__":
    sys.exit(main())
