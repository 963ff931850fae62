"""The benchmark's bounded caches: shares and pieces, bytes that the endpoint counts, memory that is watched."""

import os
import random
import subprocess
import sys
import urllib.request
from pathlib import Path

import obstore
import pytest

from forebay.bench.crew import run_readers
from forebay.bench.dataset import make_images, make_large
from forebay.bench.groups import QUICK
from forebay.bench.lines_cache import BOUNDED, FRACTIONS, Pieces, pieces_of, quota_of, size_of
from forebay.bench.peak import Peak, memory_of, peak
from forebay.bench.peers import JuiceFS, JuiceVolume, Peer, Rclone, S3fs
from forebay.bench.reader import Job, piece
from forebay.bench.sendfile_endpoint import FolderEndpoint, find_nginx, sendfile_endpoint
from forebay.bench.sides import Dataset, Forebay, SideFailed

MIB = 1 << 20
NOWHERE = FolderEndpoint("nothing", "http://127.0.0.1:1", "", {})


def dataset_of(folder: Path, files: int) -> Dataset:
    """Small files without an endpoint."""
    return Dataset("data", folder, make_images(folder, files, 1), NOWHERE)


def test_quotas_are_whole_mib_near_the_share(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "local", 100)
    for fraction in FRACTIONS:
        quota = quota_of(dataset, fraction)
        assert quota % MIB == 0
        assert abs(quota - fraction * size_of(dataset)) <= MIB / 2


def test_pieces_cover_each_file_once() -> None:
    keys = ["a", "b"]
    every = pieces_of(keys, random.Random(1), every=True)
    assert sorted(every) == sorted(piece(key, start << 17, 1 << 17) for key in keys for start in range(8))
    assert every != sorted(every)
    one = pieces_of(keys, random.Random(1), every=False)
    assert sorted(name.partition(":")[0] for name in one) == keys
    assert set(one) <= set(every)


def test_each_round_of_pieces_has_files_of_its_own(tmp_path: Path) -> None:
    samples = Pieces().make(tmp_path, QUICK)
    assert len(samples) == 2 * QUICK.rounds * QUICK.piece_files
    assert all((tmp_path / sample.key) == sample.path and sample.path.stat().st_size == MIB for sample in samples)
    assert len({sample.digest for sample in samples}) == len(samples)


def test_bounded_groups_have_names_of_their_own() -> None:
    assert [group.name for group in BOUNDED] == ["cache", "pieces", "at-once"]


@pytest.mark.slow
def test_a_reader_reads_the_pieces_it_is_told(tmp_path: Path) -> None:
    make_large(tmp_path, "one.bin", 2 * MIB, 1)
    names = (piece("one.bin", MIB, 1 << 17), piece("one.bin", 2 * MIB - 10, 1 << 17))
    total = run_readers([Job("read_pieces", str(tmp_path), names)])
    assert (total.count, total.size) == (2, (1 << 17) + 10)


@pytest.mark.slow
@pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed")
def test_the_endpoint_counts_what_it_sends_of_objects(tmp_path: Path) -> None:
    sample = make_large(tmp_path / "local", "one.bin", 3 * MIB, 1)
    with sendfile_endpoint(tmp_path) as endpoint:
        endpoint.publish("data", {sample.key: sample.path})
        assert endpoint.sent_bytes() == 0
        for number, one in enumerate(filter(None, (endpoint, endpoint.distant()))):
            store = one.store("data")
            obstore.list(store).collect()
            obstore.head(store, sample.key)
            obstore.get_range(store, sample.key, start=5, length=MIB)
            urllib.request.urlopen(urllib.request.Request(f"{one.url}/data/two", b"two", method="PUT")).close()
            assert one.sent_bytes() == (number + 1) * MIB


@pytest.mark.slow
def test_the_most_memory_of_a_family_is_seen() -> None:
    words = (
        "held = bytearray(b'x') * (64 << 20); print(1, flush=True); input(); del held; print(2, flush=True); input()"
    )
    most = Peak()
    with subprocess.Popen([sys.executable, "-c", words], stdin=-1, stdout=-1, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        most.look([process.pid])
        process.stdin.write("\n")
        assert process.stdout.readline() == "2\n"
        most.look([process.pid])
        assert memory_of(process.pid)["Pss_Anon"] < 64 * MIB
        process.communicate("\n")
    assert memory_of(process.pid) == {}
    assert 64 * MIB <= most.held <= most.pss
    assert most.looks == 2


def test_memory_is_watched_while_a_context_lasts() -> None:
    with peak(lambda: [os.getpid()]) as most:
        pass
    assert most.looks >= 1
    assert most.pss >= most.held > MIB


def test_a_side_anew_has_a_cache_of_its_own_with_a_limit(tmp_path: Path) -> None:
    side = Forebay(dataset_of(tmp_path / "local", 1), tmp_path / "ours", {}, "Forebay", "--engine", "kernel")
    other = side.anew("25", 3 * MIB)
    assert other.node.cache_dir != side.node.cache_dir
    assert other.notes == f"{side.notes} --tier SSD:{other.node.cache_dir}:{3 * MIB}"
    assert side.anew("all").notes == side.notes


def test_peers_are_told_the_size_of_their_cache(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "local", 1)
    volume = JuiceVolume("true", tmp_path / "volume", dataset, None)
    peers: list[tuple[Peer, str]] = [
        (Rclone("true", tmp_path / "rclone", dataset), "--vfs-cache-max-size=3M"),
        (JuiceFS(volume, tmp_path / "juicefs", "JuiceFS tuned"), "--cache-size=3"),
    ]
    for side, flag in peers:
        other = side.anew("25", 3 * MIB)
        assert flag in other.command()
        assert other.cache_folders[0] != side.cache_folders[0]
        assert flag not in side.anew("all").command()
    with pytest.raises(SideFailed, match="no option"):
        S3fs("true", tmp_path / "s3fs", dataset).anew("25", 3 * MIB)
