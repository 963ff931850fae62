"""Syncs on an interval: a mounted dataset whose manifest asks for it is listed again by itself.

The first handler of each of its mounts is ready to do it, and the holder of a lock does: so it goes on whatever process
is killed, and several mounts of one dataset cause one listing. Storage format: ``syncs/<dataset id>`` in the runtime
folder, locked by who syncs; its text is JSON: ``next_at``, seconds on the clock CLOCK_BOOTTIME, and ``failures``, how
many syncs in a row have failed.
"""

import fcntl
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import trio

from forebay.cacheruntime.errors import ForebayError

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 3600.0
"""After failures; or the interval, if that is longer."""

_LONGEST_LOOK_S = 5.0
"""Between looks at who is the first handler and whether it is time."""

_LATE_S = 10.0
"""Beyond two pauses; who is later than that was not there before."""

_JITTER = 0.1
"""Of the interval: machines that were started together do not list together for ever."""


def pause_s(interval_s: float, failures: int) -> float:
    """Until the next sync: the interval, doubled for each failure in a row, up to an hour. Pure."""
    return min(interval_s * 2.0 ** min(failures, 32), max(_LONGEST_PAUSE_S, interval_s))


class Turn:
    """The lock and the time of the next sync, which the handlers of all mounts of a dataset share."""

    def __init__(self, runtime_dir: Path, dataset_id: str) -> None:
        self._path = runtime_dir / "syncs" / dataset_id
        self._descriptor = -1

    def take(self, now_s: float, interval_s: float) -> bool:
        """Whether it is time and nobody else is at it; then `end` has to follow.

        Args:
            now_s: on CLOCK_BOOTTIME.
            interval_s: the first one comes after so long.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        next_at, failures = self._read()
        pause = pause_s(interval_s, failures)
        if next_at is None or next_at > now_s + pause * (1 + _JITTER) or now_s > next_at + 2 * pause + _LATE_S:
            # The first mount of it, or the first for long or with a shorter interval: it has just been listed.
            self._write(now_s + interval_s, 0)
        elif now_s >= next_at:
            return True
        self._close()
        return False

    def end(self, now_s: float, interval_s: float, *, failed: bool) -> float:
        """Note how it went, and let others; returns seconds until the next one."""
        _, failures = self._read()
        failures = failures + 1 if failed else 0
        pause = pause_s(interval_s, failures)
        self._write(now_s + pause * random.uniform(1 - _JITTER, 1 + _JITTER), failures)
        self._close()
        return pause

    def _read(self) -> tuple[float | None, int]:
        with suppress(ValueError, KeyError, TypeError):
            raw = json.loads(os.pread(self._descriptor, 4096, 0))
            return float(raw["next_at"]), int(raw["failures"])
        return None, 0

    def _write(self, next_at: float, failures: int) -> None:
        text = json.dumps({"next_at": next_at, "failures": failures}).encode()
        os.pwrite(self._descriptor, text.ljust(128), 0)  # blanks end JSON; a shorter text leaves none of a longer one

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


async def keep_synced(
    interval_s: float, turn: Turn, is_first: Callable[[], bool], sync: Callable[[], Awaitable[None]]
) -> None:
    """Sync on the interval, for ever.

    Args:
        interval_s: from the manifest.
        turn: shared with the other mounts of the dataset.
        is_first: whether this handler is the one to do it.
        sync: lists again and switches the mounts; raises ForebayError.
    """
    while True:
        await trio.sleep(min(interval_s / 4, _LONGEST_LOOK_S))
        if not is_first() or not turn.take(_now(), interval_s):
            continue
        trouble: Exception | None = None
        try:
            await sync()
        except (ForebayError, OSError) as error:
            trouble = error
        finally:
            pause = turn.end(_now(), interval_s, failed=trouble is not None)
        if trouble is not None:
            log.warning("the sync on the interval failed, the next one comes in %.0f s: %s", pause, trouble)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
