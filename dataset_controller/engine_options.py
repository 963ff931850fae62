"""Options of Fluid's engines (Alluxio, Jindo, Hadoop's s3a) by our names, so that manifests for these work here.

An option that is not in the tables and has a dot in its name belongs to an engine: schemes whose options we know by
name leave it out, others pass it on. What has no dot is ours or the store's, and stays as it is.
"""

from collections.abc import Mapping

from forebay.cacheruntime.understore.factory import ALLOWED_OPTIONS

_S3 = {
    "alluxio.underfs.s3.endpoint": "endpoint",
    "fs.s3a.endpoint": "endpoint",
    "fs.s3.endpoint": "endpoint",
    "alluxio.underfs.s3.region": "region",
    "alluxio.underfs.s3.endpoint.region": "region",
    "fs.s3a.endpoint.region": "region",
    "fs.s3.region": "region",
    "aws.accessKeyId": "access_key_id",
    "s3a.accessKeyId": "access_key_id",
    "fs.s3a.access.key": "access_key_id",
    "fs.s3.accessKeyId": "access_key_id",
    "aws.secretKey": "secret_access_key",
    "s3a.secretKey": "secret_access_key",
    "fs.s3a.secret.key": "secret_access_key",
    "fs.s3.accessKeySecret": "secret_access_key",
    "fs.s3a.session.token": "session_token",
    "fs.s3a.path.style.access": "path_style",
    "alluxio.underfs.s3.disable.dns.buckets": "path_style",
}
_OSS = {
    "fs.oss.endpoint": "endpoint",
    "fs.oss.accessKeyId": "key",
    "fs.oss.accessKeySecret": "secret",
    "fs.oss.securityToken": "token",
}
_GS = {"fs.gcs.credential.path": "application_credentials"}

TABLES: dict[str, Mapping[str, str]] = {"s3": _S3, "oss": _OSS, "gs": _GS}
"""Scheme -> name that an engine has -> ours."""

_PLAIN_HTTP = ("fs.s3a.connection.ssl.enabled", "alluxio.underfs.s3.secure.http.enabled")


def our_options(scheme: str, options: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Options by our names, and the names of those that have no meaning here.

    Args:
        scheme: of the source, normalised.
        options: as in a manifest. Ours win over an engine's for the same thing.
    """
    table = TABLES.get(scheme, {})
    known_by_name = scheme in ALLOWED_OPTIONS
    ours: dict[str, str] = {}
    left_out: list[str] = []
    for name, value in options.items():
        if name in table:
            ours.setdefault(table[name], value)
        elif name in _PLAIN_HTTP:
            continue
        elif "." in name and known_by_name:
            left_out.append(name)
        else:
            ours[name] = value
    endpoint = ours.get("endpoint", "")
    if endpoint and "://" not in endpoint and any(options.get(name) == "false" for name in _PLAIN_HTTP):
        ours["endpoint"] = f"http://{endpoint}"
    return ours, left_out
