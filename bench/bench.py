"""`make bench`: Forebay beside the local file system, the bare S3 client and its peers, in one run.

Each group (`--only`) makes its own data, mounts the sides that take part, lets them take turns, and leaves nothing. A
peer that is not installed is a blank column. Absolute numbers depend on the machine and on what else it does; the
ratios much less.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from forebay.bench import sheet
from forebay.bench.groups import FULL, QUICK, Group, Place, run_group
from forebay.bench.lines_cache import BOUNDED
from forebay.bench.lines_cluster import Cluster
from forebay.bench.lines_cold import Cold, ColdSmall
from forebay.bench.lines_large import Large, Mapped
from forebay.bench.lines_metadata import Metadata
from forebay.bench.lines_small import First, Small
from forebay.bench.lines_torch import InProcess, Posted
from forebay.bench.lines_warm import WarmLarge, WarmSmall
from forebay.bench.node import Watchdog, signals_end
from forebay.bench.plot import plot
from forebay.bench.report import METHOD, Report, as_json, markdown, rich_report
from forebay.bench.sendfile_endpoint import find_nginx, sendfile_endpoint

_ALL: tuple[Group | Cluster, ...] = (
    Large(),
    Mapped(),
    Small(),
    First(),
    Metadata(),
    Cold(),
    ColdSmall(),
    WarmSmall(),
    WarmLarge(),
    InProcess(),
    Posted(),
    *BOUNDED,
    Cluster(),
)
GROUPS = {group.name: group for group in _ALL}

_HANG_S = 400.0
"""A group's longest step without a word: copying 100,000 names into JuiceFS takes a minute or two."""

_RESULTS = Path("bench/results")
"""Where `make bench` puts what it found; git ignores it."""


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
        "file system of caches and local copies": name,
        "Python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "taken": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def run(console: Console, chosen: argparse.Namespace, environ: Mapping[str, str]) -> Report:
    """The groups that were chosen, one after the other."""
    sizes = QUICK if chosen.quick else FULL
    sizes = replace(sizes, rounds=chosen.rounds or sizes.rounds)
    wanted = [side for side in chosen.sides or sheet.SIDES if side not in chosen.without]
    started = time.monotonic()
    lines: list[sheet.Line] = []
    sides: dict[str, str] = {}
    modes: list[str] = []
    missing: dict[str, str] = {}
    if find_spec("forebay.fuse.order") is None and sheet.POSTED in wanted:
        wanted.remove(sheet.POSTED)
        missing[sheet.POSTED] = "forebay.fuse.order is not there"
    with ExitStack() as stack:
        stack.enter_context(signals_end())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forebay-bench-", dir=chosen.dir)))
        about = machine(folder)
        watchdog = stack.enter_context(Watchdog(_HANG_S).watching())
        endpoint = stack.enter_context(sendfile_endpoint(folder))

        def step(words: str) -> None:
            watchdog.pat()
            console.log(words)

        place = Place(folder, endpoint, sizes, wanted, environ, step, watchdog)
        for name, group in GROUPS.items():
            if chosen.only and name not in chosen.only:
                continue
            began = time.monotonic()
            outcome = group.run(place) if isinstance(group, Cluster) else run_group(group, place)
            lines += outcome.lines
            sides.update(outcome.notes)
            modes += [f"{name}: {', '.join(outcome.modes)}"] if outcome.modes else []
            missing.update({f"{name}, {side}": why for side, why in outcome.missing.items()})
            step(f"{name}: done in {time.monotonic() - began:.0f} s")
    about["duration"] = f"{time.monotonic() - started:.0f} s"
    how = f"{sizes.rounds} rounds{', with less data than the titles say' if chosen.quick else ''}."
    return Report(lines, about, sides, missing, (how, *METHOD, f"Open modes: {'; '.join(modes)}."))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="forebay.bench.bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(GROUPS), help="only this group; may be repeated")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="with the peers (default)")
    parser.add_argument("--side", action="append", dest="sides", choices=sheet.SIDES, help="only this side; repeatable")
    parser.add_argument("--quick", action="store_true", help="less data and 3 rounds: to see that it works")
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of 5")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table as well")
    parser.add_argument("--out", type=Path, default=_RESULTS, metavar="DIR", help=f"for JSON and PNG ({_RESULTS})")
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure; default: the temporary folder")
    return parser


def main() -> int:
    """Run what was asked for, print it, and write JSON and a picture beside it."""
    parser = arguments()
    chosen = parser.parse_args()
    if find_nginx() is None:
        parser.error("the endpoint needs nginx; install: apt-get install nginx-light libnginx-mod-http-echo")
    chosen.without = () if chosen.peers else sheet.PEERS
    console = Console(width=None if sys.stdout.isatty() else 200, log_path=False)
    report = run(console, chosen, os.environ)
    console.print(rich_report(report))
    if chosen.markdown:
        print(markdown(report))
    chosen.out.mkdir(parents=True, exist_ok=True)
    stem = chosen.out / datetime.now(UTC).strftime("bench-%Y%m%d-%H%M%S")
    stem.with_suffix(".json").write_text(as_json(report) + "\n")
    plot(report.lines, stem.with_suffix(".png"))
    print(stem.with_suffix(".json").absolute(), stem.with_suffix(".png").absolute(), sep="\n")
    ours = {sheet.OURS, sheet.POSTED, sheet.PYFUSE3}
    return int(any(where.rpartition(", ")[2] in ours and "failed" in why for where, why in report.missing.items()))


if __name__ == "__main__":
    sys.exit(main())
