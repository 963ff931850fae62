"""The worker process: ``python -m forebay.cacheruntime.worker``, started by `forebay.cacheruntime.client`.

Its configuration comes as JSON on standard input and credentials come by RPC, so nothing secret is in its arguments
or environment. It prints one line when it serves (``ready``) or cannot (``error ...``), then nothing more; its log is
``worker.log`` in the cache folder.
"""

import contextlib
import fcntl
import gc
import logging
import logging.handlers
import os
import signal
import sys
from pathlib import Path

import trio

from forebay.cacheruntime import tracing
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.errors import ForebayError
from forebay.cacheruntime.logs import set_up_logs
from forebay.cacheruntime.version import VERSION
from forebay.cacheruntime.worker.core import Core
from forebay.cacheruntime.worker.fill_server import serve_fills
from forebay.cacheruntime.worker.server import start_server
from forebay.cacheruntime.worker.storage import Storage

_STOP_GRACE_S = 2.0


def _take_lock(lock_path: Path) -> int | None:
    """The lock that makes this the cache folder's only writer, or None when another worker has it."""
    lock_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


async def _serve(config: CacheConfig, storage: Storage) -> None:
    socket = config.socket_path
    async with trio.open_nursery() as nursery:
        config.runtime_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        core = Core(config, storage, nursery, VERSION)
        await nursery.start(serve_fills, core, config.fill_socket_path)
        nursery.start_soon(core.prefetcher.run)
        nursery.start_soon(core.keeper.run)
        server = start_server(core, socket)
        if core.cluster is not None:
            await core.cluster.start()
            config.remember_cluster()  # not before: with settings that do not work no mount could start a worker
        await core.metrics.serve_remembered()
        _say("ready")
        _detach_output()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

            async def wait_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(wait_signal)
            try:
                await core.wait_unneeded()
            finally:
                socket.unlink(missing_ok=True)
                if core.cluster is not None:
                    with trio.CancelScope(shield=True):
                        await core.cluster.stop()
                stopped = server.stop(_STOP_GRACE_S)
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(stopped.wait, _STOP_GRACE_S + 1)
                    await core.metrics.stop()
                nursery.cancel_scope.cancel()


def _say(line: str) -> None:
    """To whoever started us; he may have been killed meanwhile, and others wait for this worker too."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _detach_output() -> None:
    """Whoever started the worker has read its line; its pipe must not kill or block us later."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _of_ours(failure: BaseException) -> ForebayError | None:
    """The error to tell whoever starts us, out of the groups that nurseries make."""
    if isinstance(failure, BaseExceptionGroup):
        return next((found for error in failure.exceptions if (found := _of_ours(error)) is not None), None)
    return failure if isinstance(failure, ForebayError) else None


def main() -> int:
    try:
        config = CacheConfig.from_json(sys.stdin.read())
        lock = _take_lock(config.lock_path)
        if lock is None:
            _say("taken")
            return 0
        output = logging.handlers.RotatingFileHandler(config.cache_dir / "worker.log", maxBytes=4 << 20, backupCount=1)
        set_up_logs("worker", config.log_format, output)
        if config.traces:
            tracing.start("worker")
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        storage = Storage(config, boot_id)
        config.remember_tiers()
    except ForebayError as error:
        _say(f"error {type(error).__name__}: {error}")
        return 1
    except OSError as error:
        what = f"the cache folder {config.cache_dir} cannot be used: {error.strerror or error}"
        _say(f"error TierUnusable: {what}; make room or name another by --cache-dir")
        return 1
    # Modules live for ever, and neither the entries of a listing nor what is fetched is garbage: looking for some took
    # 8 % of the time of a listing and a sixth of that of a warm-up.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    try:
        trio.run(_serve, config, storage)
    except BaseException as failure:
        trouble = _of_ours(failure)
        if trouble is not None:
            _say(f"error {type(trouble).__name__}: {trouble}")
            return 1
        logging.exception("the worker ends by a fault of its own; the next request starts another")
        raise
    finally:
        storage.close()
        tracing.stop()
    # Fetches that were under way sit in threads that nothing can interrupt; their bytes count as never fetched.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
