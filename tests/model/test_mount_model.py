"""A mounted tree against a plain dict: random operations on it, while its source changes and its processes die.

Only the agent (support/tree_agent.py) touches the mount. See mounted_tree.py for what a mount may show.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tasks
from forebay_command import Forebay, wait_until
from fuse_mounts import Guard
from hypothesis import Phase, event, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mounted_tree import MountedTree, OpenFile, Version

from forebay.cacheruntime import mounts
from forebay.cacheruntime.catalogue import Catalogue

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mount,
    pytest.mark.skipif(not (os.geteuid() == 0 and os.path.exists("/dev/fuse")), reason="needs root and /dev/fuse"),
]

FOLDERS = ("", "d", "d/e", "many")
PATHS = ("a", "b", "d/c", "d/e/f", "d/e/g", "many/new", "many/other")
MANY = [f"entry-{number:03d}-{'n' * (number % 60)}" for number in range(300)]
"""Names that never change, more than one READDIR takes."""
SIZES = (0, 1, 4096, 70_001, (1 << 20) - 1, 1 << 20, (2 << 20) + 3)
_ANSWER_S = 30.0
_FLAGS = (0, 0, 0, os.O_DIRECT, os.O_NOFOLLOW, os.O_NOATIME, os.O_CREAT)
_BLOCK = 4096

_path = st.sampled_from(PATHS)
_pick = st.integers(0, 99)
_share = st.floats(0, 1)
_size = st.sampled_from((1, 4095, 4096, 4097, 70_000, 1 << 20))


_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
_SLOW_STEPS = 24 if _SOAK else 4
_SETTINGS = settings(
    max_examples=40 if _SOAK else 3,
    stateful_step_count=250 if _SOAK else 150,
    phases=tuple(Phase) if _SOAK else (Phase.explicit, Phase.reuse, Phase.generate),
)
"""An example takes seconds, so one that fails is made smaller in a soak only; its steps are printed anyway."""


class Stream:
    """An open directory, what it gave so far, and the places in it."""

    def __init__(self, folder: str, must: set[str], may: set[str]) -> None:
        self.folder, self.must, self.may = folder, must, may
        self.names: list[str] = []
        self.places: list[int] = []
        self.changed = False
        self.ended = False


class MountMachine(RuleBasedStateMachine):
    """One mount, from its making to its end."""

    def __init__(self, forebay: Forebay, side: tuple[str, str]) -> None:
        super().__init__()
        self.forebay, self.side = forebay, side
        self.root = forebay.root / f"tree{len(list(forebay.root.glob('tree*')))}"
        self.tree = MountedTree(PATHS)
        self.keys = count()
        self.files: dict[int, OpenFile] = {}
        self.positions: dict[int, int] = {}
        self.direct: set[int] = set()
        self.mappings: dict[int, OpenFile] = {}
        self.streams: dict[int, Stream] = {}
        self.slow_steps = 0
        """Those that start a process or wait for one."""

    # Beginning and end

    @initialize(contents=st.lists(st.sampled_from((*SIZES, None)), min_size=len(PATHS), max_size=len(PATHS)))
    def begin(self, contents: list[int | None]) -> None:
        for folder in FOLDERS:
            (self.root / "source" / folder).mkdir(parents=True, exist_ok=True)
        for name in MANY:
            (self.root / "source" / "many" / name).touch()
        os.symlink("d/c", self.root / "source" / "link")
        for path, size in zip(PATHS, contents, strict=True):
            if size is not None:
                self.tree.source[path] = self._written(path, size)
        self.tree.sync()
        self.mount = self.forebay.mount(
            f"file://{self.root}/source", "--engine", self.side[0], "--open-mode", self.side[1]
        )
        self._wait_listed()
        self.agent = tasks.Conversation("tree_agent.py", self.mount, root=self.forebay.root, timeout_s=_ANSWER_S)

    def _wait_listed(self) -> None:
        """Before that a name is looked for in the source (C2), which the model knows nothing of."""
        ((_, state),) = mounts.registered(self.forebay.runtime_dir)
        catalogue = Catalogue(Path(state.catalogue))
        try:
            wait_until(lambda: catalogue.complete, "the listing ends")
        finally:
            catalogue.close()

    def teardown(self) -> None:
        if hasattr(self, "agent"):
            self.agent.close()
        if hasattr(self, "mount"):
            self.forebay.umount(self.mount)
        shutil.rmtree(self.root, ignore_errors=True)

    def _written(self, path: str, size: int) -> Version:
        """As a careful writer does: a new file renamed over the old one, with a time of its own (C6)."""
        version = Version.made(size)
        fresh = self.root / "fresh"
        fresh.write_bytes(version.data)
        os.utime(fresh, ns=(0, 1_700_000_000_000_000_000 + version.serial * 1_000_000_000))
        os.replace(fresh, self.root / "source" / path)
        return version

    def _ask(self, what: str, *arguments: object) -> Any:
        """Have the agent do it; `--hypothesis-show-statistics` tells how often what was answered."""
        answer = self.agent.ask(what, *arguments)
        event(f"{what}: {answer if isinstance(answer, str) else 'works'}")
        return answer

    # The source and the cache

    @rule(path=_path, size=st.sampled_from(SIZES))
    def put(self, path: str, size: int) -> None:
        self.tree.change(path, self._written(path, size))

    @rule(path=_path)
    def remove(self, path: str) -> None:
        (self.root / "source" / path).unlink(missing_ok=True)
        self.tree.change(path, None)

    @precondition(lambda self: self.slow_steps < _SLOW_STEPS)
    @rule()
    def sync(self) -> None:
        self.slow_steps += 1
        self.forebay.run("sync", self.mount)
        self.tree.sync()
        for stream in self.streams.values():
            stream.changed = True

    @precondition(lambda self: self.slow_steps < _SLOW_STEPS)
    @rule()
    def warm_up(self) -> None:
        self.slow_steps += 1
        self.forebay.run("warmup", self.mount, code=None)  # 1 where something has changed

    @rule()
    def evict(self) -> None:
        """As eviction does it, by unlink; who holds a file goes on reading it."""
        for path in self.forebay.cache_dir.glob("tier/files/*/*"):
            path.unlink()

    @precondition(lambda self: self.side[0] == "kernel" and self.slow_steps < _SLOW_STEPS)
    @rule()
    def kill_handlers(self) -> None:
        """Not waited for: what comes next finds nobody, or the one that follows."""
        self._kill("forebay.fuse.handler")

    @precondition(lambda self: self.slow_steps < _SLOW_STEPS)
    @rule()
    def kill_worker(self) -> None:
        self._kill("forebay.cacheruntime.worker")

    def _kill(self, name: str) -> None:
        self.slow_steps += 1
        for pid, command in self.forebay.processes().items():
            if name in command:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    # Names

    @rule(path=_path)
    def stat(self, path: str) -> None:
        self.tree.check_stat(path, self._ask("stat", path))

    @rule(folder=st.sampled_from(FOLDERS))
    def stat_folder(self, folder: str) -> None:
        assert self._ask("stat", folder) == ["folder", 0]

    @rule()
    def stat_others(self) -> None:
        assert self._ask("stat", "link") == ["link", "d/c"]
        assert self._ask("stat", "d/nothing") == "ENOENT"
        assert self._ask("stat", "link/x") in ("ENOTDIR", "ENOENT")

    @rule(folder=st.sampled_from(FOLDERS))
    def list_folder(self, folder: str) -> None:
        listed = dict(self._ask("listed", folder))
        self._check_names(*self.tree.names(folder), folder, [name for name in listed if name not in _fixed(folder)])
        assert {name: is_folder for name, is_folder in listed.items() if name in _fixed(folder)} == _fixed(folder)

    @staticmethod
    def _check_names(must: set[str], may: set[str], folder: str, names: list[str]) -> None:
        assert len(set(names)) == len(names), f"{folder!r} lists a name twice"
        assert must <= set(names) <= may, f"{folder!r} lists {names}; it must {must} and may {may}"

    # Directory streams

    @precondition(lambda self: len(self.streams) < 3)
    @rule(folder=st.sampled_from((*FOLDERS, "many", "many")))
    def open_stream(self, folder: str) -> None:
        key = next(self.keys)
        assert self._ask("opendir", key, folder) is None
        self.streams[key] = Stream(folder, *self.tree.names(folder))

    @precondition(lambda self: self.streams)
    @rule(pick=_pick, number=st.sampled_from((1, 7, 50, 1000)))
    def read_stream(self, pick: int, number: int) -> None:
        key, stream = self._picked(self.streams, pick)
        entries = self._ask("readdir", key, number)
        stream.names += [name for name, _ in entries]
        stream.places += [place for _, place in entries]
        if len(entries) < number:
            stream.ended = True
            self._check_stream(stream)

    def _check_stream(self, stream: Stream) -> None:
        """Read to its end: each name once; what came or went meanwhile may be there or not (readdir(3))."""
        fixed = _fixed(stream.folder)
        names = [name for name in stream.names if name not in (".", "..")]
        assert fixed.keys() <= set(names), f"missing: {fixed.keys() - set(names)}"
        self._check_names(stream.must, stream.may, stream.folder, [name for name in names if name not in fixed])

    @precondition(lambda self: any(stream.places for stream in self.streams.values()))
    @rule(pick=_pick, share=_share)
    def seek_stream(self, pick: int, share: float) -> None:
        """To a place where it has been: the same names follow."""
        key, stream = self._picked({k: s for k, s in self.streams.items() if s.places}, pick)
        at = round(share * (len(stream.places) - 1))
        assert self._ask("seekdir", key, stream.places[at]) is None
        if not stream.changed and self.tree.is_settled(stream.folder):
            wanted = stream.names[at + 1 :]
            assert [name for name, _ in self._ask("readdir", key, len(wanted))] == wanted if wanted else True
        else:
            del stream.names[at + 1 :], stream.places[at + 1 :]
            stream.ended = False

    @precondition(lambda self: self.streams)
    @rule(pick=_pick)
    def rewind_stream(self, pick: int) -> None:
        """It then shows the directory as it is (rewinddir(3))."""
        key, stream = self._picked(self.streams, pick)
        assert self._ask("rewinddir", key) is None
        self.streams[key] = Stream(stream.folder, *self.tree.names(stream.folder))

    @precondition(lambda self: self.streams)
    @rule(pick=_pick)
    def close_stream(self, pick: int) -> None:
        key, _ = self._picked(self.streams, pick)
        assert self._ask("closedir", key) is None
        del self.streams[key]

    # Files

    @precondition(lambda self: len(self.files) < 8)
    @rule(path=_path, flags=st.sampled_from(_FLAGS))
    def open_file(self, path: str, flags: int) -> None:
        key = next(self.keys)
        answer = self._ask("open", key, path, flags)
        if isinstance(answer, int):
            self.files[key] = self.tree.opened(path, answer)
            self.positions[key] = 0
            if flags & os.O_DIRECT:
                self.direct.add(key)
            return
        assert None in self.tree.shown[path], f"open of {path}: {answer}, and it is there"
        assert answer == ("EROFS" if flags & os.O_CREAT else "ENOENT")

    @precondition(lambda self: self.files)
    @rule(pick=_pick)
    def close_file(self, pick: int) -> None:
        key, _ = self._picked(self.files, pick)
        assert self._ask("close", key) is None
        del self.files[key]

    @precondition(lambda self: self.files)
    @rule(pick=_pick, share=_share, size=_size)
    def pread(self, pick: int, share: float, size: int) -> None:
        key, file = self._picked(self.files, pick)
        offset = round(share * file.size * 1.1)
        if key in self.direct:
            offset, size = offset - offset % _BLOCK, -(-size // _BLOCK) * _BLOCK
        file.check(self._ask("pread", key, offset, size), offset, size)

    @precondition(lambda self: self._buffered())
    @rule(pick=_pick, size=_size)
    def read(self, pick: int, size: int) -> None:
        key, file = self._picked(self._buffered(), pick)
        answer = self._ask("read", key, size)
        file.check(answer, self.positions[key], size)
        if isinstance(answer, list):
            self.positions[key] += answer[0]

    @precondition(lambda self: self._buffered())
    @rule(pick=_pick, share=_share, size=_size)
    def sendfile(self, pick: int, share: float, size: int) -> None:
        key, file = self._picked(self._buffered(), pick)
        offset = round(share * file.size)
        file.check(self._ask("sendfile", key, offset, size), offset, size, short=True)

    @precondition(lambda self: self.files)
    @rule(pick=_pick, share=_share, whence=st.sampled_from((os.SEEK_SET, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE)))
    def seek(self, pick: int, share: float, whence: int) -> None:
        key, file = self._picked(self.files, pick)
        offset = round(share * file.size * 1.1)
        if key in self.direct:
            offset -= offset % _BLOCK
        answer = self._ask("seek", key, offset - file.size if whence == os.SEEK_END else offset, whence)
        if answer == "ESTALE" and file.is_forgotten:
            return
        if whence in (os.SEEK_DATA, os.SEEK_HOLE) and offset >= file.size:
            assert answer == "ENXIO"
            return
        assert answer == (file.size if whence == os.SEEK_HOLE else offset)
        self.positions[key] = answer

    @precondition(lambda self: any(file.size for file in self.files.values()) and len(self.mappings) < 4)
    @rule(pick=_pick)
    def map_file(self, pick: int) -> None:
        key, file = self._picked({k: f for k, f in self.files.items() if f.size}, pick)
        mapping = next(self.keys)
        assert self._ask("map", mapping, key) is None
        self.mappings[mapping] = file  # a mapping is of the same version, also when the handle is closed

    @precondition(lambda self: self.mappings)
    @rule(pick=_pick, share=_share, size=_size)
    def read_mapped(self, pick: int, share: float, size: int) -> None:
        key, file = self._picked(self.mappings, pick)
        offset = round(share * (file.size - 1))
        file.check(self._ask("mapped", key, offset, size), offset, size, mapped=True)

    @precondition(lambda self: self.mappings)
    @rule(pick=_pick)
    def unmap(self, pick: int) -> None:
        key, _ = self._picked(self.mappings, pick)
        assert self._ask("unmap", key) is None
        del self.mappings[key]

    @invariant()
    def no_impossible_state(self) -> None:
        assert all(self.tree.shown.values()), "a name that may show nothing at all, not even that it is absent"

    @invariant()
    def streams_know_what_comes_and_goes(self) -> None:
        for stream in self.streams.values():
            must, may = self.tree.names(stream.folder)
            stream.must &= must
            stream.may |= may

    def _buffered(self) -> dict[int, OpenFile]:
        return {key: file for key, file in self.files.items() if key not in self.direct}

    @staticmethod
    def _picked(found: dict, pick: int) -> tuple:  # type: ignore[type-arg]
        return list(found.items())[pick % len(found)]


def _fixed(folder: str) -> dict[str, bool]:
    """Names that are always there -> whether that is a folder."""
    if folder == "":
        return {"d": True, "many": True, "link": False}
    return {"d": {"e": True}, "many": dict.fromkeys(MANY, False)}.get(folder, {})


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[None]:
    """No machine can hang on its mount; see fuse_mounts.py."""
    found = Guard()
    found.arm(3000.0 if _SOAK else 200.0, tmp_path)
    yield
    fired = found.disarm()
    found.close()
    assert not fired, f"the guard aborted {fired}"


_NEEDS_PYFUSE3 = pytest.mark.skipif(find_spec("pyfuse3") is None, reason="pyfuse3 is not installed")
_SIDES = [
    pytest.param("kernel", "passthrough", 1, id="kernel-passthrough"),
    pytest.param("kernel", "no-open", 2, id="kernel-no-open"),
    pytest.param("kernel", "cached", 3, id="kernel-cached", marks=pytest.mark.soak),
    pytest.param("pyfuse3", "cached", 4, id="pyfuse3-cached", marks=_NEEDS_PYFUSE3),
]


@pytest.mark.usefixtures("guard")
@pytest.mark.semantics("C1", "C3", "C4", "C5", "C7", "C10", "D1", "D2")
@pytest.mark.parametrize(("engine", "open_mode", "number"), _SIDES)
def test_a_mounted_tree_is_what_the_model_says(forebay: Forebay, engine: str, open_mode: str, number: int) -> None:
    """`number` makes each side take other steps; a soak takes others each time."""
    for expected in (_STALE, "was removed from outside: fetching it again", r"handler \d+ ended with status"):
        forebay.expect_log(expected)

    def machine() -> MountMachine:
        return MountMachine(forebay, (engine, open_mode))

    run_state_machine_as_test(machine if _SOAK else seed(number)(machine), settings=_SETTINGS)


_STALE = r"has changed|changed since|is gone|stale"


@pytest.mark.usefixtures("guard")
@pytest.mark.semantics("C5")
@pytest.mark.parametrize("engine", ["kernel", pytest.param("pyfuse3", marks=_NEEDS_PYFUSE3)])
def test_regression_the_name_is_new_right_after_estale(forebay: Forebay, tmp_path: Path, engine: str) -> None:
    """The reader was told ESTALE before the kernel was told to forget the name: stat and open gave the old version."""
    forebay.expect_log(_STALE)
    source, names = tmp_path / "source", [f"{number}/file" for number in range(300)]
    for name in names:  # each in a folder of its own: one that is fetched ahead is whole before it is replaced
        (source / name).parent.mkdir(parents=True)
        (source / name).write_bytes(b"old content")
    mount = forebay.mount(f"file://{source}", "--engine", engine, "--open-mode", "cached")
    (out,) = tasks.ends([tasks.start("stale_names.py", source, mount, *names)], forebay.root, 60.0)
    met = json.loads(out)
    assert {number for number, _ in met} == {"ESTALE"}
    late = [name for name, (_, is_new) in zip(names, met, strict=True) if not is_new]
    assert not late, f"{len(late)} of {len(names)} names still showed the old version"
    forebay.umount(mount)
