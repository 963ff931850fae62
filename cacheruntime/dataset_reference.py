"""How a user names a dataset: NAME, NAME@N, dataset://NAME[@N][/sub]. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from forebay.cacheruntime.errors import UsageError

DEFAULT_NAMESPACE = "default"

_REFERENCE = re.compile(r"dataset://(?P<rest>.*)", re.DOTALL)
_NAME_AT = re.compile(r"(?P<name>[a-z]([-a-z0-9]{0,61}[a-z0-9])?)(@(?P<snapshot>[1-9][0-9]{0,17}))?")


@dataclass(frozen=True)
class Reference:
    """`dataset://NAME[@N][/sub]`, or as Fluid writes it: `dataset://NAMESPACE/NAME[/sub]`."""

    parts: tuple[str, ...]
    """Between the slashes; which of the first two is the name is known to whoever has the names."""
    text: str

    def candidates(self, namespace: str) -> Iterator[tuple[tuple[str, str], int, str]]:
        """(namespace and name, snapshot or 0, path below), what counts first comes first.

        A name in the same namespace goes before a namespace of that name.
        """
        first = _NAME_AT.fullmatch(self.parts[0])
        if first is not None:
            below = "/".join(self.parts[1:])
            yield (namespace, first["name"]), int(first["snapshot"] or 0), below
        second = _NAME_AT.fullmatch(self.parts[1]) if len(self.parts) > 1 else None
        if first is not None and first["snapshot"] is None and second is not None:
            yield (first["name"], second["name"]), int(second["snapshot"] or 0), "/".join(self.parts[2:])


def parse_reference(source: str) -> Reference | None:
    """None when it is no reference.

    Raises:
        UsageError: it names no dataset.
    """
    match = _REFERENCE.fullmatch(source)
    if match is None:
        return None
    parts = tuple(part for part in match["rest"].split("/") if part)
    if not parts or _NAME_AT.fullmatch(parts[0]) is None or any(part in (".", "..") for part in parts):
        raise UsageError(f"{source!r} names no dataset; write it like dataset://NAME, dataset://NAME@3 or .../sub")
    return Reference(parts, source)


def parse_name(text: str) -> tuple[str, int] | None:
    """Name and snapshot (or 0) from `NAME[@N]`; None when it is neither."""
    match = _NAME_AT.fullmatch(text)
    return (match["name"], int(match["snapshot"] or 0)) if match else None


def plain_name(source: str) -> str:
    """How people write `dataset://NAMESPACE/NAME`: NAME in the default namespace, NAMESPACE/NAME elsewhere; a URL as it
    is."""
    return source.removeprefix("dataset://").removeprefix(f"{DEFAULT_NAMESPACE}/") if "://" in source else source
