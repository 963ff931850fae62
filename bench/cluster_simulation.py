"""What a cluster of a thousand workers and ten thousand clients does, by the decisions that real nodes make.

    python -m forebay.bench.cluster_simulation --seed 7

Prints one line for each figure with the bound that it has to keep, and ends with 1 if one does not. The same seed gives
the same figures. See `cluster_model.py` for what is modelled.
"""

import argparse
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.table import Table

from forebay.bench.cluster_model import BLOCK_BYTES, HEADER_S, Block, Node, Tally, World
from forebay.cacheruntime.cluster.overload import SHARE_BYTES_PER_S
from forebay.cacheruntime.cluster.placement import SLICE_BYTES, Member, Placement, WorkerId
from forebay.cacheruntime.cluster.routing import UNSETTLED_S
from forebay.cacheruntime.keys import ContentId

BALANCE = 1.15
"""Fullest worker over the mean."""

HEDGED = 0.05


@dataclass(frozen=True)
class Scale:
    """How large a cluster, and how much it reads."""

    workers: int = 1000
    clients: int = 10_000
    reads_per_s: float = 2_500.0
    hot_reads_per_s: float = 10_000.0
    """Of one file: ten times what a worker can send."""
    files: int = 2_000
    """Of one block each, that are cached at the begin."""
    slices_each: int = 1000
    """Placed on each worker: some 55 GiB. The fullest of a thousand has 1.11 of the mean then (`placement.py`)."""


@dataclass(frozen=True)
class Figure:
    """A line of the table."""

    what: str
    value: float
    bound: float
    """It may not be above this."""
    shown: str = "{:.3f}"
    remark: str = ""

    @property
    def holds(self) -> bool:
        return self.value <= self.bound


