"""What `forebay simulate` does: finds out what it was given, runs every policy with every size, shows the outcome."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.config import parse_size
from forebay.cacheruntime.errors import MountError, UsageError
from forebay.cacheruntime.keys import ROOT_NODE, NodeId
from forebay.cacheruntime.policies import POLICIES, policy_named
from forebay.cacheruntime.simulation import Outcome, Workload, lru_outcomes, shuffled_epochs
from forebay.cacheruntime.simulation import simulate as run
from forebay.cacheruntime.stack_distance import Numbers
from forebay.cacheruntime.workloads import ACCESSES_MAX, distribution, read_file, workload_of
from forebay.cli import screens, simulate_screens
from forebay.cli.commands import cache_config, mounted_at
from forebay.fuse.recorded_accesses import recorded_accesses

_DEFAULT_CACHES = ("10%", "25%", "50%", "75%", "90%")
_DEFAULT_JOBS, _DEFAULT_EPOCHS = 1, 4
_BYTES_MAX = 2.0**62
"""Sums of sizes are 64-bit numbers."""

_PLOTS = (".png", ".svg")


@dataclass(frozen=True)
class Request:
    """The command's arguments, as they were given."""

    what: str
    policies: list[str]
    caches: list[str]
    jobs: int | None
    epochs: int | None
    seed: int
    posted: str
    item_size: str | None
    mount: str | None
    plot: Path | None
    json: bool


@dataclass(frozen=True)
class Cell:
    """One policy with one size of cache."""

    policy: str
    cache_bytes: int
    cache_ratio: float
    """Of the bytes of all files that are read."""
    outcome: Outcome


@dataclass(frozen=True)
class Prediction:
    """What was run, and what came of it."""

    workload: Workload
    jobs: int
    epochs: int | None
    """Of each job; None: it was a trace."""
    counted_epochs: int
    """1 for a trace."""
    note: str
    """What to know about the outcome."""
    cells: list[Cell]


def simulate(request: Request) -> None:
    policies = list(dict.fromkeys(request.policies)) or list(POLICIES)
    for name in policies:
        policy_named(name)
    if request.plot is not None:
        check_plot(request.plot)
    workload, note = _workload(request)
    if workload.sizes[workload.items].astype(float).sum() > _BYTES_MAX:
        raise UsageError("all that is read comes to more than 4 EiB; are the sizes right?")
    ahead, known_epochs = _posted(request.posted, workload)
    jobs = request.jobs or _DEFAULT_JOBS
    epochs = len(workload.items) // (workload.epoch * jobs) if workload.epoch else None
    uncounted = workload.epoch * jobs if workload.epoch and epochs != 1 else 0
    caches = _caches(request.caches, workload)
    at_once = lru_outcomes(workload, caches, uncounted) if "lru" in policies else None
    cells = []
    for index, cache in enumerate(caches):
        for policy in policies:
            if policy == "lru" and at_once is not None:
                outcome = at_once[index]
            else:
                with screens.errors.status(f"{policy}, {simulate_screens.amount(cache, workload.sized)} of cache"):
                    outcome = run(workload, policy, cache, ahead, known_epochs, uncounted)
            cells.append(Cell(policy, cache, cache / workload.distinct_bytes, outcome))
    counted = 1 if epochs is None else max(epochs - 1, 1)
    prediction = Prediction(workload, jobs, epochs, counted, note, cells)
    if request.plot is not None:
        simulate_screens.plot(prediction, request.plot)
    if request.json:
        simulate_screens.as_json(prediction)
    else:
        simulate_screens.table(prediction)


def _workload(request: Request) -> tuple[Workload, str]:
    """What is to be run, and what its reader should know of it."""
    item_size = parse_size(request.item_size) if request.item_size else None
    sizes = distribution(request.what, request.seed)
    if sizes is None:
        path = Path(request.what)
        if mounted_at(request.what, cache_config(None, [])) is not None:
            sizes = _sizes_of_mount(request.what)
        elif os.path.isdir(path):
            recordings = sorted(path.glob("*.fuse"))
            if not recordings:
                raise UsageError(f"{path} is neither a mount nor a folder with recordings of `forebay debug record`")
            return _recorded(request, recordings, item_size)
        elif os.path.exists(path):
            if path.suffix == ".fuse":
                return _recorded(request, [path], item_size)
            found = read_file(path, item_size)
            if isinstance(found, Workload):
                return _trace(request, found), ""
            sizes = found
        else:
            raise UsageError(
                f"{request.what!r} is neither a file or folder nor a distribution of sizes like 100000x100KiB or"
                " lognormal:100000,110KiB,0.7"
            )
    if request.mount is not None:
        raise UsageError("--mount is for recordings; name just the folder to have its files read in shuffled epochs")
    return _shuffled(request, sizes), ""


