"""Making and ending mounts, and saying how they are: what the commands `mount`, `umount` and `mounts` do."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from forebay.cacheruntime import mounts
from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.client import WorkerClient, environment_without_secrets, worker_pid
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.dataset_source import SourceSpec
from forebay.cacheruntime.errors import ForebayError, MountError, UsageError, WorkerUnavailable
from forebay.fuse import mounting
from forebay.fuse.mount_spec import MountSpec
from forebay.fuse.open_mode import OpenMode, choose
from forebay.fuse.open_table import OpenTable
from forebay.fuse.probe import Probe, probe
from forebay.proto import worker_pb2 as pb

_END_WAIT_S = 4.0
"""After an unmount, processes have ended within this or are ended."""

_HEALTH_WAIT_S = 2.0


@dataclass(frozen=True)
class MountRequest:
    """What a user wants mounted where."""

    source: SourceSpec
    directory: str
    config: CacheConfig
    tiers_given: bool
    """The user named tiers, so a running worker must have the same."""
    engine: str
    open_mode: str
    """'auto' or a value of OpenMode."""
    uid: int
    gid: int
    umask: int
    allow_other: bool
    handlers_min: int
    handlers_max: int
    """Bounds of how many handlers serve it."""
    metrics: str | None = None
    """HOST:PORT where the worker is to serve /metrics from now on; empty: no longer; None: as it does."""


def mount(request: MountRequest) -> tuple[mounts.MountState, int]:
    """Mount a source; returns the mount's state and its supervisor's process id once it is usable.

    Raises:
        ForebayError: with the reason and the cure; nothing is left behind.
    """
    directory = check_directory(request.directory)
    found = probe([tier.path for tier in request.config.tiers])
    if found.trouble:
        raise MountError(found.trouble)
    wished, note = _checked_mode(request, found)
    client = WorkerClient(request.config)
    try:
        client.connect()
        client.check_tiers(request.tiers_given)
        client.check_cluster()
        if request.metrics is not None:
            client.call("ServeMetrics", pb.ServeMetricsRequest(address=request.metrics))
        tree = request.source.tree
        relist = not request.source.snapshot and (tree is None or tree.on_mount)
        reply = client.attach(request.source, list_tree=True, relist=relist, stored=not relist)
        mode, reason = _resolve_mode(wished, reply.catalogue, found)
        spec = _spec(request, directory, reply, mode, reason, note)
        process = _start_supervisor(spec)
        state = mounts.read_state(Path(spec.folder))
        if state is None:
            raise MountError(f"the mount on {directory} ended as soon as it was made; see {spec.log}")
        return state, process.pid
    except BaseException:
        retire(client)
        raise
    finally:
        client.close()


def check_directory(directory: str) -> str:
    """The mount point's real path.

    Raises:
        MountError: it is not an empty folder of its own, or something is mounted there.
    """
    real = mounting.real_directory(directory)
    entry = mounting.mounted(real)
    if entry is not None:
        raise MountError(
            f"{directory} is already mounted ({entry.source}); unmount it with: forebay umount {directory}"
        )
    real = os.path.realpath(real)
    try:
        names = os.listdir(real)
    except FileNotFoundError:
        raise MountError(f"{directory} does not exist; make it with: mkdir -p {directory}") from None
    except NotADirectoryError:
        raise MountError(f"{directory} is a file; name an empty folder") from None
    except OSError as error:
        raise MountError(f"{directory} cannot be used: {error.strerror}; name an empty folder of yours") from error
    if names:
        raise MountError(f"{directory} is not empty ({len(names)} entries); name an empty folder")
    return real


def _checked_mode(request: MountRequest, found: Probe) -> tuple[str, str]:
    why = "; ".join(f"{folder}: {reason}" if folder else reason for folder, reason in found.passthrough_trouble.items())
    if request.engine == "pyfuse3":
        try:
            import pyfuse3  # noqa: F401
        except ImportError as error:
            raise UsageError(
                "the engine pyfuse3 is not installed; pip install 'forebay[pyfuse3]' (it compiles against libfuse3:"
                " apt-get install libfuse3-dev pkg-config gcc)"
            ) from error
        if request.open_mode not in ("auto", OpenMode.CACHED.value):
            raise UsageError(f"the engine pyfuse3 has only --open-mode cached, not {request.open_mode}")
        return OpenMode.CACHED.value, "the engine pyfuse3 has no passthrough"
    if request.open_mode == OpenMode.PASSTHROUGH.value and not found.passthrough:
        raise UsageError(f"--open-mode passthrough is not possible here: {why}; use auto or cached")
    if request.open_mode == OpenMode.NO_OPEN.value and not found.no_open:
        raise UsageError("--open-mode no-open is not possible on this kernel; use auto or cached")
    return request.open_mode, "" if found.passthrough else why


def _resolve_mode(mode: str, catalogue: str, found: Probe) -> tuple[OpenMode, str]:
    if mode != "auto":
        return OpenMode(mode), "asked for"
    snapshot = Catalogue(Path(catalogue))
    try:
        return choose(snapshot.totals(), found.passthrough)
    finally:
        snapshot.close()


def _spec(
    request: MountRequest, directory: str, reply: pb.AttachReply, mode: OpenMode, reason: str, note: str
) -> MountSpec:
    config = request.config
    folder = mounts.mount_folder(config.runtime_dir, directory)
    shutil.rmtree(folder, ignore_errors=True)  # of a mount whose processes were killed
    folder.mkdir(parents=True, mode=0o700)
    return MountSpec(
        directory=directory,
        folder=str(folder),
        source=request.source.source,
        shown_source=request.source.shown_source,
        source_url=request.source.url,
        options=dict(request.source.options),
        config=config.to_json(),
        cache_dir=str(config.cache_dir),
        dataset_id=reply.dataset_id,
        snapshot=reply.snapshot,
        catalogue=reply.catalogue,
        engine=request.engine,
        open_mode=mode.value,
        open_mode_reason=reason,
        passthrough_note=note,
        uid=request.uid,
        gid=request.gid,
        umask=request.umask,
        allow_other=request.allow_other,
        handlers_min=request.handlers_min,
        handlers_max=request.handlers_max,
        log=str(config.cache_dir / "mounts.log"),
        tree=request.source.tree.to_json() if request.source.tree is not None else None,
        pinned=bool(request.source.snapshot),
    )


def _start_supervisor(spec: MountSpec) -> "subprocess.Popen[str]":
    descriptor = spec.to_memory()
    try:
        process, trouble = _launch_supervisor(["mount", str(descriptor)], [descriptor])
    finally:
        os.close(descriptor)
    if trouble:
        shutil.rmtree(spec.folder, ignore_errors=True)
        raise MountError(f"{trouble}; see {spec.log}" if trouble == _SILENT else trouble)
    return process


_SILENT = "the mount's supervisor did not start"


def _launch_supervisor(words: list[str], descriptors: list[int]) -> tuple["subprocess.Popen[str]", str]:
    """Start a supervisor that lives on, and wait until it serves; also what went wrong, or ''."""
    process = subprocess.Popen(
        [sys.executable, "-m", "forebay.fuse.supervisor", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        env=environment_without_secrets(),
        text=True,
        cwd="/",
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline().strip()
    if line != "ready":
        trouble = line.removeprefix("error ") or process.stderr.read().strip()[-500:] or _SILENT
        process.wait()
    else:
        trouble = ""
        process.returncode = 0  # it lives on; init inherits it when we end
    process.stdout.close()
    process.stderr.close()
    return process, trouble


def upgrade(directory: str | None, config: CacheConfig) -> list[mounts.MountState]:
    """Replace the running processes of mounts, under their readers, by ones of the version that is installed now.

    Args:
        directory: of one mount; None for all of them.
        config: whose runtime folder knows the mounts.

    Returns:
        The mounts as they are now. Workers end in order; the next miss starts the new one.

    Raises:
        MountError: one of the mounts could not be taken over; it goes on as before.
    """
    real = mounting.real_directory(directory) if directory is not None else None
    chosen = [(f, s) for f, s in mounts.live(config.runtime_dir) if real in (None, s.dir)]
    if real is not None and not chosen:
        raise MountError(f"{directory} is not mounted; `forebay mounts` lists what is")
    upgraded: list[mounts.MountState] = []
    try:
        for folder, before in chosen:
            _, trouble = _launch_supervisor(["take-over", str(folder)], [])
            if trouble:
                raise MountError(f"{before.dir} goes on as before, for its new processes did not start: {trouble}")
            upgraded.append(mounts.read_state(folder) or before)
    finally:  # also when a later mount was not: the new handlers may not understand an old worker
        for cache_dir in {state.cache_dir for state in upgraded}:
            pid = worker_pid(replace(config, cache_dir=Path(cache_dir)))
            if pid is not None:
                os.kill(pid, signal.SIGTERM)
                _wait_gone(pid, _END_WAIT_S)
    return upgraded


def retire(client: WorkerClient) -> None:
    """Tell the worker that we are done; if nobody else needs it, wait until it has left."""
    pid = worker_pid(client.config)
    if pid is None:
        return
    with suppress(ForebayError):
        if client.call("Retire", pb.RetireRequest(), timeout_s=5.0).leaving:
            _wait_gone(pid, _END_WAIT_S)


def umount(directory: str, config: CacheConfig, *, lazy: bool = False) -> None:
    """Unmount and wait until the mount's processes have ended; also clears what a crash left.

    Raises:
        MountError: nothing of ours is mounted there, or files on it are open and `lazy` is not set.
    """
    real = mounting.real_directory(directory)
    entry = mounting.mounted(real)
    if entry is None and os.path.islink(directory):
        real = os.path.realpath(directory)
        entry = mounting.mounted(real)
    folder = mounts.mount_folder(config.runtime_dir, real)
    state = mounts.read_state(folder)
    if entry is None and state is None:
        raise MountError(f"{directory} is not mounted; `forebay mounts` lists what is")
    if entry is not None and entry.fs_type != f"fuse.{mounting.FS_TYPE}":
        raise MountError(f"{directory} is not a Forebay mount but {entry.fs_type} ({entry.source}); use umount")
    if entry is not None:
        _take_off(directory, real, entry, lazy)
    if state is not None:
        _end_processes(state, force=not lazy)
        shutil.rmtree(folder, ignore_errors=True)
        cache = replace(config, cache_dir=Path(state.cache_dir))
        if worker_pid(cache) is not None:
            client = _RunningWorker(cache)
            retire(client)
            client.close()


class _RunningWorker(WorkerClient):
    """A client that never starts a worker: for saying goodbye."""

    def connect(self) -> object:
        if worker_pid(self.config) is None:
            raise WorkerUnavailable("there is no worker")
        return super().connect()


def _take_off(shown: str, real: str, entry: mounting.Mounted, lazy: bool) -> None:
    try:
        mounting.unmount(real, lazy=lazy)
    except mounting.MountFailed as error:
        if error.errno != errno.EBUSY:
            raise MountError(f"{shown} cannot be unmounted: {error.strerror}") from error
        users = ", ".join(f"{pid} ({name})" for pid, name in users_of(entry, real))
        raise MountError(
            f"{shown} is in use{' by ' + users if users else ''}; close what is open there and try again,"
            " or detach it at once with --lazy"
        ) from error


def users_of(entry: mounting.Mounted, directory: str) -> Iterator[tuple[int, str]]:
    """Processes that have a file or their working folder on a mount, without looking at the mount itself."""
    prefix = directory.rstrip("/") + "/"
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        links = [process / "cwd", process / "root"]
        with suppress(OSError):
            links += list((process / "fd").iterdir())
        for link in links:
            with suppress(OSError):
                target = os.readlink(link)
                if target == directory or target.startswith(prefix):
                    yield int(process.name), (process / "comm").read_text().strip()
                    break


def _end_processes(state: mounts.MountState, force: bool) -> None:
    """Wait for the mount's processes; with `force`, end those that do not go by themselves."""
    if mounts.start_time(state.supervisor) != state.supervisor_start:
        # A supervisor that was killed leaves its handlers; they see the unmount too, unless they hang.
        for pid in state.handlers:
            if force and is_handler(pid) and not _wait_gone(pid, 2.0):
                os.kill(pid, signal.SIGKILL)
        return
    if _wait_gone(state.supervisor, _END_WAIT_S if force else 1.0) or not force:
        return
    for pid in (*state.handlers, state.supervisor):
        if pid == state.supervisor or is_handler(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    _wait_gone(state.supervisor, 1.0)


def is_handler(pid: int) -> bool:
    """Whether that process is a FUSE handler, and not another one that got its number."""
    try:
        return b"forebay.fuse.handler" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _wait_gone(pid: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while mounts.start_time(pid) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@dataclass(frozen=True)
class MountHealth:
    """A mount as `forebay mounts` shows it."""

    state: mounts.MountState
    healthy: bool
    trouble: str
    worker: int | None
    passed_through: int
    """Files that the kernel reads by itself now."""


def survey(config: CacheConfig) -> list[MountHealth]:
    """All mounts on record, each tried out."""
    found = []
    for folder, state in mounts.registered(config.runtime_dir):
        worker = worker_pid(replace(config, cache_dir=Path(state.cache_dir)))
        trouble = _trouble(state)
        passed_through = OpenTable.gauge(folder / "open-table")
        found.append(MountHealth(state, not trouble, trouble, worker, passed_through))
    return found


def _trouble(state: mounts.MountState) -> str:
    if mounting.mounted(state.dir) is None:
        return "no longer mounted"
    if mounts.start_time(state.supervisor) != state.supervisor_start:
        return "its supervisor is gone"
    if not answers(state.dir):
        return f"does not answer within {_HEALTH_WAIT_S:g} s"
    return ""


def answers(directory: str) -> bool:
    """Whether a mount answers statfs in time. Asked in a thread, which a hung mount keeps but our exit ends."""
    good = threading.Event()

    def ask() -> None:
        with suppress(OSError):
            os.statvfs(directory)
            good.set()

    threading.Thread(target=ask, daemon=True).start()
    return good.wait(_HEALTH_WAIT_S)
