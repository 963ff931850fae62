"""Readers as processes, the data they read, and the endpoint they read from."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import xxhash

from forebay.bench import peers
from forebay.bench.crew import ReaderFailed, cpu_seconds, family, run_readers, share
from forebay.bench.dataset import make_large
from forebay.bench.lines_large import as_safetensors
from forebay.bench.listing import PAGE_KEYS
from forebay.bench.reader import Job
from forebay.bench.sendfile_endpoint import LATENCY_S, find_nginx, sendfile_endpoint
from forebay.bench.sides import drop_pages, load_pages, sync_file_system

MIB = 1 << 20


@pytest.mark.slow
def test_readers_share_the_names_and_read_all_bytes(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / str(number)).write_bytes(bytes([number]) * (MIB + number))
    names = tuple(str(number) for number in range(7))
    jobs = share(Job("read_files", str(tmp_path), names), 3)
    assert sorted(name for job in jobs for name in job.names) == list(names)
    total = run_readers(jobs)
    assert (total.count, total.size) == (7, 7 * MIB + 21)
    assert total.seconds > 0


@pytest.mark.slow
def test_a_reader_stops_at_its_limit(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x")
    total = run_readers([Job("read_files", str(tmp_path), ("one",) * 5, limit_s=0.0)])
    assert total.count == 1


@pytest.mark.slow
def test_a_reader_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ReaderFailed, match="No such file or directory"):
        run_readers([Job("read_files", str(tmp_path), ("absent",))])


@pytest.mark.slow
def test_names_are_counted_whether_they_are_there_or_not(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one").touch()
    stats = Job("stat_names", str(tmp_path), ("sub/one", "sub/two"))
    assert run_readers([stats]).count == 2
    assert run_readers([Job("list_folders", str(tmp_path), ("sub",))]).count == 1
    assert run_readers([Job("find_ls", str(tmp_path))]).count == 1


@pytest.mark.slow
def test_mapped_loads_give_the_bytes_of_the_file(tmp_path: Path) -> None:
    sample = as_safetensors(make_large(tmp_path, "model.safetensors", 70 * MIB, 1))
    assert sample.digest == xxhash.xxh3_64_intdigest(sample.path.read_bytes())
    tensors = run_readers([Job("load_safetensors", str(tmp_path), (sample.key,))])
    assert (tensors.count, tensors.size) == (3, 69 * MIB)
    assert run_readers([Job("load_memmap", str(tmp_path), (sample.key,))]).size == 70 * MIB
    assert run_readers([Job("digest_files", str(tmp_path), (sample.key,))]).digests == (sample.digest,)


def test_a_family_is_a_process_and_its_children() -> None:
    words = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"1\n"
        found = family([parent.pid])
        assert len(found) == 2
        assert set(cpu_seconds(found)) == set(found)
        parent.communicate(b"\n")
    assert family([parent.pid]) == []


def test_pages_are_dropped_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(os.urandom(4 * MIB))
    (tmp_path / "link").symlink_to("absent")
    sync_file_system(tmp_path)
    for name in ("one", "link", "gone"):
        drop_pages(tmp_path / name)
    load_pages(tmp_path)
    assert path.stat().st_size == 4 * MIB


@pytest.mark.slow
@pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed")
def test_the_endpoint_lists_and_serves_near_and_with_latency(tmp_path: Path) -> None:
    import obstore

    local = tmp_path / "local"
    local.mkdir()
    files = {f"folder/{number:04}": local / f"{number:04}" for number in range(PAGE_KEYS + 1)}
    for number, path in enumerate(files.values()):
        path.write_bytes(number.to_bytes(2, "big"))
    with sendfile_endpoint(tmp_path) as endpoint:
        endpoint.publish("data", files)
        for one in filter(None, (endpoint, endpoint.distant())):
            store = one.store("data")
            assert [meta["path"] for meta in obstore.list(store).collect()] == list(files)
            meta = obstore.head(store, "folder/0258")
            started = time.monotonic()
            assert obstore.get_range(store, "folder/0258", start=1, length=1) == b"\x02"
            assert one is endpoint or time.monotonic() - started >= LATENCY_S
            options: obstore.GetOptions = {"if_match": meta["e_tag"] or "", "range": (0, 1)}
            assert bytes(obstore.get(store, "folder/0258", options=options).bytes()) == b"\x01"
            with pytest.raises(obstore.exceptions.PreconditionError):
                obstore.get(store, "folder/0258", options={"if_match": '"other"'})
            with pytest.raises(FileNotFoundError):
                obstore.head(store, "folder")
            for method in ("PUT", "DELETE"):
                request = urllib.request.Request(
                    f"{one.url}/data/new/object", b"put" if method == "PUT" else None, method=method
                )
                urllib.request.urlopen(request).close()
                assert (tmp_path / "buckets/data/new/object").exists() == (method == "PUT")
        endpoint.withdraw("data", [])
        assert not (tmp_path / "buckets" / "data").exists()


def test_a_peer_that_is_not_installed_is_no_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_program", lambda _: None)
    assert peers.bucket_sides(None, tmp_path, [peers.Rclone.name]) == []  # type: ignore[arg-type]
    assert peers.juice_sides(None, tmp_path, [peers.JuiceFS.__name__]) == []  # type: ignore[arg-type]
