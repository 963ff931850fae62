"""The `kernel` engine: speaks the FUSE protocol itself, on a descriptor that the supervisor keeps.

One loop reads requests. An operation that can be answered at once is answered there and then (`kernel_requests`); one
that raises NotReady goes on in a task of its own. While no task is under way the loop waits for the next request in
poll(2) itself: a turn of the event loop costs as much as answering a request.

Several engines, each in a process of its own, may serve one descriptor: whoever reads a request answers it.
"""

import errno
import logging
import os
import select
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import trio

from forebay.cacheruntime.counters import CounterRow, Source
from forebay.cacheruntime.errors import CacheError, ForebayError
from forebay.fuse import wire, wire_reply
from forebay.fuse.channel import Channel
from forebay.fuse.interrupt import wants_to_stop
from forebay.fuse.kernel_requests import Requests
from forebay.fuse.operations import TRIES, NotReady, Refused, errno_of

log = logging.getLogger(__name__)

_BATCH = 32
"""Requests answered before other tasks get their turn."""

_TURN_S = 0.05
"""Requests are answered at most this long before the event loop has its turn; nothing there is in a hurry."""

_SPIN_S, _SPIN_LUCK, _SPIN_REST = 50e-6, 8, 64
"""How long to look for a request before sleeping; how many failures a run of successes pays for; for how many sleeps
not to look afterwards."""

_FORGET_S = 1.0
"""So long a reader waits at most until the kernel has forgotten a name."""

_TICK_S = 0.1
"""Between calls of `Watch.tick`, at least."""

_REQUEUE_S = 0.005
"""Before an INTERRUPT of a request that another handler has is put back into the queue for that one to find."""

_DRAIN_S = 1.0
"""A handler that is to stop gives requests that wait for the source this long; then another one asks again."""


class Watch:
    """What the loop is to do besides answering; the handler fills it in."""

    before_batch: Callable[[], None] = staticmethod(lambda: None)
    """Called before requests are read; costs less than a microsecond."""
    tick: Callable[[float], None] = staticmethod(lambda _: None)
    """Called about every `_TICK_S`, also while the loop is busy, with the seconds that it did not wait so far."""
    record: Callable[[bytes], None] | None = None
    """Gets every message of the kernel."""
    stopping: bool = False
    """Set to have the engine end."""


