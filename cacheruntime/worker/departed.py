"""Files that were evicted while somebody still had them open: their bytes are on the disk until he closes them."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from forebay.cacheruntime.worker.tier import Tier


@dataclass
class _Gone:
    descriptor: int
    size: int


class Departed:
    """Counts such files against their tier's quota until they are closed. For the event loop.

    Whether somebody else has a file open is what a write lease tells (fcntl(2), F_SETLEASE: it is given only to the one
    opener of a file, and a file that the kernel reads by passthrough, or that is mapped, counts as open).
    """

    def __init__(self) -> None:
        self._gone: dict[int, tuple[Tier, list[_Gone]]] = {}

    def unlink(self, tier: Tier, path: Path, size: int) -> bool:
        """Remove a file, and give its room back as soon as nobody has it open; False: somebody has.

        Args:
            tier: where it is.
            path: of the file.
            size: bytes that it counts for.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            path.unlink(missing_ok=True)
            tier.give_back(size)
            return True
        path.unlink(missing_ok=True)
        if _is_ours_alone(descriptor):
            os.close(descriptor)
            tier.give_back(size)
            return True
        self._gone.setdefault(tier.number, (tier, []))[1].append(_Gone(descriptor, size))
        return False

    def pending_bytes(self, tier: Tier) -> int:
        """What will be free in a tier once it is closed."""
        return sum(gone.size for gone in self._gone[tier.number][1]) if tier.number in self._gone else 0

    def look(self) -> None:
        """Give back what was closed meanwhile."""
        for tier, files in self._gone.values():
            for gone in [gone for gone in files if _is_ours_alone(gone.descriptor)]:
                files.remove(gone)
                os.close(gone.descriptor)
                tier.give_back(gone.size)

    def close(self) -> None:
        for _, files in self._gone.values():
            for gone in files:
                os.close(gone.descriptor)
        self._gone.clear()


def _is_ours_alone(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without leases: what is open there is not counted
    return True
