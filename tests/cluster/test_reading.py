"""Readers find what is wrong; the store, the product's command and its mounts work on hosts."""

import os
import re
from pathlib import Path

import pytest
from chaos import gets, gets_per_block
from epoch import Epoch
from named_files import FileSet, content, segment, size_of
from network import Network
from store import Store

pytestmark = [pytest.mark.slow]

MIB = 1 << 20


def _write(files: FileSet, root: Path) -> None:
    for name in files.names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content(name, 0, size_of(name)))


def test_files_follow_from_their_names() -> None:
    files = FileSet(240, (3 * MIB + 5,))
    assert len(set(files.names)) == 241
    assert files.names == FileSet(240, (3 * MIB + 5,)).names
    assert files.names != FileSet(240, (3 * MIB + 5,), seed=1).names
    assert {name.rpartition("/")[0] for name in files.names} == {"large/0", "small/0.000", "small/0.001", "small/0.002"}
    (large,) = (name for name in files.names if name.startswith("large/"))
    whole = content(large, 0, 99 * MIB)
    assert len(whole) == size_of(large) == 3 * MIB + 5
    assert len({segment(large, n)[:5] for n in range(4)}) == 4
    for start, end in ((0, 1), (MIB - 1, MIB + 1), (MIB, 2 * MIB), (3 * MIB + 4, 3 * MIB + 9), (7, 7)):
        assert content(large, start, end) == whole[start:end]


def test_readers_find_what_is_wrong(network: Network) -> None:
    host = network.host("a")
    files = FileSet(40, (2 * MIB,))
    root = host.folder / "data"
    _write(files, root)
    (report,) = Epoch(files, [(host, root)], order=1, epochs=2).results(30)
    assert (report.files, report.failed, report.wrong) == (82, 0, 0)

    flipped, short, long, gone, folder = files.names[1:6]
    (root / flipped).write_bytes(bytes([content(flipped, 0, 1)[0] ^ 1]) + content(flipped, 1, MIB * 9))
    (root / short).write_bytes(content(short, 0, size_of(short) - 1))
    (root / long).write_bytes(content(long, 0, MIB * 9) + b"x")
    (root / gone).unlink()
    (root / folder).unlink()
    (root / folder).mkdir()
    (report,) = Epoch(files, [(host, root)], order=2).results(30)
    assert (report.files, report.failed, report.wrong) == (41, 1, 4)
    found = {name: what[0] for name, *what in report.examples}
    assert found == {
        flipped: 0,
        short: f"has {size_of(short) - 1} bytes",
        long: f"has {size_of(long) + 1} bytes",
        gone: "ENOENT",
        folder: f"has {os.stat(root / folder).st_size} bytes",
    }


def test_a_shared_epoch_reads_each_file_once(network: Network) -> None:
    host = network.host("a")
    files = FileSet(100)
    _write(files, host.folder / "data")
    epoch = Epoch(files, [(host, host.folder / "data")] * 3, order=1, shared=True)
    assert sorted(report.files for report in epoch.results(30)) == [33, 33, 34]
    assert epoch.done == 1


def test_hosts_mount_the_store(network: Network) -> None:
    """Each with a cache of its own: every block comes once for each."""
    store = Store(network.host("store"))
    files = FileSet(60, (3 * MIB,))
    store.fill(files)
    hosts = [network.host(name) for name in "ab"]
    mark = store.chaos.mark()
    places = [(host, host.forebay.mount(store.source, *store.args)) for host in hosts]
    reports = Epoch(files, places, order=3, epochs=2).results(60)
    assert [(report.files, report.failed, report.wrong) for report in reports] == [(122, 0, 0)] * 2, reports
    counted = gets_per_block(gets(store.chaos.seen(mark), store.path), MIB, store.sizes)
    assert len(counted) == 63
    assert set(counted.values()) == {2}
    for host, folder in places:
        assert host.processes("forebay.cacheruntime.worker")
        inner = host.forebay.pids(folder)["supervisor"]
        assert re.search("forebay", host.processes()[host.outer(inner)])
        host.forebay.umount(folder)
    store.close()
