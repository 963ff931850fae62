"""Fixtures for all tests: S3 on loopback, and the `forebay` command in an environment of its own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest

sys.path.insert(0, str(Path(__file__).parent / "mount" / "support"))

from forebay_command import Forebay

S3_KEY, S3_SECRET = "AKTEST", "SKTEST-very-secret"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "semantics(*ids): shows these promises of docs/SEMANTICS.md")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Soak tests run only when asked for by `-m soak`."""
    if "soak" in (config.option.markexpr or ""):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="soak test: run with -m soak"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A moto server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_client(s3_endpoint: str) -> Any:
    """A botocore client of the moto server."""
    session = botocore.session.Session()
    session.set_credentials(S3_KEY, S3_SECRET)
    return session.create_client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")


@pytest.fixture(scope="session")
def s3_options(s3_endpoint: str) -> tuple[str, ...]:
    """Arguments of `forebay mount` for the moto server."""
    return tuple(
        part
        for option in (f"endpoint={s3_endpoint}", f"access_key_id={S3_KEY}", f"secret_access_key={S3_SECRET}")
        for part in ("--option", option)
    )


@pytest.fixture
def forebay(tmp_path: Path) -> Iterator[Forebay]:
    """The command line; at the end nothing may be left of it."""
    yield from _forebay(tmp_path / "f")


@pytest.fixture(scope="module")
def shared_forebay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forebay]:
    """The same for all tests of a module that only look."""
    yield from _forebay(tmp_path_factory.mktemp("shared") / "f")


def _forebay(root: Path) -> Iterator[Forebay]:
    forebay = Forebay(root)
    yield forebay
    wrong = forebay.end()
    assert not wrong, "left behind, or unexpected in a log:\n" + "\n".join(wrong)
