"""The ledger: the index as it was at the last checkpoint, durable, for a machine that loses power.

Storage format
--------------
Folder ``ledger/`` of the cache folder: an LMDB environment with the tables of the index (`cacheruntime/index.py`).
Every commit is synced, and comes after the data that it speaks of was synced; so what it calls cached was on the disk.

``index.seal`` in the cache folder: after an orderly stop, device number excepted, what stat tells of the index's file:
inode number, size, mtime and ctime in ns. An index that was changed while no worker ran does not have it any more.

``index.boot`` beside it: boot id of the kernel under which the index was opened last. It is known before the index is
mapped: one that a power loss has cut off ends the process that reads behind its end.

The index itself is not synced, as that would cost a wait of milliseconds for each block. A checkpoint takes over the
keys that changed since the last one; it costs what changed, not what is cached.
"""

import ctypes
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import lmdb

from forebay.cacheruntime.config import CacheConfig
from forebay.cacheruntime.durable import sync_folder, write_durably
from forebay.cacheruntime.errors import CacheFormatError
from forebay.cacheruntime.index import FORMAT, MAP_BYTES, TABLES, Index
from forebay.cacheruntime.worker.index_writer import SYNCED, Changed, IndexWriter

log = logging.getLogger(__name__)

_UNSYNCED = "it was closed before all data was on the disks, and the machine was started anew"
"""The index itself is whole then."""

_SYNCED_ONE_BY_ONE = 64
"""Files; for more, syncing their file system costs less."""

_TAKEN_OVER = b"whole"
"""Key of ``meta`` in the ledger: it has been filled once."""


def open_index(config: CacheConfig, boot_id: str) -> IndexWriter:
    """The index of a cache folder, from its last checkpoint when it cannot be believed.

    Raises:
        CacheFormatError: it is of another format.
    """
    trouble = _trouble(config, boot_id)
    try:
        if trouble is not None and trouble != _UNSYNCED:
            _restore(config, trouble)
        elif not (config.index_dir / "data.mdb").exists():
            # Who has it open also holds its lock file, which therefore never serves another one.
            shutil.rmtree(config.index_dir, ignore_errors=True)
        _seal_path(config).unlink(missing_ok=True)
        if _text(_boot_path(config)) != boot_id:
            write_durably(_boot_path(config), boot_id)
        return IndexWriter(config.index_dir, boot_id, distrust=trouble is not None)
    except (OSError, lmdb.Error) as error:
        raise _no_room(config.index_dir, error) from error


def close_index(config: CacheConfig, index: IndexWriter) -> None:
    """Close it in order, so that the next start believes it; where that cannot be written, as a kill would leave it."""
    try:
        index.close()
        write_durably(_seal_path(config), _stat_text(config))
    except (OSError, lmdb.Error) as error:
        log.warning("the cache index was not closed in order: %s", error)


def _no_room(folder: Path, error: Exception) -> CacheFormatError:
    return CacheFormatError(f"{folder} cannot be written ({error}); make room there or name another --cache-dir")


def _seal_path(config: CacheConfig) -> Path:
    return config.cache_dir / "index.seal"


def _boot_path(config: CacheConfig) -> Path:
    return config.cache_dir / "index.boot"


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _stat_text(config: CacheConfig) -> str:
    found = os.stat(config.index_dir / "data.mdb")
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n"


def _trouble(config: CacheConfig, boot_id: str) -> str | None:
    """Why the index is not to be believed; None when it is, or is new."""
    if not (config.index_dir / "data.mdb").exists():
        return "it was removed" if (config.ledger_dir / "data.mdb").exists() else None
    seal, same_boot = _text(_seal_path(config)), _text(_boot_path(config)) == boot_id
    if seal is None and not same_boot:
        return "the machine went down without a clean stop"
    if seal is not None and seal != _stat_text(config):
        return "it was changed while no worker ran"
    try:
        index = Index(config.index_dir)
    except CacheFormatError as error:
        if isinstance(error.__cause__, lmdb.Error):
            return f"it cannot be read: {error.__cause__}"
        if b"0" <= _format(config.index_dir) < FORMAT:
            return "an earlier version wrote it"  # all that is cached can be fetched again
        raise
    try:
        with index.raw() as txn:
            meta = index.table("meta")
            clean = txn.get(b"clean", db=meta)
    except lmdb.Error as error:
        return f"it cannot be read: {error}"
    finally:
        index.close()
    # Killed while it worked, or between its mark and the seal: the kernel has all that was written.
    if same_boot or clean == SYNCED:
        return None
    return _UNSYNCED if clean is not None else "the machine went down without a clean stop"


def _restore(config: CacheConfig, trouble: str) -> None:
    """Put the last checkpoint in the index's place."""
    draft = config.cache_dir / "index.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    if _is_whole(config.ledger_dir):
        log.warning("the cache index is not to be believed (%s): going on from the last checkpoint", trouble)
        shutil.copyfile(config.ledger_dir / "data.mdb", draft / "data.mdb")
        _distrust(draft)
    else:
        log.warning("the cache index is not to be believed (%s), and there is no checkpoint: starting empty", trouble)
        shutil.rmtree(config.ledger_dir, ignore_errors=True)
    # Readers that have the old one mapped keep it until they see that there is another (`Index.renew`).
    shutil.rmtree(config.index_dir, ignore_errors=True)
    draft.rename(config.index_dir)


def _distrust(folder: Path) -> None:
    """Before anybody sees it: readers take it as soon as it is in its place, and the worker may be killed there."""
    with lmdb.open(str(folder), max_dbs=len(TABLES), map_size=MAP_BYTES) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            next_session = int.from_bytes(txn.get(b"session", db=meta) or b"", "big") + 1
            txn.put(b"trusted", next_session.to_bytes(4, "big"), db=meta)


