"""The product on hosts: members that serve one dataset of the store, and client nodes that mount it."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from forebay_command import wait_until
from host import Host
from network import Network
from store import Store

PORT, DATA_PORT = 7070, 7071
DATASET = "data"
_SERVICE = "cluster.svc"
_METRICS = "127.0.0.1:9100"
_WORKER = "forebay.cacheruntime.worker"
_READY_S = 60.0


class Cluster:
    """Members named w1, w2..., and client nodes named c1, c2..., all of them hosts of one network.

    Resources: they end with the network.
    """

    def __init__(
        self,
        network: Network,
        store: Store,
        members: int,
        tier_bytes: int,
        clock_library: Path | None = None,
        *,
        tls: bool = False,
    ) -> None:
        """
        Args:
            members: how many.
            tier_bytes: of each, on a disk that is somewhat larger.
            clock_library: to have the clocks of members jump, see `Host.preload_clock`.
            tls: with certificates of an authority on the first member, and tokens; else in plain text.
        """
        self._network, self._store, self._tier_bytes, self._tls = network, store, tier_bytes, tls
        self._clock_library = clock_library
        self._fronts: dict[str, Host] = {}
        self.members: list[Host] = []
        self.clients: list[Host] = []
        self.mounts: dict[str, Path] = {}
        """A client's name -> where the dataset is mounted."""
        for _ in range(members):
            self.join()
        for host in self.members:
            self.wait_serving(host)

    def join(self) -> Host:
        """Start another member; `wait_serving` waits for it."""
        host = self._network.host(f"w{len(self.members) + 1}")
        host.disk("disk", self._tier_bytes + self._tier_bytes // 4)
        # Only members have the keys, and only in their environment.
        host.forebay.environ |= {"STORE_KEYS_ID": "key", "STORE_KEYS_SECRET": "secret"}
        if self._clock_library:
            host.preload_clock(self._clock_library)
        if self.members:
            shutil.copytree(self.members[0].forebay.state_dir, host.forebay.state_dir)
        else:
            self._apply(host)
        self.members.append(host)
        if self._tls:
            if len(self.members) == 1:
                host.forebay.run("certs", "init", self._authority)
            self.issue(host)
        self.start(host)
        self._name()
        return host

    def start(self, host: Host, front: Host | None = None) -> None:
        """Start `forebay worker` on a member.

        Args:
            host: which.
            front: others reach it by that host's address, and at `DATA_PORT` for bytes.
        """
        tier = f"SSD:{host.folder / 'disk'}:{self._tier_bytes}"
        command = [
            sys.executable, "-m", "forebay.cli.main", "worker", "--listen", f"{host.address}:{PORT}",
            "--peers", f"dns:{_SERVICE}:{PORT}", "--tier", tier, *self.security(host),
        ]  # fmt: skip
        if front is not None:
            self._fronts[host.name] = front
            self._name()
            command += ["--advertise", f"{front.address}:{PORT}", "--data-port", f"{DATA_PORT}"]
        with self._log(host).open("w") as log:
            host.start(*command, stdout=log, stderr=log)

    def _name(self) -> None:
        """Have the cluster's name say who is in it."""
        self._network.service(_SERVICE, [self._fronts.get(host.name, host) for host in self.members])

    def wait_serving(self, host: Host) -> None:
        """Until a member that was started knows the dataset."""
        wait_until(lambda: "is known to the worker" in self._log(host).read_text(), f"{host.name} to serve", _READY_S)

    def worker(self, host: Host) -> int:
        """The process that serves on a host, as the machine calls it; waits until there is one."""
        return int(next(iter(wait_until(lambda: host.processes(_WORKER), f"a worker on {host.name}", _READY_S))))

    def client(self) -> Host:
        """A new client node, with the dataset mounted, that was told of two members."""
        host = self._network.host(f"c{len(self.clients) + 1}")
        self.clients.append(host)
        if self._tls:
            self.issue(host)
        host.forebay.cache_dir.mkdir()
        (host.forebay.cache_dir / "metrics").write_text(_METRICS)
        told = ",".join(f"{member.address}:{PORT}" for member in self.members[:2])
        self.mounts[host.name] = host.forebay.mount(DATASET, "--worker", told, *self.security(host))
        return host

    @property
    def places(self) -> list[tuple[Host, Path]]:
        """For `Epoch`: a reader on each client."""
        return [(host, self.mounts[host.name]) for host in self.clients]

    def metric(self, client: Host, name: str) -> float:
        """What a client's worker counts under a name, of all peers together."""
        fetch = f"import urllib.request as r; print(r.urlopen('http://{_METRICS}/metrics').read().decode())"
        lines = client.run(sys.executable, "-c", fetch).out.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def report(self) -> dict[str, Any]:
        """Name of a member -> what `forebay status` on the first one says of it."""
        told = {row["address"].rpartition(":")[0]: row for row in self.members[0].forebay.status()["cluster"]}
        return {host.name: told[self._fronts.get(host.name, host).address] for host in self.members}

    # Security

    def security(self, host: Host) -> tuple[str, ...]:
        """Options of commands on a host."""
        return ("--tls", str(host.folder / "tls")) if self._tls else ("--insecure",)

    def issue(self, host: Host) -> None:
        """Give a host a certificate, a new one if it has one; to a client, a token as well."""
        role = "--worker" if host in self.members else "--client"
        run = self.members[0].forebay.run
        run("certs", "issue", self._authority, host.name, role, "--out", host.folder / "tls", "--force")
        if role == "--client":
            grants = ("--dataset", DATASET, "--verb", "read", "--verb", "list", "--client", host.name)
            run("token", "create", "--ca", self._authority, *grants, "--out", host.folder / "tls/token", "--force")

    @property
    def _authority(self) -> Path:
        return self.members[0].folder / "ca"

    def _apply(self, host: Host) -> None:
        secrets = [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": "store-keys", "key": key}}}
            for name, key in (("aws.accessKeyId", "id"), ("aws.secretKey", "secret"))
        ]
        mount = {
            "mountPoint": self._store.source, "name": DATASET, "path": "/", "encryptOptions": secrets,
            "options": {"alluxio.underfs.s3.endpoint": self._store.url, "alluxio.underfs.s3.region": "us-east-1"},
        }  # fmt: skip
        manifest = {
            "apiVersion": "data.forebay.io/v1alpha1", "kind": "Dataset", "metadata": {"name": DATASET},
            "spec": {"mounts": [mount]},
        }  # fmt: skip
        file = host.folder / "dataset.yaml"
        file.write_text(json.dumps(manifest))
        host.forebay.run("apply", "-f", file)

    def _log(self, host: Host) -> Path:
        return host.folder / "forebay-worker.log"
