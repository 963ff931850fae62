"""The demo's second half: three workers share a bucket, and a fourth machine reads it through them.

All four are on this machine, each with a cache of its own, and talk over loopback in plain text.
"""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.bench.endpoint import Endpoint
from forebay.bench.node import CommandFailed, Node

WORKERS = 3
_NAME = "shared"
_READY_S = 30.0
_END_S = 20.0
_TIER = "SSD:{}:4GiB"


@dataclass(frozen=True)
class Shared:
    """What the workers say when all has been read."""

    gets: int
    fetched_bytes: int
    """From the bucket, by all of them together."""
    held_bytes: list[int]
    """Of each."""


@contextmanager
def workers(folder: Path, endpoint: Endpoint, dataset: str, environ: Mapping[str, str]) -> Iterator[list[str]]:
    """Three workers that know each other and the bucket; their addresses.

    Raises:
        CommandFailed: one does not come up.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(WORKERS)]
    addresses = [f"127.0.0.1:{found.getsockname()[1]}" for found in sockets]
    for found in sockets:
        found.close()
    with ExitStack() as stack:
        for number, address in enumerate(addresses):
            own = folder / f"worker-{number}"
            own.mkdir(parents=True)
            manifest = own / "dataset.yaml"
            manifest.write_text(json.dumps(_manifest(endpoint, dataset)))  # JSON is YAML
            variables = dict(environ) | {
                "FOREBAY_CACHE_DIR": str(own / "cache"), "FOREBAY_RUNTIME_DIR": str(own / "run"),
                "FOREBAY_STATE_DIR": str(own / "state"),
            }  # fmt: skip
            forebay = [sys.executable, "-m", "forebay.cli.main"]
            subprocess.run(
                [*forebay, "apply", "-f", str(manifest)], check=True, env=variables, stdout=subprocess.DEVNULL
            )
            words = [
                "worker", "--listen", address, "--insecure", "--peers", f"static:{','.join(addresses)}",
                "--tier", _TIER.format(own / "tier"),
            ]  # fmt: skip
            stack.enter_context(_running([*forebay, *words], variables, own / "output"))
        yield addresses


@contextmanager
def _running(command: list[str], environ: Mapping[str, str], output: Path) -> Iterator[None]:
    with output.open("w") as written:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT, env=dict(environ),
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _READY_S
        while "is known to the worker" not in output.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise CommandFailed(f"forebay worker: {output.read_text().strip()}")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _manifest(endpoint: Endpoint, dataset: str) -> dict[str, Any]:
    options = dict(option.split("=", 1) for option in endpoint.options())
    mount = {"mountPoint": endpoint.source(dataset), "path": "/", "options": options}
    return {
        "apiVersion": "data.forebay.io/v1alpha1", "kind": "Dataset", "metadata": {"name": _NAME},
        "spec": {"mounts": [mount]},
    }  # fmt: skip


def mount(node: Node, addresses: list[str]) -> Path:
    """Mount the bucket on a machine that knows the workers only."""
    return node.mount(
        "shared", _NAME, [], "--worker", ",".join(addresses), "--insecure", "--tier", _TIER.format(node.folder / "tier")
    )


def summary(node: Node) -> Shared:
    """What the workers hold and have fetched."""
    members = node.status()["cluster"]
    return Shared(
        sum(member["gets"] for member in members),
        sum(member["fetched_bytes"] for member in members),
        [sum(held["bytes"] for held in member["datasets"]) for member in members],
    )


def client_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Of a machine that has no keys of the bucket."""
    return {name: value for name, value in environ.items() if not name.startswith("AWS_")}
