"""The harness itself: hosts are apart, faults are what they are called, and nothing is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forebay_command import Forebay, alive, wait_until
from host import NAMESPACES, Host, in_namespaces
from network import Network, Unsupported
from tasks import Conversation

SUPPORT = Path(__file__).parent / "support"

pytestmark = [pytest.mark.slow]


@pytest.fixture
def talk(network: Network) -> Iterator[Callable[[Host], Conversation]]:
    """`talk.py` on a host."""
    made = []

    def start(host: Host) -> Conversation:
        made.append(Conversation(SUPPORT / "talk.py", root=network.folder, timeout_s=10, enter=host.enter()))
        assert made[-1].ask("received") == []  # it listens
        return made[-1]

    yield start
    for each in made:
        each.close()


def _hears(listener: Conversation, text: str) -> bool:
    """Whether a datagram comes; half a second is for ever on a switch in memory."""
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        if [text] == [said for _, said in listener.ask("received")]:
            return True
        time.sleep(0.01)
    return False


def test_hosts_know_each_other_by_name(network: Network) -> None:
    a, b = network.host("a"), network.host("b")
    network.service("both.svc", [a, b])
    resolve = "import socket; print({x[4][0] for x in socket.getaddrinfo('%s', 1, socket.AF_INET)})"
    assert a.run(sys.executable, "-c", resolve % "b").out == f"{{'{b.address}'}}\n"
    network.service("both.svc", [b])
    assert a.run(sys.executable, "-c", resolve % "both.svc").out == f"{{'{b.address}'}}\n"
    network.service("both.svc", [a, b])
    both = a.run(sys.executable, "-c", resolve % "both.svc").out
    assert a.address in both
    assert b.address in both


def test_a_partition_is_one_way(network: Network, talk: Callable[[Host], Conversation]) -> None:
    a, b, c = (network.host(name) for name in "abc")
    at_a, at_b, at_c = talk(a), talk(b), talk(c)
    for sender, target, heard in ((at_a, b, at_b), (at_b, a, at_a), (at_c, b, at_b)):
        sender.ask("send", target.address, "before")
        assert _hears(heard, "before")
    assert at_a.ask("connect", b.address)
    at_a.ask("write", "one ")
    wait_until(lambda: at_b.ask("read") == "one ", "the stream")

    network.partition([a], [b])

    at_a.ask("send", b.address, "lost")
    assert not _hears(at_b, "lost")
    at_b.ask("send", a.address, "open")
    assert _hears(at_a, "open")
    at_c.ask("send", b.address, "others")
    assert _hears(at_b, "others")
    at_a.ask("write", "two")
    time.sleep(0.5)
    assert at_b.ask("read") == "", "a stream that was open before has to stand still"
    assert not at_a.ask("connect", b.address)
    assert not at_b.ask("connect", a.address), "the answers are lost"

    network.heal()

    at_a.ask("send", b.address, "after")
    assert _hears(at_b, "after")
    wait_until(lambda: at_b.ask("read") == "two", "the stream goes on")


def test_an_isolated_host_hears_nobody(network: Network, talk: Callable[[Host], Conversation]) -> None:
    a, b, c = (network.host(name) for name in "abc")
    at_a, at_b, at_c = talk(a), talk(b), talk(c)
    network.isolate(a)
    network.isolate(b)
    at_a.ask("send", b.address, "1")
    at_b.ask("send", a.address, "2")
    at_c.ask("send", a.address, "3")
    assert not _hears(at_a, "2")
    assert (at_b.ask("received"), at_a.ask("received")) == ([], [])
    at_a.ask("send", a.address, "myself")
    assert _hears(at_a, "myself")
    network.heal()
    at_c.ask("send", a.address, "4")
    assert _hears(at_a, "4")


def test_a_host_dies_with_all_its_processes_and_comes_back(network: Network) -> None:
    host = network.host("a")
    other = network.host("b")
    kept = host.folder / "kept"
    kept.write_text("as on a real disk")
    disk = host.disk("disk", 1 << 20)
    host.outside(disk / "lost").touch()
    host.run("sh", "-c", "sleep 1000 & sleep 1001 &", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pids = list(host.processes("sleep"))
    assert len(pids) == 2
    network.partition([other], [host])
    host.power_off()
    assert not any(map(alive, pids))
    assert host.processes() == {}
    network.boot(host)
    assert kept.read_text() == "as on a real disk"
    assert not host.outside(disk / "lost").exists()
    echo = f"import socket; socket.create_connection(('{other.address}', 9), 0.3)"
    assert "timed out" in host.run(sys.executable, "-c", echo, code=1).err, "the partition is still there"
    network.heal()
    assert "refused" in host.run(sys.executable, "-c", echo, code=1).err


def test_frozen_processes_stand_still(network: Network) -> None:
    host = network.host("a")
    tick = "import os, time\nprint(os.getpid())\nwhile True: print(1); time.sleep(0.001)"
    ticking = host.start(sys.executable, "-uc", tick)
    assert ticking.stdout is not None
    pid = host.pid_of(ticking)
    assert host.outer(int(ticking.stdout.readline())) == pid
    os.set_blocking(ticking.stdout.fileno(), False)

    def ticks() -> int:
        try:
            return len(os.read(ticking.stdout.fileno(), 1 << 20))  # type: ignore[union-attr]
        except BlockingIOError:
            return 0

    wait_until(ticks, "the first tick")
    host.freeze(pid)
    ticks()
    time.sleep(0.1)
    assert ticks() == 0
    host.thaw(pid)
    wait_until(ticks, "the next tick")
    host.kill(pid)
    assert ticking.wait(10) == -signal.SIGKILL or ticking.returncode == 128 + signal.SIGKILL
    ticking.communicate()


def test_a_full_disk_takes_nothing(network: Network) -> None:
    host = network.host("a")
    disk = host.disk("disk", 8 << 20)
    write = ("dd", "if=/dev/zero", f"of={disk}/file", "bs=4096", "count=1")
    host.fill_disk(disk)
    assert "No space left" in host.run(*write, code=1).err
    host.empty_disk(disk)
    host.run(*write)


def test_a_hosts_mounts_are_its_own(network: Network) -> None:
    a, b = network.host("a"), network.host("b")
    a.disk("disk", 1 << 20)
    assert str(a.folder / "disk") in a.run("cat", "/proc/self/mountinfo").out
    assert str(a.folder / "disk") not in b.run("cat", "/proc/self/mountinfo").out
    assert str(a.folder / "disk") not in Path("/proc/self/mountinfo").read_text()


def test_a_host_keeps_no_mount_of_the_machine(network: Network, forebay: Forebay, tmp_path: Path) -> None:
    """A copy of it in the host's namespace would keep the mount's processes, which the fixture looks for, alive."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("1")
    mount = forebay.mount(f"file://{tmp_path}/source")
    assert "fuse.forebay" not in network.host("a").run("cat", "/proc/self/mounts").out
    assert (mount / "file").read_text() == "1", "it is left alone"


