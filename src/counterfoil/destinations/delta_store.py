"""A Delta table in an object store: there a PUT is whole and durable when it is answered, or it is not there.

So nothing has to be flushed, nothing can be torn, and deltalake's own operations do: it writes the data files, and
then puts the log entry under the condition that there is none of that version yet. Two writers can't both have it.

A request that a dead process had sent may be carried out late. Therefore files that no commit names stay for
LEFT_OVER_HOURS_MIN: a late commit may name them yet. They go with the files that were replaced, at the next upkeep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import PyFileSystem

from counterfoil.contract.subject import Subject
from counterfoil.destinations.delta_address import TableAddress
from counterfoil.destinations.delta_columns import COLUMNS, PARTITION, STATISTICS, tables_by_day
from counterfoil.destinations.delta_files import holds_rows
from counterfoil.destinations.delta_merge import plan_merges
from counterfoil.destinations.delta_table import (
    NO_HOOKS,
    CommitNote,
    commit_properties,
    delivery_note,
    shape_faults,
    table_files,
)
from counterfoil.destinations.interface import DeliveredRow, Delivery, Receipt
from counterfoil.destinations.query import subject_seqs
from counterfoil.destinations.settings import DeltaSettings
from counterfoil.errors import DestinationRefused
from counterfoil.failpoints import reach

LEFT_OVER_HOURS_MIN = 1
SEQS_A_STATEMENT = 1000
RECEIPT_FACTS = ("first", "rows", "commit")
"""What a receipt holds beside the cursor lies in transaction identifiers beside it, `<application>:first` and so on:
deltalake gives the log's own words (`history`) only with the whole process held up, as long as the store takes."""

_RETENTIONS = ("delta.logRetentionDuration", "delta.deletedFileRetentionDuration")
_PARQUET = WriterProperties(compression="ZSTD", compression_level=1)
_DAY = pa.field(PARTITION, pa.date32(), nullable=False)
_ROWS = COLUMNS.append(_DAY)


