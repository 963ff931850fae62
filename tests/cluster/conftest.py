"""Fixtures of the cluster tests: hosts on a network of their own, and nothing left of them."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))
sys.path.insert(1, str(Path(__file__).parents[1] / "unit"))

from host import build_clock
from network import Network, unavailable


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips what cannot run here."""
    if why := unavailable():
        pytest.skip(why)


@pytest.fixture
def network(
    namespaces: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Network]:
    """A switch without hosts."""
    yield from _network(request, tmp_path_factory)


@pytest.fixture(scope="module")
def shared_network(
    namespaces: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Network]:
    """The same for all tests of a module."""
    yield from _network(request, tmp_path_factory)


def _network(request: pytest.FixtureRequest, folders: pytest.TempPathFactory) -> Iterator[Network]:
    """Logs are kept where pytest keeps its files when a test fails, for the network's own are removed."""
    found = Network(Path(tempfile.mkdtemp(prefix="fbn-", dir="/tmp")))
    try:
        failed = request.session.testsfailed
        yield found
        said = [f"{host.name}: {line}" for host in found.hosts.values() for line in host.forebay.log_surprises()]
        if said or request.session.testsfailed > failed:
            kept = folders.mktemp("logs")
            for log in found.folder.rglob("*.log"):
                shutil.copy(log, kept / "-".join(log.relative_to(found.folder).parts))
            print(f"logs of the hosts are kept in {kept}")
    finally:
        found.close()
    wrong = found.leftovers()
    assert not wrong, "left behind:\n" + "\n".join(wrong)
    assert not said, "unexpected in a log:\n" + "\n".join(said)


@pytest.fixture(scope="session")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For `Host.preload_clock`."""
    try:
        return build_clock(tmp_path_factory.mktemp("clock"))
    except FileNotFoundError:
        pytest.skip("a clock that jumps needs gcc: apt-get install gcc libc6-dev")
