"""RocksDB, opened the one way the ledger uses it.

    family        key                                    value
    default       see `ledger.py`                        counters, positions, cursors, format
    groups        group (8)                              a group's record
    deliveries    destination, NUL, last group (8)       a delivery's record
    dead          destination, NUL, seq (8)              why a row is dead
    seen-<g>      key hash (16)                          seq, content hash, day (18)
    repeats-<g>   key hash (16), seq (8)                 verdict, day (3)

`<g>` is a generation of the seen index: a pair of families that goes as a whole when its time is over. Memory is
bounded whatever the number of keys: indexes and filters lie in the block cache like any block, what is not yet sorted
into files is charged to it, and open files are counted.

A reader in another process opens the store as a RocksDB secondary: it sees one moment, until `catch_up`. It does not
see families made after it was opened, so it is opened anew when the generations change.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NewType, cast

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    ColumnFamily,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from counterfoil.errors import LedgerUnusable, LedgerWriteFailed
from counterfoil.files import DIRECTORY_MODE
from counterfoil.ledger.settings import LedgerSettings

Family = NewType("Family", str)

FACTS = Family("default")
GROUPS = Family("groups")
DELIVERIES = Family("deliveries")
DEAD = Family("dead")
_FIXED = (FACTS, GROUPS, DELIVERIES, DEAD)

MIB = 1024 * 1024
OPEN_FILES_MAX = 256
BLOOM_BITS_A_KEY = 10
_FILE_BYTES = 32 * MIB
_LOG_FILES = 2
_LOG_BYTES = 4 * MIB
_OPEN_TRIES = 5


def seen_family(generation: int) -> Family:
    """The family of a generation's keys."""
    return Family(f"seen-{generation}")


def repeats_family(generation: int) -> Family:
    """The family of the rows that claim no key or repeat one, settled in a generation's time."""
    return Family(f"repeats-{generation}")