def _shuffled(request: Request, sizes: Numbers) -> Workload:
    jobs, epochs = request.jobs or _DEFAULT_JOBS, request.epochs or _DEFAULT_EPOCHS
    accesses = len(sizes) * jobs * epochs
    if accesses > ACCESSES_MAX:
        raise UsageError(
            f"{len(sizes):,} files by {jobs} jobs in {epochs} epochs are {accesses:,} accesses, and {ACCESSES_MAX:,}"
            " can be simulated; the ratios are the same for fewer files, if the cache is as much smaller"
        )
    return shuffled_epochs(sizes, jobs, epochs, request.seed)


def _trace(request: Request, workload: Workload) -> Workload:
    for option, value in (("--jobs", request.jobs), ("--epochs", request.epochs)):
        if value is not None:
            raise UsageError(f"{option} is for distributions of sizes; a trace says itself who reads what")
    return workload


def _recorded(request: Request, recordings: list[Path], item_size: int | None) -> tuple[Workload, str]:
    try:
        found = recorded_accesses(recordings)
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{error}; record one with: forebay debug record DIR FOLDER") from error
    if not found.nodes:
        raise UsageError("no file is read in the recording; record while the job runs")
    catalogue = Catalogue(_catalogue(request.mount)) if request.mount is not None else None
    try:
        sizes = found.sizes(lambda node: _size_in(catalogue, node))
    finally:
        if catalogue is not None:
            catalogue.close()
    unknown = len({node for node, size in zip(found.nodes, sizes, strict=True) if not size})
    if unknown and item_size is None and unknown < len(set(found.nodes)):
        raise UsageError(
            f"the sizes of {unknown} of {len(set(found.nodes))} files are not in the recording (passthrough); name the"
            " mount with --mount DIR, or a size for these with --item-size"
        )
    note = "what the page cache answered, also of files put there ahead, is not in a recording: it counts too low"
    return _trace(request, workload_of(found.nodes, sizes, item_size=item_size)), note


def _size_in(catalogue: Catalogue | None, number: int) -> int | None:
    node = catalogue.node(NodeId(number)) if catalogue is not None else None
    return None if node is None else node.size


def _catalogue(directory: str) -> Path:
    state = mounted_at(directory, cache_config(None, []))
    if state is None:
        raise MountError(f"{directory} is not mounted; `forebay mounts` lists what is")
    return Path(state.catalogue)


def _sizes_of_mount(directory: str) -> Numbers:
    catalogue = Catalogue(_catalogue(directory))
    try:
        if not catalogue.complete:
            raise UsageError(f"{directory} is still being listed; try again when `forebay status` shows it complete")
        sizes = [node.size for node in catalogue.files_below(ROOT_NODE)]
    finally:
        catalogue.close()
    if not sizes:
        raise UsageError(f"there is no file in {directory}")
    return np.maximum(np.asarray(sizes, dtype=np.int64), 1)


def _posted(text: str, workload: Workload) -> tuple[int | None, int | None]:
    """How many files ahead next-use knows, and to the end of how many epochs."""
    if text == "all":
        return None, None
    if text.isdecimal() and int(text) > 0:
        return int(text), None
    if text not in ("epoch", "next"):
        raise UsageError(f"--posted {text!r}; allowed are all, next, epoch, or a number of files ahead")
    if workload.epoch is None:
        raise UsageError(
            f"--posted {text} is for distributions of sizes: a trace has no epochs; give a number of files"
        )
    return None, 1 if text == "epoch" else 2


def _caches(texts: list[str], workload: Workload) -> list[int]:
    """Sizes in bytes, or in files where no size is known, each once, from small to large."""
    parts = [part.strip() for text in texts for part in text.split(",")] or list(_DEFAULT_CACHES)
    return sorted({_cache(part, workload) for part in parts})


def _cache(text: str, workload: Workload) -> int:
    if text.endswith("%"):
        try:
            percent = float(text[:-1])
        except ValueError:
            percent = -1.0
        if not 0 < percent <= 100:
            raise UsageError(f"cache {text!r}: more than 0% and at most 100% of what is read, or a size like 200GiB")
        return max(int(workload.distinct_bytes * percent / 100), 1)
    if not workload.sized and not text.isdecimal():
        raise UsageError(
            f"cache {text!r}: no sizes are in the trace; give percent or a number of files, or sizes by --item-size"
        )
    return parse_size(text)


def check_plot(file: Path) -> None:
    """Raises: UsageError: a plot cannot be drawn there."""
    if file.suffix.lower() not in _PLOTS:
        raise UsageError(f"--plot {file}: the name has to end in {' or '.join(_PLOTS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib; install it with: pip install 'forebay[plot]'")
    if not file.absolute().parent.is_dir() or not os.access(file.absolute().parent, os.W_OK):
        raise UsageError(f"--plot {file}: its folder is not there, or not yours to write in")
