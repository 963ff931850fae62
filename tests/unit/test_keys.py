"""Names by content: the same everywhere, and different where they must be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.cacheruntime.keys import ROOT_NODE, FileNames, content_id, dataset_id, inode_number, node_id

_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def test_known_values() -> None:
    """Part of the format: a change of these empties every cache there is."""
    assert content_id("s3://b", "a/b", 5, "etag").hex() == "7212a9b22f77850e7f4b98596acfc197"
    assert dataset_id("s3://b") == "90e088272bca7016"
    assert node_id(b"a/b", b"\1" * 16) == 3163592640412424560
    assert inode_number(b"a/b") == 137661968648969037


@given(st.tuples(_TEXT, _TEXT, st.integers(0, 2**63), _TEXT), st.tuples(_TEXT, _TEXT, st.integers(0, 2**63), _TEXT))
def test_content_ids_differ_where_a_field_does(one: tuple[str, str, int, str], two: tuple[str, str, int, str]) -> None:
    assert (content_id(*one) == content_id(*two)) == (one == two)


def test_fields_do_not_run_into_each_other() -> None:
    assert content_id("a", "bc", 1, "2") != content_id("ab", "c", 1, "2")
    assert content_id("a", "b", 12, "3") != content_id("a", "b", 1, "23")


def test_names_that_are_not_utf8() -> None:
    assert content_id("x", "\udcff", 1, "\udc80") != content_id("x", "\udcfe", 1, "\udc80")


@given(st.binary(max_size=40), st.binary(max_size=16))
def test_numbers_fit_the_kernel(path: bytes, version: bytes) -> None:
    for number in (node_id(path, version), inode_number(path)):
        assert 0 < number < 1 << 63
        assert (number <= 2) == (path == b"")


def test_root_and_versions() -> None:
    assert node_id(b"", b"") == ROOT_NODE == inode_number(b"")
    assert len({node_id(b"a", v) for v in (b"", b"1" * 16, b"2" * 16)}) == 3


@pytest.mark.parametrize("url", ["s3://b", "file:///", "s3://b/é\udcff"])
@pytest.mark.parametrize("path", ["a", "a/b c", "Ä/\udcff"])
def test_names_of_many_files_are_those_of_one(url: str, path: str) -> None:
    names = FileNames(url)
    raw = path.encode("utf-8", "surrogateescape")
    for size, version in ((0, ""), (1 << 40, '"etag"'), (5, "v\udcff")):
        content = content_id(url, path, size, version)
        found = names.of_file(raw, raw, size, version.encode("utf-8", "surrogateescape"))
        assert found == (content, node_id(raw, content), inode_number(raw))