class Batch:
    """Changes that are recorded together or not at all."""

    def __init__(self, handles: dict[Family, ColumnFamily]) -> None:
        self._handles = handles
        self._batch = WriteBatch(raw_mode=True)

    def put(self, family: Family, key: bytes, value: bytes) -> None:
        self._batch.put(key, value, self._handles[family])

    def put_all(self, family: Family, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Put many; sorted keys are cheapest."""
        handle = self._handles[family]
        put = self._batch.put
        for key, value in zip(keys, values, strict=True):
            put(key, value, handle)

    def delete(self, family: Family, key: bytes) -> None:
        self._batch.delete(key, self._handles[family])

    def taken(self) -> WriteBatch:
        return self._batch


class Store:
    """The families of one ledger, open for writing or at one moment for reading."""

    def __init__(self, path: Path, settings: LedgerSettings, *, is_writer: bool) -> None:
        self._path = path
        self._settings = settings
        self._is_writer = is_writer
        # Not the LRU cache: it is cut into 64 parts, and the filter of one file does not fit into a part of 2 MiB.
        self._cache = Cache.new_hyper_clock_cache(settings.cache_bytes, 0)
        self._write_buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            settings.write_buffer_bytes, False, self._cache
        )
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._families: dict[Family, Rdict] = {}
        self._handles: dict[Family, ColumnFamily] = {}
        self._synced = WriteOptions()
        self._synced.sync = True
        self._db = self._opened()

    # Opening and closing

    def _opened(self) -> Rdict:
        if self._is_writer:
            # RocksDB makes its files with what the umask leaves; they are their owner's alone (promise P6).
            os.umask(os.umask(0o077) | 0o077)
            self._path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            return self._open_once()
        if not (self._path / "CURRENT").exists():
            raise LedgerUnusable(f"{self._path}: there is no ledger here")
        for left in range(_OPEN_TRIES - 1, -1, -1):
            try:
                return self._open_once()
            except LedgerUnusable:
                # The writer may have dropped a family or a file between our two looks.
                if not left:
                    raise
        raise AssertionError

    def _open_once(self) -> Rdict:
        try:
            exists = (self._path / "CURRENT").exists()
            names = Rdict.list_cf(str(self._path), self._options(FACTS)) if exists else []
            families = {name: self._options(Family(name)) for name in {*_FIXED, *names}}
            if self._is_writer:
                access = AccessType.read_write()
            else:
                self._scratch = tempfile.TemporaryDirectory(prefix="counterfoil-reader-")
                access = AccessType.secondary(self._scratch.name)
            db = Rdict(str(self._path), self._options(FACTS), families, access)
            self._families = {Family(name): db.get_column_family(name) for name in families}
            self._handles = {Family(name): db.get_column_family_handle(name) for name in families}
        except Exception as error:
            self._forget()
            raise LedgerUnusable(f"{self._path}: {_said(error)}") from None
        return db

    def _options(self, family: Family) -> Options:
        settings = self._settings
        blocks = BlockBasedOptions()
        blocks.set_block_cache(self._cache)
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(True)
        blocks.set_format_version(5)
        is_seen = family.startswith("seen-")
        if is_seen:
            blocks.set_bloom_filter(BLOOM_BITS_A_KEY, block_based=False)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.create_missing_column_families(True)
        options.set_block_based_table_factory(blocks)
        # Hashes do not shrink; the rest is lists of positions and verdicts that do.
        options.set_compression_type(DBCompressionType.none() if is_seen else DBCompressionType.lz4())
        options.set_write_buffer_size(max(MIB, settings.write_buffer_bytes // (2 if is_seen else 8)))
        options.set_target_file_size_base(_FILE_BYTES)
        options.set_level_compaction_dynamic_level_bytes(True)
        options.set_paranoid_checks(True)
        options.set_write_buffer_manager(self._write_buffers)
        options.set_max_total_wal_size(settings.write_buffer_bytes)
        # A secondary keeps its files open: the writer may remove them.
        options.set_max_open_files(OPEN_FILES_MAX if self._is_writer else -1)
        options.set_max_background_jobs(2)
        options.set_keep_log_file_num(_LOG_FILES)
        options.set_max_log_file_size(_LOG_BYTES)
        options.set_stats_dump_period_sec(0)
        return options

    def _forget(self) -> None:
        self._families.clear()
        self._handles.clear()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def close(self) -> None:
        """Close; closing twice is harmless."""
        for family in self._families.values():
            family.close()
        self._db.close()
        self._forget()

    # Reading

    def get(self, family: Family, key: bytes) -> bytes | None:
        return cast("bytes | None", self._families[family].get(key))

    def get_all(self, family: Family, keys: list[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none; sorted keys are cheapest."""
        if not keys:
            return []
        return cast(
            "list[bytes | None]", self._families[family].get(cast("list[str | int | float | bytes | bool]", keys))
        )

    def items(self, family: Family, start: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys from `start` on with their values, in order, as long as they begin with `prefix`."""
        for key, value in self._families[family].items(from_key=start):
            if not cast(bytes, key).startswith(prefix):
                return
            yield cast("tuple[bytes, bytes]", (key, value))

    def families(self) -> frozenset[Family]:
        return frozenset(self._families)

    def catch_up(self) -> None:
        """Let a reader see the present moment, in the families that it knows."""
        try:
            self._db.try_catch_up_with_primary()
        except Exception as error:
            raise LedgerUnusable(f"{self._path}: {_said(error)}") from None

    def reopen(self) -> None:
        """Open a reader anew, at the present moment and with the families there are now."""
        self.close()
        self._db = self._opened()

    # Writing

    def batch(self) -> Batch:
        return Batch(self._handles)

    def write(self, batch: Batch) -> None:
        """Return when all of the batch is on disk; raises LedgerWriteFailed when none of it counts."""
        try:
            self._db.write(batch.taken(), self._synced)
        except Exception as error:
            raise LedgerWriteFailed(f"{self._path}: {_said(error)}") from None

    def create(self, family: Family) -> None:
        """Make a family; no error when a crash left it behind."""
        if family not in self._families:
            self._families[family] = self._db.create_column_family(family, self._options(family))
            self._handles[family] = self._db.get_column_family_handle(family)

    def drop(self, family: Family) -> None:
        """Remove a family and all that is in it; no error when a crash came before."""
        if family in self._families:
            self._handles.pop(family)
            self._families.pop(family).close()
            self._db.drop_column_family(family)


def _said(error: Exception) -> str:
    """What RocksDB means, without its words: they hold keys at times."""
    words = str(error)
    if "Permission denied" in words:
        return "permission denied"
    if "LOCK" in words:
        return "another process writes this ledger"
    return f"RocksDB says {words.split(':', 1)[0]}" if ":" in words else "RocksDB can't use it"
