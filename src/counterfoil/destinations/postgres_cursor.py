"""The cursor in PostgreSQL: the receipt of the last delivery that is there whole, moved in the same transaction."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from psycopg import sql
from psycopg.types.json import Json

from counterfoil.destinations.interface import Delivery, Receipt, RefusedRow
from counterfoil.destinations.postgres_connection import Connection
from counterfoil.destinations.postgres_table import CURSOR_COLUMNS, PostgresTable, column_names


class PostgresCursor:
    """The cursor of one (ledger, destination)."""

    def __init__(self, table: PostgresTable, ledger_id: UUID, destination: str) -> None:
        self._table = table.cursors
        self._key = (ledger_id, destination)

    def read(self, connection: Connection, *, lock: bool = False) -> Receipt | None:
        """The receipt that stands there, None where there is none; locked until the transaction ends."""
        query = sql.SQL(
            "SELECT first_group, last_group, row_count, commit, dead FROM {} "
            "WHERE ledger_id = %s AND destination = %s{}"
        ).format(self._table, sql.SQL(" FOR UPDATE" if lock else ""))
        found = connection.execute(query, self._key).fetchone()
        if found is None:
            return None
        first_group, last_group, row_count, commit, dead = found
        return Receipt(first_group, last_group, row_count, commit, tuple(RefusedRow(*row) for row in dead))

    def move(self, connection: Connection, delivery: Delivery, refused: Sequence[RefusedRow]) -> Receipt:
        """Put the receipt of `delivery` in its place; its commit is the number of the transaction."""
        dead = tuple(sorted(refused, key=lambda row: row.seq))
        row_count = len(delivery.rows) - len(dead)
        statement = sql.SQL(
            "INSERT INTO {} AS kept ({}) VALUES (%s, %s, %s, %s, %s, pg_current_xact_id()::text, %s) "
            "ON CONFLICT (ledger_id, destination) DO UPDATE SET first_group = excluded.first_group, "
            "last_group = excluded.last_group, row_count = excluded.row_count, commit = excluded.commit, "
            "dead = excluded.dead RETURNING commit"
        ).format(self._table, column_names(CURSOR_COLUMNS))
        kept = Json([[row.seq, row.reason] for row in dead])
        values = (*self._key, delivery.first_group, delivery.last_group, row_count, kept)
        returned = connection.execute(statement, values).fetchone()
        assert returned is not None
        return Receipt(delivery.first_group, delivery.last_group, row_count, str(returned[0]), dead)
