"""With PyTorch: loaders in forked and spawned processes, samplers with a posted order, a worker that is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from forebay_command import Forebay
from programs import PROGRAM, content

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed: pip install 'forebay[torch]'"),
]
Program = Callable[..., str]

_HEAD = """
import torch
from forebay.torch import ForebayDataset, ForebayIterableDataset, OrderedSampler, data_loader
URL = "file://" + ROOT
def number(path):
    return int(os.path.basename(path)[:4])
def dataset(**more):
    return ForebayDataset(URL, pattern="class-*/[0-9]*", target=number, **more)
def check(batch):
    for data, n in batch:
        assert bytes(data) == content(n), n
    return [n for _, n in batch]
def whole(batch):
    return batch
"""


def test_map_style(program: Program) -> None:
    code = """
for views in (False, True):
    made = dataset(views=views)
    assert len(made) == 300
    assert sorted(check([made[n] for n in range(300)])) == list(range(300))
    assert check(made.__getitems__([5, 5, 299])) == [made[5][1]] * 2 + [made[299][1]]
assert made.path(0) == "class-0/0000.bin"
lengths = ForebayDataset(URL, suffix=".bin", transform=len)
assert lengths[0] == 2016 and lengths[100] == 0
"""
    program(_HEAD + code)


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("views", [False, True])
def test_loading_processes(forebay: Forebay, tree: Path, start: str, views: bool, tmp_path: Path) -> None:
    """A file, as a process that is spawned imports the program anew."""
    path = tmp_path / "program.py"
    path.write_text(
        PROGRAM
        + _HEAD
        + """
if __name__ == "__main__":
    made = dataset(views=bool(int(sys.argv[3])))
    check([made[7]])  # the parent has all of it open when it forks
    loader = data_loader(
        made, 16, shuffle=True, num_workers=2, multiprocessing_context=sys.argv[2], collate_fn=check, seed=3)
    epochs = [[n for batch in loader for n in batch] for _ in range(2)]
    assert all(sorted(epoch) == list(range(300)) for epoch in epochs)
    assert epochs[0] != epochs[1], "each is another one"
    again = data_loader(made, 16, shuffle=True, seed=3, collate_fn=check)
    assert [n for batch in again for n in batch] == epochs[0], "and comes again with its seed"
    print("good")
"""
    )
    done = subprocess.run(
        [sys.executable, str(path), str(tree), start, str(int(views))],
        env=forebay.environ, capture_output=True, text=True, timeout=80, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr


def test_streams_share_out_all_samples(program: Program) -> None:
    code = """
from torch.utils.data import DataLoader
made = dataset()
seen = []
for rank in range(2):
    stream = ForebayIterableDataset(made, seed=5, rank=rank, world_size=2)
    assert len(stream) == 150
    loader = DataLoader(stream, 8, num_workers=2, persistent_workers=True, collate_fn=check)
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        epochs.append([n for batch in loader for n in batch])
    assert sorted(epochs[0]) != sorted(epochs[1]), "another share"
    seen.append(epochs)
    del loader
for epoch in range(2):
    assert sorted(seen[0][epoch] + seen[1][epoch]) == list(range(300))
uneven = [list(ForebayIterableDataset(made, rank=rank, world_size=7)) for rank in range(7)]
assert {len(one) for one in uneven} == {43}
assert {n for one in uneven for _, n in one} == set(range(300))
assert [n for _, n in ForebayIterableDataset(made, shuffle=False)] == [made[n][1] for n in range(300)]
try:
    ForebayIterableDataset(made, rank=2, world_size=2)
except ValueError as error:
    assert str(error) == "rank 2 of 2; ranks count from 0"
"""
    program(_HEAD + code)


def test_orders_are_posted_with_progress_and_the_next_epoch(program: Program) -> None:
    code = """
import forebay.torch.orders
from torch.utils.data import DataLoader, RandomSampler, Subset
from torch.utils.data.distributed import DistributedSampler
made = dataset()
class Poster:
    def __init__(self, *_):
        self.nodes, self.moves, self.closed = [], [], False
        posters.append(self)
    end = property(lambda self: len(self.nodes))
    def post(self, nodes): self.nodes += nodes
    def advance(self, position, asked): self.moves.append((position, asked))
    def close(self): self.closed = True
