"""The supervisor of one mount: keeps the /dev/fuse descriptor and keeps handlers running on it.

While the descriptor is open the mount stays, and a new handler asks the kernel for what a dead one left unanswered. The
supervisor takes part in nothing else, holds no lock, and what it knows is in the mount's runtime folder (`roster`): so
another one can take its place, by its own hand-over (an upgrade) or called by a handler (it was killed).

    python -m forebay.fuse.supervisor mount SPEC_FD                 mount, and serve
    python -m forebay.fuse.supervisor succeed SPEC_FD DEVICE_FD     go on after a supervisor that is dead
    python -m forebay.fuse.supervisor take-over FOLDER              have the living one hand over, replace its handlers

It prints one line: ``ready`` when the mount is usable, or ``error ...``. It ends when the mount is gone.
"""

import errno
import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from forebay.cacheruntime import mounts
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.logs import say
from forebay.fuse import hand_over, mounting
from forebay.fuse.handler_process import HandlerProcess
from forebay.fuse.mount_spec import MountSpec
from forebay.fuse.roster import Roster, now_ms
from forebay.fuse.scaling import Scaling
from forebay.fuse.switch import current_switch

MAX_READ_BYTES = 1 << 20

_RESTART_PAUSES_S = (0.0, 0.0, 0.1, 0.5, 1.0, 2.0)
"""Before the next handler, by how many died within the last minute; the last one for all further."""

_LOOK_S = 0.5
"""Between looks at the handlers' health and load."""

_STOPPED_MS, _STUCK_MS = 2_000, 10_000
"""A handler that shows no life for this long is replaced: one that was stopped by a signal, and any other."""

_STOP_S = 3.0


