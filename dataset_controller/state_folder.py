"""What was applied on this machine: the control plane without a server.

Storage format
--------------
``datasets/<namespace>/<name>.json`` in the state folder, one file for each dataset: the manifest as it was applied,
with ``metadata.creationTimestamp`` (RFC 3339) and ``metadata.generation`` (1, and one more with each change). A file
is replaced whole and synced before anybody can see it. Values of secrets are not in it, only the names of secrets.
Writers hold a lock on ``lock``; readers need none. The folder is open to its owner alone.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forebay.cacheruntime.durable import sync_folder, write_durably
from forebay.cacheruntime.errors import UsageError
from forebay.dataset_controller.dataset_types import Dataset
from forebay.dataset_controller.manifest_files import parse_document

Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True)
class Stored:
    """One dataset in the state folder."""

    dataset: Dataset
    created: datetime
    generation: int

    @property
    def key(self) -> Key:
        return self.dataset.key


class StateFolder:
    """The datasets of this machine."""

    def __init__(self, root: Path) -> None:
        """Args: root: made when something is written to it."""
        self.root = root
        self._datasets = root / "datasets"

    def get(self, key: Key) -> Stored | None:
        """Raises: UsageError: its file was damaged."""
        path = self._path(key)
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        try:
            raw = json.loads(text)
            created = datetime.fromisoformat(raw["metadata"]["creationTimestamp"])
            generation = int(raw["metadata"]["generation"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is damaged ({error}); apply the manifest again after removing it") from error
        return Stored(parse_document(raw, str(path)), created, generation)

    def all(self) -> list[Stored]:
        """By namespace and name."""
        found = []
        for path in sorted(self._datasets.glob("*/*.json")):
            stored = self.get((path.parent.name, path.stem))
            if stored is not None:
                found.append(stored)
        return found

    def put(self, dataset: Dataset) -> str:
        """Keep a dataset; 'created', 'configured' or 'unchanged'. Inside `locked`.

        Raises:
            UsageError: the folder cannot be written.
        """
        before = self.get(dataset.key)
        manifest = dataset.manifest()
        if before is not None and before.dataset.manifest() == manifest:
            return "unchanged"
        created = before.created if before is not None else datetime.now(UTC).replace(microsecond=0)
        generation = before.generation + 1 if before is not None else 1
        manifest["metadata"] |= {"creationTimestamp": created.isoformat(), "generation": generation}
        path = self._path(dataset.key)
        try:
            _make_folder(path.parent, self.root)
            write_durably(path, json.dumps(manifest, indent=1))
        except OSError as error:
            raise self._unusable(error) from error
        return "configured" if before is not None else "created"

    def delete(self, key: Key) -> None:
        """Inside `locked`. Raises: UsageError: the folder cannot be written."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
        except OSError as error:
            raise self._unusable(error) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the folder meanwhile. Raises: UsageError: it cannot be written."""
        try:
            _make_folder(self.root, self.root)
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _path(self, key: Key) -> Path:
        return self._datasets / key[0] / f"{key[1]}.json"

    def _unusable(self, error: OSError) -> UsageError:
        why = error.strerror or error
        return UsageError(f"the state folder {self.root} cannot be written: {why}; name another by FOREBAY_STATE_DIR")


def _make_folder(folder: Path, root: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        # What is above the state folder is not ours to close.
        ours = path == root or root in path.parents
        with suppress(FileExistsError):
            path.mkdir(mode=0o700 if ours else 0o755)
        sync_folder(path.parent)


def described(stored: Stored) -> dict[str, Any]:
    """The object as `forebay get -o yaml` shows it."""
    manifest = stored.dataset.manifest()
    manifest["metadata"] |= {"creationTimestamp": stored.created.isoformat(), "generation": stored.generation}
    return manifest
