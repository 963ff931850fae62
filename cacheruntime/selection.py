"""Which files of a snapshot are meant: paths (a directory stands for all below it), patterns, or everything."""

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from forebay.cacheruntime.catalogue import Catalogue, Node
from forebay.cacheruntime.keys import ROOT_NODE
from forebay.cacheruntime.understore.base import Kind

_CHUNK = 4096
"""Entries of a directory held at a time: one of a million is not read whole."""

_MAGIC = re.compile(rb"[*?[]")


class Selection:
    """Paths and patterns, below the dataset's root."""

    def __init__(self, paths: Sequence[bytes], globs: Sequence[bytes] = ()) -> None:
        """
        Args:
            paths: of files and directories; with neither paths nor patterns, everything is meant.
            globs: as pathlib's `full_match` has them: ``*`` and ``?`` stay within a name, ``**`` is any number of
                directories, ``[a-z]`` one character.
        """
        self.is_all = b"" in paths or not (paths or globs)
        chosen = {b""} if self.is_all else set(paths)
        self.paths = [path for path in sorted(chosen) if not any(above in chosen for above in _above(path))]
        self._chosen = set(self.paths)
        self._globs = [] if self.is_all else [(glob, re.compile(glob_regex(glob), re.DOTALL)) for glob in globs]

    def missing(self, catalogue: Catalogue) -> list[bytes]:
        """Paths that are not there."""
        return [path for path in self.paths if catalogue.resolve(path) is None]

    def files(self, catalogue: Catalogue) -> Iterator[tuple[bytes, Node]]:
        """Each file that is meant once, with its path."""
        for path in self.paths:
            yield from files_at(catalogue, path)
        for number, (glob, regex) in enumerate(self._globs):
            earlier = [other for _, other in self._globs[:number]]
            for path, node in files_at(catalogue, fixed_part(glob)):
                if not regex.fullmatch(path) or any(other.fullmatch(path) for other in earlier):
                    continue
                if path not in self._chosen and not any(above in self._chosen for above in _above(path)):
                    yield path, node


def files_at(catalogue: Catalogue, path: bytes) -> Iterator[tuple[bytes, Node]]:
    """The file at a path, or all below that directory, depth first; nothing when there is neither."""
    found = catalogue.resolve(path)
    if found is None:
        return
    if found.kind is Kind.FILE:
        yield path, found
        return
    pending = [(path, found)] if found.kind is Kind.DIRECTORY else []
    while pending:
        above, directory = pending.pop()
        inside = above + b"/" if directory.node != ROOT_NODE else b""
        inner = []
        for node in _children(catalogue, directory):
            if node.kind is Kind.FILE:
                yield inside + node.name, node
            elif node.kind is Kind.DIRECTORY:
                inner.append((inside + node.name, node))
        pending.extend(reversed(inner))


def _children(catalogue: Catalogue, directory: Node) -> Iterator[Node]:
    after = None
    while True:
        chunk = list(islice(catalogue.children(directory.node, after), _CHUNK))
        yield from chunk
        if len(chunk) < _CHUNK:
            return
        after = chunk[-1].node


def _above(path: bytes) -> Iterator[bytes]:
    """The directories that a path lies in, the root not among them."""
    at = path.rfind(b"/")
    while at > 0:
        yield path[:at]
        at = path.rfind(b"/", 0, at)


def fixed_part(glob: bytes) -> bytes:
    """The directory that all matches of a pattern lie in."""
    parts = glob.split(b"/")
    fixed = []
    for part in parts:
        if _MAGIC.search(part):
            break
        fixed.append(part)
    return b"/".join(fixed)


def glob_regex(glob: bytes) -> bytes:
    """A pattern as a regular expression for whole paths."""
    parts = glob.split(b"/")
    found = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == b"**":
            found.append(b".*" if last else b"(?:.*/)?")
        else:
            found.append(_name_regex(part) + (b"" if last else b"/"))
    return b"".join(found)


def _name_regex(part: bytes) -> bytes:
    """One name of a pattern; an open bracket that is never closed stands for itself (as in fnmatch)."""
    found, at = b"", 0
    while at < len(part):
        char = part[at : at + 1]
        at += 1
        if char == b"*":
            found += b"[^/]*"
        elif char == b"?":
            found += b"[^/]"
        elif char == b"[":
            start = at + 1 if part[at : at + 1] in (b"!", b"^") else at
            end = part.find(b"]", start + 1)
            if end < 0:
                found += rb"\["
                continue
            inside = part[start:end].replace(b"\\", rb"\\").replace(b"[", rb"\[").replace(b"^", rb"\^")
            found += b"(?!/)[" + (b"^" if start > at else b"") + inside + b"]"
            at = end + 1
        else:
            found += re.escape(char)
    return found