class Supervisor:
    """See the module."""

    def __init__(self, spec_descriptor: int) -> None:
        self._spec_descriptor = spec_descriptor
        self._spec = MountSpec.from_memory(spec_descriptor)
        self._log_format = CacheConfig.from_json(self._spec.config).log_format
        self._folder = Path(self._spec.folder)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._roster = Roster(self._folder / "roster")
        self._kernel = self._spec.engine == "kernel"
        self._device = -1
        self._handlers: list[HandlerProcess] = []
        self._scaling = Scaling(*((self._spec.handlers_min, self._spec.handlers_max) if self._kernel else (1, 1)))
        self._deaths: list[float] = []
        self._next_start = 0.0
        self._generation = -1

    @property
    def log(self) -> str:
        """Where its words go once the mount is made."""
        return self._spec.log

    # Beginning

    def mount(self) -> str:
        """Mount and start the first handlers; returns what went wrong, or ''."""
        spec = self._spec
        try:
            self._device = mounting.mount(spec.directory, spec.source_url, spec.allow_other, MAX_READ_BYTES)
        except mounting.MountFailed as error:
            return str(error.strerror)
        trouble = self._start_handler(resend=False)
        if trouble:
            self._unmount()
            return trouble
        entry = mounting.mounted(spec.directory)
        if entry is not None:
            mounting.set_read_ahead(entry.device, mounting.READ_AHEAD_BYTES)
        return ""

    def adopt(self, device: int) -> None:
        """Go on with the descriptor and the handlers of another supervisor."""
        self._device = device
        for row in self._roster.rows():
            with suppress(ProcessLookupError):
                self._handlers.append(HandlerProcess(row.slot, row.incarnation, row.pid))
        self._scaling.wanted = max(self._scaling.wanted, len(self._handlers))
        self._write_state()

    def keep(self) -> None:
        """Keep the mount served until it is gone or handed over; clears up in the first case."""
        control = hand_over.listen(self._folder)
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._unmount())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closing terminal does not end a mount
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poller = select.poll()
        poller.register(self._device, 0)  # an error tells that the connection has ended
        for descriptor in (control.fileno(), wake):
            poller.register(descriptor, select.POLLIN)
        next_look = 0.0
        while True:
            happened = dict(poller.poll(_LOOK_S * 1000))
            if self._device in happened:
                break
            if wake in happened:
                os.read(wake, 4096)
            if control.fileno() in happened and self._obey(control):
                return
            self._replace_dead()
            if time.monotonic() >= next_look:
                self._look()
                next_look = time.monotonic() + _LOOK_S
        self.end()

    def end(self) -> None:
        """The mount is gone: so are its handlers and its folder."""
        for handler in self._handlers:
            if not handler.wait(_STOP_S):
                handler.kill()
                handler.wait(_STOP_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    # Handlers

    def _start_handler(self, *, resend: bool) -> str:
        slot, incarnation = self._roster.free_slot(), self._roster.mint()
        handler, trouble = HandlerProcess.start(
            slot, incarnation, self._device, self._spec_descriptor, self._spec.log, resend=resend
        )
        self._handlers.append(handler)
        self._write_state()
        return trouble

    def _replace_dead(self) -> None:
        """Take note of handlers that ended, and start others in their place."""
        died = [handler for handler in self._handlers if handler.ended or handler.given_up]
        now = time.monotonic()
        for handler in died:
            self._handlers.remove(handler)
            handler.forget()
            if not handler.leaving:
                how = "is given up" if handler.given_up else handler.how_ended
                self._say(f"handler {handler.pid} {how}: starting another")
                self._deaths = [*(at for at in self._deaths if now - at < 60), now]
                self._next_start = now + _RESTART_PAUSES_S[min(len(self._deaths), len(_RESTART_PAUSES_S)) - 1]
        if died and not self._kernel:
            self._unmount()  # its library cannot go on with a connection that another process began
            return
        # The mount may have gone, which is why they ended: then poll() says so before another is started.
        if len(self._handlers) < self._scaling.wanted and now >= self._next_start and not self._is_gone():
            trouble = self._start_handler(resend=True)
            if trouble:
                self._say(f"the new handler does not serve: {trouble}")
        elif died:
            self._write_state()

    def _is_gone(self) -> bool:
        poller = select.poll()
        poller.register(self._device, 0)
        return bool(poller.poll(0))

    def _look(self) -> None:
        """Replace handlers that hang, follow the load, and keep the description of the mount true."""
        now, busy = now_ms(), {}
        for handler in self._handlers:
            row = self._roster.row(handler.slot)
            if row.incarnation == handler.incarnation and not handler.leaving:
                busy[handler.incarnation] = row.busy_us / 1e6
            silent_ms = now - row.beat_ms if row.incarnation == handler.incarnation else 0
            state = handler.state() if silent_ms > _STOPPED_MS else ""
            # In state D it waits for a disk, and no signal would reach it.
            if self._kernel and state and (state in "tT" if silent_ms <= _STUCK_MS else state not in "DZ"):
                self._say(f"handler {handler.pid} has shown no life for {silent_ms / 1000:.0f} s: killing it")
                handler.kill()
                handler.given_up = True
                self._roster.clear(handler.slot)
        change = self._scaling.observe(busy, now / 1000)
        if change > 0:
            self._say("the handlers are busy: starting one more")
            self._start_handler(resend=False)
        elif change < 0:
            max(self._handlers, key=lambda handler: handler.slot).stop()
        if self._roster.header("generation") != self._generation:
            self._write_state()

    def replace_handlers(self) -> None:
        """A rolling upgrade: for each handler a new one, before the old one is asked to stop."""
        for old in [handler for handler in self._handlers if not handler.leaving] if self._kernel else ():
            if self._start_handler(resend=False):
                return  # the old ones go on
            old.stop()
            if not old.wait(_STOP_S):
                old.kill()
            self._handlers.remove(old)
            old.forget()
        self._write_state()

    # The rest

    def _obey(self, control: hand_over.Listener) -> bool:
        """Answer a successor; True when it has taken over."""
        if not control.give([self._spec_descriptor, self._device]):
            return False
        self._say("handed over to another supervisor")
        return True

    def _write_state(self) -> None:
        spec = self._spec
        self._generation = self._roster.header("generation")
        switch = current_switch(self._folder, self._generation)
        state = mounts.MountState(
            dir=spec.directory, source=spec.shown_source, url=spec.source_url, dataset_id=spec.dataset_id,
            snapshot=switch.snapshot if switch else spec.snapshot,
            catalogue=switch.catalogue if switch else spec.catalogue,
            cache_dir=spec.cache_dir, engine=spec.engine,
            open_mode=spec.open_mode, open_mode_reason=spec.open_mode_reason, supervisor=os.getpid(),
            supervisor_start=mounts.start_time(os.getpid()) or 0,
            handlers=tuple(handler.pid for handler in self._handlers), note=spec.passthrough_note,
            pinned=spec.pinned, owners=spec.source_spec.owners,
        )  # fmt: skip
        mounts.write_state(self._folder, state)

    def _say(self, words: str) -> None:
        say("supervisor", self._log_format, words)

    def _unmount(self) -> None:
        with suppress(mounting.MountFailed):
            try:
                mounting.unmount(self._spec.directory)
            except mounting.MountFailed as error:
                if error.errno == errno.EBUSY:
                    mounting.unmount(self._spec.directory, lazy=True)


def _detach_output(log: str) -> None:
    """Whoever started the mount has read its line; from now on everything goes to the log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def main(how: str, *words: str) -> int:
    trouble = ""
    handed: hand_over.Handed | None = None
    if how == "take-over":
        try:
            handed = hand_over.ask(Path(words[0]))
        except OSError as error:
            print(f"error its supervisor hands nothing over ({error.strerror or error})", flush=True)
            return 1
        supervisor = Supervisor(handed.descriptors[0])
        supervisor.adopt(handed.descriptors[1])
        handed.confirm()
    else:
        supervisor = Supervisor(int(words[0]))
        if how == "mount":
            trouble = supervisor.mount()
        else:
            supervisor.adopt(int(words[1]))
    if trouble:
        supervisor.end()
        print(f"error {trouble}", flush=True)
        return 1
    if handed is not None:
        supervisor.replace_handlers()
    print("ready", flush=True)
    _detach_output(supervisor.log)
    supervisor.keep()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
