"""What a cache holds, read from its files, so that it can be told while no worker runs."""

from dataclasses import dataclass, field
from pathlib import Path

from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.index import Index
from forebay.cacheruntime.keys import ROOT_NODE, DatasetId
from forebay.cacheruntime.snapshot_history import totals_of


@dataclass
class TierReport:
    """One tier."""

    medium: str
    path: str
    quota_bytes: int
    used_bytes: int
    files: int


@dataclass
class Held:
    """What a dataset has in one tier."""

    medium: str
    path: str
    bytes: int
    files: int


@dataclass
class DatasetReport:
    """One dataset: its newest snapshot and what of it is cached."""

    dataset_id: DatasetId
    source: str
    snapshot: int = 0
    listing: str = "none"
    """'complete', 'under way', 'broken: REASON', or 'none' (read without a catalogue)."""
    source_files: int = 0
    source_bytes: int = 0
    skipped: int = 0
    """Keys that cannot be file names."""
    cached_files: int = 0
    cached_bytes: int = 0
    tiers: list[Held] = field(default_factory=list)


def cache_report(config: CacheConfig) -> tuple[list[TierReport], list[DatasetReport]]:
    """Tiers and datasets of a cache folder; empty ones when it was never used."""
    tiers = {str(t.path): TierReport(t.medium.value, str(t.path), t.quota_bytes, 0, 0) for t in config.tiers}
    datasets = {report.dataset_id: report for report in _datasets(config)}
    if not config.index_dir.exists():
        return list(tiers.values()), list(datasets.values())
    index = Index(config.index_dir)
    try:
        folders = {number: str(path) for number, (_, path) in index.tiers().items()}
        for held in index.holdings():
            tier = tiers.setdefault(folders[held.tier], TierReport("?", folders[held.tier], 0, 0, 0))
            tier.used_bytes += held.bytes
            tier.files += held.files
            report = datasets.setdefault(held.dataset, DatasetReport(held.dataset, "?"))
            report.cached_bytes += held.bytes
            report.cached_files += held.files
            known = next((part for part in report.tiers if part.path == tier.path), None)
            if known is None:
                report.tiers.append(known := Held(tier.medium, tier.path, 0, 0))
            known.bytes += held.bytes
            known.files += held.files
    finally:
        index.close()
    return list(tiers.values()), list(datasets.values())


def holdings_of(config: CacheConfig, dataset: DatasetId) -> int:
    """Bytes that belong to a dataset in all tiers together."""
    if not config.index_dir.exists():
        return 0
    index = Index(config.index_dir)
    try:
        return sum(held.bytes for held in index.holdings() if held.dataset == dataset)
    finally:
        index.close()


def cached_of_snapshot(config: CacheConfig, folder: Path) -> int:
    """Bytes of a snapshot's files that are cached, whichever dataset brought them; looks at each file."""
    if not config.index_dir.exists():
        return 0
    index, catalogue = Index(config.index_dir), Catalogue(folder)
    try:
        found = (index.find(node.content) for node in catalogue.files_below(ROOT_NODE))
        return sum(cached.cached_bytes() for cached in found if cached is not None)
    finally:
        catalogue.close()
        index.close()


def _datasets(config: CacheConfig) -> list[DatasetReport]:
    root = config.cache_dir / "datasets"
    found = []
    for folder in sorted(root.iterdir()) if root.exists() else ():
        try:
            source = (folder / "source").read_text()
        except OSError:
            continue
        report = DatasetReport(DatasetId(folder.name), source)
        numbers = sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit()), reverse=True)
        if numbers:
            report.snapshot = numbers[0]
            totals = totals_of(folder / str(numbers[0]))
            if totals is not None:
                report.listing = "complete" if totals.complete else "under way"
                if totals.error:
                    report.listing = f"broken: {totals.error}"
                report.source_files, report.source_bytes = totals.files, totals.bytes
                report.skipped = totals.skipped
        found.append(report)
    return found
