"""Victims in clusters that have lived: as few as possible, lenders keep their min, nobody evicts in turn."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from lives import Life
from test_lives import SETTINGS, any_cluster, any_job

from forebay.scheduler.decide import advance, decide
from forebay.scheduler.model import Snapshot


def busy(seed: int) -> Life:
    """A cluster that has lived for a while, all bound, nobody leaving; three urgent jobs come."""
    rng = random.Random(seed)
    life = Life(any_cluster(rng), SETTINGS[seed % len(SETTINGS)])
    for step in range(6):
        life.snapshot = replace(life.snapshot, now=20.0 + 10.0 * step)
        life.carry_out(advance(life.state, life.snapshot.now))
        life.happen(rng, step, any_job(rng, 100 + step))
    running = tuple(
        replace(one, bound=True, bind_by=None, growing=(), grow_by=None)
        for one in life.snapshot.running
        if one.evicted_for is None and one.short_since is None
    )
    waiting = tuple(
        replace(any_job(rng, 200 + place), priority=3, group=None, group_size=0, data=(), submitted=50.0, preempts=True)
        for place in range(3)
    )
    snapshot = replace(life.snapshot, now=100.0, running=running, waiting=waiting, holds=())
    return Life(snapshot, life.state.settings)


def without_victims(snapshot: Snapshot, names: set[str]) -> Snapshot:
    return replace(snapshot, running=tuple(one for one in snapshot.running if one.job.name not in names))


@pytest.mark.parametrize("seed", range(40))
def test_victims_are_few_and_enough(seed: int) -> None:
    """With all of them gone the job fits, and with any one of them (or its group) left it does not."""
    life = busy(seed)
    life.snapshot = replace(life.snapshot, waiting=life.snapshot.waiting[:1])
    found = decide(life.snapshot, life.state.settings)
    if not found.evictions or found.shrinks:
        return
    quiet = replace(life.state.settings, preemption=False, growth=False)
    groups = {one.job.name: one.job.group or one.job.name for one in life.snapshot.running}
    victims = {one.job for one in found.evictions}
    assert decide(without_victims(life.snapshot, victims), quiet).admissions
    for spared in {groups[name] for name in victims}:
        rest = {name for name in victims if groups[name] != spared}
        assert not decide(without_victims(life.snapshot, rest), quiet).admissions


@pytest.mark.parametrize("seed", range(40))
def test_nobody_evicts_in_turn(seed: int) -> None:
    """Played on without arrivals: no two jobs evict each other, and it comes to an end."""
    life = busy(seed)
    pairs: Counter[tuple[str, str]] = Counter()
    last = 0
    for step in range(60):
        life.snapshot = replace(life.snapshot, now=100.0 + 100.0 * step)
        found = advance(life.state, life.snapshot.now)
        for one in found.evictions:
            pairs[one.for_job, one.job] += 1
            assert not pairs[one.job, one.for_job], f"{one.job} and {one.for_job} evict each other"
            last = step
        life.carry_out(found)
        for name in [one.job.name for one in life.snapshot.running]:
            if life.running(name).evicted_for is not None:
                life.leave(name)
            else:
                life.bound(name)
    assert last < 40