class TableInStore:
    """A `TableStorage` in an object store."""

    def __init__(self, address: TableAddress, settings: DeltaSettings, clock_ms: Callable[[], int]) -> None:
        self.commit_count = 0
        self._address = address
        self._settings = settings
        self._clock_ms = clock_ms
        self._table: DeltaTable | None = None

    @property
    def table(self) -> DeltaTable:
        assert self._table is not None, "open comes first"
        return self._table

    def settings(self) -> dict[str, str]:
        keep = f"interval {self._kept_hours() * 3600} seconds"
        return {
            "delta.enableExpiredLogCleanup": "true",
            "delta.logRetentionDuration": keep,
            "delta.deletedFileRetentionDuration": keep,
            "delta.dataSkippingStatsColumns": ",".join(STATISTICS),
        }

    def is_there(self) -> bool:
        try:
            self._address.load()
        except TableNotFoundError:
            return False
        return True

    def writable_faults(self) -> list[str]:
        return []

    def mend(self) -> bool:
        return self.is_there()

    def settle(self, first: int, last: int) -> None:
        return

    def load(self) -> None:
        self._table = self._address.load()
        # How old the newest checkpoint is, the table does not say: at worst it is renewed too early.
        self.commit_count = min(self._table.version(), self._settings.merge_commits)

    def remove_left_over(self) -> None:
        # They go at the next upkeep, once they are old enough.
        return

    def last_receipt(self, application: str) -> Receipt | None:
        held = self.table.transaction_version(application)
        if held is None:
            return None
        first_group, row_count, version = (
            self.table.transaction_version(f"{application}:{fact}") or 0 for fact in RECEIPT_FACTS
        )
        return Receipt(first_group, held, row_count, str(version))

    def append(self, delivery: Delivery, application: str) -> int:
        version = self.table.version() + 1
        now_ms = self._clock_ms()
        facts = zip(RECEIPT_FACTS, (delivery.first_group, len(delivery.rows), version), strict=True)
        cursor = Transaction(application, delivery.last_group, now_ms)
        write_deltalake(
            self.table,
            _as_table(delivery.rows),
            mode="append",
            writer_properties=_PARQUET,
            commit_properties=commit_properties(
                delivery_note(delivery),
                [cursor, *(Transaction(f"{application}:{fact}", value, now_ms) for fact, value in facts)],
                # Under another version it would not be what it says of itself: then the delivery comes again.
                retry_count=0,
            ),
            post_commithook_properties=NO_HOOKS,
        )
        reach("delta.delivery_committed")
        self.commit_count += 1
        return version

    def upkeep(self) -> Generator[None]:
        yield from self._merge()
        self.table.create_checkpoint()
        self.commit_count = 0
        reach("delta.checkpoint_made")
        yield
        self.table.cleanup_metadata()
        reach("delta.log_cleaned")
        yield
        # Full: also what no commit ever named.
        self.table.vacuum(
            self._kept_hours(),
            dry_run=False,
            enforce_retention_duration=False,
            full=True,
            post_commithook_properties=NO_HOOKS,
        )
        reach("delta.files_removed")

    def erase(self, subject: Subject) -> int:
        self.table.update_incremental()
        faults = shape_faults(self.table, self._address)
        if faults:
            raise DestinationRefused("; ".join(faults))
        seqs = subject_seqs(self._address, subject)
        for start in range(0, len(seqs), SEQS_A_STATEMENT):
            chosen = ", ".join(map(str, seqs[start : start + SEQS_A_STATEMENT]))
            # By seq: the log quotes the condition, and may quote nothing of a person.
            self.table.delete(
                f"seq IN ({chosen})",
                writer_properties=_PARQUET,
                commit_properties=commit_properties(CommitNote("erase", 0)),
                post_commithook_properties=NO_HOOKS,
            )
            reach("delta.erase_committed")
        self._forget()
        self._remove_unnamed(subject)
        return len(seqs)

    def close(self) -> None:
        self._table = None

    def _forget(self) -> None:
        """Remove the log before now, and the files that are in the table no more."""
        self._set(self.settings() | dict.fromkeys(_RETENTIONS, "interval 0 seconds"))
        reach("delta.retention_ended")
        self.table.vacuum(
            0, dry_run=False, enforce_retention_duration=False, full=False, post_commithook_properties=NO_HOOKS
        )
        reach("delta.old_files_removed")
        self.table.create_checkpoint()
        self.table.cleanup_metadata()
        reach("delta.log_forgotten")
        self._set(self.settings())
        self._table = self._address.load()
        self.commit_count = 1

    def _remove_unnamed(self, subject: Subject) -> None:
        """Remove the files that hold rows of a subject, and that no commit names: a crash left them.

        However young they are: a commit that would name one is refused, because its version is there.
        """
        store = PyFileSystem(DeltaStorageHandler(self._address.uri, self._address.storage_options))
        unnamed = self.table.vacuum(0, dry_run=True, enforce_retention_duration=False, full=True)
        for path in unnamed:
            try:
                with store.open_input_file(path) as opened, pq.ParquetFile(opened) as file:
                    is_held = holds_rows(file, subject)
            except FileNotFoundError:
                continue
            except pa.ArrowException:
                is_held = True
            if is_held:
                store.delete_file(path)
                reach("delta.unnamed_file_removed")

    def _set(self, properties: dict[str, str]) -> None:
        self.table.alter.set_table_properties(
            properties,
            commit_properties=commit_properties(CommitNote("settings", 1)),
            post_commithook_properties=NO_HOOKS,
        )

    def _merge(self) -> Iterator[None]:
        self.table.update_incremental()
        today = datetime.fromtimestamp(self._clock_ms() // 1000, UTC).date()
        for merge in plan_merges(table_files(self.table), today, self._settings.file_bytes):
            before = self.table.version()
            self.table.optimize.compact(
                [(PARTITION, "=", merge.day.isoformat())],
                # Larger files than those of the merge together are left as they are.
                target_size=sum(file.file_bytes for file in merge.files),
                max_concurrent_tasks=1,
                writer_properties=_PARQUET,
                commit_properties=commit_properties(CommitNote("merge", 0)),
                post_commithook_properties=NO_HOOKS,
            )
            self.commit_count += self.table.version() - before
            reach("delta.merge_committed")
            yield

    def _kept_hours(self) -> int:
        return max(LEFT_OVER_HOURS_MIN, math.ceil(self._settings.keep_hours))


def _as_table(rows: Sequence[DeliveredRow]) -> pa.Table:
    days = tables_by_day(rows) if rows else []
    parts = [table.append_column(_DAY, pa.array([day] * table.num_rows, pa.date32())) for day, table in days]
    return pa.concat_tables(chain([_ROWS.empty_table()], parts))
