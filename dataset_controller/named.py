"""What a word of a user's names: a dataset of the state folder, or something else."""

import os
from collections.abc import Mapping

from forebay.cacheruntime.config import default_secrets_dir, default_state_dir
from forebay.cacheruntime.dataset_reference import Reference, parse_name, parse_reference
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.dataset_controller.resolve import Resolver
from forebay.dataset_controller.state_folder import StateFolder


def named_spec(text: str, environ: Mapping[str, str]) -> SourceSpec | None:
    """The dataset that a word names, or None when it names none.

    ``dataset://NAME[@N][/sub]`` always names one; ``NAME`` and ``NAME@N`` do where the state folder has that name.

    Raises:
        UsageError: there is no such dataset, or its manifest cannot be followed.
    """
    reference = _reference(text, environ)
    if reference is None:
        return None
    datasets = {stored.key: stored.dataset for stored in StateFolder(default_state_dir(environ)).all()}
    resolver = Resolver(datasets, default_secrets_dir(environ), environ)
    return resolver.source(resolver.find(reference))


def _reference(text: str, environ: Mapping[str, str]) -> Reference | None:
    reference = parse_reference(text)
    if reference is not None or "://" in text:
        return reference
    name = parse_name(text)
    known = name is not None and any(default_state_dir(environ).glob(f"datasets/*/{name[0]}.json"))
    return parse_reference(f"dataset://{text}") if known and not os.path.lexists(text) else None
