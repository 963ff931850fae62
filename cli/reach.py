"""From what a user names, a mount or a source, to the worker that has it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from forebay.cacheruntime.client import WorkerClient
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import NotAttached, UsageError
from forebay.cacheruntime.mounts import MountState
from forebay.cli.commands import cache_config, mounted_at, source_spec
from forebay.cli.dataset_sources import find_target, named_source
from forebay.fuse import lifecycle, mounting

_T = TypeVar("_T")


@dataclass(frozen=True)
class Reached:
    """A dataset of a running worker."""

    client: WorkerClient
    state: MountState | None
    """The mount that was named."""
    spec: SourceSpec | None
    """None: of a mount, whose worker has the credentials already."""
    options: list[str]
    dataset_id: str

    @property
    def snapshot(self) -> int:
        """The one that was named, by its mount or as NAME@N; 0: the newest."""
        if self.state is not None:
            return self.state.snapshot
        return self.spec.snapshot if self.spec is not None else 0

    def attach(self) -> None:
        """Make the source known to the worker, which may be a new one.

        Raises:
            UsageError: a mount shows something else than its source names now.
        """
        spec = self.spec
        if spec is None:
            assert self.state is not None
            spec = source_spec(self.state.source, self.options, self.client.config)
            if spec.dataset_id != self.state.dataset_id:
                raise UsageError(
                    f"the source of {self.state.dir} is {self.state.url}, and {self.state.source} is another now;"
                    " give the --option KEY=VALUE that it was mounted with, or mount it again"
                )
        self.client.attach(spec, list_tree=True, snapshot=self.snapshot)

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
    spec: SourceSpec | None = None
    if state is not None:
        config = cache_config(Path(state.cache_dir), tiers)
    elif (spec := named_source(target, options, config)) is not None:
        if cache_dir is None and not tiers:
            config = find_target(target, cache_dir, [], without_secrets=False).config
    else:
        spec = source_spec(target, options, config)
    client = WorkerClient(config)
    try:
        client.connect()
        client.check_tiers(bool(tiers))
        name = state.dataset_id if state is not None else spec.dataset_id if spec is not None else ""
        found = Reached(client, state, spec, options, name)
        if spec is not None:
            found.attach()
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
