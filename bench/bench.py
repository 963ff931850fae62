"""`make bench`: Forebay beside the local file system and the bare S3 client, as ratios taken in one run.

The sides take turns within each round, in an order that rotates; a line's ratio is the median over the rounds of the
round's own ratio. Absolute numbers depend on the machine and on what else it does; the ratios much less.

To add a peer: mount it, and put its folder into `Folders` under its name; the warm lines then compare it as well.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from forebay.bench import lines
from forebay.bench.dataset import by_key
from forebay.bench.endpoint import Endpoint, find_nginx, moto_endpoint, nginx_endpoint
from forebay.bench.node import Node, Watchdog, signals_end
from forebay.bench.table import Line, as_json, markdown, rich_report

_HANG_S = 300.0
"""A line's longest step without a word: warming 1 GiB through moto takes about half a minute."""

METHOD = (
    "Forebay and the other side take turns in each round, who is first rotates; ratio: median over the rounds of the"
    " round's ratio, spread: lowest and highest; Forebay, other: medians.",
    "Before the rounds each side is read once, so page caches are warm (not in the cold lines).",
    "Memory for the page caches of the cold lines is touched and freed before each round.",
    "CPU: user and system time of FUSE handlers and worker, from /proc/PID/stat, over the GiB that were read.",
)


@dataclass(frozen=True)
class Choice:
    """What to run and how much."""

    only: tuple[str, ...]
    sizes: lines.Sizes
    folder: Path | None
    endpoint: str | None
    bucket: str


def machine(folder: Path) -> dict[str, str]:
    """What the numbers were taken on."""
    model, name = "", ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        model = model or (value.strip() if key.strip() == "model name" else "")
    longest = -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4]
        inside = str(folder) == point or str(folder).startswith(point.rstrip("/") + "/")
        if inside and len(point) > longest:
            longest, name = len(point), right.split(" ")[0]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return {
        "kernel": platform.release(),
        "CPU": model or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "file system of cache and local copies": name,
        "Python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def run(console: Console, choice: Choice, environ: Mapping[str, str]) -> tuple[list[Line], dict[str, str]]:
    """All lines that were chosen."""
    found: list[Line] = []
    with ExitStack() as stack:
        stack.enter_context(signals_end())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forebay-bench-", dir=choice.folder)))
        about = machine(folder)
        watchdog = stack.enter_context(Watchdog(_HANG_S).watching())
        endpoints: list[Endpoint] = []
        if choice.endpoint:
            endpoints.append(Endpoint("given", choice.endpoint, choice.bucket))
        else:
            if find_nginx():
                endpoints.append(stack.enter_context(nginx_endpoint(folder)))
            endpoints.append(stack.enter_context(moto_endpoint(folder)))

        def step(words: str) -> None:
            watchdog.pat()
            console.log(words)

        for name, group in lines.GROUPS.items():
            if choice.only and name not in choice.only:
                continue
            for endpoint in endpoints if name == "cold" else endpoints[:1]:
                samples = group.make(folder / "local" / endpoint.name, choice.sizes)
                step(f"{name}: publishing {len(samples)} files on {endpoint.name}")
                endpoint.publish(name, by_key(samples))
                try:
                    node = watchdog.guard(Node(folder / f"{name}-{endpoint.name}", {**environ, **endpoint.environ}))
                    with node:
                        found += group.run(lines.Bench(node, endpoint, name, samples, choice.sizes, step))
                finally:
                    endpoint.withdraw(name, [sample.key for sample in samples])
    return found, about


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="forebay.bench.bench", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON there, every sample in it")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table as well")
    parser.add_argument("--quick", action="store_true", help="less data and 3 rounds: to see that it works")
    parser.add_argument("--only", action="append", choices=sorted(lines.GROUPS), help="only this group of lines")
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure; default: the temporary folder")
    parser.add_argument("--endpoint", metavar="URL", help="an S3 service instead of those started here")
    parser.add_argument("--bucket", metavar="NAME", help="a bucket there to write to; credentials: AWS_* variables")
    chosen = parser.parse_args()
    if bool(chosen.endpoint) != bool(chosen.bucket):
        parser.error("--endpoint and --bucket go together")
    console = Console()
    sizes = lines.QUICK if chosen.quick else lines.FULL
    choice = Choice(tuple(chosen.only or ()), sizes, chosen.dir, chosen.endpoint, chosen.bucket or "")
    found, about = run(console, choice, os.environ)
    about["taken"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    method = (f"{sizes.rounds} rounds.", *METHOD)
    console.print(rich_report(found, about, method))
    if chosen.markdown:
        print(markdown(found, about, method))
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(as_json(found, about, method) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
