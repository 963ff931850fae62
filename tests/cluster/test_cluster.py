"""The cluster under faults: no failed read, no wrong byte, and no more GETs than what was lost explains."""

import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos import gets, gets_per_block
from chaos_proxy import Rule
from cluster import Cluster
from epoch import Epoch, Report
from named_files import FileSet, size_of
from network import Network
from store import Store

pytestmark = [pytest.mark.slow]

MIB = 1 << 20
_PROBES = 20
_CONVERGED_S = 90.0
"""Longer than a member that was in trouble is left alone."""
SHORT = [FileSet(150, (4 * MIB,), seed) for seed in range(5)]


@dataclass(frozen=True)
class Stage:
    """A fault in the middle of an epoch."""

    name: str
    begin: Callable[[], object]
    end: Callable[[], object]
    lost: float
    """Which share of the blocks may come from the store a second time: what the member has, unless it is less."""


class Trial:
    """A cluster that goes from epoch to epoch, each over files that nobody has read before, and from fault to fault."""

    def __init__(
        self, network: Network, clock_library: Path, sets: list[FileSet], clients: int, latency_s: float
    ) -> None:
        self.network = network
        self.store = Store(network.host("store"))
        self.sets, self._probes = list(sets), [FileSet(40, (), 1000 + n) for n in range(_PROBES)]
        for files in (*sets, *self._probes):
            self.store.fill(files)
        self.store.chaos.add(Rule(latency_s=latency_s))
        self.cluster = Cluster(network, self.store, 4, 512 * MIB, clock_library)
        self.clients = [self.cluster.client() for _ in range(clients)]

    def converge(self) -> None:
        """Until every block leaves the store once again. Nobody helps it."""
        found = [self.read("after the fault", self._probes.pop(), 0, 60)]
        deadline = time.monotonic() + _CONVERGED_S
        while found[-1] > 1:
            assert self._probes, f"it does not converge: {found}"
            assert time.monotonic() < deadline, f"it does not converge: {found}"
            time.sleep(_CONVERGED_S / _PROBES)
            found.append(self.read("after the fault", self._probes.pop(), 0, 60))

    def read(self, name: str, files: FileSet, order: int, timeout_s: float) -> float:
        """Have all clients read some files that nobody has read yet; GETs for each block."""
        mark = self.store.chaos.mark()
        reports = Epoch(files, self.cluster.places, order=order).results(timeout_s)
        return self.judge(name, files, mark, reports, len(files.names) * len(reports))

    def epoch(self, order: int, stage: Stage, timeout_s: float) -> None:
        """Have all clients read the next set of files, with a fault from a tenth of it on and until its end."""
        files, mark = self.sets.pop(0), self.store.chaos.mark()
        epoch = Epoch(files, self.cluster.places, order=order)
        epoch.wait_done(0.1, timeout_s)
        before = len(gets(self.store.chaos.seen(mark), self.store.path))
        assert before < 0.7 * self.blocks(files), "the fault comes when there is nothing left to do"
        stage.begin()
        reports = epoch.results(timeout_s)
        stage.end()
        found = self.judge(stage.name, files, mark, reports, len(files.names) * len(reports))
        assert found <= 1 + stage.lost

    def blocks(self, files: FileSet) -> int:
        """How many blocks of the store they are."""
        return sum(max(math.ceil(size_of(name) / MIB), 1) for name in files.names)

    def judge(
        self, name: str, files: FileSet, mark: int, reports: list[Report], reads: int, share: float = 1.0
    ) -> float:
        """All has been read, and rightly; GETs for each block.

        Args:
            mark: when the epoch began, see `Chaos.mark`.
            reads: how many files there were to read.
            share: which part of the blocks has to have come from the store, at least.
        """
        assert sum(one.files for one in reports) == reads
        assert not any(one.failed or one.wrong for one in reports), reports
        ours = {self.store.path + file for file in files.names}  # of an earlier epoch, one may come late
        seen = [one for one in gets(self.store.chaos.seen(mark), self.store.path) if one.path in ours]
        counted = gets_per_block(seen, MIB, self.store.sizes)
        assert len(counted) >= share * self.blocks(files), "there was no need for them"
        found = counted.total() / len(counted)
        seconds, slowest = (max(getattr(one, what) for one in reports) for what in ("seconds", "slowest_s"))
        print(f"{name}: {found:.3f} GETs per block, {seconds:.1f} s, slowest file {slowest:.1f} s", flush=True)
        return found

    def stages(self) -> dict[str, Stage]:
        """All faults."""
        cluster, network = self.cluster, self.network
        w1, w2, w3, w4 = cluster.members
        frozen: list[int] = []

        def nothing() -> None:
            pass

        def freeze() -> None:
            frozen.append(cluster.worker(w2))
            w2.freeze(frozen[0])

        def boot() -> None:
            network.boot(w3)
            cluster.start(w3)
            cluster.wait_serving(w3)

        found = [
            Stage("kill -9", lambda: w1.kill(cluster.worker(w1)), lambda: cluster.worker(w1), 0.25),
            Stage("SIGSTOP", freeze, lambda: w2.thaw(frozen.pop()), 0.25),
            Stage("requests lost", lambda: network.partition(self.clients, [w3]), network.heal, 0.25),
            Stage("answers lost", lambda: network.partition([w3], self.clients), network.heal, 0.25),
            Stage("a member hears no other", lambda: network.partition([w1, w2, w3], [w4]), network.heal, 0.25),
            Stage("isolated", lambda: network.isolate(w4), network.heal, 0.25),
            Stage(
                "full disk", lambda: w4.fill_disk(w4.folder / "disk"), lambda: w4.empty_disk(w4.folder / "disk"), 0.5
            ),
            Stage("an hour ahead", lambda: w1.set_clock(3600), nothing, 0.02),
            Stage("a day back", lambda: w1.set_clock(-86_400), lambda: w1.set_clock(0), 0.02),
            Stage("power off", w3.power_off, boot, 0.25),
        ]
        return {stage.name: stage for stage in found}


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


@pytest.mark.parametrize("fault", ["kill -9", "requests lost", "power off"])
def test_an_epoch_goes_on(short: Trial, fault: str) -> None:
    """No failed read, no wrong byte, and hardly a block that is fetched again. Then all is as before."""
    short.epoch(1, short.stages()[fault], 90)
    short.converge()


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
