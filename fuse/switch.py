"""Switching live mounts to another snapshot.

To be replaced: this version only changes the register, so `forebay mounts` shows the new snapshot while the handlers
go on with the one that they opened.
"""

from dataclasses import replace
from pathlib import Path

from forebay.cacheruntime import mounts


def switch_mounts(runtime_dir: Path, dataset_id: str, snapshot: int, catalogue: str, timeout_s: float) -> list[str]:
    """Have each live mount of a dataset show a snapshot; returns the directories of those that were switched.

    Args:
        runtime_dir: of the mounts' register.
        dataset_id: whose mounts; only those of the cache folder that `catalogue` lies in.
        snapshot: number of the one to show.
        catalogue: its folder.
        timeout_s: a mount has answered by then.

    Raises:
        MountError: one did not answer.
    """
    del timeout_s  # nothing is waited for yet
    switched = []
    for folder, state in mounts.live(runtime_dir):
        same_cache = Path(state.catalogue).parent == Path(catalogue).parent
        if state.dataset_id == dataset_id and same_cache and state.snapshot != snapshot:
            mounts.write_state(folder, replace(state, snapshot=snapshot, catalogue=catalogue))
            switched.append(state.dir)
    return switched
