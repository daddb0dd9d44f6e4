"""What makes a Delta table Counterfoil's, wherever it lies: its owner, its commits, its faults."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol
from uuid import UUID

import msgspec
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import DeltaError

from counterfoil.contract.subject import Subject
from counterfoil.destinations.delta_address import TableAddress
from counterfoil.destinations.delta_columns import PARTITION, TABLE_NAME, TABLE_SCHEMA, column_faults
from counterfoil.destinations.delta_merge import TableFile
from counterfoil.destinations.interface import Delivery, Receipt

LEDGER_PROPERTY = "counterfoil.ledger"
COMMIT_KEY = "counterfoil"
"""Under this name `commitInfo` holds a `CommitNote`."""

NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
MS_AN_HOUR = 3_600_000


class CommitNote(msgspec.Struct, frozen=True):
    """What a commit of ours says of itself in the log."""

    kind: str
    """`create`, `delivery`, `merge`, `erase` or `settings`."""
    action_count: int
    """Actions beside `commitInfo`: an entry that holds fewer is torn. 0 where a commit can't be torn."""
    first_group: int = 0
    last_group: int = 0
    row_count: int = 0


class TableStorage(Protocol):
    """How a table's files and log are written and kept where it lies; `TableOnDisk` and `TableInStore` are the two."""

    commit_count: int
    """Commits since the newest checkpoint."""

    @property
    def table(self) -> DeltaTable:
        """The table that was loaded last."""
        ...

    def settings(self) -> dict[str, str]:
        """The table's properties that upkeep hangs on."""
        ...

    def is_there(self) -> bool:
        """Whether there is a table; changes nothing."""
        ...

    def writable_faults(self) -> list[str]:
        """Why no table can be made where none is, as far as that can be told without trying."""
        ...

    def mend(self) -> bool:
        """Set right what a crash left; whether there is a table."""
        ...

    def settle(self, first: int, last: int) -> None:
        """Make these entries of the log durable, which deltalake wrote."""
        ...

    def load(self) -> None:
        """Load the table."""
        ...

    def remove_left_over(self) -> None:
        """Remove files that no commit names; only once the table is known to be ours."""
        ...

    def last_receipt(self, application: str) -> Receipt | None:
        """The last delivery of an application that the table holds; its cursor is the transaction identifier."""
        ...

    def append(self, delivery: Delivery, application: str) -> int:
        """One durable commit of the rows, which may be none, and of the application's cursor; its version."""
        ...

    def upkeep(self) -> Generator[None]:
        """All that is due, in short steps."""
        ...

    def erase(self, subject: Subject) -> int:
        """Remove the rows of a subject, their old files, and what the log has of the table before; how many rows."""
        ...

    def close(self) -> None:
        """Forget the table."""
        ...


def create_table(address: TableAddress, ledger_id: UUID, settings: dict[str, str]) -> None:
    """Make an empty table that belongs to a ledger."""
    DeltaTable.create(
        address.uri,
        TABLE_SCHEMA,
        partition_by=[PARTITION],
        name=TABLE_NAME,
        description="Events received by Counterfoil; each row once.",
        configuration={LEDGER_PROPERTY: str(ledger_id), **settings},
        storage_options=address.storage_options,
        # deltalake takes only property names that it knows itself for granted.
        raise_if_key_not_exists=False,
        commit_properties=commit_properties(CommitNote("create", 2)),
        post_commithook_properties=NO_HOOKS,
    )


def commit_properties(
    note: CommitNote, transactions: Sequence[Transaction] = (), retry_count: int | None = None
) -> CommitProperties:
    """What a commit carries: its note, and transaction identifiers where it moves a cursor."""
    return CommitProperties(
        custom_metadata={COMMIT_KEY: msgspec.to_builtins(note)},
        app_transactions=list(transactions) or None,
        max_commit_retries=retry_count,
    )


def delivery_note(delivery: Delivery) -> CommitNote:
    """What the commit of a delivery says of itself."""
    return CommitNote("delivery", 0, delivery.first_group, delivery.last_group, len(delivery.rows))


def note_of(commit_info: dict[str, Any]) -> CommitNote | None:
    """What a commit of ours says of itself; None when it is another's."""
    note = commit_info.get(COMMIT_KEY)
    return None if note is None else msgspec.convert(note, CommitNote)


def table_files(table: DeltaTable) -> list[TableFile]:
    """The data files that the table holds now."""
    actions = pa.table(table.get_add_actions(flatten=True))
    columns: dict[str, list[Any]] = {name: actions.column(name).to_pylist() for name in actions.column_names}
    least = columns.get("min.seq") or [None] * actions.num_rows
    parts = zip(columns["path"], columns[f"partition.{PARTITION}"], columns["size_bytes"], least, strict=True)
    return [TableFile(path, day, size, seq or 0) for path, day, size, seq in parts]


def ledger_of(address: TableAddress) -> UUID | None:
    """The ledger that the table belongs to; None when there is none or it can't be read."""
    try:
        return UUID(address.load().metadata().configuration[LEDGER_PROPERTY])
    except (DeltaError, OSError, KeyError, ValueError):
        return None


def table_faults(table: DeltaTable, address: TableAddress, ledger_id: UUID) -> list[str]:
    """Why this table can't be delivered to, one line each; empty when it can."""
    metadata = table.metadata()
    owner = metadata.configuration.get(LEDGER_PROPERTY)
    if owner is None:
        return [f"{address}: this table is not Counterfoil's: give the destination a path of its own"]
    if owner != str(ledger_id):
        return [
            f"{address}: this table belongs to the ledger {owner}, not to {ledger_id}: "
            "give the destination a path of its own, or bring back the data directory of that ledger"
        ]
    return shape_faults(table, address)


def shape_faults(table: DeltaTable, address: TableAddress) -> list[str]:
    """Columns that are not as ours, or features that we would write past, such as deletion vectors."""
    faults = column_faults(table.schema(), table.metadata().partition_columns)
    if faults:
        return [f"{address}: {', '.join(faults)}: undo the change, or give the destination a path of its own"]
    protocol = table.protocol()
    features = {*(protocol.reader_features or ()), *(protocol.writer_features or ())}
    if protocol.min_reader_version > 1 or protocol.min_writer_version > 2:
        listed = ", ".join(sorted(features)) or f"writer version {protocol.min_writer_version}"
        return [f"{address}: the table has features that are not spoken here ({listed}): drop them"]
    return []
