"""Workers that serve each other, all on this machine: real processes, and nothing of theirs is mounted.

Four questions: what a stream of cached data between two workers costs, how often nodes that read a new dataset together
have it leave the store, how much sooner several workers have brought one in, and how fast a node reads what another
one has. Readers are processes of `in_process`: they read the cache of their node as a training does.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from forebay.bench import peer_reads, sheet
from forebay.bench.cluster_nodes import ClusterNode, Origin, alone, client_node, cluster
from forebay.bench.crew import cpu_seconds, run_readers, share, spent
from forebay.bench.dataset import Sample, by_key, make_images, make_large, shuffled
from forebay.bench.groups import MIB, SEED, Failures, Outcome, Place, per_gib
from forebay.bench.reader import Job
from forebay.bench.sendfile_endpoint import LATENCY_S, LIMIT_BYTES_S, FolderEndpoint, Sent
from forebay.bench.sheet import GRPC, ONE_WORKER, OURS, SENDFILE, STORE, Aim, LineSpec, Reading
from forebay.cacheruntime.blocks import BLOCK_BYTES
from forebay.cacheruntime.errors import ForebayError

_NODES = 4
_READERS = 4
"""Of one node."""
_SMALL_FILES = 8
"""Of a large dataset's files, and of the nodes' cold reads, a share: `Sizes.small_files` divided by this."""

_WARM_BYTES = 8 * MIB
"""Of each file of the warm-up: one slice, so that so many as there are spread evenly."""

_STREAM = (
    LineSpec("peer-plain", "cached data from another worker, one stream, plain text", "GB/s", (Aim(0.8, (GRPC,)),)),
    LineSpec("peer-tls", "the same, TLS", "GB/s", (Aim(0.8, (GRPC,)),)),
    LineSpec("peer-grpc", "the same, plain text, by gRPC where the data port is shut", "GB/s"),
)
_STREAM_SIDES = {
    "peer-plain": {OURS: peer_reads.PORT, GRPC: peer_reads.BARE, SENDFILE: peer_reads.SENDFILE},
    "peer-tls": {OURS: peer_reads.PORT_TLS, GRPC: peer_reads.BARE_TLS},
    "peer-grpc": {OURS: peer_reads.BY_GRPC, GRPC: peer_reads.BARE},
}
"""By line: the columns, and the sides of `peer_reads` that are in them."""

_GETS, _FETCHED = "GETs a block", "bytes fetched / data"

_KINDS = {"small": "files of 100 KiB", "large": "large files"}


def _latency_words() -> str:
    return f"{LATENCY_S * 1000:g} ms added"


_LINES = (
    *_STREAM,
    *(
        LineSpec(
            f"cluster-cold-{kind}",
            f"{_NODES} nodes read the same {words} cold, each all of them, {_latency_words()}",
            "MB/s of all nodes",
            at_most={_GETS: 1.0, _FETCHED: 1.0},
        )
        for kind, words in _KINDS.items()
    ),
    LineSpec(
        "cluster-warm",
        f"warm-up by {_NODES} workers, store limited to {LIMIT_BYTES_S / 1e6:.2f} MB/s a connection",
        "s",
        (Aim(3.0, (ONE_WORKER,)),),
        less_is_better=True,
    ),
    *(
        LineSpec(
            f"cluster-second-{kind}",
            f"{words} that another node has cached, {_READERS} readers, against the store with {_latency_words()}",
            unit,
            (Aim(1.0, (STORE,)),),
        )
        for (kind, words), unit in zip(_KINDS.items(), ("files/s", "GB/s"), strict=True)
    ),
    LineSpec(
        "cluster-second-bulk",
        "the same files of 100 KiB, brought in by a warm-up of the node's own tiers",
        "files/s",
        (Aim(1.0, (STORE,)),),
    ),
)


@dataclass(frozen=True)
class _Data:
    """One dataset in a bucket of its own."""

    name: str
    samples: Sequence[Sample]
    endpoint: FolderEndpoint

    @property
    def size(self) -> int:
        return sum(sample.size for sample in self.samples)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(sample.key for sample in self.samples)

    @property
    def keyless(self) -> Origin:
        """For nodes that cannot read the store, and know no option of it."""
        return Origin(self.endpoint.source(self.name), {})

    @property
    def origin(self) -> Origin:
        """For nodes that may read the store."""
        keys = {name.removeprefix("AWS_").lower(): value for name, value in self.endpoint.environ.items()}
        options = dict(word.split("=", 1) for word in self.endpoint.options())
        return Origin(self.keyless.url, {**options, **keys})


class Cluster:
    """The lines of the cluster."""

    name = "cluster"

    def run(self, place: Place) -> Outcome:
        """All lines; a part that fails is told of, and the others go on."""
        outcome = Outcome([])
        outcome.notes[OURS] = f"{_NODES} workers on this machine, a process each; client nodes own nothing"
        outcome.notes[SENDFILE] = "os.sendfile into a TCP connection, read into one buffer; CPU of both sides, as ours"
        outcome.notes[GRPC] = "a stream of 1 MiB messages of bytes; with TLS where our side has it; CPU of both sides"
        distant = place.endpoint.distant()
        parts = {"streams": _streams, "warm-up": _warm} | ({"cold": _cold, "second": _second} if distant else {})
        if distant is None:
            outcome.missing["cold, second"] = "nginx's echo module is not installed, so there is no latency"
        rounds: list[dict[str, dict[str, Reading]]] = [{} for _ in range(place.sizes.rounds)]
        for name, part in parts.items():
            folder = place.folder / "c"  # sockets below it have paths of at most 107 bytes
            folder.mkdir()
            try:
                for number, found in enumerate(part(place, folder)):
                    for side, readings in found.items():
                        rounds[number].setdefault(side, {}).update(readings)
            except (*Failures, ForebayError) as error:
                outcome.missing[f"{name}, {OURS}"] = f"failed: {error}"
            finally:
                shutil.rmtree(folder)
        outcome.lines = sheet.collect(self.name, _LINES, rounds)
        return outcome


_Round = Mapping[str, Mapping[str, Reading]]
"""By side, readings by the line's key."""


