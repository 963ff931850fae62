"""A FUSE handler process: ``python -m forebay.fuse.handler DEVICE_FD SPEC_FD``, started by the supervisor.

It prints ``ready`` once requests are answered, or ``error ...``, and exits with 0 when the mount is gone.
"""

import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

import trio

from forebay.cacheruntime.catalogue import Catalogue
from forebay.cacheruntime.client import AttachedClient, SourceSpec, WorkerClient
from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.content import ContentReader
from forebay.cacheruntime.errors import ForebayError
from forebay.cacheruntime.index import Index
from forebay.cacheruntime.touch import TouchMap
from forebay.fuse.counters import CounterRow
from forebay.fuse.file_system import FileSystem, Presentation
from forebay.fuse.mount_spec import MountSpec
from forebay.fuse.negotiate import UnsupportedKernel, Wish
from forebay.fuse.open_mode import OpenMode
from forebay.fuse.open_table import OpenTable
from forebay.fuse.probe import MAX_STACK_DEPTH


def _file_system(spec: MountSpec, counters: CounterRow) -> FileSystem:
    config = CacheConfig.from_json(spec.config)
    client = AttachedClient(WorkerClient(config), SourceSpec(spec.source, spec.options), spec.snapshot)
    content = ContentReader(Index(config.index_dir), TouchMap(config.cache_dir / "touch"))
    return FileSystem(
        catalogue=Catalogue(Path(spec.catalogue)),
        content=content,
        client=client,
        source_url=spec.source_url,
        presentation=Presentation(spec.uid, spec.gid, spec.umask),
        mode=OpenMode(spec.open_mode),
        fill=config.fill,
        counters=counters,
        open_table=OpenTable(Path(spec.folder) / "open-table"),
        tier_names={str(tier.path): tier.medium.value for tier in config.tiers},
    )


def _ready() -> None:
    print("ready", flush=True)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


async def _serve_kernel(device: int, spec: MountSpec, file_system: FileSystem, counters: CounterRow) -> None:
    from forebay.fuse.kernel_engine import MAX_REQUEST_BYTES, KernelBacking, KernelEngine

    mode = OpenMode(spec.open_mode)
    wish = Wish(
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        passthrough=mode is OpenMode.PASSTHROUGH,
        no_open=mode is OpenMode.NO_OPEN,
        max_stack_depth=MAX_STACK_DEPTH,
        max_request_bytes=MAX_REQUEST_BYTES,
    )
    engine = KernelEngine(device, file_system, counters, Path(spec.folder) / "agreement.json", wish)
    if mode is OpenMode.PASSTHROUGH:
        file_system.backing = KernelBacking(device)
    file_system.start_soon = engine.start_soon
    file_system.entry_is_stale = engine.forget_entry
    await engine.serve(_ready, file_system.sweep)


async def _serve_pyfuse3(device: int, spec: MountSpec, file_system: FileSystem, counters: CounterRow) -> None:
    from forebay.fuse.pyfuse3_engine import serve

    await serve(device, file_system, counters, spec, _ready)


def main() -> int:
    device, spec_descriptor = int(sys.argv[1]), int(sys.argv[2])
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s handler %(process)d: %(message)s"
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the supervisor, which unmounts
    spec = MountSpec.from_memory(spec_descriptor)
    counters = CounterRow(Path(spec.folder) / "counters", 0)
    serve = _serve_kernel if spec.engine == "kernel" else _serve_pyfuse3
    try:
        trio.run(partial(serve, device, spec, _file_system(spec, counters), counters))
    except (ForebayError, UnsupportedKernel) as error:
        logging.error("%s", error)
        print(f"error {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
