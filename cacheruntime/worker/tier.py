"""One tier folder in the worker: how full it is, whether its disk can be relied on."""

import errno
import os
import time
from collections.abc import Callable, Sequence
from itertools import groupby

from forebay.cacheruntime.config import Medium, TierConfig
from forebay.cacheruntime.index import TierNumber
from forebay.cacheruntime.worker.disk_health import DiskHealth, Health

FULL_PAUSE_S = 10.0
"""After the file system said that it is full, nothing is put there for this long: somebody may make room."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Tier:
    """Used from the worker's event loop alone.

    `used_bytes` counts what is cached, what is reserved for fills and moves under way, and what was evicted while
    somebody still had it open; so the quota is a hard bound.
    """

    def __init__(self, config: TierConfig, number: TierNumber, uuid: bytes, used_bytes: int, reserve_ratio: float,
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self.config = config
        self.number = number
        self.uuid = uuid
        self.used_bytes = used_bytes
        self.health = DiskHealth(clock)
        self._reserve_ratio = reserve_ratio
        self._clock = clock
        self._full_until = -FULL_PAUSE_S
        self.put_at = -FULL_PAUSE_S
        """When something was put here last."""

    @property
    def paused(self) -> bool:
        """Left alone for a while, as there is no room or its disk fails."""
        return self._clock() < self._full_until or self.health.state is not Health.NORMAL

    @property
    def is_down(self) -> bool:
        """Not even to be read."""
        return self.health.state is Health.DOWN

    @property
    def state(self) -> str:
        """'normal', 'unstable', 'down', or 'full' while its file system has no room."""
        if self.health.state is not Health.NORMAL:
            return str(self.health.state.value)
        return "full" if self.paused or self._free_bytes() <= 0 else "normal"

    def room_bytes(self) -> int:
        """How much may still be put here, by quota and by what the file system has free above the reserve."""
        if self.paused:
            return 0
        return max(0, min(self.config.quota_bytes - self.used_bytes, self._free_bytes()))

    @property
    def over_high(self) -> bool:
        """Beyond the high watermark."""
        return self.used_bytes > self.config.high * self.config.quota_bytes

    def over_low_bytes(self) -> int:
        """What is to go for the low watermark."""
        return max(0, self.used_bytes - int(self.config.low * self.config.quota_bytes))

    def take(self, size: int) -> None:
        """Reserve room; the caller has checked `room_bytes`, with no checkpoint in between."""
        self.used_bytes += size
        self.put_at = self._clock()

    def give_back(self, size: int) -> None:
        self.used_bytes -= size

    def failed(self, error: OSError) -> None:
        """A read or a write of this tier failed."""
        if error.errno in _FULL:
            self.pause()
        else:
            self.health.failed()

    def pause(self) -> None:
        """Leave it alone for a while, as nothing could be recorded of what is put there."""
        self._full_until = self._clock() + FULL_PAUSE_S

    def _free_bytes(self) -> int:
        """Of space and of inodes a share is left to others."""
        try:
            stats = os.statvfs(self.config.path)
        except OSError:
            return 0
        if stats.f_files and stats.f_favail <= stats.f_files * self._reserve_ratio:
            return 0
        reserve = int(stats.f_blocks * self._reserve_ratio)
        return (stats.f_bavail - reserve) * stats.f_frsize


def in_order(tiers: Sequence[Tier], medium: Medium | None = None) -> list[Tier]:
    """Fastest first; folders of one medium that stand next to each other share what comes: the emptiest first.

    Args:
        tiers: as configured.
        medium: only this one; None for all.
    """
    if len(tiers) == 1:
        return [tier for tier in tiers if medium in (None, tier.config.medium)]
    found: list[Tier] = []
    for kind, group in groupby(tiers, key=lambda tier: tier.config.medium):
        if medium in (None, kind):
            found += sorted(group, key=lambda tier: tier.used_bytes / tier.config.quota_bytes)
    return found
