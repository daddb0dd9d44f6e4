"""The Delta Lake destination: one table that anyone can read, and every row in it exactly once.

A delivery is one commit, in this order, each step done before the next begins:

    1. The cursor in the table is compared with the delivery.
    2. The rows are written as Parquet, a file a day of receipt; files and their directories are flushed.
    3. One log entry names the files and moves the cursor: the table's transaction identifier of the application
       `counterfoil:<ledger>:<destination>`, whose version is the number of the last group.
    4. The log entry and its directory are flushed. Only now the delivery counts.

Whatever dies where: without step 3 the files are nobody's, and `open` removes them; with it the cursor says that the
rows are there. deltalake refuses a commit of the same application that it has not seen; it neither compares versions
nor flushes, which is why steps 1, 2 and 4 are ours (`delta_log`, `delta_files`).

Upkeep comes in short steps between deliveries (`tend`): small files become larger ones (`delta_merge`), a checkpoint
is made and flushed, log entries below it go, then the data files that were replaced `keep_hours` ago. Nothing is
removed before what replaces it is flushed. All of it is due after `merge_commits` commits, and a delivery waits for it
after COMMITS_BETWEEN_UPKEEP_MAX: a commit reads every log entry since the checkpoint, so that is what keeps it fast.

Others may write to the table too (a DELETE, say), as long as its columns and protocol stay: merges touch only files
of our own making that are still in the table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pyarrow as pa
import structlog
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from counterfoil.destinations.delta_columns import PARTITION, TABLE_NAME, TABLE_SCHEMA, column_faults, tables_by_day
from counterfoil.destinations.delta_files import TableFiles, WrittenFile
from counterfoil.destinations.delta_log import COMMIT_KEY, CommitNote, TableLog
from counterfoil.destinations.delta_merge import Merge, TableFile, plan_merges
from counterfoil.destinations.interface import Delivery, HeldRows, Receipt
from counterfoil.destinations.query import held_rows, rows_by_source
from counterfoil.destinations.settings import DeltaSettings
from counterfoil.errors import DestinationDown, DestinationRefused
from counterfoil.failpoints import reach
from counterfoil.files import Files

COMMITS_BETWEEN_UPKEEP_MAX = 100
COMMITS_SEARCHED = 200
"""How far back `open` looks for the commit of the last delivery; others may have committed since."""

LEDGER_PROPERTY = "counterfoil.ledger"
MS_AN_HOUR = 3_600_000

log = structlog.get_logger()

_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


class DeltaDestination:
    """A `Destination` on a local disk."""

    keeps_cursor = True

    def __init__(
        self,
        settings: DeltaSettings,
        *,
        path: Path,
        ledger_id: UUID,
        files: Files,
        quarantine: Path,
        clock_ms: Callable[[], int],
        new_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self.name = settings.name
        self._settings = settings
        self._root = path
        self._uri = path.absolute().as_uri()
        self._ledger_id = ledger_id
        self._clock_ms = clock_ms
        self._application = f"counterfoil:{ledger_id}:{settings.name}"
        self._files = TableFiles(path, files, new_id)
        self._log = TableLog(path, files, quarantine, clock_ms)
        self._table: DeltaTable | None = None
        self._commits = 0
        self._upkeep: Generator[None] | None = None
        self._unreadable: set[str] = set()

    def open(self) -> Receipt | None:
        """Mend what a crash left, make the table when there is none, and say what it holds."""
        self.close()
        self._refuse(_path_faults(self._root))
        with self._failures():
            self._log.begin()
            if self._log.mend() is None:
                self._create()
            table = DeltaTable(self._uri)
            self._refuse(self._faults(table))
            self._keep_settings(table)
            self._remove_left_over(table)
            self._commits = table.version() - (self._log.checkpoint() or 0)
            self._table = table
            return self._last_receipt(table)

    def deliver(self, delivery: Delivery) -> Receipt:
        """Take a delivery: files, flush, commit, flush."""
        with self._failures():
            if self._commits >= COMMITS_BETWEEN_UPKEEP_MAX:
                while self.tend():
                    pass
            held = self._opened().transaction_version(self._application)
            if held is not None and held >= delivery.first_group:
                raise DestinationDown(f"{self._root}: somebody else delivers to this table")
            reach("delta.before_files")
            added = self._write(delivery)
            reach("delta.files_flushed")
            note = CommitNote("delivery", len(added) + 1, delivery.first_group, delivery.last_group, len(delivery.rows))
            version = self._commit(note, added, cursor=delivery.last_group)
            return Receipt(delivery.first_group, delivery.last_group, len(delivery.rows), str(version))

    def tend(self) -> bool:
        """One step of merging, checkpoint, log cleaning or removal of replaced files."""
        with self._failures():
            if self._upkeep is None:
                if self._commits < self._settings.merge_commits:
                    return False
                self._upkeep = self._upkeep_steps()
            try:
                next(self._upkeep)
            except StopIteration:
                self._upkeep = None
                return False
            return True

    def close(self) -> None:
        """Forget the table; an unfinished merge is given up."""
        if self._upkeep is not None:
            self._upkeep.close()
        self._upkeep = None
        self._table = None

    def check(self) -> list[str]:
        """What stands in the way, without changing anything."""
        try:
            with self._failures():
                if not self._log.versions():
                    return _path_faults(self._root) or _writable_faults(self._root)
                return self._faults(DeltaTable(self._uri))
        except (DestinationDown, DestinationRefused) as error:
            return [str(error)]

    def counts(self) -> dict[str, int]:
        """Rows by source, counted in the table itself."""
        with self._failures():
            return rows_by_source(self._root)

    def held(self, first_seq: int = 0, last_seq: int | None = None) -> Iterator[HeldRows]:
        """The rows of a range of `seq`, in no particular order."""
        with self._failures():
            yield from held_rows(self._root, first_seq, last_seq)

    # Opening

    def _create(self) -> None:
        DeltaTable.create(
            self._uri,
            TABLE_SCHEMA,
            partition_by=[PARTITION],
            name=TABLE_NAME,
            description="Events received by Counterfoil; each row once.",
            configuration={LEDGER_PROPERTY: str(self._ledger_id), **self._table_settings()},
            # deltalake takes only property names that it knows itself for granted.
            raise_if_key_not_exists=False,
            commit_properties=CommitProperties(custom_metadata=_metadata(CommitNote("create", 2))),
            post_commithook_properties=_NO_HOOKS,
        )
        reach("delta.created")
        self._log.settle(0, 0)

    def _table_settings(self) -> dict[str, str]:
        return {
            # Log entries go by `delta_log`, once a flushed checkpoint replaces them, and in no other way.
            "delta.enableExpiredLogCleanup": "false",
            # A checkpoint forgets which files were replaced longer ago than this; by then they must be gone.
            "delta.deletedFileRetentionDuration": f"interval {int(self._settings.keep_hours * 3600) + 3600} seconds",
        }

    def _keep_settings(self, table: DeltaTable) -> None:
        wanted = self._table_settings()
        if not wanted.items() <= table.metadata().configuration.items():
            before = table.version()
            table.alter.set_table_properties(
                wanted,
                commit_properties=CommitProperties(custom_metadata=_metadata(CommitNote("settings", 1))),
                post_commithook_properties=_NO_HOOKS,
            )
            table.update_incremental()
            self._log.settle(before + 1, table.version())

    def _remove_left_over(self, table: DeltaTable) -> None:
        removed = self._log.removed()
        if removed is not None:
            active = {file.path for file in _table_files(table)}
            self._files.remove(path for path in self._files.ours() if path not in active and path not in removed)

    def _last_receipt(self, table: DeltaTable) -> Receipt | None:
        held = table.transaction_version(self._application)
        if held is None:
            return None
        for version in range(table.version(), max(table.version() - COMMITS_SEARCHED, -1), -1):
            note = self._log.note(version)
            if note is not None and note.kind == "delivery" and note.last_group == held:
                return Receipt(note.first_group, held, note.row_count, str(version))
        return Receipt(0, held, 0, "")

    # Delivering

    def _write(self, delivery: Delivery) -> list[WrittenFile]:
        written = []
        for day, table in tables_by_day(delivery.rows) if delivery.rows else []:
            file = self._files.begin(day)
            try:
                file.write(table)
                written.append(file.finish())
            except BaseException:
                file.abandon()
                raise
        return written

    def _commit(
        self,
        note: CommitNote,
        added: Sequence[WrittenFile],
        removed: Sequence[TableFile] = (),
        cursor: int | None = None,
    ) -> int:
        """One durable commit; its version."""
        table = self._opened()
        before = table.version()
        now_ms = self._clock_ms()
        is_new_data = cursor is not None
        table.create_write_transaction(
            [_add_action(file, now_ms, data_change=is_new_data) for file in added]
            + [_remove_action(file, now_ms) for file in removed],
            mode="append",
            schema=TABLE_SCHEMA,
            partition_by=[PARTITION],
            commit_properties=CommitProperties(
                custom_metadata=_metadata(note),
                app_transactions=[Transaction(self._application, cursor, now_ms)] if cursor is not None else None,
            ),
            post_commithook_properties=_NO_HOOKS,
        )
        reach(f"delta.{note.kind}_committed")
        table.update_incremental()
        after = table.version()
        self._log.settle(before + 1, after)
        reach(f"delta.{note.kind}_flushed")
        self._commits += after - before
        # Others may have committed between: then the entries themselves say which is ours.
        return next(version for version in range(before + 1, after + 1) if self._log.note(version) == note)

    # Upkeep

    def _upkeep_steps(self) -> Generator[None]:
        today = datetime.fromtimestamp(self._clock_ms() // 1000, UTC).date()
        for merge in plan_merges(self._own_files(), today, self._settings.file_bytes):
            yield from self._merge(merge)
        replaced_before_ms = self._clock_ms() - int(self._settings.keep_hours * MS_AN_HOUR)
        replaced = self._log.removed() or {}
        checkpoint = self._opened().version()
        self._opened().create_checkpoint()
        reach("delta.checkpoint_made")
        self._log.settle_checkpoint(checkpoint)
        self._commits = 0
        # A loaded table goes back to the entries it was loaded from: it must stand on the checkpoint before they go.
        self._table = DeltaTable(self._uri)
        reach("delta.checkpoint_flushed")
        yield
        yield from self._log.clean(checkpoint, replaced_before_ms)
        reach("delta.log_cleaned")
        yield
        yield from self._vacuum(path for path, at_ms in replaced.items() if at_ms < replaced_before_ms)

    def _merge(self, merge: Merge) -> Iterator[None]:
        file = self._files.begin(merge.day)
        try:
            for source in merge.files:
                for rows in self._read(source):
                    file.write(rows)
                    yield
            written = file.finish()
        except _Unreadable:
            file.abandon()
            return
        except BaseException:
            file.abandon()
            raise
        reach("delta.merge_written")
        # Somebody may have deleted rows meanwhile; what was read of their files must not come back.
        table = self._opened()
        table.update_incremental()
        self._refuse(protocol_faults(table, self._root))
        if {source.path for source in merge.files} <= {active.path for active in _table_files(table)}:
            note = CommitNote("merge", 1 + len(merge.files))
            self._commit(note, [written], merge.files)
        else:
            self._files.remove([written.path])
        yield

    def _read(self, source: TableFile) -> Iterator[pa.Table]:
        try:
            yield from self._files.read(source.path)
        except (OSError, pa.ArrowException) as error:
            # Its rows are in danger, and only a person can help; deliveries must not stop for it.
            self._unreadable.add(source.path)
            log.error("delta.file_unreadable", destination=self.name, file=source.path)
            raise _Unreadable from error

    def _own_files(self) -> list[TableFile]:
        ours = set(self._files.ours()) - self._unreadable
        return [file for file in _table_files(self._opened()) if file.path in ours]

    def _vacuum(self, paths: Iterator[str]) -> Iterator[None]:
        waiting = list(paths)
        for start in range(0, len(waiting), 100):
            self._files.remove(waiting[start : start + 100])
            reach("delta.files_removed")
            yield

    # Failing

    def _opened(self) -> DeltaTable:
        assert self._table is not None, "open comes first"
        return self._table

    def _faults(self, table: DeltaTable) -> list[str]:
        """Why this table can't be delivered to, one line each; empty when it can."""
        where, metadata = self._root, table.metadata()
        owner = metadata.configuration.get(LEDGER_PROPERTY)
        if owner is None:
            return [f"{where}: this table is not Counterfoil's: give the destination a path of its own"]
        if owner != str(self._ledger_id):
            return [
                f"{where}: this table belongs to the ledger {owner}, not to {self._ledger_id}: "
                "give the destination a path of its own, or bring back the data directory of that ledger"
            ]
        faults = column_faults(table.schema(), metadata.partition_columns)
        if faults:
            return [f"{where}: {', '.join(faults)}: undo the change, or give the destination a path of its own"]
        return protocol_faults(table, where)

    def _refuse(self, faults: Sequence[str]) -> None:
        if faults:
            raise DestinationRefused("; ".join(faults))

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Whatever the disk or deltalake raises, as the interface has it (D3)."""
        try:
            yield
        except TableNotFoundError as error:
            raise DestinationRefused(f"{self._root}: there is no table any more: bring it back") from error
        except DeltaError as error:
            raise DestinationDown(f"{self._root}: deltalake failed with {type(error).__name__}") from error
        except OSError as error:
            raise DestinationDown(f"{self._root}: {error.strerror or type(error).__name__}") from error


class _Unreadable(Exception):
    """A data file that is in the table can't be read."""


