"""The product on hosts: members that serve one dataset of the store, and client nodes that mount it."""

import json
import shutil
import sys
from pathlib import Path

from forebay_command import wait_until
from host import Host
from network import Network
from store import Store

PORT = 7070
DATASET = "data"
_WORKER = "forebay.cacheruntime.worker"
_READY_S = 60.0


class Cluster:
    """Members named w1, w2..., and client nodes named c1, c2..., all of them hosts of one network.

    Resources: they end with the network.
    """

    def __init__(
        self, network: Network, store: Store, members: int, tier_bytes: int, clock_library: Path | None = None
    ) -> None:
        """
        Args:
            members: how many.
            tier_bytes: of each, on a disk that is somewhat larger.
            clock_library: to have the clocks of members jump, see `Host.preload_clock`.
        """
        self._network, self._store, self._tier_bytes = network, store, tier_bytes
        self.members: list[Host] = []
        self.clients: list[Host] = []
        self.mounts: dict[str, Path] = {}
        """A client's name -> where the dataset is mounted."""
        self._peers = ",".join(f"w{n + 1}:{PORT}" for n in range(members))
        for n in range(members):
            host = network.host(f"w{n + 1}")
            host.disk("disk", tier_bytes + tier_bytes // 4)
            # Only members have the keys, and only in their environment.
            host.forebay.environ |= {"STORE_KEYS_ID": "key", "STORE_KEYS_SECRET": "secret"}
            if clock_library:
                host.preload_clock(clock_library)
            if self.members:
                shutil.copytree(self.members[0].forebay.state_dir, host.forebay.state_dir)
            else:
                self._apply(host)
            self.members.append(host)
            self.start(host)
        for host in self.members:
            self.wait_serving(host)

    def start(self, host: Host) -> None:
        """Start `forebay worker` on a member."""
        tier = f"SSD:{host.folder / 'disk'}:{self._tier_bytes}"
        command = [
            sys.executable, "-m", "forebay.cli.main", "worker", "--listen", f"{host.name}:{PORT}",
            "--peers", f"static:{self._peers}", "--tier", tier, "--insecure",
        ]  # fmt: skip
        with self._log(host).open("w") as log:
            host.start(*command, stdout=log, stderr=log)

    def wait_serving(self, host: Host) -> None:
        """Until a member that was started knows the dataset."""
        wait_until(lambda: "is known to the worker" in self._log(host).read_text(), f"{host.name} to serve", _READY_S)

    def worker(self, host: Host) -> int:
        """The process that serves on a host, as the machine calls it; waits until there is one."""
        return int(next(iter(wait_until(lambda: host.processes(_WORKER), f"a worker on {host.name}", _READY_S))))

    def client(self) -> Host:
        """A new client node, with the dataset mounted."""
        host = self._network.host(f"c{len(self.clients) + 1}")
        self.clients.append(host)
        self.mounts[host.name] = host.forebay.mount(DATASET, "--worker", self._peers, "--insecure")
        return host

    @property
    def places(self) -> list[tuple[Host, Path]]:
        """For `Epoch`: a reader on each client."""
        return [(host, self.mounts[host.name]) for host in self.clients]

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
