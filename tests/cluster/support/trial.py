"""A cluster that goes from epoch to epoch and from fault to fault."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos import gets, gets_per_block
from chaos_proxy import Rule
from cluster import Cluster
from epoch import Epoch, Report
from named_files import FileSet, size_of
from network import Network
from store import Store

MIB = 1 << 20
_PROBES = 20
_CONVERGED_S = 90.0
"""Longer than a member that was in trouble is left alone."""


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
        self,
        network: Network,
        clock_library: Path | None,
        sets: list[FileSet],
        clients: int,
        latency_s: float,
        *,
        members: int = 4,
        tls: bool = False,
    ) -> None:
        self.network = network
        self.store = Store(network.host("store"))
        self.sets, self._probes = list(sets), [FileSet(40, (), 1000 + n) for n in range(_PROBES)]
        for files in (*sets, *self._probes):
            self.store.fill(files)
        self.store.chaos.add(Rule(latency_s=latency_s))
        self.cluster = Cluster(network, self.store, members, 512 * MIB, clock_library, tls=tls)
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

    def read_again(self, name: str, files: FileSet, timeout_s: float) -> None:
        """Have a client that has nothing yet read files of which the members have all; no GET may come of it."""
        mark, fresh = self.store.chaos.mark(), self.cluster.client()
        reports = Epoch(files, [(fresh, self.cluster.mounts[fresh.name])], order=0).results(timeout_s)
        found = self.judge(name, files, mark, reports, len(files.names), 0.0)
        assert not found, f"{name}: GETs of what the members had"

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
        found = counted.total() / max(len(counted), 1)
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
