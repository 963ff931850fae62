"""The cluster without hosts: every bound holds, in a small one here and in the issue's size in a soak."""

import random
import time
from functools import partial

import pytest

from forebay.bench.cluster_model import World
from forebay.bench.cluster_simulation import Cluster, Scale, cluster_figures, figures, hot_figures
from forebay.cacheruntime.cluster.overload import Overload

SMALL = Scale(workers=12, clients=50, reads_per_s=60.0, hot_reads_per_s=1200.0, files=150, slices_each=400)


@pytest.mark.slow
def test_a_small_cluster_keeps_every_bound() -> None:
    assert [figure for figure in figures(SMALL, 1) if not figure.holds] == []


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures() -> None:
    tiny = Scale(workers=6, clients=20, reads_per_s=20.0, hot_reads_per_s=50.0, files=50)
    first, again, other = (list(cluster_figures(tiny, seed)) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.soak
def test_a_thousand_workers_and_ten_thousand_clients() -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    began = time.process_time()
    assert [figure for figure in figures(Scale(), seed) if not figure.holds] == []
    assert time.process_time() - began < 60


def test_without_hints_one_worker_serves_all_of_a_hot_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Overload, "record", lambda *_: 1)
    cluster = Cluster(SMALL, 1)
    broken = {figure.what for figure in hot_figures(cluster) if not figure.holds}
    assert "hot slice, spread: busiest worker over the share of one content" in broken


def test_a_killed_worker_is_asked_again_when_it_is_back() -> None:
    cluster = Cluster(Scale(workers=3, clients=4, reads_per_s=100.0, files=30), 5)
    gone = cluster.workers[0]
    gone.kill(25.0)
    cluster.load(4.0)
    assert all(not client.health.usable(gone.id) for client in cluster.clients)
    cluster.world.run(cluster.world.now + 60)
    assert all(client.health.usable(gone.id) for client in cluster.clients)
    assert cluster.load(1.0).sent[gone.id] > 10


def test_time_passes_in_order() -> None:
    world = World(1)
    seen: list[tuple[float, float]] = []
    for when in (3.0, 1.0, 2.0):
        world.at(when, partial(lambda due: seen.append((due, world.now)), when))
    world.run(2.5)
    assert seen == [(1.0, 1.0), (2.0, 2.0)]
    assert world.now == 2.5
