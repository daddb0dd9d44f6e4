"""A PostgreSQL table: rows and cursor in one transaction, so each row lies there exactly once whatever dies.

At the first start three things are made, in the schema of the settings:

    <table>                       one row a row; unique on (source, distinct_id)
        ledger_id                 uuid         the ledger that delivered it
        seq                       bigint       its number in that ledger's one sequence
        source, event, distinct_id             text
        user_id, external_id, email            text, null where the row had none
        time, received_at         timestamptz
        default_properties        json         with received_at and version
        event_properties, user_properties, identity_context, extra     json, null where the row had none
    <table>_cursors               one row a (ledger_id, destination): the last delivery that is there whole

JSON columns are `json`, which keeps the text as it is; `jsonb` refuses NUL (design, section 4). A delivery is copied
in binary straight into the table. Where a key of it is there already, it goes through a temporary table and is inserted
from there, so that such a row takes nothing else along.

A row that PostgreSQL refuses for what it holds (class 22 or 23, a NUL in a text column) is found by halving inside
savepoints and becomes a dead letter; so does one whose key another row has taken, reason `already_there`. The same row
once more, as after a replay, is no refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.json import Json

from counterfoil.destinations.halving import take_by_halves
from counterfoil.destinations.interface import DeliveredRow, Delivery, HeldRows, Receipt, RefusedRow
from counterfoil.destinations.settings import PostgresSettings
from counterfoil.errors import DestinationDown, DestinationRefused
from counterfoil.failpoints import reach

Connection = psycopg.Connection[tuple[Any, ...]]

_COLUMNS: tuple[tuple[LiteralString, LiteralString], ...] = (
    ("ledger_id", "uuid NOT NULL"),
    ("seq", "bigint NOT NULL"),
    ("source", "text NOT NULL"),
    ("event", "text NOT NULL"),
    ("distinct_id", "text NOT NULL"),
    ("user_id", "text"),
    ("external_id", "text"),
    ("email", "text"),
    ("time", "timestamptz NOT NULL"),
    ("received_at", "timestamptz NOT NULL"),
    ("event_properties", "json"),
    ("user_properties", "json"),
    ("default_properties", "json NOT NULL"),
    ("identity_context", "json"),
    ("extra", "json"),
)
"""Of the table: name and type."""

_WIRE_TYPES = {"timestamptz": "int8", "json": "text", "bigint": "int8"}
"""As what a column goes over the wire: a time is a number of µs since 2000 there, and JSON its text."""

_EPOCH_2000_MS = 946_684_800_000

_OURS = tuple(name for name, _ in _COLUMNS)

_STAGED: tuple[tuple[LiteralString, LiteralString, LiteralString], ...] = (
    ("seq", "int8", "seq"),
    ("source", "text", "source"),
    ("event", "text", "event"),
    ("distinct_id", "text", "distinct_id"),
    ("user_id", "text", "user_id"),
    ("external_id", "text", "external_id"),
    ("email", "text", "email"),
    ("time", "int8", "timestamptz 'epoch' + time * interval '1 millisecond'"),
    ("received_at", "int8", "timestamptz 'epoch' + received_at * interval '1 millisecond'"),
    ("event_properties", "text", "event_properties::json"),
    ("user_properties", "text", "user_properties::json"),
    ("default_properties", "text", "default_properties::json"),
    ("identity_context", "text", "identity_context::json"),
    ("extra", "text", "extra::json"),
)
"""Of the temporary table: name, type, and how the table's column of that name is made from it."""

_STAGING = sql.Identifier("counterfoil_staging")
_TEXT_COLUMNS = ("source", "event", "distinct_id", "user_id", "external_id", "email")
_HELD_ROWS_A_FETCH = 10_000

