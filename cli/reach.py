"""From what a user names, a mount or a source, to the worker that has it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from forebay.cacheruntime.client import SourceSpec, WorkerClient
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.errors import NotAttached, UsageError
from forebay.cacheruntime.keys import dataset_id
from forebay.cacheruntime.mounts import MountState
from forebay.cacheruntime.understore.factory import canonical_source
from forebay.cli.commands import cache_config, mounted_at, source_spec
from forebay.fuse import lifecycle, mounting

_T = TypeVar("_T")


@dataclass(frozen=True)
class Reached:
    """A dataset of a running worker."""

    client: WorkerClient
    state: MountState | None
    """The mount that was named."""
    spec: SourceSpec
    dataset_id: str

    def attach(self) -> None:
        """Make the source known to the worker, which may be a new one."""
        snapshot = self.state.snapshot if self.state is not None else 0
        self.client.attach(self.spec, list_tree=True, snapshot=snapshot)

    def persist(self, ask: Callable[[], _T]) -> _T:
        """Ask, and once more after attaching when the worker proves to be a new one."""
        try:
            return ask()
        except NotAttached:
            self.attach()
            return ask()


@contextmanager
def reached(target: str, cache_dir: Path | None, tiers: list[str], options: list[str]) -> Iterator[Reached]:
    """A connection to the worker of a mount or a source, which is attached.

    Raises:
        ForebayError: there is no such thing, or it does not answer.
    """
    config = cache_config(cache_dir, tiers)
    state = mounted_at(target, config)
    spec = source_spec(target, options)
    if state is not None:
        # The mount's own cache and snapshot; its worker has the credentials already.
        config = cache_config(Path(state.cache_dir), tiers)
        spec = source_spec(state.source, options)
        name = dataset_id(canonical_source(spec.source, spec.options))
        if options and name != state.dataset_id:
            raise UsageError(
                f"the source of {state.dir} is {state.url}, and {state.source} with these options is another;"
                " give the --option KEY=VALUE that it was mounted with, or none"
            )
    client = WorkerClient(config)
    try:
        client.connect()
        client.check_tiers(bool(tiers))
        if state is None:
            found = Reached(client, None, spec, dataset_id(canonical_source(spec.source, spec.options)))
            found.attach()
        else:
            found = Reached(client, state, spec, state.dataset_id)
        yield found
    finally:
        lifecycle.retire(client)
        client.close()


def below(path: str, state: MountState | None) -> bytes:
    """A path below the dataset's root, from one relative to it or (with a mount) an absolute one inside the mount.

    Raises:
        UsageError: it leads elsewhere.
    """
    if state is not None and path.startswith("/"):
        inside = path == state.dir or path.startswith(state.dir + "/")
        real = path if inside else mounting.real_directory(path)
        if real != state.dir and not real.startswith(state.dir + "/"):
            raise UsageError(f"{path} is not below {state.dir}")
        path = real[len(state.dir) :]
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UsageError(f"{path} leaves the dataset; name paths below it")
    return os.fsencode("/".join(parts))


def config_of(target: str, cache_dir: Path | None) -> tuple[CacheConfig, MountState | None]:
    """The cache of a mount, or the one that was named; no worker is asked or started."""
    config = cache_config(cache_dir, [])
    state = mounted_at(target, config)
    return (cache_config(Path(state.cache_dir), []), state) if state is not None else (config, None)
