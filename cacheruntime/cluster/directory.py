"""Who is in the cluster, as the cluster's own directory says: a static list, DNS, or a Kubernetes service.

A directory gives addresses and nothing else. Which worker answers at one, and whether it does, is `membership.py`'s.
"""

import socket
from collections.abc import Iterable
from typing import Any, Protocol

from forebay.cacheruntime.errors import SourceUnavailable, UsageError

FORMS = "static:HOST:PORT,HOST:PORT | dns:NAME:PORT | kubernetes:NAMESPACE/SERVICE"


class Directory(Protocol):
    """Where addresses come from."""

    def addresses(self) -> set[str]:
        """HOST:PORT of each worker that should be there; blocks.

        Raises:
            SourceUnavailable: it cannot be asked now; what was known stays true.
        """


class Static:
    """A list that does not change."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._addresses = set(addresses)

    def addresses(self) -> set[str]:
        return set(self._addresses)


class Dns:
    """All addresses of a name, such as those of a headless service."""

    def __init__(self, host: str, port: int, resolve: Any = socket.getaddrinfo) -> None:
        self._host = host
        self._port = port
        self._resolve = resolve

    def addresses(self) -> set[str]:
        try:
            found = self._resolve(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: of a name that is none, like a..b
            raise SourceUnavailable(f"{self._host} cannot be resolved ({error})") from error
        return {join_address(str(entry[4][0]), self._port) for entry in found}


def join_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(text: str) -> tuple[str, int]:
    """Host and port of 'HOST:PORT' or '[::1]:PORT'.

    Raises:
        UsageError: not of that form.
    """
    host, _, port = text.strip().rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"address {text!r} is not HOST:PORT; write it like worker-1:7070")
    return host.strip("[]"), int(port)


def parse_directory(text: str) -> Directory:
    """From what `--peers` takes.

    Raises:
        UsageError: not of one of the forms.
    """
    kind, _, rest = text.partition(":")
    if kind == "static" and rest:
        return Static(join_address(*split_address(address)) for address in rest.split(",") if address)
    if kind == "dns" and rest:
        return Dns(*split_address(rest))
    if kind == "kubernetes" and rest.count("/") == 1 and all(rest.split("/")):
        from forebay.cacheruntime.cluster.kubernetes_directory import EndpointSlices

        return EndpointSlices(*rest.split("/"))
    raise UsageError(f"--peers {text!r} is none of {FORMS}")
