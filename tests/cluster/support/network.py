"""Hosts on one switch, in namespaces that end with the test run, however that ends.

Nothing of it is in the machine's own network: the bridge and its ends of the links are in the namespace of a host that
does nothing else. So runs side by side do not see one another, and there is no name to choose.
"""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from fuse_mounts import mounts_below
from host import INTERFACE, Host

_SUBNET = "10.77.0"
_FIRST_RULE = 10
"""Preference of the routing rule against the first host; the local table comes behind all of them."""
_LOCAL_RULE = 1000
_SWITCH = "switch"


class Unsupported(Exception):
    """The kernel cannot do what was asked."""


def unavailable() -> str:
    """Why there can be no hosts here, in a few words; '' if there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse, for the mounts of hosts"
    made = "ip link add br0 type bridge && ip link add p0 type veth peer name p1"
    try:
        tried = subprocess.run(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", made],
            capture_output=True, text=True,
        )  # fmt: skip
    except FileNotFoundError:
        return "needs unshare: apt-get install util-linux"
    if tried.returncode == 127:
        return "needs ip: apt-get install iproute2"
    return f"no network namespace with bridge and veth: {tried.stderr.strip()}" if tried.returncode else ""


class Network:
    """A switch with hosts.

    Resources: `close` ends all hosts and removes their files; `leftovers` tells what is there nevertheless.
    """

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: empty; its path short, see `Host`.
        """
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        self._names = folder / "hosts"
        self._names.write_text("127.0.0.1 localhost\n")
        self._partitions: set[tuple[str, str]] = set()
        self._services: dict[str, tuple[str, ...]] = {}
        self._switch = Host(_SWITCH, "", folder / _SWITCH, self._names)
        self._switch.boot()
        self._link(self._switch, ["link add br0 type bridge", "link set br0 up"])

    def host(self, name: str) -> Host:
        """A new host, on. All others know it by its name."""
        assert name not in self.hosts, f"there is a host {name}"
        host = Host(name, f"{_SUBNET}.{len(self.hosts) + 1}", self.folder / name, self._names)
        self.hosts[name] = host
        self._write_names()
        self.boot(host)
        return host

    def boot(self, host: Host) -> None:
        """Switch a host on again. Partitions outlast it."""
        host.boot()
        port = _port(host)
        self._switch.run("ip", "link", "delete", port, code=None)  # of a host that the kernel has not cleared away yet
        peer = f"peer name {INTERFACE} address {_hardware(host)} netns {host.pid}"
        self._link(self._switch, [f"link add {port} type veth {peer}", f"link set {port} master br0 up"])
        self._link(host, [
            "link set lo up",
            f"address add {host.address}/24 dev {INTERFACE}",
            f"link set {INTERFACE} up",
            # Rules that drop must come before the table of local addresses, which has preference 0.
            f"rule add pref {_LOCAL_RULE} lookup local",
            "rule del pref 0 lookup local",
        ])  # fmt: skip
        for other in self.hosts.values():
            if other.pid and other is not host:
                self._link(host, [_neighbour(other)])
                self._link(other, [_neighbour(host)])
        # Else what comes for a known socket is not looked up in the rules.
        host.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_early_demux")
        for source, target in self._partitions:
            if target == host.name:
                self._drop(self.hosts[source], host)

    def service(self, name: str, hosts: Iterable[Host]) -> None:
        """Give several hosts one name, as DNS does; replaces what was said of that name before."""
        self._services[name] = tuple(host.address for host in hosts)
        self._write_names()

    # Faults

    def partition(self, sources: Iterable[Host], targets: Iterable[Host]) -> None:
        """From now on, nothing that a source sends reaches a target; the other way is open.

        The targets drop it as it comes in: no error tells the sender, as with a cable or firewall that swallows.
        """
        targets = list(targets)
        for source in sources:
            for target in targets:
                if source is not target and (source.name, target.name) not in self._partitions:
                    self._partitions.add((source.name, target.name))
                    self._drop(source, target)

    def isolate(self, host: Host) -> None:
        """Nothing reaches the host or comes from it."""
        self.partition([host], self.hosts.values())
        self.partition(self.hosts.values(), [host])

    def heal(self) -> None:
        """End all partitions."""
        for source, target in self._partitions:
            host = self.hosts[target]
            if host.pid:
                self._link(host, [f"rule del pref {self._preference(self.hosts[source])}"])
        self._partitions.clear()

    def limit(self, host: Host, bytes_per_s: int) -> None:
        """What the host sends, and what is sent to it, goes no faster than that each."""
        bits, burst = bytes_per_s * 8, max(bytes_per_s // 100, 64 << 10)
        self._shape(host, f"tbf rate {bits}bit burst {burst} latency 200ms")

    def delay(self, host: Host, seconds: float) -> None:
        """Each packet from or to the host takes that much longer.

        Raises:
            Unsupported: the kernel has no netem.
        """
        self._shape(host, f"netem delay {round(seconds * 1e6)}us limit 100000")

    def _shape(self, host: Host, discipline: str) -> None:
        for where, device in ((host, INTERFACE), (self._switch, _port(host))):
            done = where.run("tc", "qdisc", "replace", "dev", device, "root", *discipline.split(), code=None)
            if "qdisc kind is unknown" in done.err:
                raise Unsupported(f"this kernel has no {discipline.split()[0]}")
            assert done.code == 0, done

    def _drop(self, source: Host, target: Host) -> None:
        rule = f"rule add pref {self._preference(source)} from {source.address} iif {INTERFACE} blackhole"
        self._link(target, [rule])

    def _preference(self, source: Host) -> int:
        return _FIRST_RULE + list(self.hosts).index(source.name)

    # The end

    def close(self) -> None:
        """End all hosts and remove the folder."""
        for host in (*self.hosts.values(), self._switch):
            host.pull_plug()
        for host in (*self.hosts.values(), self._switch):
            host.power_off()
        for host in (*self.hosts.values(), self._switch):
            host.erase()
        self._names.unlink(missing_ok=True)
        self.folder.rmdir()

    def leftovers(self) -> list[str]:
        """What there should not be after `close`: processes, namespaces, mounts, files."""
        found = [line for host in (*self.hosts.values(), self._switch) for line in host.leftovers()]
        found += [f"mounted: {line}" for line in mounts_below(self.folder)]
        if self.folder.exists():
            found += [f"file: {path}" for path in self.folder.rglob("*")]
        return found

    def _link(self, host: Host, lines: list[str]) -> None:
        # Into the network only: the numbers of processes and the program itself are the machine's.
        done = subprocess.run(
            ["nsenter", f"--target={host.pid}", "--net", "--", "ip", "-batch", "-"],
            input="\n".join(lines), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{host.name}: {lines}: {done.stderr}"

    def _write_names(self) -> None:
        """In place, for hosts show this very file."""
        lines = ["127.0.0.1 localhost"]
        lines += [f"{host.address} {host.name}" for host in self.hosts.values()]
        lines += [f"{address} {name}" for name, found in self._services.items() for address in found]
        self._names.write_text("\n".join(lines) + "\n")


def _port(host: Host) -> str:
    """The switch's end of a host's link; at most 15 characters."""
    return f"p-{host.address}"


def _hardware(host: Host) -> str:
    """An Ethernet address."""
    return f"02:00:00:00:00:{int(host.address.rpartition('.')[2]):02x}"


def _neighbour(host: Host) -> str:
    """Makes it known without ARP, which a partition would cut, and that the sender would notice."""
    return f"neighbour replace {host.address} lladdr {_hardware(host)} dev {INTERFACE} nud permanent"
