"""How a subject's rows go from a PostgreSQL table: deleted in one transaction, then vacuumed.

A deleted row lies in the table's file until PostgreSQL clears up, which VACUUM has it do now: the row can't be read any
more, and its room is free for others. Its bytes are gone once another row lies there, or the table is written anew
(`VACUUM FULL`, which keeps everybody out meanwhile). That, and what the server keeps beside the table (write-ahead log,
replicas, backups), is its administrator's.
"""

from __future__ import annotations

from uuid import UUID

import psycopg
from psycopg import sql

from counterfoil.contract.subject import Subject
from counterfoil.destinations.postgres_connection import Connection, reason_of
from counterfoil.errors import DestinationRefused
from counterfoil.failpoints import reach


def subject_seqs(connection: Connection, table: sql.Identifier, ledger_id: UUID, subject: Subject) -> list[int]:
    """The seqs of a subject's rows of this ledger, in order. Raises psycopg's errors."""
    if _is_nowhere(subject):
        return []
    query = sql.SQL("SELECT seq FROM {} WHERE {} ORDER BY seq").format(table, _condition(subject))
    return [seq for (seq,) in connection.execute(query, _values(ledger_id, subject))]


def erase_rows(connection: Connection, table: sql.Identifier, ledger_id: UUID, subject: Subject) -> int:
    """Delete a subject's rows of this ledger; how many.

    Raises DestinationRefused where the user may not delete, and psycopg's errors.
    """
    if _is_nowhere(subject):
        return 0
    query = sql.SQL("DELETE FROM {} WHERE {}").format(table, _condition(subject))
    try:
        with connection.transaction():
            row_count = connection.execute(query, _values(ledger_id, subject)).rowcount
            reach("postgres.before_erasure")
    except psycopg.errors.InsufficientPrivilege:
        raise DestinationRefused(
            f"sqlstate_42501: the user may not erase: grant it DELETE on {table.as_string(connection)}"
        ) from None
    reach("postgres.after_erasure")
    return row_count


def clear_up(connection: Connection, table: sql.Identifier) -> str | None:
    """Have PostgreSQL clear up where deleted rows lay; why it did not, None when it did.

    Raises psycopg's errors where the connection is lost.
    """
    warnings: list[str | None] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.sqlstate)

    connection.add_notice_handler(note)
    try:
        # Truncating the file at its end would need a lock that keeps readers out.
        connection.execute(sql.SQL("VACUUM (INDEX_CLEANUP ON, TRUNCATE OFF) {}").format(table))
    except psycopg.Error as error:
        # A server that stops the statement (a timeout, a lock) has the rows deleted all the same.
        if connection.broken:
            raise
        return reason_of(error)
    finally:
        connection.remove_notice_handler(note)
    # To who may not, the server says so in a warning, and does nothing.
    return f"sqlstate_{warnings[0]}" if warnings else None


def _is_nowhere(subject: Subject) -> bool:
    """Whether PostgreSQL can't hold a row of such an id: its text holds no NUL."""
    return any("\0" in value for _, value in subject.given)


def _condition(subject: Subject) -> sql.Composed:
    columns = ("ledger_id", *(column for column, _ in subject.given))
    return sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(column)) for column in columns)


def _values(ledger_id: UUID, subject: Subject) -> tuple[UUID | str, ...]:
    return (ledger_id, *(value for _, value in subject.given))
