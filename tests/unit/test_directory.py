"""Where addresses of workers come from: Kubernetes' API over HTTP by its own client, and DNS."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
from kubernetes import client

from forebay.cacheruntime.cluster.directory import Dns, parse_directory
from forebay.cacheruntime.cluster.kubernetes_directory import EndpointSlices
from forebay.cacheruntime.cluster.membership import Membership
from forebay.cacheruntime.errors import SourceUnavailable, UsageError


def piece(
    *endpoints: dict[str, Any], ports: list[dict[str, Any]] | None = None, family: str = "IPv4"
) -> dict[str, Any]:
    """One EndpointSlice as the API server sends it."""
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"},
        "addressType": family, "endpoints": list(endpoints),
        "ports": ports if ports is not None else [{"name": "grpc", "port": 7070, "protocol": "TCP"}],
    }  # fmt: skip


def endpoint(*addresses: str, **conditions: bool) -> dict[str, Any]:
    return {"addresses": list(addresses), "conditions": conditions}


class ApiServer:
    """Lists EndpointSlices, a page at a time. `close` ends it."""

    def __init__(self, *pages: list[dict[str, Any]]) -> None:
        self.pages = list(pages)
        self.status = 200
        self.asked: list[dict[str, list[str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        configuration = client.Configuration(host=f"http://127.0.0.1:{self._server.server_address[1]}")
        configuration.retries = False
        self.directory = EndpointSlices("data", "forebay", client.DiscoveryV1Api(client.ApiClient(configuration)))

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        query = parse_qs(url.query)
        self.asked.append(query)
        number = int(query.get("continue", ["0"])[0])
        more = {"continue": str(number + 1)} if number + 1 < len(self.pages) else {}
        found: dict[str, Any] = {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList",
            "metadata": {"resourceVersion": "7"} | more, "items": self.pages[number],
        }  # fmt: skip
        good = url.path == "/apis/discovery.k8s.io/v1/namespaces/data/endpointslices" and self.status == 200
        body = json.dumps(found if good else {"kind": "Status", "status": "Failure"}).encode()
        handler.send_response(self.status if self.status != 200 or good else 404)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with closing(ApiServer([piece(endpoint("10.0.0.1", ready=True))])) as made:
        yield made


def test_endpoints_of_the_service(server: ApiServer) -> None:
    assert server.directory.addresses() == {"10.0.0.1:7070"}
    assert server.asked[0]["labelSelector"] == ["kubernetes.io/service-name=forebay"]


def test_several_slices_and_pages(server: ApiServer) -> None:
    server.pages = [
        [piece(endpoint("10.0.0.1")), piece(endpoint("10.0.0.2"), endpoint("10.0.0.3"))],
        [],
        [piece(endpoint("10.0.0.1"))],
        [piece(endpoint("10.0.1.1"))],
    ]
    assert server.directory.addresses() == {f"{host}:7070" for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1")}
    assert [query.get("continue") for query in server.asked] == [None, ["1"], ["2"], ["3"]]


def test_who_is_not_ready_is_there_until_it_serves_no_more(server: ApiServer) -> None:
    """A worker that starts answers as soon as it can; one that ends has said so, or is asked in vain."""
    server.pages = [[piece(
        endpoint("10.0.0.1", ready=False), endpoint("10.0.0.2", ready=False, serving=True, terminating=True),
        endpoint("10.0.0.3", ready=False, serving=False, terminating=True), endpoint("10.0.0.4"),
        {"addresses": ["10.0.0.5"]},
    )]]  # fmt: skip
    assert server.directory.addresses() == {f"10.0.0.{last}:7070" for last in (1, 2, 4, 5)}


def test_two_stacks(server: ApiServer) -> None:
    server.pages = [[piece(endpoint("10.0.0.1")), piece(endpoint("fd00::1"), family="IPv6")]]
    assert server.directory.addresses() == {"10.0.0.1:7070", "[fd00::1]:7070"}


@pytest.mark.parametrize(
    ("ports", "found"),
    [
        ([{"name": "metrics", "port": 9321}, {"name": "grpc", "port": 7070}], {"10.0.0.1:7070"}),
        ([{"name": "a", "port": 1}, {"name": "b", "port": 2}], {"10.0.0.1:1"}),
        ([{"port": 5}], {"10.0.0.1:5"}),
        ([{"name": "grpc"}, {"name": "b", "port": 2}], {"10.0.0.1:2"}),
        ([], set()),
    ],
)
def test_the_port_named_grpc_comes_first(server: ApiServer, ports: list[dict[str, Any]], found: set[str]) -> None:
    server.pages = [[piece(endpoint("10.0.0.1"), ports=ports)]]
    assert server.directory.addresses() == found


def test_a_service_without_endpoints(server: ApiServer) -> None:
    server.pages = [[{key: value for key, value in piece().items() if key != "ports"} | {"endpoints": None}]]
    assert server.directory.addresses() == set()


@pytest.mark.parametrize("status", [401, 403, 410, 429, 500, 503])
def test_errors_of_the_api_are_named(server: ApiServer, status: int) -> None:
    server.status = status
    with pytest.raises(SourceUnavailable, match="EndpointSlices of data/forebay") as caught:
        server.directory.addresses()
    assert "\n" not in str(caught.value)


def known(directory: Any, memory: Path) -> Membership:
    return Membership(directory, None, lambda _: pytest.fail("nobody listens there"), memory)


def look(membership: Membership) -> list[str]:
    """Ask the directory, and nobody else."""

    async def ask_nobody(_: object) -> None:
        pass

    membership._ask = ask_nobody  # type: ignore[method-assign]
    trio.run(membership.look)
    return list(membership.addresses())


def test_what_was_known_stays_while_the_api_is_away(server: ApiServer, tmp_path: Path) -> None:
    membership = known(server.directory, tmp_path / "m")
    assert look(membership) == ["10.0.0.1:7070"]
    server.status = 503
    assert look(membership) == ["10.0.0.1:7070"]
    server.status, server.pages = 200, [[piece(endpoint("10.0.0.2"))]]
    assert look(membership) == ["10.0.0.2:7070"]


class Names:
    """A resolver."""

    def __init__(self, *found: str) -> None:
        self.found: tuple[str, ...] | None = found

    def __call__(self, host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        assert host == "forebay.svc"
        if self.found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (name, port, 0, 0))
            if ":" in name
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port))
            for name in self.found
        ]


def test_a_name_has_several_addresses_of_two_families() -> None:
    names = Names("10.0.0.1", "10.0.0.2", "10.0.0.2", "fd00::7")
    assert Dns("forebay.svc", 7070, names).addresses() == {"10.0.0.1:7070", "10.0.0.2:7070", "[fd00::7]:7070"}


def test_a_name_that_vanishes_leaves_what_was_known(tmp_path: Path) -> None:
    names = Names("10.0.0.1", "fd00::7")
    membership = known(Dns("forebay.svc", 7070, names), tmp_path / "m")
    before = look(membership)
    assert before == ["10.0.0.1:7070", "[fd00::7]:7070"]
    names.found = None
    assert look(membership) == before
    with pytest.raises(SourceUnavailable, match=r"forebay\.svc cannot be resolved"):
        Dns("forebay.svc", 7070, names).addresses()
    names.found = ("10.0.0.9",)
    assert look(membership) == ["10.0.0.9:7070"]


def test_the_systems_resolver() -> None:
    assert Dns("localhost", 7070).addresses() <= {"127.0.0.1:7070", "[::1]:7070"}


@pytest.mark.parametrize(
    "text", ["", "static:", "dns:forebay", "dns:forebay:x", "kubernetes:a", "kubernetes:a/", "x:1"]
)
def test_directories_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_directory(text)
