"""Rows into the table: by binary COPY, and by way of a temporary table where a key is taken.

COPY knows no ON CONFLICT. A delivery is copied straight into the table, in a savepoint; when the unique key refuses it,
it is copied into a temporary table of the same columns and inserted from there, which also says whose key is taken.
What is copied is the same both times.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

import psycopg
from psycopg import sql

from counterfoil.destinations.interface import DeliveredRow, RefusedRow
from counterfoil.destinations.postgres_connection import Connection, reason_of
from counterfoil.destinations.postgres_table import (
    COLUMN_NAMES,
    COLUMNS,
    PostgresTable,
    column_definitions,
    column_names,
)

ALREADY_THERE = "already_there"
"""Why a row is dead whose key another row has."""

_ROW_CLASSES = ("22", "23", "44", "54", "P0")
"""Of SQLSTATEs that a row alone may cause: its data, a constraint, a check option, an index's limit, a trigger."""

_STAGING = sql.Identifier("counterfoil_staging")
_TEXT_COLUMNS = ("source", "event", "distinct_id", "user_id", "external_id", "email")

_WIRE_TYPES = [{"timestamptz": "int8", "json": "text", "bigint": "int8"}.get(kind, kind) for _, kind, _ in COLUMNS]
"""As what a column goes over the wire: a time is a number of µs since 2000 there, and JSON its text."""

_EPOCH_2000_MS = 946_684_800_000


class RowCopy:
    """Copies rows of one ledger into a table, inside a transaction of the caller's."""

    def __init__(self, connection: Connection, table: PostgresTable, ledger_id: UUID) -> None:
        self._connection = connection
        self._table = table.rows
        self._ledger_id = ledger_id
        self.taken: list[RefusedRow] = []
        """Rows that are not in the table because another row has their key."""

    def prepare(self) -> None:
        """Make the temporary table; once a connection."""
        self._connection.execute(sql.SQL("CREATE TEMPORARY TABLE {} ({})").format(_STAGING, column_definitions()))

    def take(self, rows: Sequence[DeliveredRow]) -> str | None:
        """Take `rows` in a savepoint; none of them and the reason when one of them is refused for what it holds."""
        connection = self._connection
        try:
            with suppress(psycopg.errors.UniqueViolation), connection.transaction():
                self._copy(self._table, rows)
                return None
            with connection.transaction():
                self._copy(_STAGING, rows)
                inserted = connection.execute(self._insert()).rowcount
                taken = []
                if inserted < len(rows):
                    connection.execute(self._renumber(), (self._ledger_id,))
                    taken = self._taken_keys()
                connection.execute(sql.SQL("TRUNCATE {}").format(_STAGING))
        except psycopg.Error as error:
            # A column that somebody added and that must have a value is no row's fault.
            is_column_ours = (error.diag.column_name or COLUMN_NAMES[0]) in COLUMN_NAMES
            if (error.sqlstate or "")[:2] not in _ROW_CLASSES or not is_column_ours:
                raise
            return reason_of(error)
        self.taken += [RefusedRow(seq, ALREADY_THERE) for seq in taken]
        return None

    def _copy(self, table: sql.Identifier, rows: Sequence[DeliveredRow]) -> None:
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, column_names())
        ledger_id = self._ledger_id
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(_WIRE_TYPES)
            # psycopg packs a row in C, more than twice as fast as anything tried in Python.
            write_row = copy.write_row
            for row in rows:
                write_row(
                    (
                        ledger_id,
                        row.seq,
                        row.source,
                        row.event,
                        row.distinct_id,
                        row.user_id,
                        row.external_id,
                        row.email,
                        (row.time_ms - _EPOCH_2000_MS) * 1000,
                        (row.received_at_ms - _EPOCH_2000_MS) * 1000,
                        row.event_properties,
                        row.user_properties,
                        row.default_properties,
                        row.identity_context,
                        row.extra,
                    )
                )

    def _insert(self) -> sql.Composed:
        return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT DO NOTHING").format(
            self._table, column_names(), column_names(), _STAGING
        )

    def _renumber(self) -> sql.Composed:
        """Give rows that are there already, and were sent again, their new seq: the same key, received at once."""
        return sql.SQL(
            "UPDATE {} AS kept SET seq = staged.seq FROM {} AS staged WHERE kept.ledger_id = %s "
            "AND (kept.source, kept.distinct_id) = (staged.source, staged.distinct_id) AND kept.seq < staged.seq "
            "AND kept.received_at = staged.received_at"
        ).format(self._table, _STAGING)

    def _taken_keys(self) -> list[int]:
        """The seqs of staged rows that are not in the table: another row has their key."""
        query = sql.SQL(
            "SELECT staged.seq FROM {} AS staged LEFT JOIN {} AS kept USING (source, distinct_id) "
            "WHERE (kept.ledger_id, kept.seq) IS DISTINCT FROM (%s, staged.seq) ORDER BY staged.seq"
        ).format(_STAGING, self._table)
        return [seq for (seq,) in self._connection.execute(query, (self._ledger_id,))]


def rows_with_nul(rows: Sequence[DeliveredRow]) -> list[RefusedRow]:
    """The rows that PostgreSQL's `text` can't hold."""
    refused = []
    for row in rows:
        texts = (row.source, row.event, row.distinct_id, row.user_id, row.external_id, row.email)
        for column, text in zip(_TEXT_COLUMNS, texts, strict=True):
            if text is not None and "\0" in text:
                refused.append(RefusedRow(row.seq, f"nul:{column}"))
                break
    return refused
