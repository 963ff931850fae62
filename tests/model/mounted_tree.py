"""What a mounted tree may show, as a plain dict of paths: the model of test_mount_model.py.

A mount shows a snapshot, so a path that is changed in the source shows what it showed. Only a file that proved to
have changed (some read of it failed with ESTALE) shows its new version before the next sync (C4, C5). So a path has
a list of versions that may be seen, oldest first, and after a sync just one.
"""

import hashlib
import random
from dataclasses import dataclass, field
from itertools import count

KEPT_SYNCS = 8
"""For so many syncs what was replaced stays known to those who hold it (C10)."""

_serials = count(1)


@dataclass(frozen=True)
class Version:
    """A file of the source as it once was; equal only to itself."""

    data: bytes = field(repr=False, compare=False)
    serial: int

    @classmethod
    def made(cls, size: int) -> "Version":
        """With bytes that no other has."""
        serial = next(_serials)
        return cls(random.Random(serial).randbytes(size), serial)


Shown = Version | None
"""None: there is no such file."""


def digest(data: bytes) -> list[object]:
    """As the agent answers bytes."""
    return [len(data), hashlib.sha256(data).hexdigest()]


class MountedTree:
    """Files only; the folders above them are there as long as the test runs."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.source: dict[str, Shown] = dict.fromkeys(paths)
        self.shown: dict[str, list[Shown]] = {path: [None] for path in paths}
        self.held: set[str] = set()
        """Paths that were opened. A read through an old handle that fails looks at the name again (C5)."""
        self.syncs = 0

    def change(self, path: str, version: Shown) -> None:
        """The source has another file there, or none."""
        self.source[path] = version
        # Else the name is new, and nobody looks for it before the next sync.
        if any(self.shown[path]) or path in self.held:
            self.shown[path].append(version)

    def sync(self) -> None:
        """The mount shows the source as it is."""
        self.syncs += 1
        self.shown = {path: [version] for path, version in self.source.items()}

    def opened(self, path: str, size: int) -> "OpenFile":
        """An open succeeded and told that size."""
        candidates = [version for version in self.shown[path] if version is not None and len(version.data) == size]
        assert candidates, f"{path} has {size} bytes, and may be {self.shown[path]}"
        self.held.add(path)
        return OpenFile(self, path, candidates, self.syncs)

    def check_stat(self, path: str, answer: object) -> None:
        allowed = [["file", len(v.data)] if v else "ENOENT" for v in self.shown[path]]
        assert answer in allowed, f"stat of {path}: {answer}, not one of {allowed}"

    def names(self, folder: str) -> tuple[set[str], set[str]]:
        """Of the files in a folder: those that must be listed and those that may."""
        inside = {path: versions for path, versions in self.shown.items() if path.rpartition("/")[0] == folder}
        must = {path.rpartition("/")[2] for path, versions in inside.items() if all(versions)}
        may = {path.rpartition("/")[2] for path, versions in inside.items() if any(versions)}
        return must, may

    def is_settled(self, folder: str) -> bool:
        """Whether no file in a folder may show another version before the next sync."""
        return all(len(v) == 1 for path, v in self.shown.items() if path.rpartition("/")[0] == folder)


@dataclass
class OpenFile:
    """A handle: it is of one version for as long as it is open (C3)."""

    tree: MountedTree
    path: str
    candidates: list[Version]
    synced: int

    @property
    def size(self) -> int:
        return len(self.candidates[0].data)

    @property
    def may_be_stale(self) -> bool:
        """The source has another version by now, or the handle is older than anything is kept."""
        return self.is_forgotten or any(self.tree.source[self.path] is not version for version in self.candidates)

    @property
    def is_forgotten(self) -> bool:
        """It is older than anything that is kept."""
        return self.tree.syncs - self.synced > KEPT_SYNCS

    def check(self, answer: object, offset: int, size: int, *, mapped: bool = False, short: bool = False) -> None:
        """What a read answered. ESTALE narrows what the name may show, bytes narrow what the handle is.

        `short`: it may give less at once, as it does in front of what is stale.
        """
        if answer == ("EFAULT" if mapped else "ESTALE"):
            assert self.may_be_stale, f"{answer} though the source of {self.path} is as it was"
            self._went_stale()
            return
        if (short or self.may_be_stale) and isinstance(answer, list) and 0 < answer[0] < size:
            size = answer[0]
        fitting = [v for v in self.candidates if digest(v.data[offset : offset + size]) == answer]
        assert fitting, f"{self.path} at {offset}+{size}: {answer}, and {self.candidates} do not have that"
        self.candidates = fitting

    def _went_stale(self) -> None:
        """After that the name shows something newer (C5); an older handle says nothing about it."""
        versions = self.tree.shown[self.path]
        known = [versions.index(v) for v in self.candidates if v in versions]
        if len(known) == len(self.candidates) and len(versions) > 1:
            del versions[: min(known) + 1]
