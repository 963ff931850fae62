"""A mount is usable before its listing has ended, and what the source refuses has its errno."""

import errno
import os
import signal
import subprocess
import sys
import urllib.request
from typing import Any

import pytest
from forebay_command import Forebay, wait_until
from source_tree import MIB, payload

pytestmark = [pytest.mark.slow]


@pytest.mark.sides("kernel", soak="engines")
@pytest.mark.semantics("C2")
def test_usable_while_the_listing_is_under_way(forebay: Forebay, bucket: Any, s3_endpoint: str, side: Any) -> None:
    """Names that are not listed yet are looked up in the source, and absent ones are absent."""
    names = [f"{number:04d}" for number in range(1500)]
    bucket.put_empty([f"a/{name}" for name in names[:500]] + [f"b/{name}" for name in names])  # two pages
    bucket.put("z/deep/file", b"content")
    page = len(urllib.request.urlopen(f"{s3_endpoint}/{bucket.name}?list-type=2&prefix=root/").read())
    bucket.link.hold_after(page * 3 // 2)  # the first page of the listing passes, the second is held up
    mount = forebay.mount(bucket.source, *bucket.args, *side.args)
    bucket.link.wait_held()
    assert forebay.dataset(mount)["listing"] == "under way"
    assert sorted(os.listdir(mount / "a")) == names[:500], "the listing has passed it"
    bucket.link.let_others_pass(10 * MIB)
    assert (mount / "z/deep/file").read_bytes() == b"content"
    assert not (mount / "z/deep/nothing").exists()
    assert os.listdir(mount / "z/deep") == ["file"]
    assert sorted(os.listdir(mount / "b")) == names, "the listing is in it, and does not go on"
    bucket.link.release()
    wait_until(lambda: forebay.dataset(mount)["listing"] == "complete", "the listing ends")
    assert [len(os.listdir(mount / name)) for name in ("a", "b")] == [500, 1500]
    assert forebay.dataset(mount)["source_files"] == 2001


@pytest.mark.semantics("N1", "N2")
def test_keys_that_cannot_be_names(forebay: Forebay, bucket: Any) -> None:
    for key in ("a", "a/b", "c//d", "e/./f", "g/../h", "i" * 256, "fine"):
        bucket.put(key, b"x")
    mount = forebay.mount(bucket.source, *bucket.args)
    assert sorted(os.listdir(mount)) == ["a", "fine"] or set(os.listdir(mount)) <= {"a", "c", "e", "g", "fine"}
    assert os.listdir(mount / "a") == ["b"]
    assert forebay.dataset(mount)["skipped"] == 5
    assert forebay.dataset(mount)["source_files"] == 2


_WAITS = """
import mmap, os, signal, sys
for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR1):
    signal.signal(number, lambda *_: None)
file = os.open(sys.argv[1], os.O_RDONLY | (os.O_DIRECT if sys.argv[2] == "direct" else 0))
buffer = mmap.mmap(-1, 1 << 20)
print("ready", flush=True)
print(os.preadv(file, [buffer], 0))
"""


@pytest.mark.semantics("E6")
@pytest.mark.parametrize("how", ["buffered", "direct"])
def test_signals_to_a_reader_that_waits(forebay: Forebay, bucket: Any, how: str) -> None:
    """SIGCHLD and the like do not break its read; what ends a process does, and so does Ctrl-C."""
    names = ("shared", "shared", "own")
    for name in names:
        bucket.put(name, payload("signals", 3 * MIB))
    mount = forebay.mount(bucket.source, *bucket.args)
    bucket.link.hold_after(0)
    command = [sys.executable, "-S", "-E", "-c", _WAITS]
    readers = [
        subprocess.Popen([*command, str(mount / name), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in names
    ]
    patient, ended, interrupted = readers
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        bucket.link.wait_held()
        for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR1):
            patient.send_signal(number)
        ended.send_signal(signal.SIGTERM)
        assert ended.wait(10) == -signal.SIGTERM
        interrupted.send_signal(signal.SIGINT)
        interrupted.wait(10)
        assert patient.poll() is None
    finally:
        bucket.link.release()
        outcome = {reader.pid: reader.communicate(timeout=20) for reader in readers}
    assert outcome[patient.pid] == (f"{MIB}\n", "")
    assert "KeyboardInterrupt" in outcome[interrupted.pid][1], outcome[interrupted.pid]


@pytest.mark.semantics("E4")
def test_access_taken_away(forebay: Forebay, folder: Any) -> None:
    """A file that the worker may not read: its reader gets EACCES, and the log says which."""
    if os.geteuid() == 0:
        pytest.skip("root may read all")
    folder.put("file", b"content")
    os.chmod(folder.root / "file", 0)
    mount = forebay.mount(folder.source)
    with pytest.raises(OSError, match=rf"^\[Errno {errno.EACCES}\]"):
        (mount / "file").read_bytes()
