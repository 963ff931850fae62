"""Each promise of docs/SEMANTICS.md is shown by a test that names its id."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "SEMANTICS.md"
_ID = r"[A-Z]{1,3}\d{1,3}"
_PROMISE = re.compile(rf"^(?:#+ |\| *|[-*] )\**`?({_ID})`?\**(?=[ .:|])", re.MULTILINE)
"""`### C1 ...`, `| C1 | ...`, `- **C1** ...`."""
_MARK = re.compile(r"semantics\(([^)]*)\)")
_OPERATION = re.compile(r"@operation\((.*?)\)")
"""A row of the table of operations, in tests/mount/support/operations.py."""
_DOCSTRING = re.compile(rf"\[((?:{_ID})(?:, *{_ID})*)\]")


def _named_in_tests() -> dict[str, set[str]]:
    """Id -> test files that name it, by `@pytest.mark.semantics("C1")`, `[C1]` in a docstring or `@operation("O1")`."""
    found: dict[str, set[str]] = {}
    for path in sorted((*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "tests").rglob("support/*.py"))):
        if path == Path(__file__):
            continue
        text = path.read_text()
        for group in (*_MARK.findall(text), *_OPERATION.findall(text), *_DOCSTRING.findall(text)):
            for name in re.findall(_ID, group):
                found.setdefault(name, set()).add(path.name)
    return found


@pytest.fixture
def promises() -> list[str]:
    if not DOCUMENT.exists():
        pytest.skip("there is no docs/SEMANTICS.md")
    return _PROMISE.findall(DOCUMENT.read_text())


def test_ids_are_unique(promises: list[str]) -> None:
    assert promises, "no ids found: lines like '### C1 ...' or '| C1 | ...'"
    assert sorted(promises) == sorted(set(promises))


def test_each_promise_has_a_test(promises: list[str]) -> None:
    missing = sorted(set(promises) - set(_named_in_tests()))
    assert not missing, f"no test names {', '.join(missing)}"


def test_tests_name_only_promises_that_exist(promises: list[str]) -> None:
    unknown = {name: files for name, files in _named_in_tests().items() if name not in promises}
    assert not unknown
