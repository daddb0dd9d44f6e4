"""A PostgreSQL table: rows and cursor in one transaction, so each row lies there exactly once whatever dies.

The tables stand in postgres_table.py. A delivery is copied in binary straight into the table; where a key of it is
there already, it goes through a temporary table and is inserted from there, so that such a row takes nothing else along
(postgres_copy.py).

A row that PostgreSQL refuses for what it holds (its data, a constraint, a limit of an index, a trigger that raises; a
NUL in a text column) is found by halving inside savepoints and becomes a dead letter; so does one whose key another row
has taken, reason `already_there`. The same row once more, as after a replay, is no refusal. Where the table itself was
altered no row is at fault: that is looked at first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from uuid import UUID

import structlog
from psycopg import sql

from counterfoil.contract.subject import Subject
from counterfoil.destinations.halving import refused_by_halves
from counterfoil.destinations.interface import DeliveredRow, Delivery, HeldRows, Receipt, RefusedRow
from counterfoil.destinations.postgres_connection import Connection, Told, connect
from counterfoil.destinations.postgres_copy import RowCopy, rows_with_nul
from counterfoil.destinations.postgres_cursor import PostgresCursor
from counterfoil.destinations.postgres_erasure import clear_up, erase_rows, subject_seqs
from counterfoil.destinations.postgres_table import PostgresTable
from counterfoil.destinations.settings import PostgresSettings
from counterfoil.errors import DestinationDown, DestinationRefused
from counterfoil.failpoints import reach

_HELD_ROWS_A_FETCH = 10_000

log = structlog.get_logger()


class PostgresDestination:
    """A `Destination` that delivers to a PostgreSQL table."""

    keeps_cursor = True

    def __init__(self, settings: PostgresSettings, ledger_id: UUID) -> None:
        self.name = settings.name
        self._settings = settings
        self._ledger_id = ledger_id
        self._table = PostgresTable(settings)
        self._cursor = PostgresCursor(self._table, ledger_id, settings.name)
        self._connection: Connection | None = None

    def open(self) -> Receipt | None:
        """See `Destination.open`: connects, makes what is not there, and reads the cursor."""
        self.close()
        with Told():
            self._connection = connection = connect(self._settings)
            try:
                with connection.transaction():
                    self._table.make(connection)
                self._refuse_altered(connection)
                self._copy(connection).prepare()
                return self._cursor.read(connection)
            except BaseException:
                self.close()
                raise

    def deliver(self, delivery: Delivery) -> Receipt:
        """See `Destination.deliver`: one transaction for the rows and the cursor."""
        connection = self._connection
        assert connection is not None, "deliver before open"
        try:
            return self._deliver(connection, delivery)
        except DestinationRefused as refused:
            # Altered while it was open, a table is told by its columns and not by the statement that failed.
            with Told():
                self._refuse_altered(connection, refused)
            raise

    def _deliver(self, connection: Connection, delivery: Delivery) -> Receipt:
        with Told(), connection.transaction():
            held = self._cursor.read(connection, lock=True)
            if held is not None and held.last_group >= delivery.first_group:
                raise DestinationRefused(
                    f"the cursor in {self._settings.table}_cursors is at group {held.last_group} already: "
                    "does another server deliver with a copy of this ledger?"
                )
            refused = self._take(connection, delivery.rows)
            reach("postgres.before_cursor")
            receipt = self._cursor.move(connection, delivery, refused)
            reach("postgres.before_commit")
        reach("postgres.after_commit")
        return receipt

    def tend(self) -> bool:
        """Nothing: PostgreSQL looks after itself."""
        return False

    def close(self) -> None:
        """Close the connection; a transaction that is open is rolled back by the server."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def check(self) -> list[str]:
        """What would keep it from delivering; tries the connection and compares the columns, changes nothing."""
        try:
            with Told(), connect(self._settings) as connection:
                return self._table.problems(connection)
        except (DestinationDown, DestinationRefused) as error:
            return [str(error)]

    def counts(self) -> dict[str, int]:
        """Rows of this ledger in the table, by source."""
        query = sql.SQL("SELECT source, count(*) FROM {} WHERE ledger_id = %s GROUP BY source").format(self._table.rows)
        with Told(), connect(self._settings) as connection:
            if not self._table.is_there(connection):
                return {}
            return dict(connection.execute(query, (self._ledger_id,)).fetchall())

    def held(self, first_seq: int = 0, last_seq: int | None = None) -> Iterator[HeldRows]:
        """Rows of this ledger in a range of seqs, in its order, some thousands at a time."""
        query = sql.SQL(
            "SELECT source, seq, distinct_id FROM {} WHERE ledger_id = %s AND seq BETWEEN %s AND %s ORDER BY seq"
        ).format(self._table.rows)
        parameters = (self._ledger_id, first_seq, 2**63 - 1 if last_seq is None else last_seq)
        with Told(), connect(self._settings) as connection:
            if not self._table.is_there(connection):
                return
            # A cursor of the server's lives in a transaction and sends no more than was asked for.
            with connection.transaction(), connection.cursor(name="held") as cursor:
                cursor.execute(query, parameters)
                while rows := cursor.fetchmany(_HELD_ROWS_A_FETCH):
                    for source, run in groupby(rows, key=itemgetter(0)):
                        _, seqs, distinct_ids = zip(*run, strict=True)
                        yield HeldRows(source, seqs, distinct_ids)

    def seqs_of(self, subject: Subject) -> Sequence[int]:
        """See `Destination.seqs_of`: of this ledger's rows."""
        with Told(), connect(self._settings) as connection:
            if not self._table.is_there(connection):
                return []
            return subject_seqs(connection, self._table.rows, self._ledger_id, subject)

    def erase(self, subject: Subject) -> int:
        """See `Destination.erase`: of this ledger's rows; then PostgreSQL is asked to clear up where they lay."""
        connection = self._connection
        assert connection is not None, "open comes first"
        with Told():
            row_count = erase_rows(connection, self._table.rows, self._ledger_id, subject)
            if reason := clear_up(connection, self._table.rows):
                log.warning("postgres.not_vacuumed", destination=self.name, table=self._settings.table, reason=reason)
            return row_count

    def _refuse_altered(self, connection: Connection, cause: Exception | None = None) -> None:
        if problems := self._table.problems(connection):
            raise DestinationRefused("; ".join(problems)) from cause

    def _copy(self, connection: Connection) -> RowCopy:
        return RowCopy(connection, self._table, self._ledger_id)

    def _take(self, connection: Connection, rows: Sequence[DeliveredRow]) -> list[RefusedRow]:
        """Have the rows taken; those that are not, each with its reason."""
        copy = self._copy(connection)
        if not rows or copy.take(rows) is None:
            return copy.taken
        # One was refused, or all are: a column that was made shorter or NOT NULL would make dead letters of good rows.
        self._refuse_altered(connection)
        # Only now each is looked at for a NUL: it takes as long as packing the rows.
        refused = rows_with_nul(rows)
        left_out = {row.seq for row in refused}
        refused += refused_by_halves([row for row in rows if row.seq not in left_out], copy.take)
        return refused + copy.taken
