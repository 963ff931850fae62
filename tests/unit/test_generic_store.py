"""What the generic store makes of the many shapes of fsspec's `info`."""

from datetime import UTC, datetime
from typing import Any

import pytest

from forebay.cacheruntime.understore.generic import modified_ns, version_of

MOMENT = datetime(2026, 11, 27, 20, 0, 0, 250_000, tzinfo=UTC)
NS = int(MOMENT.timestamp()) * 10**9 + 250_000_000


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        ({"mtime": MOMENT.timestamp()}, NS),
        ({"mtime": MOMENT}, NS),
        ({"LastModified": int(MOMENT.timestamp())}, NS - 250_000_000),
        ({"modificationTime": NS // 10**6}, NS),  # WebHDFS
        ({"modification_time": NS // 10**6}, NS),  # hdfs-native
        ({"created": MOMENT.timestamp()}, NS),
        ({"mtime": None, "size": 3}, 0),
        ({}, 0),
    ],
)
def test_times(info: dict[str, Any], wanted: int) -> None:
    assert modified_ns(info) == wanted


def test_the_strongest_sign_of_a_version_counts() -> None:
    assert version_of({"ETag": '"e"', "checksum": "c", "mtime": 1, "size": 2}) == '"e"'
    assert version_of({"checksum": "c", "mtime": 1, "size": 2}) == "c"
    assert version_of({"mtime": MOMENT, "size": 2}) != version_of({"mtime": MOMENT, "size": 3})
    assert version_of({"modification_time": 1, "size": 2}) != version_of({"modification_time": 10**12, "size": 2})
