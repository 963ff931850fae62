"""Making, finding and ending mounts: mount(2), fusermount3, mountinfo and fusectl. Standard library only.

Nothing here touches what is mounted: looking at a mount whose daemon hangs would hang us too. A mount point is found
by its parent folder's real path and its own name, in /proc/self/mountinfo.
"""

import array
import ctypes
import ctypes.util
import errno
import os
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

FS_TYPE = "forebay"
READ_AHEAD_BYTES = 4 << 20
"""Of the kernel, for opens that are not passed through: enough requests under way to hide a handler's latency."""

READ_AHEAD_SLACK_BYTES = 16 << 10
"""While files are read here and there, read-ahead is that much more than the reads are large. The kernel takes a read
at the start of a file for the first of many (get_init_ra_size in mm/readahead.c): for 128 KiB it would ask for 512 with
`READ_AHEAD_BYTES`, for 256 with a read-ahead that is as large as the read, and asks for 144 with this."""

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
"""Of sys/mount.h."""

_libc = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)


class MountFailed(OSError):
    """mount(2), umount(2) or fusermount3 said no."""


@dataclass(frozen=True)
class Mounted:
    """One line of mountinfo."""

    directory: str
    device: str
    """MAJ:MIN; the minor names the connection in fusectl, the whole names the bdi."""
    fs_type: str
    source: str


def real_directory(directory: str) -> str:
    """Absolute path with links resolved in all but its last part, which is not looked at."""
    absolute = os.path.abspath(directory)
    return os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))


def mounted(directory: str) -> Mounted | None:
    """The topmost mount on a directory (as `real_directory` gives it), or None."""
    found = None
    for entry in all_mounted():
        if entry.directory == directory:
            found = entry
    return found


def all_mounted() -> list[Mounted]:
    """Everything in this process's mount namespace, in order of mounting."""
    entries = []
    # Split at newlines alone: names may hold what str.splitlines takes for others.
    for raw in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]:
        left, _, right = os.fsdecode(raw).partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        entries.append(Mounted(_unescape(fields[4]), fields[2], rest[0], _unescape(rest[1])))
    return entries


def _unescape(text: str) -> str:
    """The kernel writes blanks, '#' and backslashes as octal numbers (fs/proc_namespace.c)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount(directory: str, source: str, allow_other: bool, max_read_bytes: int) -> int:
    """Mount a FUSE connection read-only and return its descriptor (non-blocking, close-on-exec).

    Uses mount(2) with CAP_SYS_ADMIN, else the setuid helper fusermount3.

    Raises:
        MountFailed: with the reason.
    """
    # Commas end an option and cannot be quoted for the helper.
    name = source.replace(",", "_").replace("\\", "_")
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.EACCES:
            raise MountFailed(
                error.errno, "/dev/fuse is not open to this user; as root: chmod 0666 /dev/fuse (as udev has it)"
            ) from error
        raise MountFailed(
            error.errno,
            f"/dev/fuse cannot be opened ({error.strerror}); load the fuse module or give this container the device",
        ) from error
    options = f"fd={device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
    options += f",max_read={max_read_bytes}" + (",allow_other" if allow_other else "")
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    failed = _libc.mount(os.fsencode(name), os.fsencode(directory), f"fuse.{FS_TYPE}".encode(), flags, options.encode())
    if not failed:
        return device
    number = ctypes.get_errno()
    os.close(device)
    if number in (errno.EPERM, errno.EACCES) and os.geteuid() != 0:
        return _mount_by_helper(directory, name, allow_other, max_read_bytes)
    raise MountFailed(number, f"{directory} cannot be mounted: {os.strerror(number)}")


def _mount_by_helper(directory: str, name: str, allow_other: bool, max_read_bytes: int) -> int:
    helper = shutil.which("fusermount3")
    if helper is None:
        raise MountFailed(errno.EPERM, "mounting needs root, or the helper fusermount3 (Debian: apt-get install fuse3)")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    options = f"ro,nosuid,nodev,default_permissions,fsname={name},subtype={FS_TYPE},max_read={max_read_bytes}"
    options += ",allow_other" if allow_other else ""
    with ours, theirs:
        done = subprocess.run(
            [helper, "-o", options, "--", directory],
            env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise MountFailed(errno.EPERM, done.stderr.strip().rpartition("fusermount3: ")[2] or "fusermount3 failed")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    descriptors = array.array("i")
    for _, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[:4])
    os.set_blocking(descriptors[0], False)
    return descriptors[0]


def unmount(directory: str, *, lazy: bool = False) -> None:
    """Take the topmost mount off a directory.

    Args:
        directory: as `real_directory` gives it.
        lazy: at once out of sight, though files on it are open.

    Raises:
        MountFailed: EBUSY when files on it are open, EINVAL when nothing is mounted there.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if not _libc.umount2(os.fsencode(directory), flags):
        return
    number = ctypes.get_errno()
    helper = shutil.which("fusermount3")
    if number == errno.EPERM and helper is not None:
        command = [helper, "-u", *(["-z"] if lazy else []), "--", directory]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.returncode:
            return
        number = errno.EBUSY if "busy" in done.stderr.lower() else number
    raise MountFailed(number, os.strerror(number))


def abort(device: str) -> bool:
    """End a FUSE connection whatever its daemon does; its readers get ECONNABORTED. False when that is not possible.

    Args:
        device: MAJ:MIN of the mount.
    """
    control = Path("/sys/fs/fuse/connections")
    minor = device.partition(":")[2]
    if not (control / minor).exists():
        _libc.mount(b"fusectl", bytes(control), b"fusectl", 0, None)
    try:
        (control / minor / "abort").write_text("1")
    except OSError:
        return False
    return True


def set_read_ahead(device: str, size_bytes: int) -> bool:
    """Set the kernel's read-ahead of a mount, which is 128 KiB at first, for files that are opened from now on. False
    where sysfs is not writable."""
    try:
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(size_bytes >> 10))
    except OSError:
        return False
    return True
