"""What a simulation runs: workloads from traces in files, and sizes from distributions and snapshots.

Formats of a trace, whole files read one after the other; compressed ones too (.gz, .bz2, .zst, .lz4):

* Text: lines ``key`` or ``key,size``. Or a first line that names the columns, in any order: ``key``, and, if wanted,
  ``size`` (with a unit or in bytes), ``reader``, ``time``; other columns are ignored. With ``time`` (a number), lines
  are put in its order, else they are in order. Quotes as in CSV.
* libCacheSim's oracleGeneral, known by that word in the name: records of 24 bytes, little endian: time (4 bytes), key
  (8), size (4), time of the next access (8, not used).
* Parquet: a table with those columns. One with ``size`` and no ``key``, such as the export of a snapshot, is no trace
  but a list of files: its rows whose ``kind`` is ``file``, when there is such a column.
"""

import csv
import io
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forebay.cacheruntime.config import parse_size
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.simulation import Workload
from forebay.cacheruntime.stack_distance import Numbers

_ORACLE = np.dtype([("time", "<u4"), ("key", "<u8"), ("size", "<u4"), ("next", "<i8")])

_FORMS = "100000x100KiB, lognormal:COUNT,MEDIAN,SIGMA, uniform:COUNT,MIN,MAX, or several of these with + between them"

_PART = re.compile(r"\s*(?:(\d+)x([\d.]+\s*[A-Za-z]*)|(lognormal|uniform):(.*))\s*", re.IGNORECASE)

_SHOWN = 60
"""Characters of a line that is wrong; a file that is no text has long ones."""

ACCESSES_MAX = 50_000_000
"""A list of so many takes 400 MB, and an hour for every policy and size."""


def distribution(text: str, seed: int) -> Numbers | None:
    """Sizes in bytes of files that are distributed as the text says; None when it is no text of that kind.

    Raises:
        UsageError: it is, and a number in it is wrong.
    """
    parts = text.split("+")
    if not all(_PART.fullmatch(part) for part in parts):
        return None
    random = np.random.default_rng(seed)
    return np.concatenate([_part(part, random) for part in parts])


def _part(text: str, random: np.random.Generator) -> Numbers:
    match = _PART.fullmatch(text)
    assert match is not None
    if match[1]:
        return np.full(_count(match[1]), parse_size(match[2]), dtype=np.int64)
    wrong = UsageError(f"{text!r} is no distribution of sizes; write it like {_FORMS}")
    kind, values = match[3].lower(), match[4].split(",")
    if len(values) != 3:
        raise wrong
    count = _count(values[0])
    if kind == "uniform":
        least, most = parse_size(values[1]), parse_size(values[2])
        if least > most:
            raise wrong
        sizes: Numbers = random.integers(least, most, count, dtype=np.int64, endpoint=True)
        return sizes
    try:
        sigma = float(values[2])
    except ValueError:
        raise wrong from None
    if not 0 <= sigma <= 5:
        raise UsageError(f"sigma {sigma:g} in {text!r}: of the logarithm, 0 to 5; 0.5 to 1 is usual for images")
    logarithms = sigma * random.standard_normal(count)
    drawn: Numbers = np.maximum(parse_size(values[1]) * np.exp(logarithms), 1).astype(np.int64)
    return drawn


def _count(text: str) -> int:
    count = int(text) if text.strip().isdecimal() else 0
    if not 0 < count <= ACCESSES_MAX:
        raise UsageError(f"{text.strip()!r} files; 1 to {ACCESSES_MAX:,} can be simulated")
    return count


def workload_of(
    keys: Sequence[Hashable],
    sizes: Sequence[int] | None,
    readers: Sequence[Hashable] | None = None,
    item_size: int | None = None,
) -> Workload:
    """A workload from what is read, one access after the other.

    Args:
        keys: what is read.
        sizes: in bytes, for each access; 0: not known. The largest of a key counts.
        readers: who reads; None: it is all one.
        item_size: bytes of keys whose size is not known. If none is known, and this is not given, each counts as 1.

    Raises:
        UsageError: there is nothing, or some sizes are known and some are not.
    """
    if not len(keys):
        raise UsageError("there is no access in the trace")
    items, count = _numbered(keys)
    largest = np.zeros(count, dtype=np.int64)
    if sizes is not None:
        np.maximum.at(largest, items, np.asarray(sizes, dtype=np.int64))
    unknown = int((largest == 0).sum())
    if 0 < unknown < count and item_size is None:
        raise UsageError(f"the sizes of {unknown} of {count} files are not known; name one for these with --item-size")
    sized = unknown < count or item_size is not None
    largest[largest == 0] = item_size or 1
    return Workload(items, largest, _numbered(readers)[0] if readers is not None else None, sized=sized)