def ledger_of(path: Path) -> UUID | None:
    """The ledger that the table at `path` belongs to; None when there is none or it can't be read."""
    try:
        return UUID(DeltaTable(path.absolute().as_uri()).metadata().configuration[LEDGER_PROPERTY])
    except (DeltaError, OSError, KeyError, ValueError):
        return None


def protocol_faults(table: DeltaTable, where: Path) -> list[str]:
    """Features of the table that we would write past, such as deletion vectors."""
    protocol = table.protocol()
    features = {*(protocol.reader_features or ()), *(protocol.writer_features or ())}
    if protocol.min_reader_version > 1 or protocol.min_writer_version > 2:
        listed = ", ".join(sorted(features)) or f"writer version {protocol.min_writer_version}"
        return [f"{where}: the table has features that are not spoken here ({listed}): drop them"]
    return []


def _table_files(table: DeltaTable) -> list[TableFile]:
    actions = pa.table(table.get_add_actions(flatten=True))
    columns: dict[str, list[Any]] = {name: actions.column(name).to_pylist() for name in actions.column_names}
    least = columns.get("min.seq") or [None] * actions.num_rows
    parts = zip(columns["path"], columns[f"partition.{PARTITION}"], columns["size_bytes"], least, strict=True)
    return [TableFile(path, day, size, seq or 0) for path, day, size, seq in parts]


def _add_action(file: WrittenFile, now_ms: int, *, data_change: bool) -> AddAction:
    values = {PARTITION: file.day.isoformat()}
    return AddAction(file.path, file.file_bytes, values, now_ms, data_change, file.statistics)


def _remove_action(file: TableFile, now_ms: int) -> RemoveAction:
    return RemoveAction(
        file.path,
        data_change=False,
        deletion_timestamp=now_ms,
        size=file.file_bytes,
        partition_values={PARTITION: file.day.isoformat()},
    )


def _metadata(note: CommitNote) -> dict[str, object]:
    return {COMMIT_KEY: msgspec.to_builtins(note)}


def _path_faults(root: Path) -> list[str]:
    # deltalake 1.6 takes it for an escape twice over, and then looks in another directory than it writes to.
    return [f"{root}: a path with % in it can't be used: give the destination another"] if "%" in str(root) else []


def _writable_faults(root: Path) -> list[str]:
    above = next(path for path in (root, *root.parents) if path.exists())
    if not above.is_dir():
        return [f"{above}: not a directory: give the destination another path"]
    if not os.access(above, os.W_OK | os.X_OK):
        return [f"{above}: not writable: give the server's user the right to write there"]
    return []
