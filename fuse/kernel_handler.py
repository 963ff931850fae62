"""A handler with the `kernel` engine: puts its parts together."""

import logging
import os
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from forebay.cacheruntime.catalogue import Node
from forebay.cacheruntime.catalogue_changes import changes_path, read_changes
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.memory_limit import available_bytes
from forebay.fuse import wire_reply
from forebay.fuse.announce import notification
from forebay.fuse.channel import Channel, pipe_bytes_allowed
from forebay.fuse.kernel_engine import KernelEngine, Watch
from forebay.fuse.kernel_requests import Requests
from forebay.fuse.negotiate import Wish
from forebay.fuse.open_mode import OpenMode
from forebay.fuse.operations import FileSlice
from forebay.fuse.passthrough import KernelBacking
from forebay.fuse.probe import MAX_STACK_DEPTH
from forebay.fuse.push import Pusher
from forebay.fuse.recorder import Recorder
from forebay.fuse.switch import Follower, Switch

if TYPE_CHECKING:
    from forebay.fuse.handler import Handler

log = logging.getLogger(__name__)

_REQUEST_BYTES = 1 << 20
_SIGNAL_TICKS = 5
"""Ticks between looks at the signals of readers that wait: half a second."""
_SWEEP_TICKS = 50
"""Ticks between looks for evicted files that we still hold open: five seconds."""


def largest_request_bytes(pipe_bytes: int) -> int:
    """A spliced reply has to fit into the pipe whole, header included: 1 MiB needs a pipe of 2 MiB, which takes
    CAP_SYS_RESOURCE. Two spliced replies of 512 KiB cost less than one copied reply of 1 MiB: 0.38 against 0.51 s of
    CPU for each GiB (docs/decisions/0004)."""
    return _REQUEST_BYTES if pipe_bytes > _REQUEST_BYTES else _REQUEST_BYTES // 2


async def serve(handler: "Handler", resend: bool) -> None:
    """Answer requests until the mount is gone or the handler is asked to stop."""
    mode = OpenMode(handler.spec.open_mode)
    wish = Wish(
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        passthrough=mode is OpenMode.PASSTHROUGH,
        no_open=mode is OpenMode.NO_OPEN,
        resend=handler.spec.resend,
        max_stack_depth=MAX_STACK_DEPTH,
        max_request_bytes=largest_request_bytes(pipe_bytes_allowed()),
    )
    channel, watch, files = Channel(handler.device), Watch(), handler.file_system
    agreement_path = handler.folder / "agreement.json"
    requests = Requests(channel, files, handler.place.incarnation, agreement_path, wish)
    engine = KernelEngine(channel, requests, handler.counters, watch, lambda: len(handler.roster.rows()) == 1)
    if mode is OpenMode.PASSTHROUGH:
        files.backing = KernelBacking(handler.device, handler.counters)
    files.misses.start_soon = engine.start_soon
    files.misses.entry_is_stale = engine.forget_entry
    files.pusher = pusher = _pusher(handler)
    recorder = Recorder(handler.folder, handler.place.incarnation)
    follower = _follower(handler, channel, engine.start_soon)
    watch.before_batch = follower.follow
    watch.tick = _ticker(handler, engine, watch, recorder, follower)

    def stop(*_: object) -> None:
        watch.stopping = True

    signal.signal(signal.SIGTERM, stop)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler.keep_supervised)
            nursery.start_soon(handler.keep_synced)
            nursery.start_soon(partial(trio.to_thread.run_sync, pusher.run, abandon_on_cancel=True))
            await engine.serve(handler.ready, resend)
            nursery.cancel_scope.cancel()
    finally:
        pusher.close()
        recorder.close()
        channel.close()


def _pusher(handler: "Handler") -> Pusher:
    channel, content, token = Channel(handler.device), handler.content(), trio.lowlevel.current_trio_token()

    def locate(node: Node) -> FileSlice | None:
        place = content.find(node.content, 0, node.size)
        return FileSlice(place.descriptor, place.base, node.size) if place is not None else None

    def fetch(node: Node, done: Callable[[bool], None]) -> None:
        token.run_sync_soon(handler.file_system.misses.bring_small, node, done)

    return Pusher(channel.store, locate, fetch, handler.counters, available_bytes)


def _follower(
    handler: "Handler", channel: Channel, start_soon: Callable[[Callable[[], Coroutine[Any, Any, object]]], None]
) -> Follower:
    def announce(switch: Switch) -> None:
        count = 0
        try:
            for change in read_changes(changes_path(Path(switch.catalogue), switch.previous)):
                count += channel.notify(notification(change))
        except (FileNotFoundError, CacheFormatError) as error:
            log.warning("what changed with snapshot %d is not known (%s): all names are new", switch.snapshot, error)
            channel.notify(wire_reply.notify_inc_epoch())
        log.info("snapshot %d: the kernel had %d things that changed", switch.snapshot, count)

    return Follower(handler.folder, handler.place, handler.show, announce, start_soon, trio.to_thread.run_sync)


def _ticker(
    handler: "Handler", engine: KernelEngine, watch: Watch, recorder: Recorder, follower: Follower
) -> Callable[[float], None]:
    ticks = 0

    def tick(busy_s: float) -> None:
        nonlocal ticks
        ticks += 1
        handler.place.beat(busy_s)
        follower.tick()
        recorder.look()
        watch.record = recorder.record if recorder.active else None
        if ticks % _SIGNAL_TICKS == 0:
            engine.end_interrupted()
        if ticks % _SWEEP_TICKS == 0:
            handler.file_system.sweep()

    return tick
