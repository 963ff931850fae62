"""The S3 listing of the benchmark's endpoint, against a listing made in the plainest way."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from forebay.bench.listing import Entry, Folders, Tree, keys_from, page

NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
NAMES = st.sampled_from(["a", "b", "ab", "a-", "a.b", "c d&<"])
KEYS = st.sets(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=9)


def tree_of(keys: set[str]) -> Tree:
    """A bucket with these keys."""

    def tree(folder: str) -> Sequence[Entry]:
        rests = [key[len(folder) :] for key in keys if key.startswith(folder)]
        return sorted({Entry(rest.partition("/")[0] + ("/" if "/" in rest else "")) for rest in rests})

    return tree


def plain(keys: set[str], prefix: str, delimiter: str) -> list[str]:
    """What S3 lists: keys with the prefix, those with a delimiter behind it as one common prefix."""
    found = set()
    for key in keys:
        if key.startswith(prefix):
            head, slash, _ = key[len(prefix) :].partition("/") if delimiter else (key[len(prefix) :], "", "")
            found.add(prefix + head + slash)
    return sorted(found)


def without_files_above(keys: set[str]) -> set[str]:
    """A folder cannot hold both `a` and `a/b`."""
    return {key for key in keys if not any(other.startswith(key + "/") for other in keys)}


@given(KEYS, st.text("ab-/ ", max_size=3), st.sampled_from(["", "/"]), st.integers(0, 9))
def test_what_is_listed_behind_a_key_is_the_rest(keys: set[str], prefix: str, delimiter: str, skip: int) -> None:
    keys = without_files_above(keys)
    whole = plain(keys, prefix, delimiter)
    after = whole[min(skip, len(whole)) - 1] if skip and whole else ""
    assert [key for key, _ in keys_from(tree_of(keys), prefix, after, delimiter)] == [k for k in whole if k > after]


@given(KEYS, st.sampled_from(["1", "2"]), st.sampled_from(["", "/"]), st.integers(1, 4))
def test_pages_together_are_the_whole(keys: set[str], version: str, delimiter: str, size: int) -> None:
    keys = without_files_above(keys)
    query = {"list-type": version, "delimiter": delimiter, "max-keys": str(size)}
    names: list[str] = []
    for _ in range(20):
        root = ElementTree.fromstring(page(tree_of(keys), "bucket", query))
        got = [found.text or "" for found in root.iterfind(f"{NAMESPACE}Contents/{NAMESPACE}Key")]
        got += [found.text or "" for found in root.iterfind(f"{NAMESPACE}CommonPrefixes/{NAMESPACE}Prefix")]
        assert len(got) <= size
        names += got
        if root.findtext(f"{NAMESPACE}IsTruncated") == "false":
            break
        token = ("NextContinuationToken", "continuation-token") if version == "2" else ("NextMarker", "marker")
        query[token[1]] = root.findtext(f"{NAMESPACE}{token[0]}") or ""
    assert sorted(names) == plain(keys, "", delimiter)


def test_a_folder_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one").write_bytes(b"12345")
    folders = Folders(tmp_path)
    assert folders.entries("") == [Entry("sub/")]
    (one,) = folders.entries("sub/")
    assert (one.name, one.size) == ("one", 5)
    (tmp_path / "sub" / "two").touch()
    assert [entry.name for entry in folders.entries("sub/")] == ["one", "two"]
    assert folders.entries("absent/") == ()
    assert folders.entries("sub/one/") == ()


def test_etag_is_that_of_nginx() -> None:
    text = page(lambda _: [Entry("key", 0x1234, 0x5F000001)], "bucket", {})
    assert "<ETag>&quot;5f000001-1234&quot;</ETag><Size>4660</Size>" in text
