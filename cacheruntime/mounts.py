"""The register of mounts: one folder for each mount in the runtime folder, written by its supervisor.

``mounts/<id>/state.json`` describes the mount (`MountState`); what else is there belongs to its supervisor and its
handlers (roster.py, counters.py, open_table.py, switch.py, recorder.py). A folder whose supervisor is gone is what a
crash left: `forebay umount` removes it.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path


@dataclass(frozen=True)
class MountState:
    """One mount, as `forebay mounts` shows it."""

    dir: str
    source: str
    """As the user wrote it, without credentials."""
    url: str
    """Canonical."""
    dataset_id: str
    snapshot: int
    catalogue: str
    cache_dir: str
    engine: str
    open_mode: str
    open_mode_reason: str
    supervisor: int
    """Process id; `supervisor_start` tells it from a later process with the same id."""
    supervisor_start: int
    handlers: tuple[int, ...] = ()
    note: str = ""
    """Something that the user should know, such as why passthrough is off."""
    pinned: bool = False
    """It shows its snapshot whatever is synced."""
    owners: tuple[str, ...] = ()
    """Ids of the other datasets that what it caches belongs to."""

    def uses(self, dataset: str) -> bool:
        """Whether it reads what is cached of that dataset."""
        return dataset == self.dataset_id or dataset in self.owners


def mount_id(directory: str) -> str:
    """Names the folder of the mount on that absolute directory."""
    return blake2b(os.fsencode(directory), digest_size=8).hexdigest()


def mount_folder(runtime_dir: Path, directory: str) -> Path:
    return runtime_dir / "mounts" / mount_id(directory)


def write_state(folder: Path, state: MountState) -> None:
    """Replace the description at once: a reader sees the old one or the new one."""
    draft = folder / f"state.json.{os.getpid()}"
    draft.write_text(json.dumps(asdict(state)))
    draft.rename(folder / "state.json")


def read_state(folder: Path) -> MountState | None:
    try:
        raw = json.loads((folder / "state.json").read_text())
        lists = {name: tuple(raw[name]) for name in ("handlers", "owners") if name in raw}
        return MountState(**(raw | lists))
    except (OSError, ValueError, TypeError, KeyError):
        return None  # being made, being removed, or of another version


def registered(runtime_dir: Path) -> Iterator[tuple[Path, MountState]]:
    """All mounts on record, also those whose processes are gone."""
    try:
        folders = sorted((runtime_dir / "mounts").iterdir())
    except OSError:
        return
    for folder in folders:
        state = read_state(folder)
        if state is not None:
            yield folder, state


def live(runtime_dir: Path) -> Iterator[tuple[Path, MountState]]:
    """The mounts whose supervisor runs."""
    for folder, state in registered(runtime_dir):
        if start_time(state.supervisor) == state.supervisor_start:
            yield folder, state


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22 of stat); None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # the command's name may be any bytes
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command's name may hold spaces and parentheses
    return int(fields[19]) if fields[0] not in "ZX" else None
