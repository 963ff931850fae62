"""Switching a mount to another snapshot: what the sync asks for, and how handlers follow.

Storage format: ``switches.json`` in the mount's runtime folder, a list of `Switch`, oldest first. The roster's
``generation`` names the one to be shown; it is raised after the file was written. Each handler looks at it before it
reads requests, opens the new catalogue, and notes the generation in its row. Once all have, no answer from the old
snapshot can reach the kernel any more, and the first handler tells it what changed: then ``announced`` is raised too.
A handler that dies meanwhile leaves the rest to the next one, for telling the kernel twice does no harm.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forebay.cacheruntime import mounts
from forebay.cacheruntime.errors import MountError
from forebay.fuse.roster import Place, Roster

_FILE = "switches.json"
_POLL_S = 0.01

SWITCH_S = 30.0
"""A mount that has not taken a new snapshot by then is in trouble. Below the minute that the worker keeps one that
nobody has registered."""


@dataclass(frozen=True, slots=True)
class Switch:
    """One step from a snapshot to the next."""

    generation: int
    snapshot: int
    catalogue: str
    previous: int
    """The snapshot that was shown before."""


def _switches(folder: Path) -> list[Switch]:
    try:
        return [Switch(**fields) for fields in json.loads((folder / _FILE).read_text())]
    except FileNotFoundError:
        return []


def current_switch(folder: Path, generation: int) -> Switch | None:
    """The last step up to a generation; None while the mount shows its first snapshot."""
    return max((s for s in _switches(folder) if s.generation <= generation), key=lambda s: s.generation, default=None)


def switch_mounts(runtime_dir: Path, dataset_id: str, snapshot: int, catalogue: str, timeout_s: float) -> list[str]:
    """Have all live mounts of a dataset show a snapshot; returns their folders once they do.

    Raises:
        MountError: one did not follow in time; it does as soon as it can.
    """
    asked: list[tuple[mounts.MountState, Roster, int]] = []
    for folder, state in mounts.live(runtime_dir):
        # Snapshots are numbered by cache folder.
        ours = state.dataset_id == dataset_id and Path(state.catalogue).parent == Path(catalogue).parent
        if not ours or state.pinned or state.snapshot == snapshot:
            continue
        roster = Roster(folder / "roster")
        with _locked(folder):
            generation = roster.header("generation") + 1
            steps = [*_switches(folder), Switch(generation, snapshot, catalogue, state.snapshot)]
            draft = folder / f"{_FILE}.{os.getpid()}"
            draft.write_text(json.dumps([asdict(step) for step in steps]))
            draft.rename(folder / _FILE)
            roster.set_header("generation", generation)
        asked.append((state, roster, generation))
    deadline = time.monotonic() + timeout_s
    late = []
    for state, roster, generation in asked:
        while roster.header("announced") < generation and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if roster.header("announced") < generation:
            late.append(state.dir)
        roster.close()
    if late:
        raise MountError(
            f"{', '.join(late)} did not follow to snapshot {snapshot} within {timeout_s:g} s;"
            " see `forebay mounts` for what is wrong with it"
        )
    return [state.dir for state, _, _ in asked]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two syncs at once would write over each other's step."""
    descriptor = os.open(folder / "switches.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Follower:
    """A handler's side."""

    def __init__(
        self,
        folder: Path,
        place: Place,
        show: Callable[[Switch], None],
        announce: Callable[[Switch], None],
        in_background: Callable[[Callable[[], Coroutine[Any, Any, object]]], None],
        in_thread: Callable[[Callable[[], None]], Coroutine[Any, Any, object]],
    ) -> None:
        """
        Args:
            folder: of the mount.
            place: our row.
            show: serve that snapshot from now on.
            announce: tell the kernel what changed with that step; called in a thread.
            in_background: runs a task.
            in_thread: runs a function in a thread.
        """
        self._folder = folder
        self._place = place
        self._show = show
        self._announce = announce
        self._in_background = in_background
        self._in_thread = in_thread
        self._shown = place.roster.header("generation")
        self._announcing = False

    def follow(self) -> None:
        """Before each batch of requests."""
        wanted = self._place.roster.header("generation")
        if wanted == self._shown:
            return
        step = current_switch(self._folder, wanted)
        if step is not None:
            self._show(step)
        self._shown = wanted
        self._place.serve(wanted)

    def tick(self) -> None:
        """Now and then: tell the kernel, once all handlers follow."""
        self.follow()  # also while there are no requests
        roster = self._place.roster
        announced = roster.header("announced")
        if self._announcing or announced >= self._shown or not self._place.is_first:
            return
        if all(row.generation >= self._shown for row in roster.rows()):
            self._announcing = True
            self._in_background(lambda: self._tell(announced, self._shown))

    async def _tell(self, announced: int, shown: int) -> None:
        steps = [step for step in _switches(self._folder) if announced < step.generation <= shown]

        def tell() -> None:
            for step in steps:
                self._announce(step)

        try:
            # In a thread, for the kernel may make it wait for a directory lock whose holder waits for our reply.
            await self._in_thread(tell)
            self._place.roster.set_header("announced", shown)
        finally:
            self._announcing = False
