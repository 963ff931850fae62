"""Members from the EndpointSlices of a Kubernetes service, by the Python client (extra `kubernetes`)."""

from typing import Any

from forebay.cacheruntime.cluster.directory import join_address
from forebay.cacheruntime.errors import SourceUnavailable, UsageError

_CALL_S = 5.0
_PAGE = 500

_PORT = "grpc"
"""Of a service with several ports."""


class EndpointSlices:
    """The endpoints of a service, ready or not: a worker that is not ready to be asked says so itself."""

    def __init__(self, namespace: str, service: str, api: Any = None) -> None:
        """Args: api: a `DiscoveryV1Api`; None: of the pod's service account, else of the kubeconfig.

        Raises:
            UsageError: the package or the configuration is not there.
        """
        self._namespace = namespace
        self._service = service
        self._api = api if api is not None else _connect()

    def addresses(self) -> set[str]:
        """See `Directory.addresses`. A worker of a service with two stacks has an address of each."""
        return {
            join_address(address, port)
            for piece in self._slices()
            if (port := _port_of(piece)) is not None
            for endpoint in piece.endpoints or []
            for address in endpoint.addresses
            if not (endpoint.conditions and endpoint.conditions.serving is False)
        }

    def _slices(self) -> list[Any]:
        """All of them: a service has one for each hundred endpoints and address family, and a reply holds a page."""
        found: list[Any] = []
        more: dict[str, str] = {}
        try:
            while True:
                page = self._api.list_namespaced_endpoint_slice(
                    self._namespace,
                    label_selector=f"kubernetes.io/service-name={self._service}",
                    limit=_PAGE,
                    _request_timeout=_CALL_S,
                    **more,
                )
                found += page.items
                if not (page.metadata and page.metadata._continue):
                    return found
                more = {"_continue": page.metadata._continue}
        except Exception as error:  # ApiException, and whatever urllib3 raises
            why = getattr(error, "reason", None) or error
            raise SourceUnavailable(f"the EndpointSlices of {self._namespace}/{self._service}: {why}") from error


def _port_of(piece: Any) -> int | None:
    """The port named `grpc`, else the first; None: it has none."""
    ports = [port for port in piece.ports or [] if port.port]
    named = [port for port in ports if port.name == _PORT]
    found = (named or ports)[:1]
    return int(found[0].port) if found else None


def _connect() -> Any:
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise UsageError("--peers kubernetes: needs the package: pip install 'forebay[kubernetes]'") from error
    try:
        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
    except config.ConfigException as error:
        raise UsageError(f"--peers kubernetes: found neither a service account nor a kubeconfig ({error})") from error
    return client.DiscoveryV1Api()