# A statement that failed for one of these says nothing about the rows: the server was busy, full or on its way down.
_DOWN_CLASSES = ("08", "40", "53", "55", "57", "58", "XX")
_ROW_CLASSES = ("22", "23")
# A refused connection carries no SQLSTATE through libpq, its words alone tell why. In another language than English it
# counts as a server that is down: tried again, and told as unreachable.
_REFUSED_CONNECTIONS = (
    ("password", "28P01"),
    ("pg_hba.conf", "28000"),
    ("role ", "28000"),
    ("authentication failed", "28000"),
    ("database ", "3D000"),
)
_SOMEBODY_MUST_ACT = {
    "28000": "the server lets this user in nowhere: see its pg_hba.conf and the dsn of this destination",
    "28P01": "the password is wrong: see the dsn of this destination",
    "3D000": "the database of the dsn is not there: make it",
    "3F000": "the schema is not there: make it, or name another in `schema_name`",
    "42501": "the user may not do this: grant it CREATE on the schema, and SELECT, INSERT, UPDATE on the tables",
}


class PostgresDestination:
    """A `Destination` that delivers to a PostgreSQL table; see the module's docstring for the tables."""

    keeps_cursor = True

    def __init__(self, settings: PostgresSettings, ledger_id: UUID) -> None:
        self.name = settings.name
        self._settings = settings
        self._ledger_id = ledger_id
        self._table = sql.Identifier(settings.schema_name, settings.table)
        self._cursors = sql.Identifier(settings.schema_name, f"{settings.table}_cursors")
        self._connection: Connection | None = None

    def open(self) -> Receipt | None:
        """See `Destination.open`: connects, makes what is not there, and reads the cursor."""
        self.close()
        with _Told():
            self._connection = connection = self._connect()
            try:
                return self._prepare(connection)
            except BaseException:
                self.close()
                raise

    def deliver(self, delivery: Delivery) -> Receipt:
        """See `Destination.deliver`: one transaction for the rows and the cursor."""
        connection = self._connection
        assert connection is not None, "deliver before open"
        with _Told(), connection.transaction():
            held = self._receipt(connection, lock=True)
            if held is not None and held.last_group >= delivery.first_group:
                raise DestinationRefused(
                    f"the cursor in {self._settings.table}_cursors is at group {held.last_group} already: "
                    "does another server deliver with a copy of this ledger?"
                )
            refused = _with_nul(delivery.rows)
            sound = delivery.rows
            if refused:
                left_out = {row.seq for row in refused}
                sound = [row for row in delivery.rows if row.seq not in left_out]
            refused += take_by_halves(sound, lambda rows: self._take(connection, rows, refused))
            reach("postgres.before_cursor")
            receipt = self._move_cursor(connection, delivery, refused)
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
            with _Told(), self._connect() as connection:
                if not self._is_there(connection):
                    return self._may_create(connection)
                return self._altered(connection) + self._missing_rights(connection)
        except (DestinationDown, DestinationRefused) as error:
            return [str(error)]

    def counts(self) -> dict[str, int]:
        """Rows of this ledger in the table, by source."""
        query = sql.SQL("SELECT source, count(*) FROM {} WHERE ledger_id = %s GROUP BY source").format(self._table)
        with _Told(), self._connect() as connection:
            if not self._is_there(connection):
                return {}
            return dict(connection.execute(query, (self._ledger_id,)).fetchall())

    def held(self, first_seq: int = 0, last_seq: int | None = None) -> Iterator[HeldRows]:
        """Rows of this ledger in a range of seqs, in its order, some thousands at a time."""
        query = sql.SQL(
            "SELECT source, seq, distinct_id FROM {} WHERE ledger_id = %s AND seq BETWEEN %s AND %s ORDER BY seq"
        ).format(self._table)
        parameters = (self._ledger_id, first_seq, 2**63 - 1 if last_seq is None else last_seq)
        with _Told(), self._connect() as connection:
            if not self._is_there(connection):
                return
            # A cursor of the server's lives in a transaction and sends no more than was asked for.
            with connection.transaction(), connection.cursor(name="held") as cursor:
                cursor.execute(query, parameters)
                while rows := cursor.fetchmany(_HELD_ROWS_A_FETCH):
                    for source, run in groupby(rows, key=itemgetter(0)):
                        _, seqs, distinct_ids = zip(*run, strict=True)
                        yield HeldRows(source, seqs, distinct_ids)

    def _prepare(self, connection: Connection) -> Receipt | None:
        with connection.transaction():
            self._make_tables(connection)
        problems = self._altered(connection) + self._missing_rights(connection)
        if problems:
            raise DestinationRefused("; ".join(problems))
        connection.execute(_staging_table())
        return self._receipt(connection)

    def _connect(self) -> Connection:
        try:
            return psycopg.connect(
                self._settings.dsn,
                autocommit=True,
                connect_timeout=self._settings.connect_seconds,
                application_name="counterfoil",
                client_encoding="utf8",
            )
        except psycopg.ProgrammingError:
            raise DestinationRefused("the dsn is none: expected one like postgresql://user@host/database") from None

    # The tables

    def _make_tables(self, connection: Connection) -> None:
        if self._is_there(connection):
            return
        # Two servers that start at once would both make them: the second waits here, then finds them.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('counterfoil'))")
        columns = sql.SQL(", ").join(sql.SQL("{} " + kind).format(sql.Identifier(name)) for name, kind in _COLUMNS)
        connection.execute(
            sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, UNIQUE (source, distinct_id))").format(self._table, columns)
        )
        # Rows come in the order of seq, so this index costs next to nothing and finds a range of them.
        connection.execute(
            sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING brin (seq)").format(
                sql.Identifier(f"{self._settings.table}_seq"), self._table
            )
        )
        connection.execute(
            sql.SQL(
                "CREATE TABLE IF NOT EXISTS {} (ledger_id uuid, destination text, first_group bigint NOT NULL, "
                "last_group bigint NOT NULL, row_count bigint NOT NULL, commit text NOT NULL, dead json NOT NULL, "
                "PRIMARY KEY (ledger_id, destination))"
            ).format(self._cursors)
        )

    def _is_there(self, connection: Connection) -> bool:
        query = "SELECT to_regclass(%s), to_regclass(%s)"
        names = (self._table.as_string(connection), self._cursors.as_string(connection))
        found = connection.execute(query, names).fetchone()
        return found is not None and None not in found

    def _may_create(self, connection: Connection) -> list[str]:
        query = "SELECT has_schema_privilege(%s, 'CREATE')"
        found = connection.execute(query, (self._settings.schema_name,)).fetchone()
        if found == (True,):
            return []
        return [f"the user may not make tables in the schema {self._settings.schema_name}: grant it CREATE there"]

    def _missing_rights(self, connection: Connection) -> list[str]:
        query = "SELECT has_table_privilege(%s, %s)"
        wanted = [(self._table, right) for right in ("SELECT", "INSERT")]
        wanted += [(self._cursors, right) for right in ("SELECT", "INSERT", "UPDATE")]
        return [
            f"the user has no right to {right} on {table.as_string(connection)}: grant it"
            for table, right in wanted
            if connection.execute(query, (table.as_string(connection), right)).fetchone() != (True,)
        ]

    def _altered(self, connection: Connection) -> list[str]:
        """What was altered by hand and keeps rows out, by the column's name; columns that were added may be."""
        query = (
            "SELECT attname, format_type(atttypid, NULL), attnotnull AND NOT atthasdef AND attidentity = '' "
            "FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        )
        columns = connection.execute(query, (self._table.as_string(connection),)).fetchall()
        found = {str(column): str(kind) for column, kind, _ in columns}
        problems = [
            f"table {self._settings.table}: the column {column} is not ours and may not be null: give it a default"
            for column, _, is_asked_for in columns
            if is_asked_for and column not in _OURS
        ]
        for column, kind in _COLUMNS:
            wanted = kind.split(" ", maxsplit=1)[0].replace("timestamptz", "timestamp with time zone")
            if column not in found:
                problems.append(f"table {self._settings.table}: the column {column} is gone; add it again as {kind}")
            elif found[column] != wanted:
                problems.append(
                    f"table {self._settings.table}: the column {column} is {found[column]}, expected {wanted}"
                )
        return problems

    # A delivery

    def _take(self, connection: Connection, rows: Sequence[DeliveredRow], refused: list[RefusedRow]) -> str | None:
        """Insert `rows` in a savepoint; the reason when one of them is refused. Taken keys are added to `refused`."""
        try:
            with suppress(psycopg.errors.UniqueViolation), connection.transaction():
                self._copy_straight(connection, rows)
                return None
            with connection.transaction():
                self._copy(connection, rows)
                inserted = connection.execute(self._insert(), (self._ledger_id,)).rowcount
                if inserted < len(rows):
                    connection.execute(self._renumber(), (self._ledger_id,))
                    taken = self._taken_keys(connection)
                else:
                    taken = []
                connection.execute(sql.SQL("TRUNCATE {}").format(_STAGING))
        except psycopg.Error as error:
            # A column that somebody added and that must have a value is no row's fault.
            is_column_ours = (error.diag.column_name or _OURS[0]) in _OURS
            if (error.sqlstate or "")[:2] not in _ROW_CLASSES or not is_column_ours:
                raise
            return _reason(error)
        refused += [RefusedRow(seq, "already_there") for seq in taken]
        return None

    def _copy_straight(self, connection: Connection, rows: Sequence[DeliveredRow]) -> None:
        """Into the table itself, which is twice as fast; raises UniqueViolation when a key is there already."""
        columns = sql.SQL(", ").join(sql.Identifier(name) for name, _ in _COLUMNS)
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(self._table, columns)
        ledger_id = self._ledger_id
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types([_WIRE_TYPES.get(kind.split(" ", maxsplit=1)[0], kind.split()[0]) for _, kind in _COLUMNS])
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

    def _copy(self, connection: Connection, rows: Sequence[DeliveredRow]) -> None:
        columns = sql.SQL(", ").join(sql.Identifier(name) for name, _, _ in _STAGED)
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(_STAGING, columns)
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types([kind for _, kind, _ in _STAGED])
            write_row = copy.write_row
            for row in rows:
                write_row(
                    (
                        row.seq,
                        row.source,
                        row.event,
                        row.distinct_id,
                        row.user_id,
                        row.external_id,
                        row.email,
                        row.time_ms,
                        row.received_at_ms,
                        row.event_properties,
                        row.user_properties,
                        row.default_properties,
                        row.identity_context,
                        row.extra,
                    )
                )

    def _insert(self) -> sql.Composed:
        return sql.SQL("INSERT INTO {} (ledger_id, {}) SELECT %s, {} FROM {} ON CONFLICT DO NOTHING").format(
            self._table,
            sql.SQL(", ").join(sql.Identifier(name) for name, _, _ in _STAGED),
            sql.SQL(", ").join(sql.SQL(expression) for _, _, expression in _STAGED),
            _STAGING,
        )

    def _renumber(self) -> sql.Composed:
        """Give rows that are there already, and were sent again, their new seq: the same key, received at once."""
        return sql.SQL(
            "UPDATE {} AS kept SET seq = staged.seq FROM {} AS staged WHERE kept.ledger_id = %s "
            "AND (kept.source, kept.distinct_id) = (staged.source, staged.distinct_id) AND kept.seq < staged.seq "
            "AND kept.received_at = timestamptz 'epoch' + staged.received_at * interval '1 millisecond'"
        ).format(self._table, _STAGING)

    def _taken_keys(self, connection: Connection) -> list[int]:
        """The seqs of staged rows that are not in the table: another row has their key."""
        query = sql.SQL(
            "SELECT staged.seq FROM {} AS staged LEFT JOIN {} AS kept USING (source, distinct_id) "
            "WHERE (kept.ledger_id, kept.seq) IS DISTINCT FROM (%s, staged.seq) ORDER BY staged.seq"
        ).format(_STAGING, self._table)
        return [seq for (seq,) in connection.execute(query, (self._ledger_id,))]

    # The cursor

    def _receipt(self, connection: Connection, *, lock: bool = False) -> Receipt | None:
        query = sql.SQL(
            "SELECT first_group, last_group, row_count, commit, dead FROM {} "
            "WHERE ledger_id = %s AND destination = %s{}"
        ).format(self._cursors, sql.SQL(" FOR UPDATE" if lock else ""))
        found = connection.execute(query, (self._ledger_id, self.name)).fetchone()
        if found is None:
            return None
        first_group, last_group, row_count, commit, dead = found
        return Receipt(first_group, last_group, row_count, commit, tuple(RefusedRow(*row) for row in dead))

    def _move_cursor(self, connection: Connection, delivery: Delivery, refused: list[RefusedRow]) -> Receipt:
        dead = tuple(sorted(refused, key=lambda row: row.seq))
        row_count = len(delivery.rows) - len(dead)
        statement = sql.SQL(
            "INSERT INTO {} AS kept VALUES (%s, %s, %s, %s, %s, pg_current_xact_id()::text, %s) "
            "ON CONFLICT (ledger_id, destination) DO UPDATE SET first_group = excluded.first_group, "
            "last_group = excluded.last_group, row_count = excluded.row_count, commit = excluded.commit, "
            "dead = excluded.dead RETURNING commit"
        ).format(self._cursors)
        kept = Json([[row.seq, row.reason] for row in dead])
        values = (self._ledger_id, self.name, delivery.first_group, delivery.last_group, row_count, kept)
        returned = connection.execute(statement, values).fetchone()
        assert returned is not None
        return Receipt(delivery.first_group, delivery.last_group, row_count, str(returned[0]), dead)


class _Told:
    """Turns what PostgreSQL says into DestinationDown or DestinationRefused, in our own words (promise P6)."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, psycopg.Error):
            return
        state = error.sqlstate or _refused_connection(error)
        if state in _SOMEBODY_MUST_ACT:
            raise DestinationRefused(f"sqlstate_{state}: {_SOMEBODY_MUST_ACT[state]}") from None
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or state[:2] in _DOWN_CLASSES:
            raise DestinationDown(_reason(error)) from None
        raise DestinationRefused(f"{_reason(error)}: PostgreSQL refuses the statement; see its log") from None


def _refused_connection(error: psycopg.Error) -> str:
    """The SQLSTATE of a connection that the server refused, by its words; empty where it is something else."""
    told = str(error)
    if "FATAL" not in told:
        return ""
    return next((state for words, state in _REFUSED_CONNECTIONS if words in told), "")


def _reason(error: psycopg.Error) -> str:
    """Our words for an error: its SQLSTATE, and the column where it names one."""
    if error.sqlstate is None:
        return "postgres_unreachable: no connection: see host and port in the dsn of this destination, and the server"
    column = error.diag.column_name
    return f"sqlstate_{error.sqlstate}" + (f":{column}" if column else "")


def _with_nul(rows: Sequence[DeliveredRow]) -> list[RefusedRow]:
    """The rows that PostgreSQL's `text` can't hold."""
    refused = []
    for row in rows:
        texts = (row.source, row.event, row.distinct_id, row.user_id, row.external_id, row.email)
        for column, text in zip(_TEXT_COLUMNS, texts, strict=True):
            if text is not None and "\0" in text:
                refused.append(RefusedRow(row.seq, f"nul:{column}"))
                break
    return refused


def _staging_table() -> sql.Composed:
    columns = sql.SQL(", ").join(sql.SQL("{} " + kind).format(sql.Identifier(name)) for name, kind, _ in _STAGED)
    return sql.SQL("CREATE TEMPORARY TABLE {} ({})").format(_STAGING, columns)
