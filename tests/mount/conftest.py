"""What the mount tests share: the guard, the engines, and sources."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fuse_mounts import Guard
from held_link import HeldLink

GUARD_S, SOAK_GUARD_S = 90.0, 3600.0

NEEDS_PYFUSE3 = pytest.mark.skipif(find_spec("pyfuse3") is None, reason="pyfuse3 is not installed")


@dataclass(frozen=True)
class Side:
    """An engine with an open mode."""

    engine: str
    open_mode: str

    @property
    def args(self) -> tuple[str, ...]:
        return ("--engine", self.engine, "--open-mode", self.open_mode)


PASSTHROUGH, NO_OPEN, CACHED = Side("kernel", "passthrough"), Side("kernel", "no-open"), Side("kernel", "cached")
PYFUSE3 = Side("pyfuse3", "cached")
SIDES = {
    "kernel": (PASSTHROUGH,),
    "engines": (PASSTHROUGH, PYFUSE3),
    "ways": (PASSTHROUGH, NO_OPEN, PYFUSE3),
    "modes": (PASSTHROUGH, NO_OPEN, CACHED, PYFUSE3),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test (or its fixture) that asks for `side` runs on those that its mark names, `engines` without one.

    ``sides("kernel", soak="ways")`` runs on the engine `kernel`, and in a soak on the other ways too.
    """
    if "side" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("sides")
    now = SIDES[mark.args[0] if mark else "engines"]
    wanted = SIDES[mark.kwargs["soak"]] if mark and mark.kwargs else now
    params = []
    for side in wanted:
        marks = [NEEDS_PYFUSE3] if side == PYFUSE3 else []
        marks += [] if side in now else [pytest.mark.soak]
        params.append(pytest.param(side, id=f"{side.engine}-{side.open_mode}", marks=marks))
    metafunc.parametrize("side", params, scope="module" if "shared_forebay" in metafunc.fixturenames else "function")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "sides(name, soak=name): which engines and open modes; see SIDES in tests/mount/conftest.py"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.mount)
            if not (os.geteuid() == 0 and os.path.exists("/dev/fuse")):
                item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))


@pytest.fixture(scope="session")
def guard() -> Iterator[Guard]:
    """See fuse_mounts.py."""
    found = Guard()
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _guarded(request: pytest.FixtureRequest, guard: Guard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test can hang on a mount: it is aborted, and the test fails."""
    seconds = SOAK_GUARD_S if request.node.get_closest_marker("soak") else GUARD_S
    guard.arm(seconds, tmp_path_factory.getbasetemp())
    yield
    fired = guard.disarm()
    assert not fired, f"after {seconds:g} s the guard aborted {fired}"


class Bucket:
    """A bucket of the moto server, reached over a link that can be held up."""

    def __init__(self, client: Any, link: HeldLink, args: tuple[str, ...]) -> None:
        self._client = client
        self.link = link
        self.name = f"bucket-{uuid.uuid4().hex[:12]}"
        client.create_bucket(Bucket=self.name)
        self.source = f"s3://{self.name}/root"
        self.args = args

    def put(self, path: str, data: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=f"root/{path}", Body=data)

    def put_empty(self, paths: list[str]) -> None:
        """Many empty objects, without the way over HTTP."""
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        for path in paths:
            backend.put_object(self.name, f"root/{path}", b"")

    def remove(self, path: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=f"root/{path}")


class Folder:
    """A file:// source."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.source = f"file://{root}"
        self.args: tuple[str, ...] = ()

    def put(self, path: str, data: bytes) -> None:
        """As a careful writer does: a new file renamed over the old one."""
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.root.parent / "fresh"
        fresh.write_bytes(data)
        os.replace(fresh, full)

    def remove(self, path: str) -> None:
        (self.root / path).unlink()


@pytest.fixture
def bucket(s3_endpoint: str, s3_client: Any, s3_options: tuple[str, ...]) -> Iterator[Bucket]:
    address = urlsplit(s3_endpoint)
    link = HeldLink(str(address.hostname), int(address.port or 0))
    args = tuple(part.replace(s3_endpoint, link.url) for part in s3_options)
    yield Bucket(s3_client, link, args)
    link.close()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "source")


@pytest.fixture(params=["s3", "file"])
def origin(request: pytest.FixtureRequest) -> Bucket | Folder:
    """Each kind of source in turn, empty."""
    found: Bucket | Folder = request.getfixturevalue({"s3": "bucket", "file": "folder"}[request.param])
    return found
