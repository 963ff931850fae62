"""AWS for the S3 store: a botocore session made of options, credentials for obstore, and botocore's errors as ours.

The worker serves users whose environments it does not have, so nothing here may read AWS_* from os.environ: every
place where botocore would look there is given explicitly or taken out of its chain.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import botocore.loaders
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleWithWebIdentityProvider,
    ContainerProvider,
    create_credential_resolver,
)
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectionError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoAuthTokenError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from botocore.parsers import ResponseParserError

from forebay.cacheruntime.errors import (
    ForebayError,
    SourceDenied,
    SourceNotFound,
    SourceStale,
    SourceUnavailable,
    UsageError,
)
from forebay.cacheruntime.understore.objectstore import denied
from forebay.cacheruntime.understore.options import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, flag, seconds

if TYPE_CHECKING:
    from obstore.store import S3Credential

# botocore refreshes what expires within 10 minutes, so what it hands out is good for at least these.
_CREDENTIAL_LIFE = timedelta(minutes=10)

_CONNECTIONS = 32  # above FillConfig.parallel_gets plus listings, so no thread waits for a pooled connection

# Service models are JSON, the same for every session: with them read, a client took 0.013 s instead of 0.1 to 0.25 s
# (botocore 1.43, 2 cores).
_LOADER = botocore.loaders.create_loader()

_SESSION_VARIABLES = {
    "profile": "profile", "config_file": "config_file", "credentials_file": "credentials_file",
    "region": "region", "ca_bundle": "ca_bundle",
}  # fmt: skip

_THROTTLED = frozenset({
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "RequestTimeout",
    "InternalError", "ServiceUnavailable", "OperationAborted",
})  # fmt: skip

_DENIED = frozenset({
    "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "Forbidden",
    "TokenRefreshRequired", "RequestTimeTooSkewed", "AllAccessDisabled", "AccountProblem", "InvalidObjectState",
    "Unauthorized",
})  # fmt: skip


def make_session(options: Mapping[str, str]) -> botocore.session.Session:
    """A session that knows what the options say and nothing of this process's AWS_* variables.

    Credentials come, in this order, from explicit keys, a web identity, a profile (SSO, role, process), a
    container's endpoint and the instance's metadata service, as botocore's own chain has it.
    """
    session = botocore.session.Session()
    session.register_component("data_loader", _LOADER)
    for option, variable in _SESSION_VARIABLES.items():
        if options.get(option):
            session.set_config_variable(variable, options[option])
    if options.get("access_key_id") or options.get("secret_access_key"):
        session.set_credentials(
            options.get("access_key_id", ""), options.get("secret_access_key", ""), options.get("session_token") or None
        )
        return session
    resolver = create_credential_resolver(session, region_name=options.get("region"))
    session.register_component("credential_provider", resolver)
    resolver.remove("env")
    web_identity = {
        "web_identity_token_file": options.get("web_identity_token_file"),
        "role_arn": options.get("role_arn"),
        "role_session_name": options.get("role_session_name"),
    }
    profile = options.get("profile") or "default"

    def load_config() -> dict[str, Any]:
        if not web_identity["web_identity_token_file"]:
            return dict(session.full_config)
        return {"profiles": {profile: {k: v for k, v in web_identity.items() if v}}}

    def sts_client(service: str, **kwargs: Any) -> Any:
        return session.create_client(service, region_name=options.get("region") or "us-east-1", **kwargs)

    identity = AssumeRoleWithWebIdentityProvider(load_config, sts_client, profile, {}, disable_env_vars=True)
    resolver.insert_before("assume-role-with-web-identity", identity)
    resolver.providers.remove(resolver.providers[resolver.providers.index(identity) + 1])
    resolver.insert_before("container-role", ContainerProvider(environ=_container_environ(options)))
    resolver.providers.pop([p.METHOD for p in resolver.providers].index("container-role") + 1)
    if not flag(options, "imds", True):
        resolver.remove("iam-role")
    return session


def make_client(session: botocore.session.Session, options: Mapping[str, str], endpoint: str) -> Any:
    """An S3 client that tries once; `endpoint` is empty for AWS itself."""
    style = "path" if flag(options, "path_style", bool(endpoint)) else "virtual"
    config: dict[str, Any] = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": _CONNECTIONS,
        "connect_timeout": seconds(options, "connect_timeout", CONNECT_TIMEOUT_S),
        "read_timeout": seconds(options, "timeout", READ_TIMEOUT_S),
        "s3": {"addressing_style": style},
        # Whole-object checksums cannot be checked on ranges, and asking for them breaks some S3 look-alikes.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "ignore_configured_endpoint_urls": True,
    }
    if flag(options, "anon", False):
        config["signature_version"] = UNSIGNED
    region = options.get("region") or session.get_config_variable("region") or "us-east-1"
    return session.create_client("s3", endpoint_url=endpoint or None, region_name=region, config=Config(**config))


def credential_provider(session: botocore.session.Session, what: str) -> Callable[[], "S3Credential"]:
    """What obstore calls when it needs keys: the same chain as botocore's, with its refreshing.

    Raises:
        SourceDenied: the chain has found no credentials.
    """
    credentials = session.get_credentials()
    if credentials is None:
        raise SourceDenied(no_credentials(what))

    def provide() -> "S3Credential":
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIAL_LIFE,
        }

    return provide


def no_credentials(what: str) -> str:
    """The message for an empty credential chain."""
    return (
        f"{what}: no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile with"
        " --option profile=NAME, or use --option anon=true for a public bucket"
    )


def not_s3(what: str, endpoint: str) -> SourceNotFound:
    """The error for a server that answers something else than S3's protocol."""
    return SourceNotFound(f"{what}: {endpoint} does not answer like S3; check --option endpoint=URL")