class KernelEngine:
    """A session on one FUSE connection.

    Resources: the descriptor stays the caller's. Cancellation: safe; requests that were not answered stay with the
    kernel, and a successor asks for them again.
    """

    def __init__(
        self, channel: Channel, requests: Requests, counters: CounterRow, watch: Watch, alone: Callable[[], bool]
    ) -> None:
        """
        Args:
            channel: the way to the kernel; its descriptor is non-blocking.
            requests: what answers.
            counters: our row.
            watch: what else is to be done.
            alone: whether no other handler serves this mount.
        """
        self._channel = channel
        self._requests = requests
        self._counters = counters
        self._watch = watch
        self._alone = alone
        self._waiting: dict[int, tuple[int, trio.CancelScope]] = {}
        """Requests that wait, by number: the reader's process id, and what ends the wait."""
        self._tasks = 0
        self._waited_s = 0.0
        self._spin_luck = 0
        self._nursery: trio.Nursery | None = None
        requests.answered = partial(counters.observe, Source.TIER)

    async def serve(self, ready: Callable[[], None], resend: bool) -> None:
        """Answer requests until the mount is gone or `Watch.stopping` is set.

        Args:
            ready: called once INIT is answered.
            resend: another handler died: ask the kernel for what it left unanswered.
        """

        def begin() -> None:
            assert self._requests.agreement is not None
            if not self._requests.agreement.resend:
                self._channel.use_clone()
            elif resend:
                self._channel.notify(wire_reply.notify_resend())
            ready()

        if self._requests.agreement is None:
            self._requests.agreed = begin
        else:
            begin()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            connected = await self._loop()
            if connected and self._waiting:
                with trio.move_on_after(_DRAIN_S):
                    while self._waiting:
                        await trio.sleep(0.01)
            left = bool(self._waiting)
            nursery.cancel_scope.cancel()
        if connected and left and self._requests.agreement is not None and self._requests.agreement.resend:
            self._channel.notify(wire_reply.notify_resend())

    def start_soon(self, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run a best-effort async function in the background."""
        if self._nursery is not None:
            self._tasks += 1
            self._nursery.start_soon(self._quietly, work)

    async def _quietly(self, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        try:
            await work()
        except ForebayError as error:
            log.info("in the background: %s", error)
        finally:
            self._tasks -= 1

    async def forget_entry(self, parent: int, name: bytes) -> None:
        """Make the kernel look a name up again; returns when it does, or after a second."""
        # In a thread, for the kernel may make it wait for a directory lock whose holder waits for our reply.
        message = wire_reply.notify_inval_entry(parent, name)
        with trio.move_on_after(_FORGET_S):
            await trio.to_thread.run_sync(self._channel.notify, message, abandon_on_cancel=True)

    # The loop

    async def _loop(self) -> bool:
        """Read and answer. False when the mount is gone, True when we are to stop."""
        watch, next_tick, started = self._watch, 0.0, trio.current_time()
        while not watch.stopping:
            now = trio.current_time()
            if now >= next_tick:
                watch.tick(now - started - self._waited_s)
                next_tick = now + _TICK_S
            if self._tasks:
                with trio.move_on_after(_TICK_S):
                    await trio.lowlevel.wait_readable(self._channel.device)
                self._waited_s += trio.current_time() - now
                connected = self._answer_batches()
            else:
                await trio.lowlevel.checkpoint()
                connected = self._serve_alone()
            if not connected:
                return False
        return True

    def _serve_alone(self) -> bool:
        """Answer without turns of the event loop while no task is under way, for a while. False: the mount is gone."""
        poller = select.poll()
        poller.register(self._channel.device, select.POLLIN)
        now = trio.current_time()
        until = now + _TURN_S
        while not self._tasks and not self._watch.stopping and now < until:
            if not self._comes_at_once(poller):
                poller.poll((until - now) * 1000)
            woken = trio.current_time()
            self._waited_s += woken - now
            if not self._answer_batches():
                return False
            now = trio.current_time()
        return True

    def _comes_at_once(self, poller: "select.poll") -> bool:
        """Look for the next request for a moment before sleeping: to be woken up costs more than such a moment.

        Only while that pays: when requests come later than that, we do not look again for a while.
        """
        if self._spin_luck < 0:
            self._spin_luck += 1
            return False
        until = time.perf_counter() + _SPIN_S
        while time.perf_counter() < until:
            if poller.poll(0):
                self._spin_luck = min(self._spin_luck + 1, _SPIN_LUCK)
                return True
        self._spin_luck -= 1
        if self._spin_luck < 0:
            self._spin_luck = -_SPIN_REST
        return False

    def _answer_batches(self) -> bool:
        """Answer what is there, for a while. False: the mount is gone."""
        until = trio.current_time() + _TICK_S
        while True:
            self._watch.before_batch()
            count = self._answer_batch()
            if count < 0:
                return False
            if count:
                self._counters.add("requests", count)
            if count < _BATCH or self._tasks or trio.current_time() > until:
                return True

    def _answer_batch(self) -> int:
        """Answer up to `_BATCH` requests; how many there were, or -1 when the mount is gone."""
        agreement = self._requests.agreement
        size = wire.MIN_READ_BUFFER_BYTES if agreement is None else agreement.read_buffer_bytes
        device, parse, record = self._channel.device, wire.parse, self._watch.record
        for count in range(_BATCH):
            try:
                message = os.read(device, size)
            except BlockingIOError:
                return count
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return -1
                if error.errno in (errno.ENOENT, errno.EINTR):  # the request was interrupted as we took it
                    continue
                raise
            if record is not None:
                record(message)
            try:
                header, request = parse(message)
            except wire.MalformedMessage as error:
                log.error("the kernel sent what we cannot read: %s", error)
                continue
            self._answer(header, request)
        return _BATCH

    def _answer(self, header: wire.Header, request: wire.Request) -> None:
        try:
            if type(request) is wire.Interrupt:
                self._interrupt(header, request)
            else:
                self._requests.answer(header, request, False)
        except Refused as refused:
            self._channel.send(wire_reply.reply_error(header.unique, refused.errno))
        except NotReady as not_ready:
            assert self._nursery is not None
            self._tasks += 1
            self._nursery.start_soon(self._answer_later, header, request, not_ready)
        except Exception as error:  # noqa: BLE001 (see _fail)
            self._fail(header, request, error)

    async def _answer_later(self, header: wire.Header, request: wire.Request, not_ready: NotReady) -> None:
        unique = header.unique & ~wire.RESENT_UNIQUE_BIT
        with trio.CancelScope() as scope:
            self._waiting[unique] = (header.pid, scope)
            try:
                for _ in range(TRIES):
                    data = await not_ready.wait()
                    if data is not None:
                        self._channel.send(wire_reply.reply_data(header.unique, data))
                        return
                    try:
                        self._requests.answer(header, request, True)
                        return
                    except NotReady as still:
                        not_ready = still
                raise CacheError("what was brought in went away again, over and over")
            except Refused as refused:
                self._channel.send(wire_reply.reply_error(header.unique, refused.errno))
            except Exception as error:  # noqa: BLE001 (see _fail)
                self._fail(header, request, error)
            finally:
                self._waiting.pop(unique, None)
                self._tasks -= 1
        if scope.cancelled_caught:
            self._channel.send(wire_reply.reply_error(header.unique, errno.EINTR))

    def _fail(self, header: wire.Header, request: wire.Request, error: Exception) -> None:
        """Every request gets exactly one reply, whatever went wrong: a missing one would hang its reader for ever."""
        self._counters.add("errors")
        name = type(request).__name__
        if isinstance(error, ForebayError):
            log.warning("%s of node %d for process %d failed: %s", name, header.node, header.pid, error)
            self._channel.send(wire_reply.reply_error(header.unique, errno_of(error)))
        else:
            log.error("%s of node %d for process %d failed", name, header.node, header.pid, exc_info=error)
            self._channel.send(wire_reply.reply_error(header.unique, errno.EIO))

    def _interrupt(self, header: wire.Header, request: wire.Interrupt) -> None:
        """A reader got a signal while it waits. INTERRUPT itself has no reply, but one that puts it back."""
        waiting = self._waiting.get(request.unique & ~wire.RESENT_UNIQUE_BIT)
        if waiting is not None:
            if wants_to_stop(waiting[0]):
                waiting[1].cancel()
        elif not self._alone():
            self.start_soon(lambda: self._requeue(header.unique))

    def end_interrupted(self) -> None:
        """End waits of readers that are to stop and of whom no INTERRUPT tells: those who wait for read-ahead.

        The kernel waits for a page of its read-ahead with fatal signals alone in mind. When that READ fails it asks
        again for the page, on the reader's behalf, and that wait the reader's signals do end.
        """
        wanted = {pid: False for pid, _ in self._waiting.values() if pid}
        for pid in wanted:
            wanted[pid] = wants_to_stop(pid)
        for pid, scope in self._waiting.values():
            if wanted.get(pid):
                scope.cancel()

    async def _requeue(self, unique: int) -> None:
        """Another handler has that request, or had it: the kernel knows which (EAGAIN queues the INTERRUPT again)."""
        await trio.sleep(_REQUEUE_S)
        self._channel.send(wire_reply.reply_error(unique, errno.EAGAIN))
