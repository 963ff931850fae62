"""What a user's source text means: scheme, bucket, prefix, endpoint, and the one URL that names its content.

Imports nothing heavy and contacts nothing, so the command line can name a dataset without its under-store.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from forebay.cacheruntime.errors import UsageError

_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az", "adl": "az",
            "local": "file", "wasb": "az", "wasbs": "az"}  # fmt: skip

OBJECT_SCHEMES = ("s3", "gs", "az", "oss")
"""Served by stores of our own: a bucket and a prefix."""

WEB_SCHEMES = ("http", "https")

# fsspec knows more; these are named in messages and need no import of fsspec (0.2 s) to be recognised.
FSSPEC_SCHEMES = (
    *WEB_SCHEMES,
    "hdfs",
    "webhdfs",
    "viewfs",
    "ftp",
    "sftp",
    "ssh",
    "smb",
    "github",
    "hf",
    "memory",
)

# Storage options of fsspec file systems that decide which bytes a path names.
_CONTENT_OPTIONS = ("host", "port", "org", "repo", "sha", "ref", "endpoint", "endpoint_url", "base_url", "revision")

# Bucket names are unique in all of the vendor's regions, whose endpoints (private ones too) serve the same bytes.
_VENDOR_HOSTS = {
    "s3": re.compile(r"(^|\.)amazonaws\.com(\.cn)?$"),
    "oss": re.compile(r"(^|\.)aliyuncs\.com$"),
}


@dataclass(frozen=True, slots=True)
class Address:
    """One parsed source."""

    scheme: str
    """Normalised: s3, gs, az, oss, file, pvc, or a scheme of fsspec."""
    url: str
    """Canonical, see `UnderStore.url`."""
    container: str = ""
    """The bucket or container of an object store; empty for others."""
    path: str = ""
    """Prefix below the container without slashes at its ends; the folder for file; the URL without credentials else."""
    endpoint: str = ""
    """URL of the service where it is not the vendor's own, without a trailing slash."""
    account: str = ""
    """Azure's storage account."""


def parse_address(source: str, options: Mapping[str, str]) -> Address:
    """Understand a source.

    Args:
        source: such as ``s3://bucket/prefix``, ``/data``, ``https://host/dir``; also what `Address.url` is.
        options: as from ``--option``; only those that decide content are looked at.

    Raises:
        UsageError: no bucket, or no scheme this version knows.
    """
    if not source:
        raise UsageError("the source is empty; write it like s3://bucket/prefix or /data/folder")
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(//|(?=/))", source)
    if not match:
        return _file_address(source)
    scheme, rest = match[1].lower(), source[match.end() :]
    base, plus, transport = scheme.partition("+")
    base = _ALIASES.get(base, base)
    if base == "file" and not plus:
        return _file_address("/" + rest.lstrip("/"))
    if base == "pvc" and not plus:
        return _claim_address(rest, options.get("root", ""), source)
    if base in OBJECT_SCHEMES:
        endpoint = options.get("endpoint", "")
        if plus:
            host, _, rest = rest.partition("/")
            endpoint = f"{transport}://{host}"
        return _object_address(base, rest, endpoint, options.get("account_name", ""), source)
    if scheme not in FSSPEC_SCHEMES and not _fsspec_knows(scheme):
        known = ", ".join(sorted({"file", "pvc", *OBJECT_SCHEMES, *FSSPEC_SCHEMES}))
        raise UsageError(f"scheme {scheme!r} of source {without_userinfo(source)!r} is not known; known are {known}")
    return _fsspec_address(scheme, source, options)


def without_userinfo(source: str) -> str:
    """The source without ``user:password@`` in front of its host."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@", r"\1", source)


def _file_address(text: str) -> Address:
    # No resolving of links: the name is the user's, and it must not need the folder to be there.
    folder = os.path.abspath(text)
    folder = "/" + folder.lstrip("/")  # POSIX lets abspath keep exactly two leading slashes
    return Address("file", f"file://{folder}", path=folder)


def _claim_address(rest: str, root: str, source: str) -> Address:
    """A PersistentVolumeClaim that is mounted below `root`, in a folder of its name.

    Its URL is that of the folder: claims of one name in two namespaces are two, and only their folders tell so.
    """
    claim, _, below = rest.partition("/")
    # Kubernetes: names of claims are DNS subdomains (RFC 1123).
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", claim):
        raise UsageError(f"source {source!r} names no claim; write it like pvc://claim or pvc://claim/folder")
    if ".." in below.split("/"):
        raise UsageError(f"source {source!r} leads out of its claim; leave out '..'")
    if not root:
        raise UsageError(
            f"source {source!r} needs the folder in which volumes of claims are mounted, each under its name; "
            f"name it with --option root=/mnt/pvcs or FOREBAY_PVC_DIR"
        )
    inside = _file_address(os.path.join(root, claim, below))
    return Address("pvc", inside.url, claim, inside.path)


def _object_address(scheme: str, rest: str, endpoint: str, account: str, source: str) -> Address:
    container, _, path = rest.partition("/")
    if scheme == "az" and "@" in container:  # abfss://container@account.dfs.core.windows.net/path
        container, _, host = container.partition("@")
        account = account or host.partition(".")[0]
    if not container:
        raise UsageError(f"source {source!r} names no bucket; write it like {scheme}://bucket/prefix")
    # Leading and trailing slashes are the user's typing; those inside are part of the keys.
    path = path.strip("/")
    endpoint = _normal_endpoint(endpoint)
    vendor = _VENDOR_HOSTS.get(scheme)
    canonical_endpoint = "" if vendor and vendor.search(urlsplit(endpoint).hostname or "") else endpoint
    where = f"{container}@{account}" if scheme == "az" and account else container
    front = f"{scheme}+{canonical_endpoint}/" if canonical_endpoint else f"{scheme}://"
    return Address(scheme, front + where + (f"/{path}" if path else ""), container, path, endpoint, account)


def _normal_endpoint(endpoint: str) -> str:
    if not endpoint:
        return ""
    if "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"endpoint {without_userinfo(endpoint)!r} is not a URL like https://host:port")
    try:
        port = parts.port
    except ValueError as error:
        raise UsageError(f"endpoint {without_userinfo(endpoint)!r} has no valid port") from error
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = 443 if parts.scheme == "https" else 80
    netloc = host if port in (None, default) else f"{host}:{port}"
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}"


def _fsspec_address(scheme: str, source: str, options: Mapping[str, str]) -> Address:
    plain = without_userinfo(source)
    rest = plain[plain.index(":") + 1 :]
    if scheme in WEB_SCHEMES:
        host, slash, path = rest.lstrip("/").partition("/")
        rest = f"//{host.lower()}{slash}{path}"
    if not rest.strip("/") and scheme in WEB_SCHEMES:
        raise UsageError(f"source {plain!r} names no host; write it like {scheme}://host/folder")
    url = f"{scheme}:{rest.rstrip('/') if rest.strip('/') else '//'}"
    extra = "&".join(f"{key}={options[key]}" for key in _CONTENT_OPTIONS if options.get(key))
    return Address(scheme, f"{url}#{extra}" if extra else url, path=url)


def _fsspec_knows(scheme: str) -> bool:
    from fsspec.registry import available_protocols

    return scheme in available_protocols()
