"""The tables in PostgreSQL: made at the first start, and looked at before each life.

    <table>                       one row a row; unique on (source, distinct_id)
        ledger_id                 uuid         the ledger that delivered it
        seq                       bigint       its number in that ledger's one sequence
        source, event, distinct_id             text
        user_id, external_id, email            text, null where the row had none
        time, received_at         timestamptz
        default_properties        json         with received_at and version
        event_properties, user_properties, identity_context, extra     json, null where the row had none
    <table>_cursors               one row a (ledger_id, destination): the last delivery that is there whole

JSON columns are `json`, which keeps the text as it is; `jsonb` refuses NUL (design, section 4).
"""

from __future__ import annotations

from typing import LiteralString

from psycopg import sql

from counterfoil.destinations.postgres_connection import Connection
from counterfoil.destinations.settings import PostgresSettings

Columns = tuple[tuple[LiteralString, LiteralString, LiteralString], ...]
"""Name, type, constraint."""

COLUMNS: Columns = (
    ("ledger_id", "uuid", "NOT NULL"),
    ("seq", "bigint", "NOT NULL"),
    ("source", "text", "NOT NULL"),
    ("event", "text", "NOT NULL"),
    ("distinct_id", "text", "NOT NULL"),
    ("user_id", "text", ""),
    ("external_id", "text", ""),
    ("email", "text", ""),
    ("time", "timestamptz", "NOT NULL"),
    ("received_at", "timestamptz", "NOT NULL"),
    ("event_properties", "json", ""),
    ("user_properties", "json", ""),
    ("default_properties", "json", "NOT NULL"),
    ("identity_context", "json", ""),
    ("extra", "json", ""),
)
"""Of the table; a delivery is copied in this order."""

CURSOR_COLUMNS: Columns = (
    ("ledger_id", "uuid", "NOT NULL"),
    ("destination", "text", "NOT NULL"),
    ("first_group", "bigint", "NOT NULL"),
    ("last_group", "bigint", "NOT NULL"),
    ("row_count", "bigint", "NOT NULL"),
    ("commit", "text", "NOT NULL"),
    ("dead", "json", "NOT NULL"),
)
"""Of the table of cursors."""

COLUMN_NAMES = tuple(name for name, _, _ in COLUMNS)


def column_names(columns: Columns = COLUMNS) -> sql.Composed:
    """The names of our columns, in their order, as they stand in a statement."""
    return sql.SQL(", ").join(sql.Identifier(name) for name, _, _ in columns)


def column_definitions(columns: Columns = COLUMNS) -> sql.Composed:
    """Our columns as CREATE TABLE wants them."""
    defined = (
        sql.SQL("{} " + kind + " " + constraint).format(sql.Identifier(name)) for name, kind, constraint in columns
    )
    return sql.SQL(", ").join(defined)


class PostgresTable:
    """The table of the settings and that of its cursors, by their names in statements."""

    def __init__(self, settings: PostgresSettings) -> None:
        self.rows = sql.Identifier(settings.schema_name, settings.table)
        self.cursors = sql.Identifier(settings.schema_name, f"{settings.table}_cursors")
        self._seq_index = sql.Identifier(f"{settings.table}_seq")
        self._name = settings.table
        self._schema_name = settings.schema_name

    def make(self, connection: Connection) -> None:
        """Make what is not there; inside a transaction."""
        if self.is_there(connection):
            return
        # Two servers that start at once would both make them: the second waits here, then finds them.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('counterfoil'))")
        connection.execute(
            sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, UNIQUE (source, distinct_id))").format(
                self.rows, column_definitions()
            )
        )
        # Rows come in the order of seq, so this index costs next to nothing and finds a range of them.
        connection.execute(
            sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING brin (seq)").format(self._seq_index, self.rows)
        )
        connection.execute(
            sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, PRIMARY KEY (ledger_id, destination))").format(
                self.cursors, column_definitions(CURSOR_COLUMNS)
            )
        )

    def is_there(self, connection: Connection) -> bool:
        """Whether both tables are there."""
        query = "SELECT to_regclass(%s), to_regclass(%s)"
        names = (self.rows.as_string(connection), self.cursors.as_string(connection))
        found = connection.execute(query, names).fetchone()
        return found is not None and None not in found

    def problems(self, connection: Connection) -> list[str]:
        """What would keep rows out of it, one line each that says what to do; changes nothing."""
        if not self.is_there(connection):
            return self._may_create(connection)
        return [
            *_altered(connection, self._name, self.rows, COLUMNS),
            *_altered(connection, f"{self._name}_cursors", self.cursors, CURSOR_COLUMNS),
            *self._missing_rights(connection),
        ]

    def _may_create(self, connection: Connection) -> list[str]:
        query = "SELECT has_schema_privilege(%s, 'CREATE')"
        found = connection.execute(query, (self._schema_name,)).fetchone()
        if found == (True,):
            return []
        return [f"the user may not make tables in the schema {self._schema_name}: grant it CREATE there"]

    def _missing_rights(self, connection: Connection) -> list[str]:
        query = "SELECT has_table_privilege(%s, %s)"
        wanted = [(self.rows, right) for right in ("SELECT", "INSERT")]
        wanted += [(self.cursors, right) for right in ("SELECT", "INSERT", "UPDATE")]
        return [
            f"the user has no right to {right} on {table.as_string(connection)}: grant it"
            for table, right in wanted
            if connection.execute(query, (table.as_string(connection), right)).fetchone() != (True,)
        ]


def _altered(connection: Connection, name: str, table: sql.Identifier, columns: Columns) -> list[str]:
    """What was altered by hand in a table and keeps rows out, by the column's name; columns that were added may be."""
    query = (
        "SELECT attname, format_type(atttypid, NULL), attnotnull, attnotnull AND NOT atthasdef AND attidentity = '' "
        "FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
    )
    found = {
        str(column): (str(kind), bool(is_not_null), bool(is_asked_for))
        for column, kind, is_not_null, is_asked_for in connection.execute(query, (table.as_string(connection),))
    }
    ours = {column for column, _, _ in columns}
    problems = [
        f"table {name}: the column {column} is not ours and may not be null: give it a default"
        for column, (_, _, is_asked_for) in found.items()
        if is_asked_for and column not in ours
    ]
    for column, kind, constraint in columns:
        wanted = kind.replace("timestamptz", "timestamp with time zone")
        if column not in found:
            whole = f"{kind} {constraint}".strip()
            problems.append(f"table {name}: the column {column} is gone; add it again as {whole}")
        elif found[column][0] != wanted:
            problems.append(f"table {name}: the column {column} is {found[column][0]}, expected {wanted}")
        elif found[column][1] and not constraint:
            problems.append(f"table {name}: the column {column} may not be null; drop its NOT NULL")
    return problems