def _streams(place: Place, folder: Path) -> Iterator[_Round]:
    rounds = place.sizes.rounds
    costs = peer_reads.measured(folder, place.sizes.large_bytes * 2, rounds, lambda words: place.step(words))
    for number in range(rounds):
        found: dict[str, dict[str, Reading]] = defaultdict(dict)
        for line, sides in _STREAM_SIDES.items():
            for column, side in sides.items():
                cost = costs[side][number]
                found[column][line] = Reading(cost.gb_s, cost.cpu_s)
        yield found


@contextmanager
def _published(place: Place, endpoint: FolderEndpoint, name: str, samples: list[Sample]) -> Iterator[_Data]:
    place.endpoint.publish(name, by_key(samples))
    try:
        yield _Data(name, samples, endpoint)
    finally:
        place.endpoint.withdraw(name, [])


def _made(place: Place, folder: Path, kind: str, round_number: int) -> list[Sample]:
    """Data of a round; no two rounds have the same."""
    inside = folder / f"{kind}-{round_number}"
    if kind == "small":
        return make_images(inside, place.sizes.small_files // _SMALL_FILES, SEED + round_number)
    size = place.sizes.cold_bytes // 2
    return [make_large(inside, f"{number}.bin", size, SEED + 10 * round_number + number) for number in range(2)]


def _cold(place: Place, folder: Path) -> Iterator[_Round]:
    """All nodes begin at once, each with an order of its own."""
    distant = place.endpoint.distant()
    assert distant is not None
    with cluster(folder, _NODES) as members:
        for number in range(place.sizes.rounds):
            readings: dict[str, Reading] = {}
            for kind in _KINDS:
                place.step(f"cluster: round {number + 1}, {_NODES} nodes read cold, {kind}")
                with _published(place, distant, f"cold-{kind}-{number}", _made(place, folder, kind, number)) as data:
                    readings[f"cluster-cold-{kind}"] = _read_cold(place, members, data)
            yield {OURS: readings}


def _read_cold(place: Place, members: Sequence[ClusterNode], data: _Data) -> Reading:
    origin = data.origin
    jobs = []
    for number, member in enumerate(members):
        member.attach(origin)
        order = tuple(sample.key for sample in shuffled(list(data.samples), number))
        jobs.append(Job("load_in_process", member.opening(origin).to_json(), order))
    pids = [member.pid for member in members]
    before, used = len(place.endpoint.sent()), cpu_seconds(pids)
    total = run_readers(jobs)
    facts = _leaving(place.endpoint.sent()[before:], data)
    return Reading(total.size / total.seconds / 1e6, per_gib(spent(used, cpu_seconds(pids)), total.size), facts)


def _leaving(sent: Sequence[Sent], data: _Data) -> dict[str, float]:
    """How often each block left the store, in the mean, and how many bytes."""
    blocks: Counter[tuple[str, int]] = Counter()
    for reply in sent:
        last = reply.start + max(reply.size, 1) - 1
        blocks.update((reply.key, block) for block in range(reply.start // BLOCK_BYTES, last // BLOCK_BYTES + 1))
    there = sum(-(-sample.size // BLOCK_BYTES) for sample in data.samples)
    fetched = sum(reply.size for reply in sent) / data.size
    return {_GETS: round(blocks.total() / there, 4), _FETCHED: round(fetched, 4), "GETs": float(len(sent))}


def _warm(place: Place, folder: Path) -> Iterator[_Round]:
    """Four workers and one, each into empty caches, in turns."""
    files = place.sizes.cold_bytes // (_WARM_BYTES if place.sizes.cold_bytes > 128 * MIB else _WARM_BYTES // 2)
    samples = [make_large(folder / "data", f"{number:02}.bin", _WARM_BYTES, SEED + number) for number in range(files)]
    with _published(place, place.endpoint.limited(), "warm", samples) as data:
        for number in range(place.sizes.rounds):
            found: dict[str, dict[str, Reading]] = {}
            for side in (OURS, ONE_WORKER) if number % 2 == 0 else (ONE_WORKER, OURS):
                place.step(f"cluster: round {number + 1}, warm-up, {side}")
                inside = folder / f"r{number}{'w' if side == OURS else 'o'}"
                with cluster(inside, _NODES if side == OURS else 1) as members:
                    members[0].attach(data.origin)
                    before = cpu_seconds(pids := [member.pid for member in members])
                    seconds = members[0].warmup()
                    used = spent(before, cpu_seconds(pids))
                found[side] = {"cluster-warm": Reading(seconds, per_gib(used, data.size), {"MiB": data.size / MIB})}
                shutil.rmtree(inside)
            yield found


def _second(place: Place, folder: Path) -> Iterator[_Round]:
    """A node with an empty cache reads from a member that has everything, and one without others from the store."""
    distant = place.endpoint.distant()
    assert distant is not None
    with cluster(folder / "m", 1) as members, _datasets(place, folder, distant) as datasets:
        for data in datasets.values():
            members[0].attach(data.origin)
            members[0].warmup()
        for number in range(place.sizes.rounds):
            found: dict[str, dict[str, Reading]] = {}
            for side in (OURS, STORE) if number % 2 == 0 else (STORE, OURS):
                place.step(f"cluster: round {number + 1}, a second node, {side}")
                inside = folder / f"r{number}{side[0]}"
                inside.mkdir()
                found[side] = {
                    f"cluster-second-{kind}": _read_second(inside / kind, side, kind, members, datasets)
                    for kind in (*_KINDS, "bulk")
                }
                shutil.rmtree(inside)
            yield found


@contextmanager
def _datasets(place: Place, folder: Path, endpoint: FolderEndpoint) -> Iterator[dict[str, _Data]]:
    with (
        _published(place, endpoint, "second-small", _made(place, folder, "small", 0)) as small,
        _published(place, endpoint, "second-large", _made(place, folder, "large", 0)) as large,
    ):
        yield {"small": small, "large": large}


def _read_second(
    folder: Path, side: str, kind: str, members: list[ClusterNode], datasets: Mapping[str, _Data]
) -> Reading:
    data = datasets["large" if kind == "large" else "small"]
    # A client node knows nothing of the store: what it reads can only be another node's.
    origin = data.keyless if side == OURS else data.origin
    with client_node(folder, members) if side == OURS else alone(folder) as node:
        node.attach(origin)
        pids = [node.pid, *(member.pid for member in members)] if side == OURS else [node.pid]
        before = cpu_seconds(pids)
        if kind == "bulk":
            value = len(data.samples) / node.warmup(local=True)
        else:
            job = Job("load_in_process", node.opening(origin).to_json(), data.keys)
            total = run_readers(share(job, min(_READERS, len(data.samples))))
            value = total.count / total.seconds if kind == "small" else total.size / total.seconds / 1e9
        return Reading(value, per_gib(spent(before, cpu_seconds(pids)), data.size))
