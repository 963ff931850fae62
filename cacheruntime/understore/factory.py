"""From a source and its options to an under-store."""

from collections.abc import Mapping

from forebay.cacheruntime.config import RetryConfig
from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.understore.address import WEB_SCHEMES, Address, parse_address
from forebay.cacheruntime.understore.base import UnderStore
from forebay.cacheruntime.understore.retry import Retrier, RetryingStore

_ANY_OBJECT_STORE = ("endpoint", "anon", "connect_timeout", "timeout", "ca_bundle")

ALLOWED_OPTIONS: dict[str, frozenset[str]] = {
    "s3": frozenset({
        *_ANY_OBJECT_STORE, "region", "access_key_id", "secret_access_key", "session_token", "profile", "path_style",
        "request_payer", "allow_http",
        # Folded in from the environment by credentials.resolve_options; of use on the command line too.
        "config_file", "credentials_file", "role_arn", "role_session_name", "web_identity_token_file",
        "container_credentials_relative_uri", "container_credentials_full_uri", "container_authorization_token",
        "container_authorization_token_file", "imds",
    }),
    "gs": frozenset({
        *_ANY_OBJECT_STORE, "application_credentials", "service_account", "service_account_key", "bearer_token",
    }),
    "az": frozenset({
        *_ANY_OBJECT_STORE, "account_name", "account_key", "sas_key", "token", "client_id", "client_secret",
        "tenant_id", "federated_token_file", "authority_host", "msi_endpoint", "use_azure_cli", "use_emulator",
    }),
    "oss": frozenset({*_ANY_OBJECT_STORE, "key", "secret", "token", "region", "cname"}),
    "file": frozenset(),
    "pvc": frozenset({"root"}),
}  # fmt: skip
"""Option names by scheme. Schemes that are absent pass their options on to fsspec, which judges them."""


def canonical_source(source: str, options: Mapping[str, str]) -> str:
    """What `UnderStore.url` of that source will be; cheap, and contacts nothing.

    Args:
        options: resolved (`credentials.resolve_options`), since an endpoint decides content.

    Raises:
        UsageError: the source cannot be understood.
    """
    return parse_address(source, options).url


def check_options(scheme: str, options: Mapping[str, str]) -> None:
    """Refuse options that the scheme does not have.

    Raises:
        UsageError: naming the option and those allowed.
    """
    allowed = ALLOWED_OPTIONS.get(scheme)
    if allowed is None:
        return
    for name in options:
        if name not in allowed:
            choice = ", ".join(sorted(allowed)) or "none"
            raise UsageError(f"option {name!r} is not known for {scheme}:// sources; allowed: {choice}")


def open_store(source: str, options: Mapping[str, str], retry: RetryConfig) -> UnderStore:
    """Make the under-store of a source; contacts nothing yet (`probe` does).

    Args:
        source: such as ``s3://bucket/prefix``, ``/data``, ``https://host/dir``.
        options: text by name, resolved (`credentials.resolve_options`): the environment is not looked at.
        retry: how often and how long to try again.

    Raises:
        UsageError: unknown scheme or option, a bad value, or a package that is missing for the scheme.

    *Resources*: the caller closes it.
    """
    address = parse_address(source, options)
    check_options(address.scheme, options)
    return RetryingStore(_open(address, source, options, Retrier(retry)), retry)


def _open(address: Address, source: str, options: Mapping[str, str], retrier: Retrier) -> UnderStore:
    # Imported here: each brings libraries that take 0.02 to 0.4 s to load, and may be absent.
    if address.scheme in ("file", "pvc"):
        from forebay.cacheruntime.understore.posix import PosixStore

        return PosixStore(address.path, address.url, retrier)
    if address.scheme == "s3":
        from forebay.cacheruntime.understore.s3 import S3UnderStore

        return S3UnderStore(address, options, retrier)
    if address.scheme == "oss":
        from forebay.cacheruntime.understore.oss import OssUnderStore

        return OssUnderStore(address, options, retrier)
    if address.scheme in ("gs", "az"):
        from forebay.cacheruntime.understore.objectstore import ObjectUnderStore

        return ObjectUnderStore(address, options, retrier)
    if address.scheme in WEB_SCHEMES:
        from forebay.cacheruntime.understore.web import WebStore

        return WebStore(address, source, options, retrier)
    if address.scheme in ("hdfs", "webhdfs"):
        from forebay.cacheruntime.understore.hdfs import HdfsStore, WebHdfsStore

        return (HdfsStore if address.scheme == "hdfs" else WebHdfsStore)(address, source, options, retrier)
    from forebay.cacheruntime.understore.generic import GenericStore

    return GenericStore(address, source, options, retrier)
