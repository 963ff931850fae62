"""A FUSE handler process, started by the supervisor:
``python -m forebay.fuse.handler DEVICE_FD SPEC_FD SLOT INCARNATION fresh|resend``.

It prints ``ready`` once requests are answered, or ``error ...``. It ends when the mount is gone, or on SIGTERM after it
has answered what it had taken. When the supervisor dies, the first handler calls another one.
"""

import gc
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import trio

from forebay.cacheruntime import mounts, tracing
from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.client import AttachedClient, WorkerClient
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.counters import CounterRow
from forebay.cacheruntime.errors import ForebayError
from forebay.cacheruntime.index import Index
from forebay.cacheruntime.logs import set_up_logs
from forebay.cacheruntime.touch import TouchMap
from forebay.fuse import mounting
from forebay.fuse.file_system import FileSystem, Presentation
from forebay.fuse.misses import Misses
from forebay.fuse.mount_spec import MountSpec
from forebay.fuse.negotiate import UnsupportedKernel
from forebay.fuse.open_mode import OpenMode
from forebay.fuse.open_table import OpenTable
from forebay.fuse.periodic_sync import Turn, keep_synced
from forebay.fuse.roster import Place, Roster
from forebay.fuse.switch import SWITCH_S, Switch, current_switch, switch_mounts
from forebay.proto import worker_pb2 as pb

log = logging.getLogger(__name__)

SYNC_DEADLINE_S = 6 * 3600.0
"""For a sync on the interval: a billion keys take less, and a worker that hangs is not waited for for ever."""

_STATE_PAUSE_S = 0.1
_HEIR_PAUSE_S = 1.5
"""Between the turns of handlers at calling a new supervisor: each waits whether one before it has done so."""


