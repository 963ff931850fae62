"""Files read in the process, and their order posted: all that needs no PyTorch."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forebay_command import Forebay, wait_until

pytestmark = pytest.mark.slow
Program = Callable[..., str]


def test_reads_what_the_source_has(program: Program) -> None:
    code = """
from forebay.torch.files import Files
from forebay.cacheruntime.errors import UsageError
for views in (False, True):
    files = Files("file://" + ROOT, suffix=".bin", views=views)
    assert len(files) == 301, len(files)
    assert [files.path(n) for n in (0, 99, 100, 101)] == [
        "class-0/0000.bin", "class-0/0297.bin", "class-0/empty.bin", "class-1/0001.bin"]
    for _ in range(2):
        for n in range(301):
            name = os.path.basename(files.path(n))
            assert files.read(n) == (b"" if name == "empty.bin" else content(int(name[:4]))), name
            assert files.size(n) == len(files.read(n))
        order = list(range(300, -1, -3)) * 2
        assert [bytes(data) for data in files.read_each(order)] == [bytes(files.read(n)) for n in order]
    print(files.counts.misses)
assert len(Files("file://" + ROOT, pattern="class-1/*")) == 100
assert len(Files("file://" + ROOT, pattern="class-[12]/00*", suffix=(".bin", ".jpg"))) == 66
assert len(Files("file://" + ROOT)) == 302
for wanted, words in (({"suffix": ".png"}, "ends with '.png'"), ({"pattern": "x*"}, "matches 'x*'")):
    try:
        Files("file://" + ROOT, **wanted)
    except UsageError as error:
        assert str(error) == f"file://{ROOT} holds no file that {words}", error
"""
    assert program(code) == "300\n0"


def test_missing_files_come_together_and_large_ones_in_pieces(program: Program, tree: Path) -> None:
    (tree / "large.big").write_bytes(os.urandom(70 << 20))
    code = """
from forebay.torch.files import Files
files = Files("file://" + ROOT, suffix=".bin")
found = list(files.read_each(range(150)))
assert [bytes(data) for data in found] == [files.read(n) for n in range(150)]
print(files.counts.misses)
(large,) = Files("file://" + ROOT, suffix=".big").read_each([0])
assert large == open(ROOT + "/large.big", "rb").read()
"""
    assert program(code) == "149", "the empty one is no miss"


@pytest.mark.semantics("P7")
def test_forked_and_pickled_readers(program: Program) -> None:
    code = """
import pickle
from forebay.torch.files import Files
files = Files("file://" + ROOT, suffix=".bin")
want = [files.read(n) for n in range(100)]
assert os.path.basename(files.path(0)) == "0000.bin"
clone = pickle.loads(pickle.dumps(files))
assert len(clone) == 301 and clone.counts.hits == 0
assert [clone.read(n) for n in range(100)] == want
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            good = [files.read(n) for n in range(100)] == want
            good &= [files.read(n) for n in range(100, 200)] == [clone.read(n) for n in range(100, 200)]
            status = 0 if good else 2
        finally:
            os._exit(status)
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
assert [files.read(n) for n in range(100)] == want
"""
    assert program(code) == "[0, 0, 0]"


@pytest.mark.semantics("P7")
def test_no_key_of_the_environment_is_in_a_pickle(forebay: Forebay, tree: Path) -> None:
    code = """
import pickle, sys
from forebay.torch.files import Files
data = pickle.dumps(Files("file://" + sys.argv[1]))
assert b"SECRET" not in data
"""
    environ = forebay.environ | {"AWS_SECRET_ACCESS_KEY": "SECRET", "AWS_ACCESS_KEY_ID": "SECRET-ID"}
    subprocess.run([sys.executable, "-c", code, str(tree)], env=environ, check=True, timeout=60)


def test_threads(program: Program) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
from forebay.torch.files import Files
files = Files("file://" + ROOT, suffix=".bin")
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(files.read, list(range(301)) * 3))
assert found == [files.read(n) for n in range(301)] * 3
"""
    program(code)


