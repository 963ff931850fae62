"""The cluster under faults: no failed read, no wrong byte, and no more GETs than what was lost explains."""

import os
import random
import time
from pathlib import Path

import pytest
from chaos_proxy import Rule
from epoch import Epoch
from named_files import FileSet
from network import Network
from trial import Trial

pytestmark = [pytest.mark.slow]

MIB = 1 << 20
SHORT = [FileSet(150, (4 * MIB,), seed) for seed in range(6)]


def _trial(network: Network, clock_library: Path, sets: list[FileSet], clients: int, latency_s: float = 0.1) -> Trial:
    trial = Trial(network, clock_library, sets, clients, latency_s)
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
