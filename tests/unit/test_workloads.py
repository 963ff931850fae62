"""Traces in files, and distributions of sizes."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forebay.cacheruntime.config import KIB, MIB
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.simulation import Workload
from forebay.cacheruntime.workloads import distribution, read_file


def trace(path: Path, item_size: int | None = None) -> Workload:
    found = read_file(path, item_size)
    assert isinstance(found, Workload)
    return found


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# Distributions


def test_so_many_of_one_size() -> None:
    sizes = distribution("1000x100KiB + 2x1.5MiB", 0)
    assert sizes is not None
    assert sizes.tolist() == [100 * KIB] * 1000 + [MIB * 3 // 2] * 2


def test_lognormal_and_uniform() -> None:
    sizes = distribution("lognormal:20000,110KiB,0.7", 1)
    assert sizes is not None
    assert np.median(sizes) == pytest.approx(110 * KIB, rel=0.03)
    assert np.log(sizes).std() == pytest.approx(0.7, rel=0.03)
    assert np.array_equal(sizes, distribution("lognormal:20000,110KiB,0.7", 1))
    assert not np.array_equal(sizes, distribution("lognormal:20000,110KiB,0.7", 2))
    even = distribution("uniform:5000,1KiB,3KiB", 1)
    assert even is not None
    assert even.min() >= KIB
    assert even.max() <= 3 * KIB
    assert even.mean() == pytest.approx(2 * KIB, rel=0.03)


@pytest.mark.parametrize("text", ["trace.csv", "/data/1000", "100", "x100KiB", "10 x", "gauss:1,2,3"])
def test_no_distribution(text: str) -> None:
    assert distribution(text, 0) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0x100KiB", "'0' files"),
        ("999999999x1KiB", "50,000,000 can be simulated"),
        ("10x5parsec", "'5parsec' is not a positive number"),
        ("lognormal:10,1KiB", "is no distribution of sizes"),
        ("lognormal:10,1KiB,wide", "is no distribution of sizes"),
        ("lognormal:10,1KiB,60", "sigma 60"),
        ("lognormal:ten,1KiB,1", "'ten' files"),
        ("uniform:10,3KiB,1KiB", "is no distribution of sizes"),
    ],
)
def test_wrong_distribution(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        distribution(text, 0)


# Text


def test_keys_alone_count_as_one_each(tmp_path: Path) -> None:
    found = trace(written(tmp_path, "a\nb\n\na\n"))
    assert (found.items.tolist(), found.sizes.tolist(), found.sized) == ([0, 1, 0], [1, 1], False)
    sized = trace(tmp_path / "trace.csv", item_size=7)
    assert (sized.sizes.tolist(), sized.sized) == ([7, 7], True)


def test_keys_and_sizes(tmp_path: Path) -> None:
    found = trace(written(tmp_path, 'a,10\n"b,c",1KiB\na,12\n'))
    assert (found.items.tolist(), found.sizes.tolist(), found.readers) == ([0, 1, 0], [12, 1024], None)


def test_a_header_names_the_columns(tmp_path: Path) -> None:
    text = "Time,reader,more,size,KEY\n3,y,,10,c\n1.5,x,,20,a\n2,x,,30,b\n"
    found = trace(written(tmp_path, text))
    assert found.readers is not None
    assert (found.items.tolist(), found.readers.tolist(), found.sizes.tolist()) == ([0, 1, 2], [0, 0, 1], [20, 30, 10])


def test_compressed(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(b"a,1\nb,2\n"))
    assert trace(path).sizes.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there is no access"),
        ("key,size\n", "there is no access"),
        ("a,1\nb,many\n", "line 2: 'b,many' cannot be understood: the columns are key,size, sizes are like"),
        ("a,-5\n", "line 1: 'a,-5' cannot be understood"),
        ("key,time\na,noon\n", "line 2: 'a,noon' cannot be understood: the columns are key,time, in that order"),
        ("key,size,reader\na,1\n", "line 2: 'a,1' cannot be understood"),
        ("a,1\nb\n", "sizes of 1 of 2 files are not known; name one for these with --item-size"),
    ],
)
def test_wrong_text(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read_file(written(tmp_path, text))


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: "):
        read_file(tmp_path / "trace.csv")


# Others


def test_oracle_general(tmp_path: Path) -> None:
    path = tmp_path / "cluster.oracleGeneral.bin"
    records = [(1, 2**63 + 5, 100, 3), (2, 9, 200, -1), (3, 2**63 + 5, 100, -1)]
    path.write_bytes(b"".join(struct.pack("<IQIq", *record) for record in records))
    assert (trace(path).items.tolist(), trace(path).sizes.tolist()) == ([0, 1, 0], [100, 200])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match="no oracleGeneral trace: 71 bytes"):
        read_file(path)


def test_parquet_trace(tmp_path: Path) -> None:
    pq.write_table(pa.table({"time": [2, 1], "key": ["a", "b"], "size": [5, 6]}), tmp_path / "trace.parquet")
    found = trace(tmp_path / "trace.parquet")
    assert (found.items.tolist(), found.sizes.tolist()) == ([0, 1], [6, 5])


def test_parquet_snapshot_is_a_list_of_sizes(tmp_path: Path) -> None:
    table = pa.table({"path": ["d", "d/a", "d/b", "l"], "kind": ["directory", "file", "file", "symlink"],
                      "size": pa.array([0, 10, 0, None], pa.int64())})  # fmt: skip
    pq.write_table(table, tmp_path / "snapshot.parquet")
    sizes = read_file(tmp_path / "snapshot.parquet")
    assert isinstance(sizes, np.ndarray)
    assert sizes.tolist() == [10, 1]


def test_parquet_of_something_else(tmp_path: Path) -> None:
    pq.write_table(pa.table({"colour": ["red"]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="neither a column `key` nor `size`, but colour"):
        read_file(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"no parquet")
    with pytest.raises(UsageError, match=r"y\.parquet cannot be read"):
        read_file(tmp_path / "y.parquet")
    pq.write_table(pa.table({"key": ["a", "b"], "time": [None, 1]}), tmp_path / "z.parquet")
    with pytest.raises(UsageError, match="the column `time` has something in it that is no time"):
        read_file(tmp_path / "z.parquet")
    pq.write_table(pa.table({"key": ["a"], "size": ["much"]}), tmp_path / "u.parquet")
    with pytest.raises(UsageError, match=r"u\.parquet cannot be read: .*much"):
        read_file(tmp_path / "u.parquet")
