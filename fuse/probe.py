"""Finding out what this kernel and these rights allow, by trying it on a mount of its own that nobody sees.

The probe mounts on a temporary folder, reads the kernel's INIT, answers it, registers a backing file in each tier,
and unmounts. It never looks at what it mounted.
"""

import contextlib
import os
import select
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from forebay.fuse import mounting, passthrough, wire, wire_reply
from forebay.fuse.negotiate import Agreement, UnsupportedKernel, Wish, negotiate

_INIT_WAIT_S = 5.0
MAX_STACK_DEPTH = 2
"""1 would refuse a tier on overlayfs, where containers have theirs."""


@dataclass(frozen=True)
class Probe:
    """What was found."""

    trouble: str = ""
    """Why nothing can be mounted, or empty."""
    protocol: str = ""
    passthrough: bool = False
    """The kernel has it and registering a file worked everywhere."""
    passthrough_trouble: dict[str, str] = field(default_factory=dict)
    """Folder ('' for the kernel) -> why passthrough does not work there."""
    resend: bool = False
    no_open: bool = False
    read_ahead: bool = False
    """The kernel's read-ahead of a mount can be raised."""


def probe(folders: Iterable[Path]) -> Probe:
    """Try what a mount needs.

    Args:
        folders: tier folders; those that do not exist are tried at their nearest parent.
    """
    with tempfile.TemporaryDirectory(prefix="forebay-probe-") as directory:
        try:
            device = mounting.mount(directory, "forebay-probe", False, 1 << 20)
        except mounting.MountFailed as error:
            return Probe(trouble=str(error.strerror))
        try:
            return _converse(device, directory, folders)
        finally:
            os.close(device)
            with contextlib.suppress(mounting.MountFailed):
                mounting.unmount(directory, lazy=True)


def _converse(device: int, directory: str, folders: Iterable[Path]) -> Probe:
    ready, _, _ = select.select([device], [], [], _INIT_WAIT_S)
    if not ready:
        return Probe(trouble="the kernel sent no INIT")
    header, request = wire.parse(os.read(device, wire.MIN_READ_BUFFER_BYTES))
    assert isinstance(request, wire.Init)
    wish = Wish(page_bytes=os.sysconf("SC_PAGE_SIZE"), max_stack_depth=MAX_STACK_DEPTH)
    try:
        agreement = negotiate(request, wish)
    except UnsupportedKernel as error:
        return Probe(trouble=str(error))
    os.write(device, wire_reply.reply_init(header.unique, agreement.reply))
    if not isinstance(agreement, Agreement):
        return Probe(trouble="the kernel speaks a newer major version of the protocol")
    trouble = {} if agreement.passthrough else {"": "the kernel does not offer it (Linux 6.9 and later do)"}
    for folder in folders if agreement.passthrough else ():
        reason = _try_backing(device, folder)
        if reason:
            trouble[str(folder)] = reason
    entry = mounting.mounted(mounting.real_directory(directory))
    return Probe(
        protocol=f"{request.major}.{request.minor}",
        passthrough=agreement.passthrough and not trouble,
        passthrough_trouble=trouble,
        resend=agreement.resend,
        no_open=bool(request.flags & wire.Capability.NO_OPEN_SUPPORT),
        read_ahead=entry is not None and mounting.set_read_ahead(entry.device, 1 << 20),
    )


def _try_backing(device: int, folder: Path) -> str:
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix="forebay-probe-") as file:
            passthrough.unregister(device, passthrough.register(device, file.fileno()))
    except PermissionError:
        return "it needs CAP_SYS_ADMIN (run as root)"
    except OSError as error:
        return f"{error.strerror}"
    return ""
