"""A read-only file system refuses like one: every call that changes something, on every kind of path, by two users.

What pjdfstest documents for each call on a read-only mount (EROFS), and which error comes first where several are
true. The order is that of Linux (fs/namei.c): `unlink`, `rmdir` and `rename` find out that the mount is read-only
before they look for the last name.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import operations
import pytest
import tasks
from forebay_command import Forebay

pytestmark = [pytest.mark.slow, pytest.mark.sides("engines", soak="modes")]

NOBODY = 65534

CREATES = {"open and create anew", "mkdir", "mkfifo", "mknod", "symlink", "link to"}
"""EEXIST where the name is taken."""
OPENS = {"open to write", "open and create", "open and truncate", "truncate"}
REMOVES = {"rename from", "rename to", "unlink", "rmdir"}
FOLLOWS = {
    "open to write",
    "open and truncate",
    "truncate",
    "chmod",
    "chown",
    "setxattr",
    "removexattr",
    "access to write",
}
FINDS = FOLLOWS | {"link from", "lchown", "utimensat"}
"""ENOENT where the name is absent."""

EXPECTED: dict[str, tuple[str, dict[str, set[str]]]] = {
    "file": ("EROFS", {"EEXIST": CREATES}),
    "directory": ("EROFS", {"EEXIST": CREATES, "EISDIR": OPENS}),
    "link": ("EROFS", {"EEXIST": CREATES}),
    "dangling": ("EROFS", {"EEXIST": CREATES, "ENOENT": FOLLOWS}),
    "absent": ("EROFS", {"ENOENT": FINDS}),
    "below absent": ("ENOENT", {}),
    "below file": ("ENOTDIR", {}),
    "below loop": ("ELOOP", {}),
    "in closed": ("EROFS", {"EEXIST": CREATES}),
    "long name": ("ENAMETOOLONG", {"EROFS": REMOVES}),
    "below long name": ("ENAMETOOLONG", {}),
    "long path": ("ENAMETOOLONG", {}),
    "bad address": ("EFAULT", {}),
    "empty": ("ENOENT", {}),
    "root": (
        "EROFS",
        {"EEXIST": CREATES, "EISDIR": OPENS | {"unlink"}, "EBUSY": {"rename from", "rename to"}, "EINVAL": {"rmdir"}},
    ),
}
"""Kind of path -> the errno of every call, and the calls that have another."""


@pytest.fixture(scope="module")
def mount(shared_forebay: Forebay, side: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("readonly") / "source"
    source.mkdir()
    operations.make_source(source)
    (source / "closed").chmod(0o700)
    (source / "sub" / "inner").chmod(0o200)
    (source / "sub" / "void").chmod(0o311)
    return shared_forebay.mount(f"file://{source}", "--allow-other", *side.args)


def _outcomes(forebay: Forebay, mount: Path, user: int) -> dict[str, dict[str, str]]:
    (out,) = tasks.ends([tasks.start("readonly_matrix.py", mount, str(user))], forebay.root, 30.0)
    found: dict[str, dict[str, str]] = json.loads(out)
    return found


@pytest.mark.semantics("E1", "E2", "L1")
@pytest.mark.parametrize("user", [0, NOBODY], ids=["root", "nobody"])
def test_nothing_can_be_changed(shared_forebay: Forebay, mount: Path, user: int) -> None:
    found = _outcomes(shared_forebay, mount, user)
    wrong = {}
    for call, kinds in found.items():
        assert kinds.keys() == EXPECTED.keys()
        for kind, answer in kinds.items():
            usual, others = EXPECTED[kind]
            expected = next((number for number, calls in others.items() if call in calls), usual)
            if user and kind == "in closed":
                expected = "EACCES"  # a folder that may not be searched hides what is in it
            if answer != expected:
                wrong[call, kind] = f"{answer}, not {expected}"
    assert wrong == {}
    assert set().union(*(calls for _, others in EXPECTED.values() for calls in others.values())) <= found.keys()


_READ_AS = """
import os, sys
os.chdir(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for what in ("open('file').read()", "open('sub/inner').read()", "os.listdir('sub')", "os.listdir('sub/void')",
             "os.listdir('closed')", "os.chdir('sub/void')", "os.stat('/proc/self/cwd/..').st_ino"):
    try:
        eval(what)
        print("works")
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.mark.semantics("N4")
def test_modes_hold_for_others(mount: Path) -> None:
    """Reading needs r, listing needs r, going through needs x: the kernel checks what the source says."""
    command = [sys.executable, "-S", "-E", "-c", _READ_AS, str(mount)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    denied = "PermissionError"
    assert done.stdout.split() == ["works", denied, "works", denied, denied, "works", "works"]


def test_the_mount_says_so(mount: Path) -> None:
    """In the table of mounts, which is looked up without touching it."""
    (line,) = [x for x in Path("/proc/self/mountinfo").read_text().splitlines() if x.split(" ")[4] == str(mount)]
    mounted, _, super_block = line.partition(" - ")
    assert {"ro", "nosuid", "nodev"} <= set(mounted.split(" ")[5].split(","))
    assert "ro" in super_block.split(" ")[2].split(",")