def mapped_boto_error(error: Exception, what: str, endpoint: str, *, reading: bool = False) -> ForebayError:
    """botocore's exception as ours, in one line.

    Args:
        what: the thing in words.
        endpoint: URL of the service, for messages.
        reading: a version of an object was asked for that had been listed, so "not found" means "changed".
    """
    if isinstance(error, ClientError):
        return _mapped_reply(error, what, reading)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError, NoAuthTokenError)):
        return SourceDenied(no_credentials(what))
    if isinstance(error, (CredentialRetrievalError, UnauthorizedSSOTokenError, TokenRetrievalError)):
        return SourceDenied(f"{what}: credentials cannot be fetched or have expired; log in again (aws sso login)")
    if isinstance(error, SSLError):
        return SourceDenied(
            f"{what}: no trusted TLS connection to {endpoint}; check that it speaks https, or --option ca_bundle=FILE"
        )
    if isinstance(error, ResponseParserError):
        return not_s3(what, endpoint)
    if isinstance(error, EndpointConnectionError):
        return SourceUnavailable(f"{what}: cannot connect to {endpoint}; check the endpoint and the network")
    if isinstance(error, (ConnectionError, ConnectionClosedError, HTTPClientError, IncompleteReadError)):
        return SourceUnavailable(f"{what}: no answer from {endpoint} ({type(error).__name__})")
    if isinstance(error, ProfileNotFound):
        return UsageError(f"{what}: {error}; check AWS_PROFILE or --option profile=NAME")
    if isinstance(error, ParamValidationError):
        return UsageError(f"{what}: not a valid bucket name")
    return UsageError(f"{what}: {' '.join(str(error).split())[:200]}")


def _mapped_reply(error: ClientError, what: str, reading: bool) -> ForebayError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    reason = f"HTTP {status}" if code.isdecimal() or not code else f"HTTP {status} {code}"
    if status == 429 or status >= 500 or code in _THROTTLED:
        return SourceUnavailable(f"{what}: the store is busy or failing ({reason})")
    if status in (412, 416) or code in ("PreconditionFailed", "InvalidRange"):
        return SourceStale(f"{what} has changed since it was listed ({reason})")
    if code == "NoSuchBucket":
        return SourceNotFound(f"{what}: the bucket does not exist; check its name, --option endpoint=URL and region")
    if status == 404:
        if reading:
            return SourceStale(f"{what} is gone since it was listed ({reason})")
        return SourceNotFound(f"{what} does not exist ({reason}); check the name and --option endpoint=URL")
    region = error.response.get("Error", {}).get("Region") or bucket_region(error.response)
    if region and (status in (301, 307) or code in ("AuthorizationHeaderMalformed", "PermanentRedirect")):
        return SourceDenied(f"{what} is in region {region!r}; give --option region={region}")
    if status in (401, 403) or code in _DENIED:
        return denied(what, code, reason)
    return SourceDenied(f"{what}: the store refused the request ({reason}); check endpoint, region and path_style")


def bucket_region(response: Mapping[str, Any]) -> str:
    """The region that a reply of S3 names in its header, or ''."""
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region", ""))


def _container_environ(options: Mapping[str, str]) -> dict[str, str]:
    prefix = "AWS_"
    names = ("container_credentials_relative_uri", "container_credentials_full_uri", "container_authorization_token",
             "container_authorization_token_file")  # fmt: skip
    return {prefix + name.upper(): options[name] for name in names if options.get(name)}
