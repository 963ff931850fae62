"""The cluster under faults: no failed read, no wrong byte, and no more GETs than what was lost explains."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from chaos import gets, gets_per_block
from chaos_proxy import Rule
from cluster import DATA_PORT, DATASET, PORT
from epoch import Epoch
from forebay_command import wait_until
from named_files import FileSet, size_of
from network import Network
from tasks import Conversation
from trial import Stage, Trial

pytestmark = [pytest.mark.slow]

PROXY = Path(__file__).parent / "support/flip_proxy.py"
MIB = 1 << 20
SHORT = [FileSet(150, (4 * MIB,), seed) for seed in range(8)]
FLIP_EVERY = 64 << 10


def _trial(
    network: Network,
    clock_library: Path | None,
    sets: list[FileSet],
    clients: int,
    latency_s: float = 0.1,
    **more: Any,
) -> Trial:
    trial = Trial(network, clock_library, sets, clients, latency_s, **more)
    for host in network.hosts.values():
        host.forebay.expect_log(".")  # of faults that are made there is much to say
    return trial


@pytest.fixture(scope="module")
def short(shared_network: Network, clock_library: Path) -> Trial:
    """With two clients, and some hundred files for each epoch."""
    return _trial(shared_network, clock_library, SHORT, 2)


def test_each_block_leaves_the_store_once(short: Trial) -> None:
    """Two nodes read all of it at once, in different orders."""
    assert short.read("no fault", short.sets.pop(0), 0, 90) == 1


@pytest.mark.parametrize("fault", ["kill -9", "SIGSTOP", "requests lost", "power off"])
def test_an_epoch_goes_on(short: Trial, fault: str) -> None:
    """No failed read, no wrong byte, and hardly a block that is fetched again. Then all is as before."""
    short.epoch(1, short.stages()[fault], 90)
    short.converge()


@pytest.mark.soak
def test_a_store_in_trouble(short: Trial) -> None:
    """One request of three meets with something; the readers know nothing of it."""
    troubles = [
        Rule(instead="503", probability=0.1, seed=1),
        Rule(instead="reset", probability=0.05, seed=2),
        Rule(body="half", probability=0.05, seed=3),
        Rule(body="length", amount=-1, probability=0.05, seed=4),
        Rule(body="length", amount=1, probability=0.05, seed=5),
        Rule(rate=500_000, probability=0.05, seed=6),
    ]
    numbers = [short.store.chaos.add(rule) for rule in troubles]
    short.read("a store in trouble", short.sets.pop(0), 3, 300)
    struck = [short.store.chaos.remove(number) for number in numbers]
    assert all(struck), struck


def test_bits_that_rot_on_a_peer_reach_nobody(short: Trial) -> None:
    """A bit of each 2 KiB that the members hold is wrong: a client that has nothing yet reads all rightly."""
    files = short.sets.pop(0)
    short.read("no fault", files, 2, 90)
    for member in short.cluster.members:
        disk = member.outside(member.folder / "disk")
        for path in (*disk.glob("**/files/*/*"), *disk.glob("**/packs/*")):
            before = path.stat()
            data = bytearray(path.read_bytes())
            data[::2048] = bytes(byte ^ 1 for byte in data[::2048])
            with path.open("r+b") as file:  # the file that is there, not a new one
                file.write(data)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    mark = short.store.chaos.mark()
    fresh = short.cluster.client()
    reports = Epoch(files, [(fresh, short.cluster.mounts[fresh.name])], order=2).results(90)
    short.judge("rotten bits", files, mark, reports, len(files.names), 0.5)
    damaged = [member.forebay.status()["health"]["damaged_blocks"] for member in short.cluster.members]
    assert all(damaged), damaged


def test_bits_that_flip_on_the_way_reach_nobody(short: Trial) -> None:
    """Between the others and one member is a proxy that flips a bit now and then of the bytes that it serves."""
    cluster, network = short.cluster, short.network
    member, front = cluster.members[3], network.host("front")
    member.power_off()
    network.boot(member)
    proxies = {}
    for port, every in ((PORT, 0), (DATA_PORT, FLIP_EVERY)):
        upstream = f"{member.address}:{port}"
        proxies[port] = Conversation(
            PROXY, f"{front.address}:{port}", upstream, str(every),
            root=network.folder, timeout_s=30, enter=front.enter(),
        )  # fmt: skip
        proxies[port].ask()
    cluster.start(member, front)
    cluster.wait_serving(member)
    fresh = cluster.client()
    fresh.forebay.expect_log("sent wrong bytes")
    files, mark = short.sets.pop(0), short.store.chaos.mark()
    reports = Epoch(files, [(fresh, cluster.mounts[fresh.name])], order=1).results(90)
    found = short.judge("flipped bits", files, mark, reports, len(files.names))
    assert found < 1.5
    flipped = {port: proxy.ask() for port, proxy in proxies.items()}
    wrong = cluster.metric(fresh, "forebay_peer_wrong_replies_total")
    print(f"{flipped} bits flipped, {wrong:g} wrong replies")
    assert not flipped[PORT]
    assert 0 < wrong <= flipped[DATA_PORT]


@pytest.mark.soak
def test_a_member_comes_and_another_leaves(network: Network) -> None:
    """Each in the middle of an epoch; what was read never leaves the store again. Then a warm-up brings the rest."""
    first, second, rest = sets = [FileSet(150, (4 * MIB,), seed) for seed in range(3)]
    trial = _trial(network, None, list(sets), 2, members=3)
    cluster = trial.cluster

    def held(what: str = "bytes") -> dict[str, int]:
        return {name: sum(one[what] for one in row["datasets"]) for name, row in cluster.report().items()}

    trial.epoch(1, Stage("a member comes", cluster.join, lambda: None, 0.1), 90)
    share = len(first.names) / 8  # a quarter is expected
    wait_until(lambda: held("files")["w4"] >= share, "a share for who came", 60)
    trial.read_again("after one came", first, 90)

    leaves = cluster.members[1]
    address = f"{leaves.address}:{PORT}"
    draining = []

    def drain() -> None:
        draining.append(cluster.members[0].forebay.start("drain", address, *cluster.security(leaves), "--json"))

    trial.epoch(2, Stage("drain", drain, lambda: None, 0.1), 90)
    out, err = draining[0].communicate(timeout=60)
    assert draining[0].returncode == 0, err
    last = json.loads(out.splitlines()[-1])
    assert (last["finished"], last["lost_bytes"]) == (True, 0)
    assert cluster.report()["w2"]["state"] == "draining"
    leaves.power_off()
    for files in (first, second):
        trial.read_again("after one left", files, 90)
    assert cluster.report()["w2"]["state"] == "away"

    before, mark = held(), trial.store.chaos.mark()
    mounted = cluster.members[0].forebay.run("warmup", f"dataset://{DATASET}", "--glob", "*/2*/**", "--json")
    print(mounted.out.splitlines()[-1])
    counted = gets_per_block(gets(trial.store.chaos.seen(mark), trial.store.path), MIB, trial.store.sizes)
    assert len(counted) == counted.total() == trial.blocks(rest)
    grown = {name: size - before[name] for name, size in held().items() if name != "w2"}
    assert sum(grown.values()) == sum(map(size_of, rest.names))
    assert all(grown.values()), grown
    trial.read_again("what was warmed up", rest, 90)


def test_certificates_are_replaced_while_an_epoch_runs(network: Network) -> None:
    """All parties know one another by certificates, and clients show tokens; a member is killed meanwhile, too."""
    files = FileSet(300, (8 * MIB,))
    trial = _trial(network, None, [files], 2, members=3, tls=True)
    cluster = trial.cluster

    def replace() -> None:
        for host in (*cluster.members, *cluster.clients):
            cluster.issue(host)
        cluster.members[0].kill(cluster.worker(cluster.members[0]))

    def serves() -> None:
        """The one that was killed takes part again."""
        cluster.worker(cluster.members[0])
        wait_until(lambda: cluster.members[0].forebay.status()["cluster"], "its report", 60)

    trial.epoch(1, Stage("other certificates", replace, serves, 0.25), 120)
    trial.converge()
    client = cluster.clients[0]
    (client.folder / "tls/token").unlink()
    denied = client.forebay.run(
        "mount", DATASET, client.forebay.mount_point(), "--worker", f"{cluster.members[0].address}:{PORT}",
        *cluster.security(client), code=None,
    )  # fmt: skip
    assert denied.code != 0
    assert "token" in denied.err


@pytest.mark.soak
def test_an_epoch_through_each_fault(network: Network, clock_library: Path) -> None:
    """Those that take long as well."""
    trial = _trial(network, clock_library, [FileSet(1000, (70 * MIB,), n) for n in range(10)], 3)
    for n, stage in enumerate(trial.stages().values()):
        trial.epoch(n, stage, 300)
        trial.converge()


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, None])
def test_random_faults(network: Network, clock_library: Path, seed: int | None) -> None:
    """Eight readers share 20,000 files, and one random fault comes after the other for as long as they read."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    print(f"seed {seed}")
    rng = random.Random(seed)
    files = FileSet(20_000, (70 * MIB,) * 3, 0)
    trial = _trial(network, clock_library, [files], 8, 0.01)
    stages = list(trial.stages().values())
    epoch = Epoch(files, trial.cluster.places, order=seed, epochs=2, shared=True)
    faults = 0
    while epoch.done < 0.98:
        stage = rng.choice(stages)
        print(f"{epoch.done:.1%}: {stage.name}", flush=True)
        stage.begin()
        time.sleep(rng.uniform(0.5, 10))
        stage.end()
        time.sleep(rng.uniform(0, 3))
        faults += 1
    found = trial.judge("random faults", files, 0, epoch.results(1800), 2 * len(files.names))
    assert found <= 1 + 0.25 * faults
    trial.converge()
