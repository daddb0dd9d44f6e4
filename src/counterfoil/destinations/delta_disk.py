"""A Delta table on a local disk, where nothing is durable before it is flushed, and deltalake flushes nothing.

A commit comes in this order, each step done before the next begins:

    1. The rows are written as Parquet, a file a day of receipt; files and their directories are flushed.
    2. One log entry names the files, and moves the cursor.
    3. The log entry and its directory are flushed. Only now the commit counts.

Whatever dies where: without step 2 the files are nobody's, and the next life removes them. Upkeep merges small files
(`delta_merge`), makes a checkpoint and flushes it, removes the log entries below it, then the data files that were
replaced `keep_hours` ago. Nothing is removed before what replaces it is flushed.

A subject's rows are erased in this order: files without them are committed in the place of those that hold them, some
at a time, and those go; then comes a checkpoint, and everything of the log before it goes; then every other file that
holds such a row and is not in the table. Each step finds by itself what is left to do, so the same once more makes good
what a crash left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import msgspec
import pyarrow as pa
import structlog
from deltalake import DeltaTable, Transaction
from deltalake.transaction import AddAction, RemoveAction

from counterfoil.contract.subject import Subject
from counterfoil.destinations.delta_address import TableAddress
from counterfoil.destinations.delta_columns import COLUMNS, PARTITION, STATISTICS, TABLE_SCHEMA, tables_by_day
from counterfoil.destinations.delta_files import TableFiles, WrittenFile
from counterfoil.destinations.delta_log import TableLog
from counterfoil.destinations.delta_merge import Merge, TableFile, plan_merges
from counterfoil.destinations.delta_subject import SUBJECT_COLUMNS, rows_of_others, subject_rows
from counterfoil.destinations.delta_table import (
    MS_AN_HOUR,
    NO_HOOKS,
    CommitNote,
    commit_properties,
    delivery_note,
    shape_faults,
    table_files,
)
from counterfoil.destinations.interface import DeliveredRow, Delivery, Receipt
from counterfoil.destinations.settings import DeltaSettings
from counterfoil.errors import DestinationRefused
from counterfoil.failpoints import reach
from counterfoil.files import Files

COMMITS_SEARCHED = 200
"""How far back the commit of the last delivery is looked for; others may have committed since."""

FILES_A_COMMIT = 100
"""That an erasure replaces at once, as far as they are small."""

log = structlog.get_logger()


class TableOnDisk:
    """A `TableStorage` in a directory of this machine."""

    def __init__(
        self,
        address: TableAddress,
        root: Path,
        settings: DeltaSettings,
        *,
        files: Files,
        quarantine: Path,
        clock_ms: Callable[[], int],
        new_id: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self.commit_count = 0
        self._address = address
        self._root = root
        self._settings = settings
        self._clock_ms = clock_ms
        self._files = TableFiles(root, files, new_id)
        self._log = TableLog(root, files, quarantine, clock_ms)
        self._table: DeltaTable | None = None
        self._unreadable: set[str] = set()

    @property
    def table(self) -> DeltaTable:
        assert self._table is not None, "open comes first"
        return self._table

    def settings(self) -> dict[str, str]:
        return {
            # Log entries go by `delta_log`, once a flushed checkpoint replaces them, and in no other way.
            "delta.enableExpiredLogCleanup": "false",
            # A checkpoint forgets which files were replaced longer ago than this; by then they must be gone.
            "delta.deletedFileRetentionDuration": f"interval {int(self._settings.keep_hours * 3600) + 3600} seconds",
            # Of what a person can be told by nothing is to stand in the log, whoever writes a file.
            "delta.dataSkippingStatsColumns": ",".join(STATISTICS),
        }

    def is_there(self) -> bool:
        return bool(self._log.versions())

    def writable_faults(self) -> list[str]:
        above = next(path for path in (self._root, *self._root.parents) if path.exists())
        if not above.is_dir():
            return [f"{above}: not a directory: give the destination another path"]
        if not os.access(above, os.W_OK | os.X_OK):
            return [f"{above}: not writable: give the server's user the right to write there"]
        return []

    def mend(self) -> bool:
        self._log.begin()
        return self._log.mend() is not None

    def settle(self, first: int, last: int) -> None:
        self._log.settle(first, last)

    def load(self) -> None:
        self._table = self._address.load()
        self.commit_count = self._table.version() - (self._log.checkpoint() or 0)

    def remove_left_over(self) -> None:
        removed = self._log.removed()
        if removed is not None:
            active = {file.path for file in table_files(self.table)}
            self._files.remove(path for path in self._files.ours() if path not in active and path not in removed)

    def last_receipt(self, application: str) -> Receipt | None:
        held = self.table.transaction_version(application)
        if held is None:
            return None
        newest = self.table.version()
        for version in range(newest, max(newest - COMMITS_SEARCHED, -1), -1):
            note = self._log.note(version)
            if note is not None and note.kind == "delivery" and note.last_group == held:
                return Receipt(note.first_group, held, note.row_count, str(version))
        return Receipt(0, held, 0, "")

    def append(self, delivery: Delivery, application: str) -> int:
        added = self._write(delivery.rows)
        reach("delta.files_flushed")
        cursor = Transaction(application, delivery.last_group, self._clock_ms())
        return self._commit(delivery_note(delivery), added, cursor=cursor)

    def upkeep(self) -> Generator[None]:
        today = datetime.fromtimestamp(self._clock_ms() // 1000, UTC).date()
        for merge in plan_merges(self._own_files(), today, self._settings.file_bytes):
            yield from self._merge(merge)
        replaced_before_ms = self._clock_ms() - int(self._settings.keep_hours * MS_AN_HOUR)
        overdue = self._replaced(replaced_before_ms)
        checkpoint = self._make_checkpoint()
        yield
        yield from self._log.clean(checkpoint, replaced_before_ms)
        reach("delta.log_cleaned")
        yield
        yield from self._vacuum(overdue)

    def erase(self, subject: Subject) -> int:
        row_count, unreadable = self._erase_rows(subject)
        # A checkpoint forgets which files were replaced long ago, and then nobody knows them.
        overdue = self._replaced(self._clock_ms() - int(self._settings.keep_hours * MS_AN_HOUR))
        # An entry of our own stands at the end of what is left of the log: another writer's may quote a condition.
        self._commit(CommitNote("erase", 0), [])
        self._log.forget(self._make_checkpoint())
        reach("delta.log_forgotten")
        self._files.remove([*overdue, *self._old_files(subject)])
        reach("delta.old_files_removed")
        if unreadable:
            raise DestinationRefused(
                f"{self._address}: {unreadable[0]} can't be read, and may hold rows that are to be erased: bring it "
                "back, or remove it and take it out of the table (deltalake: DeltaTable.repair())"
            )
        return row_count

    def close(self) -> None:
        self._table = None

    # Committing

    def _write(self, rows: Sequence[DeliveredRow]) -> list[WrittenFile]:
        written = []
        for day, table in tables_by_day(rows) if rows else []:
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
        cursor: Transaction | None = None,
        *,
        is_data_changed: bool = True,
    ) -> int:
        """One durable commit; its version."""
        table = self.table
        before = table.version()
        now_ms = self._clock_ms()
        # Beside the files there is the cursor, when it moves.
        note = msgspec.structs.replace(note, action_count=len(added) + len(removed) + (cursor is not None))
        table.create_write_transaction(
            [_add_action(file, now_ms, data_change=is_data_changed) for file in added]
            + [_remove_action(file, now_ms, data_change=is_data_changed) for file in removed],
            mode="append",
            schema=TABLE_SCHEMA,
            partition_by=[PARTITION],
            commit_properties=commit_properties(note, [cursor] if cursor else ()),
            post_commithook_properties=NO_HOOKS,
        )
        reach(f"delta.{note.kind}_committed")
        table.update_incremental()
        after = table.version()
        self._log.settle(before + 1, after)
        reach(f"delta.{note.kind}_flushed")
        self.commit_count += after - before
        # Others may have committed between: then the entries themselves say which is ours.
        return next(version for version in range(before + 1, after + 1) if self._log.note(version) == note)

    # Upkeep

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
        self._replace(CommitNote("merge", 0), merge.files, [written], is_data_changed=False)
        yield

    def _read(self, source: TableFile, columns: Sequence[str] = COLUMNS.names) -> Iterator[pa.Table]:
        try:
            yield from self._files.read(source.path, columns)
        except (OSError, pa.ArrowException) as error:
            # Its rows are in danger, and only a person can help; deliveries must not stop for it.
            self._unreadable.add(source.path)
            log.error("delta.file_unreadable", destination=self._settings.name, file=source.path)
            raise _Unreadable from error

    def _make_checkpoint(self) -> int:
        """A durable checkpoint of the table as it is now; its version."""
        version = self.table.version()
        self.table.create_checkpoint()
        reach("delta.checkpoint_made")
        self._log.settle_checkpoint(version)
        self.commit_count = 0
        # A loaded table goes back to the entries it was loaded from: it must stand on the checkpoint before they go.
        self._table = self._address.load()
        reach("delta.checkpoint_flushed")
        return version

    def _replace(
        self, note: CommitNote, files: Sequence[TableFile], written: Sequence[WrittenFile], *, is_data_changed: bool
    ) -> bool:
        """Put new files in the place of others; False where one of those has changed meanwhile."""
        # Somebody may have deleted rows; what was read of their files must not come back.
        table = self.table
        table.update_incremental()
        faults = shape_faults(table, self._address)
        if faults:
            raise DestinationRefused("; ".join(faults))
        if not {file.path for file in files} <= {active.path for active in table_files(table)}:
            self._files.remove([file.path for file in written])
            return False
        self._commit(note, written, files, is_data_changed=is_data_changed)
        return True

    # Erasing

    def _erase_rows(self, subject: Subject) -> tuple[int, list[str]]:
        """Put other files in the place of those that hold rows of a subject.

        How many rows that were, and the files of the table that can't be read.
        """
        row_count = 0
        unreadable: set[str] = set()
        looked_at: set[str] = set()
        self.table.update_incremental()
        # Until there is nothing new: somebody may have written files while we looked at others.
        while waiting := [file for file in table_files(self.table) if file.path not in looked_at]:
            looked_at.update(file.path for file in waiting)
            holding: dict[TableFile, int] = {}
            for file in waiting:
                try:
                    count = sum(subject_rows(rows, subject) for rows in self._read(file, SUBJECT_COLUMNS))
                except _Unreadable:
                    unreadable.add(file.path)
                else:
                    holding.update({file: count} if count else {})
            for batch in _batches(list(holding), self._settings.file_bytes):
                written = self._write_without(batch, subject)
                unreadable.update(file.path for file in batch if file not in written)
                if self._replace_erased(written):
                    row_count += sum(holding[file] for file in written)
                else:
                    looked_at.difference_update(file.path for file in written)
            self.table.update_incremental()
        return row_count, sorted(unreadable & {file.path for file in table_files(self.table)})

    def _write_without(self, sources: Sequence[TableFile], subject: Subject) -> dict[TableFile, WrittenFile]:
        """For each file one without the rows of a subject, but for those that can't be read."""
        written = {}
        for source in sources:
            file = self._files.begin(source.day)
            try:
                for rows in self._read(source):
                    file.write(rows_of_others(rows, subject))
                written[source] = file.finish()
            except _Unreadable:
                file.abandon()
            except BaseException:
                file.abandon()
                raise
        reach("delta.erase_written")
        return written

    def _replace_erased(self, written: Mapping[TableFile, WrittenFile]) -> bool:
        """Put files in the place of others, which go at once; False where one of those has changed meanwhile."""
        self._files.remove(file.path for file in written.values() if not file.row_count)
        kept = [file for file in written.values() if file.row_count]
        if not written or not self._replace(CommitNote("erase", 0), list(written), kept, is_data_changed=True):
            return False
        # Now and not at the end, so that there is room for the next ones.
        self._files.remove(file.path for file in written)
        return True

    def _old_files(self, subject: Subject) -> list[str]:
        """The files that hold rows of a subject and are in the table no more, or were never in it."""
        active = {file.path for file in table_files(self.table)}
        removed = self._log.removed() or {}
        ours = set(self._files.ours())
        old = []
        for path, changed_at_ms in self._files.all().items():
            # Of another writer's a commit that is under way may name it yet.
            is_anybodys = path not in removed and path not in ours
            if path in active or (is_anybodys and self._clock_ms() - changed_at_ms < MS_AN_HOUR):
                continue
            if self._files.may_hold(path, subject):
                old.append(path)
        return old

    def _own_files(self) -> list[TableFile]:
        ours = set(self._files.ours()) - self._unreadable
        return [file for file in table_files(self.table) if file.path in ours]

    def _replaced(self, before_ms: int) -> list[str]:
        """The files that something took the place of before that time, as far as the log can tell."""
        return [path for path, at_ms in (self._log.removed() or {}).items() if at_ms < before_ms]

    def _vacuum(self, paths: Sequence[str]) -> Iterator[None]:
        for start in range(0, len(paths), 100):
            self._files.remove(paths[start : start + 100])
            reach("delta.files_removed")
            yield


def _batches(files: Sequence[TableFile], bytes_max: int) -> Iterator[list[TableFile]]:
    """The files in commits of FILES_A_COMMIT and so many bytes at most, or of one larger file."""
    batch: list[TableFile] = []
    for file in files:
        if batch and (len(batch) == FILES_A_COMMIT or sum(each.file_bytes for each in [*batch, file]) > bytes_max):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


class _Unreadable(Exception):
    """A data file that is in the table can't be read."""


def _add_action(file: WrittenFile, now_ms: int, *, data_change: bool) -> AddAction:
    values = {PARTITION: file.day.isoformat()}
    return AddAction(file.path, file.file_bytes, values, now_ms, data_change, file.statistics)


def _remove_action(file: TableFile, now_ms: int, *, data_change: bool) -> RemoveAction:
    return RemoveAction(
        file.path,
        data_change=data_change,
        deletion_timestamp=now_ms,
        size=file.file_bytes,
        partition_values={PARTITION: file.day.isoformat()},
    )
