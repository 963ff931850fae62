"""The table of operations in docs/SEMANTICS.md, as data."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_DOCUMENT = Path(__file__).parents[3] / "docs" / "SEMANTICS.md"
_ROW = re.compile(r"^\| (O\d+) \| (.+) \| (\w+) \| (.*) ?\|$", re.MULTILINE)


class Way(Protocol):
    """How something is mounted."""

    @property
    def engine(self) -> str: ...
    @property
    def open_mode(self) -> str: ...


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    answer: str
    elsewhere: dict[str, str]
    """Engine or open mode -> what it answers instead."""

    def expected(self, way: Way) -> str:
        """What operations.py reports on a mount of that kind."""
        here = self.elsewhere.get(way.engine) or self.elsewhere.get(way.open_mode) or self.answer
        return here.replace("EOPNOTSUPP", "ENOTSUP")  # two names of one number on Linux; Python has this one


ROWS = [
    Row(name, answer, dict(re.findall(r"([\w-]+): (\w+)", elsewhere)))
    for name, _, answer, elsewhere in _ROW.findall(_DOCUMENT.read_text())
]
