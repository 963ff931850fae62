"""forebay:// reads what a mount would, through the same cache. Each reader is a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forebay_command import Forebay

pytestmark = pytest.mark.slow


def run(forebay: Forebay, code: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=forebay.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "small #1.txt").write_bytes(b"line one\nline two\n")
    (root / "large").write_bytes(bytes(range(256)) * (5 << 12) + b"tail")
    (root / "empty").touch()
    return root


def test_reads_lists_and_seeks(forebay: Forebay, tree: Path) -> None:
    code = """
import sys, fsspec
root = "forebay://file://" + sys.argv[1]
fs, path = fsspec.url_to_fs(root)
assert sorted(n.rpartition("/")[2] for n in fs.ls(path, detail=False)) == ["empty", "large", "sub"]
assert fs.isdir(path + "/sub") and fs.isfile(path + "/large")
assert [n.rpartition("/")[2] for n in fs.glob(path + "/sub/*.txt")] == ["small #1.txt"]
assert fs.cat_file(path + "/empty") == b""
want = open(sys.argv[1] + "/large", "rb").read()
for _ in range(2):
    assert fs.cat_file(path + "/large") == want
assert fs.cat_file(path + "/large", 100, 300) == want[100:300]
assert fs.cat_file(path + "/large", -4) == b"tail"
assert fs.info(path + "/large")["size"] == len(want)
with fsspec.open(root + "/large") as f:
    f.seek(3 << 20)
    assert f.read(5) == want[3 << 20:][:5]
    f.seek(-4, 2)
    assert f.read() == b"tail"
with fsspec.open(root + "/sub/small #1.txt", "rt") as f:
    assert list(f) == ["line one\\n", "line two\\n"]
for missing in ("/nope", "/sub/nope"):
    try:
        fs.open(path + missing)
    except FileNotFoundError:
        continue
    raise AssertionError(missing)
print("good")
"""
    assert run(forebay, code, str(tree)) == "good\n"


def test_forked_readers(forebay: Forebay, tree: Path) -> None:
    """As data loaders do: opened and read in the parent, read on in its forked children."""
    code = """
import os, sys, fsspec
url = "forebay://file://" + sys.argv[1] + "/large"
want = open(sys.argv[1] + "/large", "rb").read()
f = fsspec.open(url).open()
assert f.read(1000) == want[:1000]
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if f.read() == want[1000:] and fsspec.open(url).open().read() == want else 2
        finally:
            os._exit(code)
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
assert f.read() == want[1000:]
"""
    assert run(forebay, code, str(tree)) == "[0, 0, 0]\n"


def test_pandas_and_the_mount_share_the_cache(forebay: Forebay, tmp_path: Path) -> None:
    pandas: Any = pytest.importorskip("pandas")
    root = tmp_path / "tables"
    root.mkdir()
    pandas.DataFrame({"n": range(300_000), "text": [str(n) for n in range(300_000)]}).to_parquet(root / "t.parquet")
    directory = forebay.mount(f"file://{root}")
    forebay.run("warmup", directory)
    code = "import sys, pandas; print(pandas.read_parquet('forebay://file://' + sys.argv[1] + '/t.parquet')['n'].sum())"
    before = forebay.status()
    assert run(forebay, code, str(root)) == f"{sum(range(300_000))}\n"
    after = forebay.status()
    assert [tier["used_bytes"] for tier in after["tiers"]] == [tier["used_bytes"] for tier in before["tiers"]]


def test_regression_connections_are_closed_before_the_interpreter_goes(forebay: Forebay, tree: Path) -> None:
    """A thread of gRPC's that comes back to Python after that ends the process with SIGABRT."""
    code = """
import atexit, sys

def last():
    from forebay.cacheruntime import node_cache
    print([cache.client._channel for cache in node_cache._caches.values()])

atexit.register(last)
import fsspec
found = fsspec.filesystem("forebay").find("forebay://file://" + sys.argv[1])
assert found
from forebay.cacheruntime import node_cache
assert [cache.client._channel for cache in node_cache._caches.values()] != [None]
"""
    assert run(forebay, code, str(tree)) == "[None]\n"


def test_regression_threads_outlive_the_worker_together(forebay: Forebay, tree: Path) -> None:
    """One thread closed the connection that another had just made: "Cannot invoke RPC on closed channel"."""
    for number in range(400):
        (tree / "sub" / f"{number}").write_bytes(b"%d" % number * 100)
    code = """
import sys, threading, fsspec
root, wrong = "forebay://file://" + sys.argv[1], []
numbers = iter(range(400))
lock = threading.Lock()

def read():
    while True:
        with lock:
            number = next(numbers, None)
        if number is None:
            return
        try:
            with fsspec.open(f"{root}/sub/{number}") as file:
                assert file.read() == b"%d" % number * 100, number
        except BaseException as error:
            wrong.append(repr(error))
        if number % 50 == 0:
            print(number, flush=True)

threads = [threading.Thread(target=read) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not wrong, (len(wrong), wrong[:3])
print("good")
"""
    reading = subprocess.Popen(
        [sys.executable, "-c", code, str(tree)], env=forebay.environ, stdout=subprocess.PIPE, text=True
    )
    assert reading.stdout is not None
    for line in reading.stdout:
        if line == "good\n":
            break
        for pid, command in forebay.processes().items():
            if "cacheruntime.worker" in command:
                os.kill(pid, signal.SIGKILL)
    assert reading.wait(30) == 0
