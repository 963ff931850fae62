"""Values of secrets on a machine without Kubernetes: a file for each, or a variable of the environment."""

import re
from collections.abc import Mapping
from pathlib import Path

from forebay.cacheruntime.errors import UsageError
from forebay.dataset_controller.dataset_types import SecretKeyRef


def variable_name(ref: SecretKeyRef) -> str:
    """'MY_SECRET_ACCESS_KEY' for key access-key of my-secret."""
    return re.sub(r"[^A-Z0-9]", "_", f"{ref.name}_{ref.key}".upper())


def read_secret(ref: SecretKeyRef, folder: Path, environ: Mapping[str, str]) -> str:
    """The value; one newline at its end is an editor's and left out.

    Args:
        ref: of a manifest.
        folder: a file SECRET/KEY in it goes first.
        environ: of the user.

    Raises:
        UsageError: it is in neither.
    """
    path, variable = folder / ref.name / ref.key, variable_name(ref)
    try:
        return path.read_text().removesuffix("\n")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"key {ref.key} of secret {ref.name} cannot be read from {path}: {why}") from error
    if variable in environ:
        return environ[variable]
    raise UsageError(
        f"key {ref.key} of secret {ref.name} is not there: write it to {path} (mode 0600) or set {variable}"
    )