def _is_whole(folder: Path) -> bool:
    return _meta(folder, _TAKEN_OVER) is not None and _format(folder) == FORMAT


def _format(folder: Path) -> bytes:
    """Empty when there is none."""
    return _meta(folder, b"format") or b""


def _meta(folder: Path, key: bytes) -> bytes | None:
    if not (folder / "data.mdb").exists():
        return None
    try:
        with lmdb.open(str(folder), readonly=True, max_dbs=len(TABLES), map_size=MAP_BYTES, lock=False) as env:
            meta = env.open_db(b"meta", create=False)
            with env.begin() as txn:
                found: bytes | None = txn.get(key, db=meta)
                return found
    except lmdb.Error:
        return None


class Ledger:
    """Takes checkpoints of one index. `begin` in the worker's event loop, `Checkpoint.take` in a thread."""

    def __init__(self, config: CacheConfig, index: IndexWriter) -> None:
        """Open or make it; one of another format, or a damaged one, is made anew."""
        self._index = index
        folder = config.ledger_dir
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True, mode=0o700)
        try:
            self._env = lmdb.open(str(folder), max_dbs=len(TABLES), map_size=MAP_BYTES)
            self._tables = {name: self._env.open_db(name.encode()) for name in TABLES}
        except lmdb.Error as error:
            raise _no_room(folder, error) from error
        with self._env.begin() as txn:
            self._whole = bool(txn.get(_TAKEN_OVER, db=self._tables["meta"]))
        self.begun = self.taken = 0
        """Checkpoints since the start, and the number of the last one that was taken over."""

    def close(self) -> None:
        self._env.close()

    @property
    def is_current(self) -> bool:
        """Whether a checkpoint would bring nothing."""
        return self._whole and not self._index.has_changed

    def begin(self) -> "Checkpoint":
        """What has changed up to now, and the index as it is now.

        Raises:
            OSError: nothing was begun.
        """
        changed, logs = self._index.take_changed()
        self.begun += 1
        complete = self._whole or self._index.session == 1  # then all that there is has changed
        unsynced = changed if complete else None
        return Checkpoint(self.begun, self._index.reader, changed if self._whole else None, logs, unsynced)

    def take(self, checkpoint: "Checkpoint", folders: Iterable[Path], paths: list[Path] | None = None) -> None:
        """Sync the tiers' data, then take the changes over. In a thread.

        Args:
            checkpoint: of `begin`.
            folders: of tiers.
            paths: the files that have changed in them, if that is known.

        Raises:
            OSError, lmdb.Error: nothing was taken over; `give_up` hands the changes to the next one.
        """
        try:
            if paths is not None and len(paths) <= _SYNCED_ONE_BY_ONE:
                _sync_files(paths)
            else:
                for folder in folders:
                    sync_file_system(folder)
            with self._env.begin(write=True) as txn:
                if checkpoint.changed is None:
                    for table in self._tables.values():
                        txn.drop(table, delete=False)
                for name, key, value in checkpoint.items():
                    if value is None:
                        txn.delete(key, db=self._tables[name])
                    else:
                        txn.put(key, value, db=self._tables[name])
                txn.put(_TAKEN_OVER, b"1", db=self._tables["meta"])
        finally:
            checkpoint.close()
        self._whole = True
        self.taken = checkpoint.number
        for log_file in checkpoint.logs:
            log_file.unlink(missing_ok=True)

    def give_up(self, checkpoint: "Checkpoint") -> None:
        """A checkpoint failed: the next one takes its changes too."""
        checkpoint.close()
        self._index.give_back_changed(checkpoint.changed, checkpoint.logs)


class Checkpoint:
    """One state of the index, and what of it the ledger lacks."""

    def __init__(
        self, number: int, index: Index, changed: Changed | None, logs: list[Path], unsynced: Changed | None = None
    ) -> None:
        """
        Args:
            number: of `Ledger.begun`.
            index: to read from, now.
            changed: keys; None when everything is to be taken.
            logs: to be removed afterwards.
            unsynced: keys of whose files it is not known that they were synced; None when all may be.
        """
        self.number = number
        self.changed = changed
        self.unsynced = unsynced
        self.logs = logs
        self._index = index
        self._transaction = index.raw()
        self._txn = self._transaction.__enter__()

    def items(self) -> Iterable[tuple[str, bytes, bytes | None]]:
        """Table, key and value; None for a key that is gone."""
        for name in TABLES:
            table = self._index.table(name)
            if self.changed is not None:
                for key in sorted(self.changed[name]):
                    yield name, key, self._txn.get(key, db=table)
            else:
                with self._txn.cursor(db=table) as cursor:
                    for key, value in cursor:
                        yield name, key, value

    def close(self) -> None:
        """End its read transaction, which keeps pages of the index from being used again; once or more often."""
        if self._txn is not None:
            self._txn = None
            self._transaction.__exit__(None, None, None)


def _sync_files(paths: list[Path]) -> None:
    """Raises: OSError, from the disk. A file that is gone meanwhile needs no sync."""
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for folder in {path.parent for path in paths if path.parent.exists()}:
        sync_folder(folder)


def sync_file_system(folder: Path) -> None:
    """syncfs(2): all of a file system that was written, in one go; a tier may have thousands of files to sync.

    Raises:
        OSError: the disk did not take it, or the folder is gone.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _LIBC.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


_LIBC = ctypes.CDLL(None, use_errno=True)
