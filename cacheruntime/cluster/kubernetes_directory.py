"""Members from the EndpointSlices of a Kubernetes service, by the Python client (extra `kubernetes`)."""

from typing import Any

from forebay.cacheruntime.cluster.directory import join_address
from forebay.cacheruntime.errors import SourceUnavailable, UsageError

_CALL_S = 5.0


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
        try:
            found = self._api.list_namespaced_endpoint_slice(
                self._namespace,
                label_selector=f"kubernetes.io/service-name={self._service}",
                _request_timeout=_CALL_S,
            )
        except Exception as error:  # ApiException, and whatever urllib3 raises
            raise SourceUnavailable(f"the EndpointSlices of {self._namespace}/{self._service}: {error}") from error
        return {
            join_address(address, port.port)
            for piece in found.items
            for port in (piece.ports or [])[:1]
            for endpoint in piece.endpoints or []
            for address in endpoint.addresses
            if not (endpoint.conditions and endpoint.conditions.serving is False)
        }


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
