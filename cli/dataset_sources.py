"""What a word on the command line names: a dataset of the state folder, a mount, or a source."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forebay.cacheruntime import mounts as register
from forebay.cacheruntime.config import CacheConfig, default_secrets_dir, default_state_dir
from forebay.cacheruntime.dataset_reference import parse_name, parse_reference
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.keys import DatasetId

if TYPE_CHECKING:
    from forebay.dataset_controller.resolve import Resolver


def state_folder_path() -> Path:
    """Of this user."""
    return default_state_dir(os.environ)


def named_source(
    text: str, options: list[str], config: CacheConfig, *, without_secrets: bool = False
) -> SourceSpec | None:
    """The dataset that a word names, or None when it is something else. On a client node: what the workers have.

    ``dataset://NAME[@N][/sub]`` always is one. ``NAME`` and ``NAME@N`` are where such a dataset is in the state folder
    and no file or folder has that name.

    Raises:
        UsageError: it names none, or options were given: a dataset has its own.
    """
    if config.client_of is not None:
        from forebay.cacheruntime.cluster.remote_sources import remote_spec

        if options:
            raise UsageError("--option is for the workers: a client node knows no credentials; leave it out")
        return remote_spec(text, config.client_of)
    if "://" in text and not text.startswith("dataset://"):
        return None
    reference = parse_reference(text)
    if reference is None:
        name = parse_name(text)
        known = name is not None and any(state_folder_path().glob(f"datasets/*/{name[0]}.json"))
        if not known or os.path.lexists(text):
            return None
        reference = parse_reference(f"dataset://{text}")
        assert reference is not None
    if options:
        raise UsageError(f"--option is for URLs; those of dataset {text} are in its manifest: forebay apply")
    resolver = make_resolver(without_secrets=without_secrets)
    return resolver.source(resolver.find(reference))


def make_resolver(*, without_secrets: bool = False) -> "Resolver":
    """For the datasets of the state folder."""
    from forebay.dataset_controller.resolve import Resolver
    from forebay.dataset_controller.state_folder import StateFolder

    datasets = {stored.key: stored.dataset for stored in StateFolder(state_folder_path()).all()}
    return Resolver(datasets, default_secrets_dir(os.environ), os.environ, without_secrets=without_secrets)


@dataclass(frozen=True)
class Target:
    """What a command looks at."""

    config: CacheConfig
    dataset_id: DatasetId
    shown: str
    """As the user knows it."""
    spec: SourceSpec | None
    """To attach with; None for a mount of which its worker knows all."""
    state: register.MountState | None
    """The mount that was named, or one that shows it."""

    @property
    def folder(self) -> Path:
        """Of its snapshots."""
        return self.config.cache_dir / "datasets" / self.dataset_id


def find_target(text: str, cache_dir: Path | None, options: list[str], *, without_secrets: bool = True) -> Target:
    """What NAME, DIR or SOURCE names. A dataset that is mounted is looked for in the cache of its mount."""
    from forebay.cli.commands import cache_config, mounted_at, source_spec

    config = cache_config(cache_dir, [])
    state = mounted_at(text, config)
    if state is not None:
        return Target(cache_config(Path(state.cache_dir), []), DatasetId(state.dataset_id), state.source, None, state)
    spec = named_source(text, options, config, without_secrets=without_secrets) or source_spec(text, options, config)
    name = spec.dataset_id
    if cache_dir is None:
        following = sorted(register.live(config.runtime_dir), key=lambda found: found[1].pinned)
        state = next((state for _, state in following if state.dataset_id == name), None)
        config = cache_config(Path(state.cache_dir), []) if state is not None else config
    return Target(config, name, spec.shown_source, spec, state)
