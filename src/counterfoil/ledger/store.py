"""RocksDB, opened the one way the ledger uses it.

    family        key                                    value
    default       see `ledger.py`                        counters, positions, cursors, format
    groups        group (8)                              a group's record
    deliveries    destination, NUL, last group (8)       a delivery's record
    dead          destination, NUL, seq (8)              why a row is dead
    copies        destination, NUL, first seq (8)        a dead row, until it is delivered or dropped
    again         destination, NUL, first seq (8),       that the group sent the row again
                  group (8)
    seen-<s>      key hash (16)                          seq, content hash, day (18)
    repeats-<s>   key hash (16), seq (8)                 verdict, day (3)

`<s>` is a slot, 0 to 2, of the seen index: generation g lies in slot g modulo 3. When its time is over it is erased as
a whole, by one entry that covers every key of its two families; RocksDB drops what is covered as it rewrites files.
Families are never made or dropped after the first start: a reader would not see new ones, and RocksDB falls over its
own feet (a use after free, seen here) when a reader opens a store that has ever dropped one in its present life.

Memory is bounded whatever the number of keys: indexes and filters lie in the block cache like any block, what is not
yet sorted into files is charged to it, and open files are counted.

The file `committed` beside RocksDB's own holds how far writing had come (8 bytes) and a checksum of that (8). RocksDB
reads its write-ahead log up to the first damage and goes on without the rest, as if it had never been; a number behind
`committed` tells that from a crash. It is written after each batch and not flushed: what a power cut takes from it
makes it say less, never more.

A reader in another process opens the store as a RocksDB secondary: it sees one moment, until `catch_up`.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NewType, cast

import xxhash
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    ColumnFamily,
    CompactOptions,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from counterfoil.errors import LedgerDamaged, LedgerInUse, LedgerUnusable, LedgerWriteFailed
from counterfoil.files import DIRECTORY_MODE, FILE_MODE, told_in_a_line
from counterfoil.ledger.settings import LedgerSettings

Family = NewType("Family", str)

FACTS = Family("default")
GROUPS = Family("groups")
DELIVERIES = Family("deliveries")
DEAD = Family("dead")
COPIES = Family("copies")
AGAIN = Family("again")
SLOTS = 3

MIB = 1024 * 1024
OPEN_FILES_MAX = 256
BLOOM_BITS_A_KEY = 10
_FILE_BYTES = 32 * MIB
_LOG_FILES = 2
_LOG_BYTES = 4 * MIB
_OPEN_TRIES = 5
_CATCH_UP_TRIES = 100
_AFTER_ALL_KEYS = b"\xff" * 32

SPANS_MAX = 100
"""Keys that are let go one by one: more, and all between the first and the last is rewritten."""

READ_AT_OPENING_BYTES = MIB
"""How long the log may be when nothing much is written: reading it takes some 25 ms a MiB."""

_HINT = (
    "see that the disk can be read and all its files are this user's; when that can't help, stop the server and run "
    "`counterfoil rebuild`"
)

COMMITTED = "committed"
_COMMITTED = struct.Struct(">QQ")


def seen_family(generation: int) -> Family:
    """The family of a generation's keys."""
    return Family(f"seen-{generation % SLOTS}")


def repeats_family(generation: int) -> Family:
    """The family of the rows that claim no key or repeat one, settled in a generation's time."""
    return Family(f"repeats-{generation % SLOTS}")