def test_a_file_of_a_batch_is_touched_when_its_turn_comes(program: Program) -> None:
    code = """
from forebay.cacheruntime.index import PackNumber
from forebay.cacheruntime.touch import slot_of
from forebay.torch.files import Files
files = Files("file://" + ROOT, suffix=".bin", cache_policy="next-use")
for n in range(8):
    files.read(n)
opened = files._open()
slots = [slot_of(opened.catalogue.file(files._nodes[n])[0], PackNumber(0)) for n in range(8)]
touch = opened.reader._touch
for slot in slots:
    touch.take(slot)
batch = files.read_each(range(8))
next(batch), next(batch)
assert [touch.take(slot) for slot in slots] == [True, True] + [False] * 6
list(batch)
assert all(touch.take(slot) for slot in slots[2:])
"""
    program(code)


@pytest.mark.semantics("P6")
def test_a_posted_order_is_fetched_ahead_and_survives_the_worker(forebay: Forebay, tree: Path) -> None:
    """The worker is killed while a reader that posted its order reads nothing; the next one learns the order."""
    code = """
import sys, time
from forebay.torch.files import Files
from forebay.torch.orders import EpochOrder
files = Files("file://" + sys.argv[1], suffix=".bin")
order = EpochOrder(files)
indices = list(range(0, 301, 2)) + list(range(1, 301, 2))
opened = files._open()
def cached(positions):
    return all(files._cached(opened, *opened.catalogue.file(files._nodes[indices[n]])) is not None for n in positions)
def wait(positions):
    deadline = time.monotonic() + 20
    while not cached(positions):
        order.advance(0, 0)
        time.sleep(0.05)
        assert time.monotonic() < deadline, "what was posted is fetched"
order.begin(indices)
wait(range(256))
assert not any(cached([n]) for n in range(256, 301)), "a window is no longer than that"
print("posted", flush=True)
sys.stdin.readline()
try:
    files.read(indices[300])  # its worker is gone: this calls another
    time.sleep(0.1)
    order.advance(250, 256)
    wait(range(256, 301))
    assert files.counts.misses == 1, files.counts
    print("good", flush=True)
finally:
    order.close()
"""
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(tree)], env=forebay.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert reader.stdout is not None
    assert reader.stdin is not None
    assert reader.stdout.readline() == "posted\n"
    workers = [pid for pid, command in forebay.processes().items() if "cacheruntime.worker" in command]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    reader.stdin.write("go\n")
    reader.stdin.close()
    assert reader.stdout.readline() == "good\n"
    assert reader.wait(20) == 0
    reader.stdout.close()
    forebay.run("mounts")
    wait_until(lambda: not forebay.processes(), "with its reader the worker goes", 15)


def test_a_dataset_by_its_name(forebay: Forebay, tree: Path, tmp_path: Path, program: Program) -> None:
    manifest = tmp_path / "dataset.yaml"
    manifest.write_text(
        "apiVersion: data.forebay.io/v1alpha1\nkind: Dataset\nmetadata: {name: samples}\n"
        f"spec: {{mounts: [{{mountPoint: 'file://{tree}', name: all}}], cachePolicy: {{policy: next-use}}}}\n"
    )
    forebay.run("apply", "-f", manifest)
    code = """
from forebay.torch.files import Files
from forebay.cacheruntime.errors import ForebayError, UsageError
for name in ("samples", "samples@1", "dataset://samples/all/class-1"):
    files = Files(name, suffix=".bin")
    assert len(files) == (100 if name.endswith("1") and "/" in name else 301), (name, len(files))
    for n in range(1, 5):
        assert files.read(n) == content(int(os.path.basename(files.path(n))[:4]))
for wrong, words in (("nothing", "nothing"), ("dataset://nothing", "there is no dataset nothing")):
    try:
        Files(wrong)
    except ForebayError as error:
        assert words in str(error), error
try:
    Files("samples", options={"endpoint": "x"})
except UsageError as error:
    assert str(error) == "options are for URLs; those of dataset samples are in its manifest: forebay apply"
"""
    program(code)


def test_without_pytorch_it_says_so(forebay: Forebay) -> None:
    code = """
import sys
sys.modules["torch"] = None
import forebay.torch
try:
    forebay.torch.ForebayDataset
except ModuleNotFoundError as error:
    print(error)
from forebay.torch.files import Files
"""
    done = subprocess.run([sys.executable, "-c", code], env=forebay.environ, capture_output=True, text=True, check=True)
    assert done.stdout == "forebay.torch needs PyTorch; install it, or: pip install 'forebay[torch]'\n"
