"""Mounting by fusermount3 as a user without rights: everything works but passthrough, and `forebay doctor` says so.

The user has /dev/fuse with mode 0666 (as udev makes it) in a mount namespace of the test's own, so that the
machine's device stays as it is, and so that nothing mounted here is seen elsewhere.
"""

import ctypes
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import operations
import pytest
import tasks
from forebay_command import Done, Forebay, alive, wait_until
from fuse_mounts import Guard, detach, mounts_below
from operation_table import ROWS
from source_tree import MIB, payload

USER = 65534
_AS_USER = {"user": USER, "group": USER, "extra_groups": [], "cwd": "/"}
_CLONE_FS, _CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x200, 0x20000, 4096, 16384, 1 << 18
"""Of linux/sched.h and sys/mount.h."""
_FUSE_DEVICE = os.makedev(10, 229)
"""Documentation/admin-guide/devices.txt."""

_libc = ctypes.CDLL(None, use_errno=True)


def _user_can_import() -> bool:
    """Whether the interpreter and the package are open to the user."""
    try:
        command = [sys.executable, "-c", "import forebay.cli.main"]
        return subprocess.run(command, **_AS_USER, capture_output=True, check=False, timeout=60).returncode == 0
    except PermissionError:
        return False


@pytest.fixture(scope="module", autouse=True)
def namespace() -> Iterator[Path]:
    """Mounts of our own, with a /dev/fuse for everybody; the device's path."""
    helper = shutil.which("fusermount3")
    if helper is None or not os.stat(helper).st_mode & stat.S_ISUID:
        pytest.skip("there is no fusermount3 with the right to mount")
    here = os.getcwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    with tempfile.TemporaryDirectory(prefix="forebay-fuse-") as folder:
        _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
        try:
            _checked(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate /")
            for line in reversed(mounts_below("")):  # copies of others' mounts, which would live as long as we do
                if line.fs_type.startswith("fuse."):
                    detach(line.directory)
            device = _open_device(Path(folder))
            _open_the_way_to(Path(sys.base_prefix))
            if not _user_can_import():
                pytest.skip(f"{sys.executable} or the package is not readable by user {USER}")
            yield device
        finally:
            # A thread of this time (faulthandler has one for its timeout) shares our working folder: EINVAL otherwise.
            _checked(_libc.unshare(_CLONE_FS), "unshare")
            _checked(_libc.setns(before, _CLONE_NEWNS), "setns")
            os.close(before)
            os.chdir(here)


def _open_device(folder: Path) -> Path:
    """A /dev/fuse for everybody, on a file system where devices work whatever /tmp and /dev/shm are."""
    _checked(_libc.mount(b"none", bytes(folder), b"tmpfs", 0, b"size=1m"), "mount a tmpfs")
    device = folder / "fuse"
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, _FUSE_DEVICE)
    except PermissionError as error:
        pytest.skip(f"devices cannot be made here: {error}")
    device.chmod(0o666)
    _checked(_libc.mount(bytes(device), b"/dev/fuse", None, _MS_BIND, None), "mount --bind /dev/fuse")
    return device


def _open_the_way_to(folder: Path) -> None:
    """An interpreter in a closed home is shown at its place in an open one, in this namespace only."""
    closed = next((p for p in reversed(folder.parents) if not p.stat().st_mode & stat.S_IXOTH), None)
    if closed is None:
        return
    held = os.open(folder, os.O_PATH)
    _checked(_libc.mount(b"none", bytes(closed), b"tmpfs", 0, b"mode=0755,size=1m"), "mount a tmpfs")
    folder.mkdir(parents=True)
    _checked(_libc.mount(b"/proc/self/fd/%d" % held, bytes(folder), None, _MS_BIND, None), f"mount --bind {folder}")
    os.close(held)


def _checked(result: int, what: str) -> None:
    if result:
        pytest.skip(f"no mount namespace here: {what}: {os.strerror(ctypes.get_errno())}")


class UserForebay(Forebay):
    """The command line, as the user."""

    def start(self, *args: str | Path, environ: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            self.command(*args), env=self.environ | (environ or {}), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **_AS_USER,
        )  # fmt: skip
        self._started.append(process)
        return process

    def mount_point(self) -> Path:
        folder = super().mount_point()
        os.chown(folder, USER, USER)
        return folder

    def ask(self, program: str, *args: str | Path) -> str:
        """What a program of the support folder prints, run by the user."""
        return tasks.ends([tasks.start(program, *args, **_AS_USER)], self.root, 60.0)[0]


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that the user can get to, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="forebay-user-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def user(root: Path) -> Iterator[UserForebay]:
    """The command line as the user; its guard is in this namespace."""
    forebay = UserForebay(root / "f")
    for folder in (forebay.root, *forebay.root.iterdir()):
        os.chown(folder, USER, USER)
    guard = Guard()
    guard.arm(80.0, root)
    yield forebay
    wrong = forebay.end()
    fired = guard.disarm()
    guard.close()
    assert not fired, f"the guard aborted {fired}"
    assert not wrong, "left behind, or unexpected in a log:\n" + "\n".join(wrong)


