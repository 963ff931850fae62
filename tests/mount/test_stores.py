"""Stores that the other mount tests do without: each is mounted, listed and read, by a worker and its environment."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from forebay_command import Forebay, wait_until

from forebay.cacheruntime.understore.posix import ALONE_ENTRIES
from tests.contract.oss_endpoint import ACCESS_KEY, OssEndpoint
from tests.contract.page_server import PageServer
from tests.contract.webhdfs_endpoint import USER, WebHdfsEndpoint

pytestmark = [pytest.mark.slow]

FILES = {"a/small": b"0123456789", "a/odd ü#%20": b"odd", "empty": b"", "large.bin": os.urandom((3 << 20) + 5)}


@dataclass
class Source:
    """What to mount."""

    url: str
    args: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)


@pytest.fixture(params=["oss", "webhdfs", "pages", "pvc"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    if request.param == "oss":
        oss = OssEndpoint()
        oss.buckets["bucket"] = {}
        for path, data in FILES.items():
            oss.put("bucket", f"root/{path}", data)
        yield Source("oss://bucket/root", ("--option", f"endpoint={oss.url}"), {
            "OSS_ACCESS_KEY_ID": ACCESS_KEY, "OSS_ACCESS_KEY_SECRET": "SKTEST-very-secret",
        })  # fmt: skip
        oss.stop()
    elif request.param == "webhdfs":
        hdfs = WebHdfsEndpoint()
        for path, data in FILES.items():
            hdfs.put(f"/root/{path}", data)
        yield Source(f"webhdfs://{USER}@{hdfs.url.removeprefix('http://')}/root")
        hdfs.stop()
    elif request.param == "pages":
        pages = PageServer(tmp_path / "www")
        for path, data in FILES.items():
            pages.put(f"root/{path}", data)
        yield Source(f"{pages.url}/root")
        pages.stop()
    else:
        for path, data in FILES.items():
            (tmp_path / "pvcs/claim" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "pvcs/claim" / path).write_bytes(data)
        yield Source("pvc://claim", (), {"FOREBAY_PVC_DIR": str(tmp_path / "pvcs")})


def test_mounted_and_read(forebay: Forebay, source: Source) -> None:
    folder = forebay.mount_point()
    forebay.run("mount", source.url, folder, *source.args, environ=source.environ)
    wait_until(lambda: forebay.dataset(folder)["listing"] == "complete", "the listing")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == set(FILES)
    for path, data in FILES.items():
        assert (folder / path).read_bytes() == data
    forebay.umount(folder)
    logs = "".join(log.read_text() for log in forebay.root.glob("*/*.log"))
    assert "very-secret" not in logs


def test_a_tree_that_a_second_process_scans(forebay: Forebay, tmp_path: Path) -> None:
    wanted = set()
    for number in range(ALONE_ENTRIES + 5000):
        path = tmp_path / "tree" / f"{number // 1000:03}" / f"{number:06}"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
        wanted.add(path.name)
    folder = forebay.mount(str(tmp_path / "tree"))
    wait_until(lambda: forebay.dataset(folder)["listing"] == "complete", "the listing")
    assert forebay.dataset(folder)["source_files"] == len(wanted)
    assert {path.name for path in folder.glob("*/*")} == wanted
    assert not [command for command in forebay.processes().values() if "scanner" in command]
    forebay.umount(folder)