def placement_figures(scale: Scale, seed: int) -> Iterator[Figure]:
    """How even shares are, and what moves when workers come or leave."""
    rng = random.Random(seed)
    members = [Member(WorkerId(f"w{number}"), 1.0) for number in range(scale.workers)]
    even = Placement(members)
    pieces = list(_pieces(rng, scale.slices_each * scale.workers))
    held: Counter[WorkerId] = Counter()
    owners = []
    for content, slice_, size in pieces:
        owner = even.rank(content, slice_, 1)[0]
        owners.append(owner)
        held[owner] += size
    mean = sum(held.values()) / scale.workers
    yield Figure(
        "fullest worker over the mean, equal workers",
        max(held.values()) / mean,
        BALANCE,
        remark=f"{mean / 2**30:.0f} GiB each; emptiest {min(held.values()) / mean:.2f}",
    )

    sample = range(min(len(pieces), 60_000))
    mixed = Placement(Member(member.id, 1.0 + index % 4) for index, member in enumerate(members))
    shares: Counter[float] = Counter()
    for index in sample:
        content, slice_, _ = pieces[index]
        shares[mixed.weights[mixed.rank(content, slice_, 1)[0]]] += 1
    weights = Counter(mixed.weights.values())
    whole = sum(weight * count for weight, count in weights.items())
    yield Figure(
        "share of each size of worker, off its weight's by",
        max(abs(shares[weight] / len(sample) / (weight * count / whole) - 1) for weight, count in weights.items()),
        5 / math.sqrt(len(sample) / 10),
        remark="weights 1 to 4",
    )

    gone = set(rng.sample([member.id for member in members], max(scale.workers // 100, 1)))
    fewer = Placement(member for member in members if member.id not in gone)
    moved = wrong = lost = 0
    for index in sample:
        content, slice_, size = pieces[index]
        if fewer.rank(content, slice_, 1)[0] != owners[index]:
            moved += size
            wrong += owners[index] not in gone
        lost += size * (owners[index] in gone)
    yield Figure(f"moved when {len(gone)} of {scale.workers} leave, over what they had", moved / lost, 1.0)
    yield Figure("moved between those who stay", wrong, 0, "{:.0f}")
    came = len(gone)
    more = Placement([*members, *(Member(WorkerId(f"new{number}"), 1.0) for number in range(came))])
    gained = sum(pieces[index][2] for index in sample if more.rank(*pieces[index][:2], 1)[0] != owners[index])
    share = came / (scale.workers + came)
    yield Figure(
        f"moved when {came} come, over their share",
        gained / sum(pieces[index][2] for index in sample) / share,
        1 + 5 / math.sqrt(len(sample) * share / 2),
    )


def _pieces(rng: random.Random, count: int) -> Iterator[tuple[ContentId, int, int]]:
    """Slices of files as training has them: archives of 50 to 500 MB, checkpoints of 10 GB, images in between."""
    while count > 0:
        content = ContentId(rng.randbytes(16))
        kind = rng.random()
        size = rng.randrange(50, 500) * 10**6 if kind < 0.7 else 10**10 if kind < 0.71 else rng.randrange(10**5, 10**6)
        for slice_ in range(min(-(-size // SLICE_BYTES), count)):
            count -= 1
            yield content, slice_, min(SLICE_BYTES, size - slice_ * SLICE_BYTES)


class Cluster:
    """All nodes of one simulation, and the phases that they go through one after the other."""

    def __init__(self, scale: Scale, seed: int) -> None:
        self.scale = scale
        self.world = world = World(seed)
        self.rng = random.Random(seed + 1)
        self.files = [ContentId(self.rng.randbytes(16)) for _ in range(scale.files)]
        self.workers = [Node(world, WorkerId(f"w{number}"), has_store=True) for number in range(scale.workers)]
        self.clients = [Node(world, WorkerId(f"c{number}"), has_store=False) for number in range(scale.clients)]
        world.nodes.update((node.id, node) for node in self.workers)
        self.placement = Placement(Member(node.id, 1.0) for node in self.workers)
        for content in self.files:
            world.nodes[self.placement.rank(content, 0, 1)[0]].whole.add(content)
        self.tallies: list[Tally] = []
        self.set_view(self.placement)
        for node in (*self.workers, *self.clients):
            _warm_up(node)
        self.settle()

    def set_view(self, placement: Placement, draining: Sequence[Member] = ()) -> None:
        """All nodes hear of a change at once."""
        self.placement = placement
        for node in (*self.workers, *self.clients):
            node.router.set_view(placement, self.world.now, draining)

    def settle(self) -> None:
        """Some minutes without reads."""
        self.world.run(self.world.now + UNSETTLED_S + 60)

    def tally(self) -> Tally:
        """Count in a new one from now on."""
        self.world.tally = Tally()
        self.tallies.append(self.world.tally)
        return self.world.tally

    def few(self, share: float) -> list[Node]:
        """Some of the workers, at least one."""
        return self.rng.sample(self.workers, max(round(share * len(self.workers)), 1))

    def load(
        self,
        seconds: float,
        pick: Callable[[], Block] | None = None,
        rate: float | None = None,
        readers: Sequence[Node] | None = None,
    ) -> Tally:
        """Random clients read random blocks for a while; then all that is under way comes to an end."""
        world, rng, tally = self.world, self.rng, self.tally()
        end = world.now + seconds
        choose = pick or (lambda: Block(rng.choice(self.files), 0))
        clients = readers or self.clients

        def read() -> None:
            rng.choice(clients).read(choose())
            following = world.now + rng.expovariate(rate or self.scale.reads_per_s)
            if following < end:
                world.at(following, read)

        world.at(world.now, read)
        world.run(end)
        world.run(end + 15)
        return tally


def _warm_up(node: Node) -> None:
    """What it takes to know how long a header takes."""
    for _ in range(100):
        node.hedger.begin()
        node.hedger.header(node.world.wire_s() + node.world.wire_s() + HEADER_S)


def cluster_figures(scale: Scale, seed: int) -> Iterator[Figure]:
    """How a cluster goes through faults and load."""
    cluster = Cluster(scale, seed)
    for phase in (_quiet, _cold, _slow, _stopped, _killed, _cut, _flapping, hot_figures, _grown_and_drained):
        yield from phase(cluster)
        cluster.settle()
    hedges, asked = sum(tally.hedges for tally in cluster.tallies), sum(tally.asked for tally in cluster.tallies)
    yield Figure("all phases: hedges", hedges / asked, HEDGED, "{:.2%}", f"{hedges} of {asked}")


def _usual(name: str, tally: Tally, *, wait_s: float, hedged: float = HEDGED) -> Iterator[Figure]:
    """Figures that every phase has."""
    yield Figure(f"{name}: reads that failed", tally.failed, 0, "{:.0f}", f"of {tally.reads}")
    yield Figure(
        f"{name}: hedges",
        tally.hedges / max(tally.asked, 1),
        hedged,
        "{:.2%}",
        f"waits: p50 {tally.wait_s(0.5) * 1e3:.1f} ms, p99 {tally.wait_s(0.99) * 1e3:.0f} ms",
    )
    yield Figure(f"{name}: longest wait, s", tally.wait_s(1.0), wait_s, "{:.2f}")


def _quiet(cluster: Cluster) -> Iterator[Figure]:
    tally = cluster.load(3.0)
    yield from _usual("all well", tally, wait_s=0.5)
    yield Figure("all well: GETs, by hedges only", tally.gets, _by_hedges(tally), "{:.0f}")


def _cold(cluster: Cluster) -> Iterator[Figure]:
    blocks = [Block(ContentId(cluster.rng.randbytes(16)), 0) for _ in range(max(cluster.scale.workers // 2, 10))]
    tally = cluster.load(1.5, lambda: cluster.rng.choice(blocks))
    yield from _usual("cold files", tally, wait_s=1.0)
    read = len(cluster.world.fetched)
    yield Figure("cold files: GETs per block", tally.gets / read, 1 + _by_hedges(tally) / read)


def _slow(cluster: Cluster) -> Iterator[Figure]:
    slow = cluster.few(0.05)
    for node in slow:
        node.slowness = 100.0
    # Few clients that read much: who reads once in a while has a hedge saved for it (`hedging.py`).
    seconds = 4.0
    readers = cluster.rng.sample(cluster.clients, max(int(seconds * cluster.scale.reads_per_s / 150), 1))
    tally = cluster.load(seconds, readers=readers)
    for node in slow:
        node.slowness = 1.0
    yield from _usual("5 % slow", tally, wait_s=3.0)


def _stopped(cluster: Cluster) -> Iterator[Figure]:
    stopped, world = cluster.few(0.01), cluster.world
    begin = world.now
    for node in stopped:
        node.stopped_until = begin + 10
    tally = cluster.load(14.0)
    yield from _usual("1 % stopped for 10 s", tally, wait_s=3.0)
    yield _lost("1 % stopped", tally, stopped, cluster)
    yield _rush("1 % stopped", tally, stopped, (begin + 10, begin + 13), cluster)


def _killed(cluster: Cluster) -> Iterator[Figure]:
    killed, world = cluster.few(0.01), cluster.world
    begin = world.now
    for node in killed:
        node.kill(10.0)
    tally = cluster.load(13.0)
    yield from _usual("1 % killed for 10 s", tally, wait_s=1.0)
    yield _lost("1 % killed", tally, killed, cluster)
    yield _rush("1 % killed", tally, killed, (begin + 10, begin + 13), cluster)


def _cut(cluster: Cluster) -> Iterator[Figure]:
    away = {node.id for node in cluster.few(0.02)}
    half = {node.id for node in cluster.clients[::2]}
    cluster.world.cut = lambda source, target: source in half and target in away
    tally = cluster.load(5.0)
    cluster.world.cut = lambda source, target: False
    yield from _usual("2 % out of reach of half of the clients", tally, wait_s=3.0)
    yield Figure("out of reach: GETs, by hedges only, as others reach them", tally.gets, _by_hedges(tally), "{:.0f}")


def _flapping(cluster: Cluster) -> Iterator[Figure]:
    flapping, world = cluster.few(0.01), cluster.world
    begin = world.now
    for node in flapping:
        for turn in range(4):
            world.at(begin + 3 * turn, partial(node.kill, 1.5))
    tally = cluster.load(12.0)
    yield from _usual("1 % up and down", tally, wait_s=2.0)
    yield _rush("1 % up and down", tally, flapping, (begin, begin + 12), cluster)


def hot_figures(cluster: Cluster) -> Iterator[Figure]:
    """All clients read one slice that nobody has."""
    content, rng = ContentId(cluster.rng.randbytes(16)), cluster.rng
    begin, rate = 2.0, cluster.scale.hot_reads_per_s
    cluster.world.at(cluster.world.now + begin, cluster.tally)
    early = cluster.load(2 * begin, lambda: Block(content, rng.randrange(64)), rate)
    late = cluster.tallies[-1]
    # All begin at once, and the owner's headers are late: each client may spend the hedge that it has saved.
    saved = (len(cluster.clients) + len(cluster.workers)) / early.asked
    yield from _usual("hot slice, cold at first", early, wait_s=3.0, hedged=HEDGED + saved)
    yield Figure("hot slice: GETs per block", (early.gets + late.gets) / 64, 1 + _by_hedges(early) / 64)
    yield from _usual("hot slice, spread", late, wait_s=1.0)
    most = max(late.sent.values()) / begin
    yield Figure(
        "hot slice, spread: busiest worker over the share of one content",
        most * BLOCK_BYTES / SHARE_BYTES_PER_S,
        1.5,
        "{:.2f}",
        f"{most:.0f} of {rate:.0f} blocks/s, {len(late.sent)} workers",
    )


def _grown_and_drained(cluster: Cluster) -> Iterator[Figure]:
    world, count = cluster.world, max(cluster.scale.workers // 100, 1)
    new = [Node(world, WorkerId(f"new{number}"), has_store=True) for number in range(count)]
    for node in new:
        _warm_up(node)
    drained = {node.id for node in cluster.few(0.01)}
    world.nodes.update((node.id, node) for node in new)
    cluster.workers += new
    members = [Member(node.id, 1.0) for node in cluster.workers]
    stay = Placement(member for member in members if member.id not in drained)
    cluster.set_view(stay, [member for member in members if member.id in drained])
    tally = cluster.load(3.0)
    yield from _usual(f"{count} come and {len(drained)} drain", tally, wait_s=1.0)
    yield Figure(
        "come and drain: GETs, by hedges only, as former owners have all", tally.gets, _by_hedges(tally), "{:.0f}"
    )


def _lost(name: str, tally: Tally, some: list[Node], cluster: Cluster) -> Figure:
    """GETs of what these own, once for each block; a hedge may cost another."""
    ids = {node.id for node in some}
    owned = sum(cluster.placement.rank(content, 0, 1)[0] in ids for content in cluster.files)
    return Figure(
        f"{name}: GETs, one for each block they had", tally.gets, owned + _by_hedges(tally), "{:.0f}", f"{owned} blocks"
    )


def _by_hedges(tally: Tally) -> int:
    """GETs that hedges may cause: few of them go on to the store, as the next peer has an owner to ask."""
    return max(tally.hedges // 10, 5)


def _rush(name: str, tally: Tally, some: list[Node], span: tuple[float, float], cluster: Cluster) -> Figure:
    """The most that was sent to one of these in a tenth of a second."""
    ids = {node.id for node in some}
    first, last = int(span[0] * 10), int(span[1] * 10)
    most = max(
        (count for (id_, tenth), count in tally.bursts.items() if id_ in ids and first <= tenth < last), default=0
    )
    usual = cluster.scale.reads_per_s / 10 / cluster.scale.workers
    # The most of so many draws from a Poisson distribution, and as many again for probes and hedges.
    return Figure(
        f"{name}: most requests to one of them in 0.1 s", most, 2 * (usual + 5 * math.sqrt(usual) + 5), "{:.0f}"
    )


def figures(scale: Scale, seed: int) -> Iterator[Figure]:
    """All of them."""
    yield from placement_figures(scale, seed)
    yield from cluster_figures(scale, seed)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="forebay.bench.cluster_simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=Scale.workers)
    parser.add_argument("--clients", type=int, default=Scale.clients)
    chosen = parser.parse_args()
    scale = Scale(chosen.workers, chosen.clients, chosen.clients / 4)
    table = Table(title=f"{scale.workers} workers, {scale.clients} clients, seed {chosen.seed}", title_justify="left")
    for column, justify in (("", "left"), ("figure", "right"), ("at most", "right"), ("", "left")):
        table.add_column(column, justify="right" if justify == "right" else "left")
    began, wrong = time.monotonic(), 0
    for figure in figures(scale, chosen.seed):
        wrong += not figure.holds
        style = None if figure.holds else "bold red"
        shown = figure.shown.format
        table.add_row(figure.what, shown(figure.value), shown(figure.bound), figure.remark, style=style)
    console = Console()
    console.width = max(console.width, 150)
    console.print(table)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