FAMILIES = (
    FACTS,
    GROUPS,
    DELIVERIES,
    DEAD,
    COPIES,
    AGAIN,
    *(family(slot) for family in (seen_family, repeats_family) for slot in range(SLOTS)),
)


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

    def delete_range(self, family: Family, first: bytes, end: bytes) -> None:
        """Remove the keys from `first` on that come before `end`; their space comes back as files are rewritten."""
        self._batch.delete_range(first, end, self._handles[family])

    def erase(self, family: Family) -> None:
        """Remove all keys of a family."""
        self._batch.delete_range(b"", _AFTER_ALL_KEYS, self._handles[family])

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
        self._committed = -1
        if is_writer:
            self._db = self._opened_to_write()
        else:
            noted = self._noted_commit()
            self._db = self._opened_to_read()
            try:
                self._refuse_less_than(noted, self._db.latest_sequence_number())
            except BaseException:
                self.close()
                raise

    # Opening and closing

    def _opened_to_write(self) -> Rdict:
        # RocksDB makes its files with what the umask leaves; they are their owner's alone (promise P6).
        os.umask(os.umask(0o077) | 0o077)
        try:
            self._path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            self._refuse_lost_commits()
            db = self._open_once(AccessType.read_write())
            self._committed = os.open(self._path / COMMITTED, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            raise LedgerUnusable(told_in_a_line(error, self._path)) from None
        return db

    def _opened_to_read(self) -> Rdict:
        if not self._exists():
            raise LedgerUnusable(f"{self._path}: there is no ledger here")
        for left in range(_OPEN_TRIES - 1, -1, -1):
            try:
                before = self._manifest()
                self._scratch = tempfile.TemporaryDirectory(prefix="counterfoil-reader-")
                db = self._open_once(AccessType.secondary(self._scratch.name))
                # As in `catch_up`; which reads the logs again, so it is left out where nothing is missing.
                if self._manifest() != before:
                    self._catch_up(db)
                return db
            except LedgerUnusable:
                # The writer may have removed a file between two looks of ours.
                if not left:
                    raise
            except FileNotFoundError:
                continue
        raise LedgerUnusable(f"{self._path}: it changes too fast to be read; try again")

    def _exists(self) -> bool:
        return (self._path / "CURRENT").exists()

    def _open_once(self, access: AccessType, families: Sequence[Family] = FAMILIES) -> Rdict:
        try:
            db = Rdict(str(self._path), self._options(FACTS), {name: self._options(name) for name in families}, access)
            self._families = {name: db.get_column_family(name) for name in families}
            self._handles = {name: db.get_column_family_handle(name) for name in families}
        except Exception as error:
            # An older format has fewer; they are made when it is opened to write, and it is read no further before.
            there = self._families_there()
            if len(there) < len(families):
                return self._open_once(access, there)
            self._forget()
            raise self._unusable(error) from None
        return db

    def _families_there(self) -> Sequence[Family]:
        try:
            there = set(Rdict.list_cf(str(self._path)))
        except Exception:
            # Nothing that can be listed is nothing of an older format: the error of opening it is told.
            return FAMILIES
        return [family for family in FAMILIES if family in there] if FACTS in there else FAMILIES

    def _refuse_lost_commits(self) -> None:
        """Raise LedgerDamaged when batches that were flushed are gone; nothing is touched before that is known."""
        noted = self._noted_commit()
        reached = 0
        if noted and self._exists():
            db = self._open_once(AccessType.read_only(False))
            reached = db.latest_sequence_number()
            self._close_all(db)
        self._refuse_less_than(noted, reached)

    def _noted_commit(self) -> int:
        """How far writing had come by the file `committed`; 0 when that says nothing."""
        try:
            number, checksum = _COMMITTED.unpack((self._path / COMMITTED).read_bytes())
        except (OSError, struct.error):
            return 0
        return int(number) if checksum == _checksum(number) else 0

    def _refuse_less_than(self, noted: int, reached: int) -> None:
        if reached < noted:
            raise LedgerDamaged(f"{self._path}: {noted - reached} changes that were flushed are gone")

    def _note_commit(self) -> None:
        number = self._db.latest_sequence_number()
        # What was written counts whether or not this works: the note may say less than is there, never more.
        with suppress(OSError):
            os.pwrite(self._committed, _COMMITTED.pack(number, _checksum(number)), 0)

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
        self._close_all(self._db)
        if self._committed >= 0:
            os.close(self._committed)
            self._committed = -1

    def _close_all(self, db: Rdict) -> None:
        for family in self._families.values():
            family.close()
        db.close()
        self._forget()

    # Reading; each raises LedgerUnusable where the files are damaged

    def get(self, family: Family, key: bytes) -> bytes | None:
        try:
            return cast("bytes | None", self._families[family].get(key))
        except Exception as error:
            raise self._unusable(error) from None

    def get_all(self, family: Family, keys: list[bytes]) -> list[bytes | None]:
        """The value of each key, None where there is none; sorted keys are cheapest."""
        if not keys:
            return []
        try:
            found = self._families[family].get(cast("list[str | int | float | bytes | bool]", keys))
        except Exception as error:
            raise self._unusable(error) from None
        return cast("list[bytes | None]", found)

    def items(self, family: Family, start: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys from `start` on with their values, in order, as long as they begin with `prefix`."""
        # Not `Rdict.items`: at a damaged block it ends as if there were nothing more.
        found = self._families[family].iter()
        try:
            found.seek(start)
            while found.valid():
                key = cast(bytes, found.key())
                if not key.startswith(prefix):
                    return
                yield key, cast(bytes, found.value())
                found.next()
            found.status()
        except Exception as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> Exception:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            return LedgerUnusable(told_in_a_line(error, self._path))
        # RocksDB's own errors are plain Exceptions; any other is a bug of ours, to be seen as what it is.
        if type(error) is not Exception:
            return error
        if "LOCK" in str(error) and "while open" not in str(error):
            return LedgerInUse(f"{self._path}: another process writes this ledger")
        if _is_damage(error):
            return LedgerDamaged(f"{self._path}: {_said(error)}")
        return LedgerUnusable(f"{self._path}: {_said(error)}: {_HINT}")

    def catch_up(self) -> None:
        """Let a reader see the present moment.

        RocksDB reads its manifest, then its logs. When the writer flushes between the two, a log may be gone whose
        files the manifest did not name yet: a batch would be missing among its neighbours. The writer says in the
        manifest what it flushed before it removes a log; so when that did not change meanwhile, nothing is missing.
        """
        self._catch_up(self._db)

    def _catch_up(self, db: Rdict) -> None:
        for _ in range(_CATCH_UP_TRIES):
            try:
                before = self._manifest()
                db.try_catch_up_with_primary()
                if self._manifest() == before:
                    return
            except FileNotFoundError:
                continue
            except LedgerUnusable:
                raise
            except Exception as error:
                raise self._unusable(error) from None
        raise LedgerUnusable(f"{self._path}: it changes too fast to be read; try again")

    def _manifest(self) -> tuple[str, int]:
        """Its name and size. Raises FileNotFoundError, LedgerUnusable where it can't be read."""
        try:
            name = (self._path / "CURRENT").read_text("ascii").strip()
            return name, (self._path / name).stat().st_size
        except OSError as error:
            raise self._unusable(error) from None
        except ValueError:
            raise LedgerDamaged(f"{self._path / 'CURRENT'}: names no manifest") from None

    # Writing

    def batch(self) -> Batch:
        return Batch(self._handles)

    def write(self, batch: Batch) -> None:
        """Return when all of the batch is on disk; raises LedgerWriteFailed when none of it counts.

        Raises LedgerDamaged when RocksDB takes no more because it met damage as it sorted its files.
        """
        try:
            self._db.write(batch.taken(), self._synced)
        except Exception as error:
            if type(error) is not Exception:
                raise
            if _is_damage(error):
                raise LedgerDamaged(f"{self._path}: {_said(error)}") from None
            raise LedgerWriteFailed(f"{self._path}: {_said(error)}") from None
        self._note_commit()

    def shorten_log(self) -> None:
        """Sort what was written into files when the log has grown: a reader that opens the store reads all of the log.

        Returns at once, the rest is done beside. Raises LedgerWriteFailed.
        """
        if sum(_size(path) for path in self._path.glob("*.log")) < READ_AT_OPENING_BYTES:
            return
        try:
            for family in self._families.values():
                family.flush(wait=False)
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise LedgerWriteFailed(f"{self._path}: {_said(error)}") from None

    def let_go(self, family: Family, keys: Sequence[bytes]) -> None:
        """Rewrite the files in which values of removed keys still lie, the log among them. Raises LedgerWriteFailed.

        RocksDB only notes that a key is removed; its value goes when the files that hold it are rewritten.
        """
        spans = [(key, key + b"\0") for key in keys]
        if len(keys) > SPANS_MAX:
            spans = [(min(keys), max(keys) + b"\0")]
        self._rewrite(family, spans)

    def let_all_go(self, family: Family) -> None:
        """The same, for all keys of a family that were ever removed."""
        self._rewrite(family, [(None, None)])

    def _rewrite(self, family: Family, spans: Sequence[tuple[bytes | None, bytes | None]]) -> None:
        if not spans:
            return
        handle = self._families[family]
        # Or a file that holds a value may be moved down as it is, and the note of its removal beside it.
        rewriting = CompactOptions()
        rewriting.set_bottommost_level_compaction(BottommostLevelCompaction.force_optimized())
        try:
            # A log stays as long as any family has not sorted what it wrote there into files.
            for each in self._families.values():
                each.flush(wait=True)
            for first, end in spans:
                handle.compact_range(first, end, rewriting)
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise LedgerWriteFailed(f"{self._path}: {_said(error)}") from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _checksum(number: int) -> int:
    return xxhash.xxh3_64_intdigest(number.to_bytes(8, "big"))


def _is_damage(error: Exception) -> bool:
    """Whether RocksDB met damaged or missing files; a disk that can't be read or is full passes, perhaps."""
    words = str(error)
    return words.startswith(("Corruption", "Invalid argument")) or "No such file or directory" in words


def _said(error: Exception) -> str:
    """What RocksDB means, without its words: they hold keys at times."""
    words = str(error)
    if "Permission denied" in words:
        return "permission denied"
    return f"RocksDB says {words.split(':', 1)[0]}" if ":" in words else "RocksDB can't use it"
