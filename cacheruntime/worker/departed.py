"""Files that were evicted while somebody still had them open: their bytes are on the disk until he closes them.

They keep a name until then, in the tier's folder ``departed`` (`tiers.py`), by which the next worker finds them when
this one is killed.
"""

import fcntl
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from forebay.cacheruntime.keys import DatasetId
from forebay.cacheruntime.tiers import mark_dropped
from forebay.cacheruntime.worker.space import Space
from forebay.cacheruntime.worker.tier import Tier

_MOST = 4096
"""Files of a tier that are watched, a descriptor and three system calls a look for each; more are not counted."""


@dataclass
class _Gone:
    descriptor: int
    size: int
    owner: Space | None
    share: int
    held: int
    path: Path | None = None
    """Its name until it is closed; None: it has none."""


class Departed:
    """Counts such files against the quotas of their tier and dataset until they are closed. For the event loop.

    Whether somebody else has a file open is what a write lease tells (fcntl(2), F_SETLEASE: it is given only to the one
    opener of a file, and a file that the kernel reads by passthrough, or that is mapped, counts as open).
    """

    def __init__(self) -> None:
        self._gone: dict[int, tuple[Tier, list[_Gone]]] = {}

    def unlink(
        self, tier: Tier, path: Path, size: int, owner: Space | None = None, share: int = 0, held: int = 0
    ) -> bool:
        """Remove a file, and give its room back as soon as nobody has it open; False: somebody has.

        Args:
            tier: where it is.
            path: of the file.
            size: bytes that it counts for in the tier.
            owner, share: whose it was; None: it counts for the tier alone.
            held: bytes that it counts for with its owner.

        Raises:
            OSError: it cannot be removed; its room is given back all the same.
        """
        gone = _Gone(-1, size, owner, share, held)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            _give_back(tier, gone)
            path.unlink(missing_ok=True)
            return True
        gone.descriptor = descriptor
        files = self._gone.setdefault(tier.number, (tier, []))[1]
        try:
            if len(files) >= _MOST or _is_ours_alone(descriptor) or not _put_aside(tier, path, gone):
                path.unlink(missing_ok=True)
        except OSError:
            os.close(descriptor)
            _give_back(tier, gone)
            raise
        if len(files) >= _MOST or _is_ours_alone(descriptor):
            _end(tier, gone)
            return True
        files.append(gone)
        return False

    def adopt(self, tier: Tier, space: Callable[[DatasetId], Space]) -> bool:
        """Count what a worker of before has left of a tier; whether there was something.

        Args:
            tier: whose folder to look at.
            space: of a dataset.
        """
        files = self._gone.setdefault(tier.number, (tier, []))[1]
        for path in list(_folder(tier).iterdir()):
            try:
                dataset, share, size, held, _ = path.name.split(".")
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                owner = space(DatasetId(dataset)) if dataset else None
                gone = _Gone(descriptor, int(size), owner, int(share), int(held), path)
            except (ValueError, OSError):
                path.unlink(missing_ok=True)
                continue
            tier.used_bytes += gone.size
            if gone.owner is not None:
                gone.owner.take(gone.share, gone.held)
            files.append(gone)
        self.look()
        return bool(files)

    def pending_bytes(self, tier: Tier) -> int:
        """What will be free in a tier once it is closed."""
        return sum(gone.size for gone in self._gone[tier.number][1]) if tier.number in self._gone else 0

    def pending_of(self, space: Space) -> dict[int, int]:
        """Share -> bytes that will be free in a dataset's quota."""
        found: dict[int, int] = {}
        for _, files in self._gone.values():
            for gone in files:
                if gone.owner is space:
                    found[gone.share] = found.get(gone.share, 0) + gone.held
        return found

    def look(self) -> None:
        """Give back what was closed meanwhile."""
        for tier, files in self._gone.values():
            still = []
            for gone in files:
                if _is_ours_alone(gone.descriptor):
                    _end(tier, gone)
                else:
                    still.append(gone)
            files[:] = still

    def close(self) -> None:
        """What is still open somewhere keeps its name for the next worker."""
        self.look()
        for _, files in self._gone.values():
            for gone in files:
                os.close(gone.descriptor)
        self._gone.clear()


def _folder(tier: Tier) -> Path:
    return tier.config.path / "departed"


def _put_aside(tier: Tier, path: Path, gone: _Gone) -> bool:
    """Give a file that is open somewhere the name of a departed one; False: the disk does not take that."""
    dataset = gone.owner.dataset if gone.owner is not None else ""
    number = os.fstat(gone.descriptor).st_ino
    aside = _folder(tier) / f"{dataset}.{gone.share}.{gone.size}.{gone.held}.{number}"
    try:
        mark_dropped(gone.descriptor)
        path.rename(aside)
    except OSError:
        return False
    gone.path = aside
    return True


def _end(tier: Tier, gone: _Gone) -> None:
    """Nobody has it open any more."""
    if gone.path is not None:
        with suppress(OSError):  # the next start tries again
            gone.path.unlink(missing_ok=True)
    os.close(gone.descriptor)
    _give_back(tier, gone)


def _give_back(tier: Tier, gone: _Gone) -> None:
    tier.give_back(gone.size)
    if gone.owner is not None:
        gone.owner.give_back(gone.share, gone.held)


def _is_ours_alone(descriptor: int) -> bool:
    try:
        # Who opens a file while we hold its lease has a signal sent to us: SIGIO, which ends a process, unless another
        # one was named, as here one that does nothing. The end of a lease takes that back.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without leases: what is open there is not counted
    return True
