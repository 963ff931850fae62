"""A cluster made by commands: `forebay worker` on loopback ports, datasets that were applied, and client nodes.

Each node is an isolated `forebay` with folders of its own. Members alone have the keys of the store.
"""

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from forebay_command import Forebay, wait_until
from loopback import free_ports

SECRET_KEY, SECRET_VALUE = "AKTEST-members-only", "SKTEST-members-only-very-secret"
_SECRETS = {"STORE_KEYS_ID": SECRET_KEY, "STORE_KEYS_SECRET": SECRET_VALUE}

# What members and clients say of one that is gone.
_AWAY = r"listing of .* broke off|does not answer|is away|no worker|set aside|sent no token|cannot be reached"


def manifest(name: str, *mounts: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "data.forebay.io/v1alpha1", "kind": "Dataset", "metadata": {"name": name},
        "spec": {"mounts": list(mounts)},
    }  # fmt: skip


def s3_mount(source: str, endpoint: str, path: str = "/") -> dict[str, Any]:
    def secret(name: str, key: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"secretKeyRef": {"name": "store-keys", "key": key}}}

    return {
        "mountPoint": source, "path": path, "options": {"alluxio.underfs.s3.endpoint": endpoint},
        "encryptOptions": [secret("aws.accessKeyId", "id"), secret("aws.secretKey", "secret")],
    }  # fmt: skip


class Member:
    """One `forebay worker`."""

    def __init__(self, root: Path, port: int, peers: str, security: list[str]) -> None:
        self.forebay = Forebay(root)
        self.forebay.environ |= _SECRETS
        self.address = f"127.0.0.1:{port}"
        self._args = ["--listen", self.address, "--peers", peers, "--tier", f"SSD:{root}/tier:1GiB", *security]
        self.process: subprocess.Popen[str] | None = None

    def apply(self, *manifests: dict[str, Any]) -> None:
        file = self.forebay.root / "manifests.yaml"
        file.write_text("\n---\n".join(json.dumps(each) for each in manifests))
        self.forebay.run("apply", "-f", file)

    def start(self) -> None:
        self.process = self.forebay.start("worker", *self._args)

    def log(self) -> str:
        with suppress(OSError):
            return (self.forebay.cache_dir / "worker.log").read_text()
        return ""

    def kill(self) -> None:
        """Keeper and worker at once, as when a machine is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None
        for pid in self.forebay.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.forebay.processes(), "what was killed has ended")


class Cluster:
    """Members, and client nodes. `end` ends all, and says what was wrong."""

    def __init__(self, root: Path, count: int, security: list[list[str]] | None = None) -> None:
        """Args: security: options of each member; None: plain text."""
        self._root = root
        ports = free_ports(count)
        peers = "static:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        options = security or [["--insecure"]] * count
        self.members = [Member(root / f"w{n}", port, peers, options[n]) for n, port in enumerate(ports)]
        self.clients: list[Forebay] = []

    @property
    def workers(self) -> str:
        return ",".join(member.address for member in self.members)

    def start(self, *manifests: dict[str, Any]) -> None:
        """All members, with these datasets applied on each; waits until they know one another and the datasets."""
        for member in self.members:
            if manifests:
                member.apply(*manifests)
            member.start()
        text = f"the cluster has {len(self.members)} members"
        for member in self.members:
            wait_until(
                lambda member=member: len(self.members) == 1 or text in member.log(),
                f"{member.address} knows the others",
                40,
            )  # type: ignore[misc]
            for each in manifests:
                name = f"dataset://default/{each['metadata']['name']}"
                wait_until(lambda member=member, name=name: f"attached {name}" in member.log(), f"{name} is known", 40)  # type: ignore[misc]

    def client(self, *security: str) -> Forebay:
        """A node that has no key of any store, and knows the workers by its environment."""
        made = Forebay(self._root / f"x{len(self.clients)}")
        made.environ["FOREBAY_WORKER"] = self.workers
        made.environ |= {"FOREBAY_TLS": security[0]} if security else {"FOREBAY_INSECURE": "1"}
        made.expect_log(_AWAY)
        self.clients.append(made)
        return made

    def end(self) -> list[str]:
        wrong = [found for client in self.clients for found in client.end()]
        for member in self.members:
            member.kill()
            wrong += [f"{member.address}: {found}" for found in member.forebay.leftovers()]
        return wrong