def test_a_limited_link_is_slow(network: Network, talk: Callable[[Host], Conversation]) -> None:
    a, b = network.host("a"), network.host("b")
    receive = "import socket; s = socket.create_server(('0.0.0.0', 9)); print(1, flush=True); c, _ = s.accept()\n"
    receive += "n = 0\nwhile d := c.recv(1 << 20): n += len(d)\nprint(n)"
    send = "import socket; c = socket.create_connection(('b', 9)); c.sendall(bytes(4 << 20)); c.close()"
    network.limit(a, 4 << 20)
    receiver = b.start(sys.executable, "-c", receive)
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "1\n"
    begun = time.monotonic()
    a.run(sys.executable, "-c", send)
    assert receiver.communicate(timeout=30)[0] == f"{4 << 20}\n"
    assert 0.8 < time.monotonic() - begun < 10


def test_a_delayed_link_takes_its_time(network: Network) -> None:
    a, b = network.host("a"), network.host("b")
    try:
        network.delay(a, 0.05)
    except Unsupported as why:
        pytest.skip(str(why))
    connect = "import socket, time; t = time.monotonic()\n"
    connect += f"try: socket.create_connection(('{a.address}', 9))\nexcept OSError: print(time.monotonic() - t)"
    assert float(b.run(sys.executable, "-c", connect).out) > 0.1


def test_a_clock_jumps_on_one_host(network: Network, clock_library: Path) -> None:
    """Waits take as long as ever: Python's, and gRPC's that are until a moment on the wall clock."""
    host = network.host("a")
    host.preload_clock(clock_library)
    clock = host.start(
        sys.executable, "-uc",
        """if True:
        import grpc, sys, threading, time
        call = grpc.insecure_channel("127.0.0.1:9").unary_unary("/a/b")
        held = threading.Lock()
        held.acquire()
        for _ in sys.stdin:
            begun = time.monotonic()
            held.acquire(timeout=0.1)
            try:
                call(b"", timeout=0.2, wait_for_ready=True)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            print(time.time(), time.monotonic() - begun)
        """,
        stdin=subprocess.PIPE,
    )  # fmt: skip
    assert clock.stdin is not None
    assert clock.stdout is not None
    for ahead_s in (0, 86_400, -86_400, 0.5):
        host.set_clock(ahead_s)
        asked = time.time()
        clock.stdin.write("\n")
        clock.stdin.flush()
        wall, waited = map(float, clock.stdout.readline().split())
        assert asked < wall - ahead_s < time.time(), ahead_s
        assert 0.3 <= waited < 20, ahead_s
    assert clock.communicate()[1] == ""


def test_what_is_left_is_found(namespaces: None, tmp_path: Path) -> None:
    network = Network(tmp_path)
    host = network.host("a")
    stays = subprocess.Popen(["nsenter", f"--target={host.pid}", "--net", "--", "sleep", "1000"])
    within = os.readlink(f"/proc/{host.pid}/ns/net")
    wait_until(lambda: os.readlink(f"/proc/{stays.pid}/ns/net") == within, "it to enter")
    network.close()
    try:
        assert [line.split()[:2] for line in network.leftovers()] == [["process:", str(stays.pid)]]
    finally:
        stays.kill()
        stays.wait()
    assert network.leftovers() == []
    tmp_path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "left", tmp_path], check=True)
    try:
        (tmp_path / "file").touch()
        assert [line.split()[0] for line in network.leftovers()] == ["mounted:", "file:"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert network.leftovers() == []


def test_nothing_outlives_a_killed_test_run(namespaces: None, tmp_path: Path) -> None:
    program = f"""
import sys, pathlib
sys.path[:0] = {[str(SUPPORT), str(SUPPORT.parents[1] / "mount/support")]!r}
from network import Network
network = Network(pathlib.Path({str(tmp_path)!r}))
host = network.host("a")
host.start("sleep", "1000")
print(host.pid, network._switch.pid, flush=True)
sys.stdin.read()
"""
    run = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    pids = run.stdout.readline().split()
    pins = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for pid in pids for kind in NAMESPACES]
    spaces = {os.readlink(f"/proc/self/fd/{pin}") for pin in pins}
    try:
        assert len(spaces) == 6
        assert len(list(in_namespaces(spaces))) >= 3
        run.kill()
        run.communicate()
        wait_until(lambda: not list(in_namespaces(spaces)), "the hosts to end")
    finally:
        for pin in pins:
            os.close(pin)