@pytest.fixture
def source(root: Path) -> Path:
    folder = root / "source"
    folder.mkdir()
    operations.make_source(folder)
    return folder


@dataclass(frozen=True)
class Way:
    """An engine and an open mode that need no rights."""

    engine: str
    open_mode: str

    def __str__(self) -> str:
        return f"{self.engine}-{self.open_mode}"


_WAYS = [
    Way("kernel", "no-open"),
    pytest.param(Way("kernel", "cached"), marks=pytest.mark.soak),
    Way("pyfuse3", "cached"),
]


@pytest.mark.parametrize("way", _WAYS, ids=str)
def test_every_operation_answers_as_for_root(user: UserForebay, source: Path, way: Way) -> None:
    if way.engine == "pyfuse3":
        pytest.importorskip("pyfuse3")
    mount = user.mount(f"file://{source}", "--engine", way.engine, "--open-mode", way.open_mode)
    user.run("warmup", mount)
    found = dict(json.loads(line) for line in user.ask("operations.py", mount).splitlines())
    assert found == {row.name: row.expected(way) for row in ROWS}
    (row,) = user.run("mounts", "--json").json()
    assert (row["healthy"], row["engine"], row["open_mode"]) == (True, way.engine, way.open_mode)
    user.umount(mount)
    assert user.leftovers() == []


def test_random_readers_while_the_handler_is_killed(user: UserForebay, source: Path) -> None:
    (source / "large").write_bytes(payload("unprivileged", 5 * MIB + 99))
    mount = user.mount(f"file://{source}")
    (row,) = user.run("mounts", "--json").json()
    assert row["open_mode"] == "cached"
    assert "CAP_SYS_ADMIN" in row["note"]
    readers = [
        tasks.start("fsx.py", mount / "large", source / "large", str(seed), "150", **_AS_USER) for seed in range(2)
    ]
    (handler,) = row["pids"]["handlers"]
    os.kill(handler, signal.SIGKILL)
    for out in tasks.ends(readers, user.root, 60.0):
        assert json.loads(out)["wrong"] == ""
    wait_until(lambda: user.pids(mount)["handlers"] != [handler] and not alive(handler), "another handler")
    user.umount(mount)


def test_umount_after_all_processes_were_killed(user: UserForebay, source: Path) -> None:
    mount = user.mount(f"file://{source}")
    pids = user.pids(mount)
    for pid in (pids["supervisor"], *pids["handlers"], pids["worker"]):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not user.processes(), "all are gone")
    user.umount(mount)
    assert user.leftovers() == []


def _line(done: Done) -> str:
    (line,) = done.err.splitlines()
    assert line.startswith("forebay: ")
    return line


def test_what_needs_rights_is_refused_by_name(user: UserForebay, source: Path) -> None:
    mount = user.mount_point()
    done = user.run("mount", f"file://{source}", mount, "--open-mode", "passthrough", code=2)
    assert "CAP_SYS_ADMIN" in _line(done)
    fuse_conf = Path("/etc/fuse.conf")
    if not (fuse_conf.exists() and "\nuser_allow_other" in "\n" + fuse_conf.read_text()):
        assert "user_allow_other" in _line(user.run("mount", f"file://{source}", mount, "--allow-other", code=1))
    assert user.leftovers() == []


def test_doctor_says_what_is_missing(user: UserForebay) -> None:
    findings = _findings(user.run("doctor", "--json").json())
    assert findings["mounting"]["level"] == "good"
    assert "fusermount3" in findings["mounting"]["found"]
    assert findings["passthrough"]["level"] == "warns"
    assert "CAP_SYS_ADMIN" in findings["passthrough"]["found"]
    assert "slower" in findings["passthrough"]["advice"]


def test_doctor_where_the_device_is_closed(user: UserForebay, namespace: Path) -> None:
    namespace.chmod(0o600)
    try:
        found = _findings(user.run("doctor", "--json", code=1).json())["mounting"]
    finally:
        namespace.chmod(0o666)
    assert found["level"] == "fails"
    assert "chmod 0666 /dev/fuse" in found["found"]


def _findings(report: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    return {finding["name"]: finding for finding in report}
