"""What every under-store promises when its server, the network or the user's credentials are not as they should be."""

import logging
import os
import time
from collections.abc import Callable

import pytest

from forebay.cacheruntime.config import RetryConfig
from forebay.cacheruntime.errors import SourceDenied, SourceNotFound, SourceStale, SourceTimeout, SourceUnavailable
from forebay.cacheruntime.understore.base import Entry, UnderStore
from forebay.cacheruntime.understore.credentials import redact
from tests.contract.conftest import Place
from tests.contract.fault_proxy import SilentServer
from tests.contract.test_understore import assert_good_message, closed_port, files, read, tree

PATIENT = RetryConfig(first_delay_s=0.005, max_delay_s=0.02, deadline_s=30, probe_deadline_s=30)
"""They are to succeed, so the deadline must outlast a busy machine."""

BRIEF = RetryConfig(first_delay_s=0.005, max_delay_s=0.01, deadline_s=0.3, probe_deadline_s=0.3)

DATA = os.urandom(700_000)


def asks(store: UnderStore, entry: Entry) -> dict[str, Callable[[], object]]:
    """Each question that a worker has, and what it is answered."""
    return {
        "probe": store.probe,
        "list_tree": lambda: tree(store),
        "list_directory": lambda: sorted(e.path for e in store.list_directory("d")),
        "stat": lambda: store.stat("d/f"),
        "read_range": lambda: read(store, entry, 100, 600_000),
    }


@pytest.fixture
def filled(network_place: Place) -> Place:
    network_place.put("d/f", DATA)
    network_place.put("d/empty", b"")
    network_place.put("e/g", b"1")
    return network_place


@pytest.mark.parametrize("fault", ["503", "500", "reset", "short"])
@pytest.mark.semantics("C11")
def test_passing_faults_are_tried_again(filled: Place, fault: str) -> None:
    assert filled.proxy is not None
    store = filled.keep(filled.source, filled.options, PATIENT)
    entry = files(store)["d/f"]
    assert read(store, entry) == DATA
    right = {name: ask() for name, ask in asks(store, entry).items()}
    for name, ask in asks(store, entry).items():
        filled.proxy.faults.extend([fault] * 3)
        assert ask() == right[name], (name, fault)
        filled.proxy.faults.clear()


def test_faults_that_go_on_end_at_the_deadline(filled: Place) -> None:
    assert filled.proxy is not None
    store = filled.keep(filled.source, filled.options, BRIEF)
    entry = files(store)["d/f"]
    for ask in asks(store, entry).values():
        filled.proxy.faults.extend(["503"] * 10_000)
        began = time.monotonic()
        with pytest.raises(SourceTimeout) as caught:
            ask()
        filled.proxy.faults.clear()
        assert isinstance(caught.value.__cause__, SourceUnavailable)
        assert_good_message(caught.value, "503")
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("status", ["401", "403"])
def test_refusals_are_final(filled: Place, status: str) -> None:
    assert filled.proxy is not None
    store = filled.keep(filled.source, filled.options, PATIENT)
    entry = files(store)["d/f"]
    for ask in asks(store, entry).values():
        filled.proxy.faults.extend([status] * 50)
        with pytest.raises(SourceDenied) as caught:
            ask()
        filled.proxy.faults.clear()
        assert_good_message(caught.value, status)


def test_wrong_credentials(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    if filled.refused is None:
        pytest.skip("its server here asks for none")
    caplog.set_level(logging.INFO)
    source, options = filled.refused
    store = filled.keep(source, options, PATIENT)
    for ask in (store.probe, lambda: tree(store), lambda: list(store.read_range("d/f", 0, 1, ""))):
        with pytest.raises(SourceDenied) as caught:
            ask()
        assert_good_message(caught.value)
    for secret in set(options.values()) - set(redact(options).values()):
        assert secret not in caplog.text
        assert secret not in str(caught.value)


def test_missing_bucket(filled: Place) -> None:
    if filled.no_bucket is None:
        pytest.skip("it has no buckets")
    store = filled.keep(*filled.no_bucket)
    for ask in (store.probe, lambda: tree(store)):
        with pytest.raises(SourceNotFound) as caught:
            ask()
        assert_good_message(caught.value, filled.no_bucket[0].split("/")[2])


def test_nothing_listens(filled: Place) -> None:
    assert filled.at is not None
    url = f"http://127.0.0.1:{closed_port()}"
    store = filled.keep(*filled.at(url), BRIEF)
    for ask in asks(store, Entry("d/f", files(filled.open())["d/f"].kind, 700_000)).values():
        began = time.monotonic()
        with pytest.raises(SourceTimeout) as caught:
            ask()
        assert_good_message(caught.value, url.removeprefix("http://"))
        assert time.monotonic() - began < 5


def test_silent_server(filled: Place) -> None:
    assert filled.at is not None
    silent = SilentServer()
    source, options = filled.at(silent.url)
    store = filled.keep(source, {**options, "timeout": "0.1", "connect_timeout": "0.1"}, BRIEF)
    for ask in (store.probe, lambda: store.stat("d/f"), lambda: list(store.read_range("d/f", 0, 1, '"e"'))):
        began = time.monotonic()
        with pytest.raises(SourceTimeout) as caught:
            ask()
        assert_good_message(caught.value)
        assert time.monotonic() - began < 5
    silent.stop()


def test_a_change_while_it_is_read_is_seen(filled: Place) -> None:
    """Whether by a condition that the server holds, or by a look behind the last byte."""
    filled.put("d/f", bytes(3 << 20))
    store = filled.keep(filled.source, filled.options, PATIENT)
    entry = files(store)["d/f"]
    pieces = store.read_range("d/f", 0, 3 << 20, entry.version)
    next(pieces)
    filled.put("d/f", bytes(3 << 20)[:-1] + b"x")
    if store.pins_version:
        assert b"".join(bytes(piece) for piece in pieces).count(b"x") == 0
    else:
        with pytest.raises(SourceStale):
            list(pieces)


@pytest.mark.slow
def test_many_names(place: Place, s3_client: object) -> None:
    """A directory of thousands, in pages where the store has them, each once; and the same by itself."""
    place.put("few/x", b"")
    names = [f"n{number:05}" for number in range(place.many)]
    if place.name == "s3":  # over HTTP a thousand puts take eight seconds
        from moto.s3.models import s3_backends

        for name in names:
            s3_backends["123456789012"]["aws"].put_object(place.source.split("/")[2], f"root/many/{name}", b"")
    else:
        for name in names:
            place.put(f"many/{name}", b"")
    store = place.open()
    pages = [page for page in store.list_tree() if page]
    listed = [entry.path for page in pages for entry in page]
    assert sorted(path for path in listed if path.startswith("many/")) == [f"many/{name}" for name in names]
    assert "few/x" in listed
    if place.ordered:
        assert max(map(len, pages)) <= 1000
    assert sorted(entry.path for entry in store.list_directory("many")) == [f"many/{name}" for name in names]


@pytest.mark.parametrize("tail", ["/", "//"])
def test_slashes_behind_a_prefix_are_the_users_typing(place: Place, tail: str) -> None:
    place.put("pre/x", b"1")
    place.put("prefix/y", b"1")
    plain = place.open("pre")
    slashed = place.keep(f"{place.source}/pre{tail}", place.options)
    assert slashed.url == plain.url
    assert set(tree(slashed)) == {"x"}
    assert slashed.stat("x") == plain.stat("x")
    assert read(slashed, slashed.stat("x")) == b"1"