forebay.torch.orders.OrderPoster = Poster
nodes = made.files.node_ids(range(300))

posters = []
loader = data_loader(made, 10, shuffle=True, num_workers=0, collate_fn=whole)
def read(loader):
    return [nodes[sorted_of[n]] for batch in loader for _, n in batch]
sorted_of = {made[n][1]: n for n in range(300)}
first = read(loader)
(poster,) = posters
assert poster.nodes[:300] == first and len(poster.nodes) == 600, "this epoch and the next"
assert poster.moves[-1] == (290, 300), "a batch is drawn before it is read"
second = read(loader)
assert poster.nodes[300:600] == second and len(poster.nodes) == 900 and not poster.closed
assert poster.moves[-1] == (590, 600)
assert [asked for _, asked in poster.moves[:4]] == [0, 10, 20, 30], "it is told of whole batches"

posters = []
part = Subset(made, range(50, 150))
shared = DistributedSampler(part, 2, 1, seed=9)
loader = data_loader(part, 10, sampler=shared, num_workers=1, collate_fn=whole)
for epoch in range(2):
    shared.set_epoch(epoch)
    got = read(loader)
    assert posters[0].nodes[50 * epoch : 50 * epoch + 50] == got
assert len(posters) == 1 and len(posters[0].nodes) == 150
shared.set_epoch(7)
got = read(loader)
assert posters[0].closed and posters[1].nodes[:50] == got, "another than was foreseen: another reader"

posters = []
loader = data_loader(made, 10, sampler=RandomSampler(made), collate_fn=whole)
got = read(loader), read(loader)
assert posters[0].nodes == got[0] + got[1], "it cannot be known what it does next"
broken_off = iter(loader)
next(broken_off)
got = read(loader)
assert posters[0].nodes[900:] == got
assert posters[0].moves[-1][1] == 1200

posters = []
shuffler = RandomSampler(made, generator=torch.Generator().manual_seed(3))
loader = data_loader(made, 10, sampler=shuffler, collate_fn=whole)
got = read(loader), read(loader)
assert posters[0].nodes[:600] == got[0] + got[1] and len(posters[0].nodes) == 900, "its generator tells what comes"
plain = RandomSampler(made, generator=torch.Generator().manual_seed(3))
assert [nodes[n] for _ in range(2) for n in plain] == got[0] + got[1], "and gives what it gives without us"
shuffler.generator.manual_seed(4)
got = read(loader), read(loader)
assert len(posters) == 2 and posters[0].closed
assert posters[1].nodes[:600] == got[0] + got[1], "what others draw from is not believed again"
for wrong, error in ((lambda: data_loader(made, sampler=shared, shuffle=True), ValueError),
                     (lambda: OrderedSampler([1, 2]), TypeError)):
    try:
        wrong()
    except error:
        continue
    raise AssertionError(error)
"""
    program(_HEAD + code)


def test_a_worker_that_is_killed_costs_no_read(forebay: Forebay, tree: Path) -> None:
    """kill -9 of every worker there is, again and again, while forked processes load from it."""
    for n in range(300, 1500):
        (tree / f"class-{n % 3}" / f"{n:04}.bin").write_bytes(content(n))
    code = (
        PROGRAM
        + _HEAD
        + """
loader = data_loader(dataset(), 8, shuffle=True, num_workers=2, collate_fn=check)
seen = []
for count, batch in enumerate(loader):
    seen += batch
    if count % 25 == 0:
        print(count, flush=True)
assert sorted(seen) == list(range(1500))
print("good", flush=True)
"""
    )
    reading = subprocess.Popen(
        [sys.executable, "-c", code, str(tree)], env=forebay.environ, stdout=subprocess.PIPE, text=True
    )
    assert reading.stdout is not None
    killed, last = 0, ""
    for line in reading.stdout:
        last = line
        for pid, command in forebay.processes().items():
            if "cacheruntime.worker" in command and line != "good\n":
                os.kill(pid, signal.SIGKILL)
                killed += 1
    assert last == "good\n"
    assert reading.wait(30) == 0
    assert killed >= 3