def _numbered(keys: Iterable[Hashable]) -> tuple[Numbers, int]:
    numbers: dict[Hashable, int] = {}
    items = np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), dtype=np.int64)
    return items, len(numbers)


def read_file(path: Path, item_size: int | None = None) -> Workload | Numbers:
    """The workload of a trace file, or the sizes in a list of files.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    try:
        if path.suffix == ".parquet":
            return _parquet(path, item_size)
        with pa.input_stream(str(path), compression="detect") as source:
            if "oraclegeneral" in path.name.lower():
                return _oracle_general(path, source.read())
            lines = io.TextIOWrapper(source, encoding="utf-8", errors="surrogateescape", newline="")
            return _text(path, lines, item_size)
    except pa.ArrowException as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def _oracle_general(path: Path, raw: bytes) -> Workload:
    if len(raw) % _ORACLE.itemsize:
        raise UsageError(f"{path} is no oracleGeneral trace: {len(raw)} bytes are not a multiple of {_ORACLE.itemsize}")
    records = np.frombuffer(raw, dtype=_ORACLE)
    return workload_of(records["key"].tolist(), records["size"].tolist())


def _text(path: Path, lines: Iterable[str], item_size: int | None) -> Workload:
    rows = [(number, row) for number, row in enumerate(_rows(path, lines), 1) if row]
    names = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if "key" in names:
        del rows[0]
    else:
        names = ["key", "size"]
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "size", "reader", "time") if name in names}
    at = [(names.index(name), values.append, _CELLS[name]) for name, values in columns.items()]
    width = len(names) if names != ["key", "size"] else 1
    for number, row in rows:
        try:
            for index, append, read in at:
                append(read(row[index]) if index < len(row) or index < width else 0)
        except (ValueError, IndexError, UsageError) as error:
            hint = "sizes are like 113201 or 110KiB" if isinstance(error, UsageError) else "in that order"
            why = f"the columns are {','.join(names)}, {hint}"
            shown = ",".join(row)[:_SHOWN]
            raise UsageError(f"{path}, line {number}: {shown!r} cannot be understood: {why}") from error
    return _in_order(columns, item_size)


def _rows(path: Path, lines: Iterable[str]) -> Iterable[list[str]]:
    try:
        yield from csv.reader(lines)
    except csv.Error as error:
        raise UsageError(f"{path} is no text in lines of key,size: {error}") from error


def _size(cell: str) -> int:
    """Bytes; 0 for nothing. Digits alone are most of a trace, and are read five times as fast as the rest."""
    return int(cell) if cell.isdecimal() and len(cell) < 18 else parse_size(cell) if cell.strip() else 0


_CELLS: dict[str, Callable[[str], Any]] = {"key": str, "size": _size, "reader": str, "time": float}


def _integers(table: pa.Table, name: str) -> Numbers:
    """A column without what is missing: that is 0."""
    column = table.column(name).cast(pa.int64()).fill_null(0)
    return np.asarray(column.combine_chunks().to_numpy(zero_copy_only=False), dtype=np.int64)


def _in_order(columns: dict[str, Any], item_size: int | None) -> Workload:
    if "time" in columns:
        try:
            order = np.argsort(np.asarray(columns["time"]), kind="stable").tolist()
        except TypeError:
            raise UsageError("the column `time` has something in it that is no time") from None
        columns = {name: [values[index] for index in order] for name, values in columns.items()}
    return workload_of(columns["key"], columns.get("size"), columns.get("reader"), item_size)


def _parquet(path: Path, item_size: int | None) -> Workload | Numbers:
    names = set(pq.read_schema(path).names)
    if "key" in names:
        wanted = ["key", *sorted({"size", "reader", "time"} & names)]
        table = pq.read_table(path, columns=wanted)
        columns = {name: table.column(name).to_pylist() for name in wanted}
        return _in_order(columns | ({"size": _integers(table, "size")} if "size" in wanted else {}), item_size)
    if "size" not in names:
        raise UsageError(f"{path} has neither a column `key` nor `size`, but {', '.join(sorted(names))}")
    table = pq.read_table(path, columns=["size", *({"kind"} & names)])
    sizes = np.maximum(_integers(table, "size"), 1)
    if "kind" in names:
        sizes = sizes[np.asarray([kind == "file" for kind in table.column("kind").to_pylist()], dtype=bool)]
    if not len(sizes):
        raise UsageError(f"there is no file in {path}")
    return sizes
