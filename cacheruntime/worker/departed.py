"""Files that were evicted while somebody still had them open: their bytes are on the disk until he closes them."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from forebay.cacheruntime.worker.space import Space
from forebay.cacheruntime.worker.tier import Tier

_MOST = 4096
"""Files of a tier that are watched, a descriptor and two system calls a look for each; more are not counted."""


@dataclass
class _Gone:
    descriptor: int
    size: int
    owner: Space | None
    share: int
    held: int


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
        try:
            path.unlink(missing_ok=True)
        except OSError:
            os.close(descriptor)
            _give_back(tier, gone)
            raise
        files = self._gone.setdefault(tier.number, (tier, []))[1]
        if len(files) >= _MOST or _is_ours_alone(descriptor):
            os.close(descriptor)
            _give_back(tier, gone)
            return True
        files.append(gone)
        return False

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
                    os.close(gone.descriptor)
                    _give_back(tier, gone)
                else:
                    still.append(gone)
            files[:] = still

    def close(self) -> None:
        for _, files in self._gone.values():
            for gone in files:
                os.close(gone.descriptor)
        self._gone.clear()


def _give_back(tier: Tier, gone: _Gone) -> None:
    tier.give_back(gone.size)
    if gone.owner is not None:
        gone.owner.give_back(gone.share, gone.held)


def _is_ours_alone(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without leases: what is open there is not counted
    return True
