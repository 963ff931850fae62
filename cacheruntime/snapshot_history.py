"""The snapshots of a dataset on disk, and which of them stay."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from forebay.cacheruntime.catalogue import Catalogue, Totals, read_summary
from forebay.cacheruntime.config import KEPT_SNAPSHOTS
from forebay.cacheruntime.errors import CacheFormatError

UNCHANGED = "unchanged"
"""A file of this name in a snapshot's folder: it shows what the one before it showed."""


@dataclass(frozen=True)
class Keep:
    """Which snapshots stay, beside the newest whole one and those in use."""

    count: int = KEPT_SNAPSHOTS
    """At most so many, the newest included."""
    age_s: float = 0.0
    """None older than this; 0: of any age."""
    pinned: frozenset[int] = frozenset()
    """These in any case."""


@dataclass(frozen=True)
class StoredSnapshot:
    """One snapshot on disk."""

    number: int
    folder: Path
    totals: Totals | None
    """None where its catalogue cannot be read."""
    unchanged: bool
    """It shows what the one before it showed."""

    @property
    def complete(self) -> bool:
        return self.totals is not None and self.totals.complete

    @property
    def listed_ns(self) -> int:
        """When its listing ended, nanoseconds since the epoch; when its folder was made, where that is not known."""
        listed = self.totals.listed_ns if self.totals is not None else 0
        return listed or self.folder.stat().st_mtime_ns

    def disk_bytes(self) -> int:
        """What its folder takes."""
        return sum(entry.stat().st_blocks * 512 for entry in os.scandir(self.folder))


def numbers_in(folder: Path) -> list[int]:
    """Of the snapshots in a dataset's folder, ascending."""
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit())
    except FileNotFoundError:
        return []


def stored_snapshots(folder: Path, opened: Mapping[int, Catalogue] | None = None) -> list[StoredSnapshot]:
    """The snapshots in a dataset's folder, ascending.

    Args:
        folder: of the dataset.
        opened: for a worker, those that it has open: of the others it looks at the summary alone, for a catalogue that
            was torn by a power loss could end it. None: open each for a look.
    """
    found = []
    for number in numbers_in(folder):
        path = folder / str(number)
        if opened is None:
            totals = _totals(path)
        else:
            totals = opened[number].totals() if number in opened else read_summary(path)
        found.append(StoredSnapshot(number, path, totals, (path / UNCHANGED).exists()))
    return found


def _totals(folder: Path) -> Totals | None:
    try:
        catalogue = Catalogue(folder)
    except CacheFormatError:
        return None
    try:
        return catalogue.totals()
    finally:
        catalogue.close()


def expired(snapshots: Iterable[StoredSnapshot], keep: Keep, in_use: Collection[int], now_ns: int) -> list[int]:
    """The numbers of those to remove. Pure.

    That are those whose listing broke off, those that show what the one before them showed, those beyond the count,
    and those too old. The newest whole one stays, and so do those in use and those pinned.
    """
    newest_first = sorted(snapshots, key=lambda snapshot: -snapshot.number)
    newest = next((s.number for s in newest_first if s.complete), 0)
    found, counted = [], 0
    for snapshot in newest_first:
        stays = snapshot.number == newest or snapshot.number in in_use or snapshot.number in keep.pinned
        if not stays and (snapshot.unchanged or not snapshot.complete):
            found.append(snapshot.number)
            continue
        counted += snapshot.complete
        too_old = keep.age_s and now_ns - snapshot.listed_ns > keep.age_s * 1e9
        if not stays and (counted > keep.count or too_old):
            found.append(snapshot.number)
    return sorted(found)