class Handler:
    """What both engines share."""

    def __init__(self, device: int, spec_descriptor: int, slot: int, incarnation: int) -> None:
        self.device = device
        self.spec_descriptor = spec_descriptor
        self.spec = spec = MountSpec.from_memory(spec_descriptor)
        self.folder = Path(spec.folder)
        self.counters = CounterRow(self.folder, slot)
        self.roster = Roster(self.folder / "roster")
        self.place: Place = self.roster.enter(slot, incarnation)
        self._config = config = CacheConfig.from_json(spec.config)
        switch = current_switch(self.folder, self.roster.header("generation"))
        snapshot, catalogue = (switch.snapshot, switch.catalogue) if switch else (spec.snapshot, spec.catalogue)
        self._client = AttachedClient(WorkerClient(config, cluster_of_folder=True), spec.source_spec, snapshot)
        self._catalogue = Catalogue(Path(catalogue))
        self._index = Index(config.index_dir)
        self._touch = TouchMap(config.cache_dir / "touch")
        content = self.content()
        misses = Misses(self._catalogue, content, self._client, config.fill, self.counters)
        misses.set_read_ahead = self._set_read_ahead
        self.file_system = FileSystem(
            catalogue=self._catalogue,
            content=content,
            client=self._client,
            roots=spec.source_spec.roots,
            presentation=Presentation(spec.uid, spec.gid, spec.umask),
            mode=OpenMode(spec.open_mode),
            misses=misses,
            counters=self.counters,
            open_table=OpenTable(self.folder / "open-table", self.roster.is_live),
            tier_names={str(tier.path): tier.medium.value for tier in config.tiers},
        )

    def content(self) -> ContentReader:
        """A reader of cached bytes for one thread."""
        return ContentReader(self._index, self._touch)

    def _set_read_ahead(self, size_bytes: int) -> None:
        """Of the kernel, for files that are opened from now on; nothing where sysfs is not writable."""
        entry = mounting.mounted(self.spec.directory)
        if entry is not None and entry.fs_type == f"fuse.{mounting.FS_TYPE}":
            mounting.set_read_ahead(entry.device, size_bytes)

    def show(self, switch: Switch) -> None:
        """Serve another snapshot from now on."""
        before, self._catalogue = self._catalogue, Catalogue(Path(switch.catalogue))
        self._client.snapshot = switch.snapshot
        self.file_system.show(self._catalogue)
        before.close()

    def ready(self) -> None:
        """Tell the supervisor."""
        print("ready", flush=True)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)

    async def keep_supervised(self) -> None:
        """Wait for the supervisor's death, and call another one."""
        while True:
            state = mounts.read_state(self.folder)
            if state is None:
                if not self.folder.exists():
                    return  # the mount is gone
                await trio.sleep(_STATE_PAUSE_S)  # it is being made: the supervisor writes it once we are ready
                continue
            try:
                pidfd = os.pidfd_open(state.supervisor)
            except ProcessLookupError:
                pidfd = -1
            if pidfd >= 0:
                await trio.lowlevel.wait_readable(pidfd)
                os.close(pidfd)
            await trio.sleep(_HEIR_PAUSE_S * sum(row.slot < self.place.slot for row in self.roster.rows()))
            state = mounts.read_state(self.folder)
            if state is not None and mounts.start_time(state.supervisor) != state.supervisor_start:
                log.warning("supervisor %d is gone: calling another", state.supervisor)
                self._call_supervisor()
                await trio.sleep(_HEIR_PAUSE_S)

    async def keep_synced(self) -> None:
        """Sync the dataset on the interval that its manifest asks for; returns where it asks for none."""
        spec = self.spec.source_spec
        if spec.tree is None or not spec.tree.interval_s or self.spec.pinned:
            return
        config = self._config
        turn = Turn(config.runtime_dir, self.spec.dataset_id)
        await keep_synced(spec.tree.interval_s, turn, lambda: self.place.is_first, partial(self._sync, config))

    async def _sync(self, config: CacheConfig) -> None:
        shown = self._client.snapshot
        reply: pb.SyncReply = await self._client.call(
            "Sync", lambda dataset_id: pb.SyncRequest(dataset_id=dataset_id, shown=shown), SYNC_DEADLINE_S
        )
        if reply.snapshot != reply.previous:
            log.info("synced: %d added, %d changed, %d removed", reply.added, reply.changed, reply.removed)
        # In a thread: it waits for the mounts, this one included, to follow.
        await trio.to_thread.run_sync(
            switch_mounts, config.runtime_dir, self.spec.dataset_id, reply.snapshot, reply.catalogue, SWITCH_S,
            abandon_on_cancel=True,
        )  # fmt: skip

    def _call_supervisor(self) -> None:
        words = [
            sys.executable,
            "-m",
            "forebay.fuse.supervisor",
            "succeed",
            str(self.spec_descriptor),
            str(self.device),
        ]
        with open(self.spec.log, "ab") as output:
            subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output,
                pass_fds=[self.spec_descriptor, self.device], cwd="/", start_new_session=True,
            )  # fmt: skip


def _serve(handler: Handler, resend: bool) -> Callable[[], Coroutine[Any, Any, None]]:
    if handler.spec.engine == "kernel":
        from forebay.fuse import kernel_handler

        return partial(kernel_handler.serve, handler, resend)
    from forebay.fuse import pyfuse3_engine

    return partial(pyfuse3_engine.serve, handler)


def main(device: int, spec_descriptor: int, slot: int, incarnation: int, resend: bool) -> int:
    config = CacheConfig.from_json(MountSpec.from_memory(spec_descriptor).config)
    set_up_logs("handler", config.log_format, logging.StreamHandler(sys.stderr))
    if config.traces:
        tracing.start("handler")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the supervisor, which unmounts
    # Requests make many tuples and no cycles: looking for these every 700 tuples would cost a tenth of a listing.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    try:
        handler = Handler(device, spec_descriptor, slot, incarnation)
        trio.run(_serve(handler, resend))
    except (ForebayError, UnsupportedKernel) as error:
        logging.error("%s", error)
        print(f"error {error}", flush=True)
        return 1
    # What is still in threads is waiting for the worker, and nobody waits for it any more.
    os._exit(0)


if __name__ == "__main__":
    _device, _spec, _slot, _incarnation = map(int, sys.argv[1:5])
    sys.exit(main(_device, _spec, _slot, _incarnation, sys.argv[5] == "resend"))
