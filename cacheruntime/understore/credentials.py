"""Credentials and places from the user's environment, made into explicit options.

One worker serves many mounts and outlives the shell that started it, so what a mount needs of the environment is
folded into its options here, at the command line. Pure: the environment is an argument and no file is read.
"""

import os
import re
from collections.abc import Mapping

from forebay.cacheruntime.errors import UsageError
from forebay.cacheruntime.understore.address import parse_address

# Option -> variables, the first that is set wins; the order is that of the vendors' own tools.
_AWS_PLACES = {
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "ca_bundle": ("AWS_CA_BUNDLE",),
    "config_file": ("AWS_CONFIG_FILE",),
    "credentials_file": ("AWS_SHARED_CREDENTIALS_FILE",),
}
_AWS_KEYS = {
    "access_key_id": ("AWS_ACCESS_KEY_ID",),
    "secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
    "session_token": ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"),
}
_AWS_ROLES = {
    "role_arn": ("AWS_ROLE_ARN",),
    "role_session_name": ("AWS_ROLE_SESSION_NAME",),
    "web_identity_token_file": ("AWS_WEB_IDENTITY_TOKEN_FILE",),
    "container_credentials_relative_uri": ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
    "container_credentials_full_uri": ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
    "container_authorization_token": ("AWS_CONTAINER_AUTHORIZATION_TOKEN",),
    "container_authorization_token_file": ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",),
}
_GOOGLE = {
    "application_credentials": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "service_account": ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"),
    "service_account_key": ("GOOGLE_SERVICE_ACCOUNT_KEY",),
}
_AZURE_PLACES = {
    "account_name": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
    "endpoint": ("AZURE_STORAGE_ENDPOINT",),
    "authority_host": ("AZURE_AUTHORITY_HOST", "AZURE_STORAGE_AUTHORITY_HOST"),
}
_AZURE_KEYS = {
    "account_key": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCESS_KEY"),
    "sas_key": ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"),
    "token": ("AZURE_STORAGE_TOKEN",),
    "client_id": ("AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID"),
    "client_secret": ("AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET"),
    "tenant_id": ("AZURE_STORAGE_TENANT_ID", "AZURE_TENANT_ID"),
    "federated_token_file": ("AZURE_FEDERATED_TOKEN_FILE",),
}
_OSS_PLACES = {"endpoint": ("OSS_ENDPOINT",)}
_OSS_KEYS = {
    "key": ("OSS_ACCESS_KEY_ID",),
    "secret": ("OSS_ACCESS_KEY_SECRET", "OSS_SECRET_ACCESS_KEY"),
    "token": ("OSS_SECURITY_TOKEN", "OSS_SESSION_TOKEN"),
}

_PVC = {"root": ("FOREBAY_PVC_DIR",)}
"""Where a machine outside Kubernetes has the volumes of claims."""

_FILES = ("root", "config_file", "credentials_file", "ca_bundle", "web_identity_token_file", "federated_token_file",
          "container_authorization_token_file", "application_credentials", "service_account")  # fmt: skip

_SECRET_NAME = re.compile(
    r"secret|token|passw|sas|key|credential|auth|signature|cookie|connection_string|headers", re.I
)
# Names of places and identities, which help in a log and open nothing.
_PUBLIC_NAME = re.compile(r"(_file|_uri|_host|_endpoint|_session_name)$|^(application_credentials|use_.*)$", re.I)

HIDDEN = "***"


def resolve_options(source: str, options: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Options with what the environment adds for that source.

    An option given by the user wins. Where the user gave any credential (keys, a profile, anon), none is taken
    from the environment: halves of two identities make errors that nobody can read.

    Args:
        source: as the user wrote it.
        options: from ``--option KEY=VALUE``.
        environ: the user's environment.

    Raises:
        UsageError: the source cannot be understood.
    """
    found = dict(options)
    if source.startswith("pvc://"):
        _fold(found, _PVC, environ)  # first, as the address is made of it
    scheme = parse_address(source, found).scheme
    if scheme == "s3":
        _fold_aws(found, environ)
    elif scheme == "gs":
        if not found.keys() & {*_GOOGLE, "bearer_token", "anon"}:
            _fold(found, _GOOGLE, environ)
        if emulator := environ.get("STORAGE_EMULATOR_HOST"):
            found.setdefault("endpoint", emulator if "://" in emulator else f"http://{emulator}")
    elif scheme == "az":
        _fold_azure(found, environ)
    elif scheme == "oss":
        if not found.keys() & {*_OSS_KEYS, "anon"}:
            _fold(found, _OSS_KEYS, environ)
        _fold(found, _OSS_PLACES, environ)
    return {name: _absolute(name, value) for name, value in found.items()}


def redact(options: Mapping[str, str]) -> dict[str, str]:
    """The options for a log or a screen: values that may hold a secret are replaced."""
    return {name: HIDDEN if _is_secret(name, value) else value for name, value in options.items()}


def without_secrets(options: Mapping[str, str]) -> dict[str, str]:
    """Only the options whose values cannot hold a secret."""
    return {name: value for name, value in options.items() if not _is_secret(name, value)}


def _is_secret(name: str, value: str) -> bool:
    if _PUBLIC_NAME.search(name):
        return False
    # JSON may hold anything at any depth, and a URL a password.
    return bool(_SECRET_NAME.search(name)) or value[:1] in ("{", "[") or re.search(r"://[^/]*@", value) is not None


def _fold_aws(found: dict[str, str], environ: Mapping[str, str]) -> None:
    own_identity = found.keys() & {*_AWS_KEYS, *_AWS_ROLES, "profile"} or found.get("anon", "").lower() in ("true", "1")
    _fold(found, _AWS_PLACES, environ)
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        found.setdefault("imds", "false")
    if own_identity:
        return
    # Keys go before a profile, as in botocore; the session token belongs to the keys beside it.
    if environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY"):
        _fold(found, _AWS_KEYS, environ)
        return
    _fold(found, _AWS_ROLES, environ)
    _fold(found, {"profile": ("AWS_PROFILE", "AWS_DEFAULT_PROFILE")}, environ)


def _fold_azure(found: dict[str, str], environ: Mapping[str, str]) -> None:
    own_identity = found.keys() & {*_AZURE_KEYS, "anon", "use_azure_cli", "use_emulator"}
    _fold(found, _AZURE_PLACES, environ)
    if own_identity:
        return
    _fold(found, _AZURE_KEYS, environ)
    if text := environ.get("AZURE_STORAGE_CONNECTION_STRING"):
        parts = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
        if not parts:
            raise UsageError("AZURE_STORAGE_CONNECTION_STRING is not of the form Name=Value;Name=Value")
        for option, name in (
            ("account_name", "AccountName"),
            ("account_key", "AccountKey"),
            ("sas_key", "SharedAccessSignature"),
            ("endpoint", "BlobEndpoint"),
        ):
            if parts.get(name):
                found.setdefault(option, parts[name])


def _fold(found: dict[str, str], table: Mapping[str, tuple[str, ...]], environ: Mapping[str, str]) -> None:
    for option, variables in table.items():
        value = next((environ[name] for name in variables if environ.get(name)), None)
        if value is not None:
            found.setdefault(option, value)


def _absolute(name: str, value: str) -> str:
    """Paths as seen from the user's folder; the worker has another one. ``~`` is left to botocore."""
    if name in _FILES and value and not value.startswith(("~", "{")):
        return os.path.abspath(value)
    return value
