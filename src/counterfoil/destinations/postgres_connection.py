"""A connection to PostgreSQL, and what the server says turned into our own errors and words (promise P6).

The other side's text quotes values, so none of it is ever passed on: a reason is `sqlstate_` and five letters, with the
column where there is one.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from counterfoil.destinations.settings import PostgresSettings
from counterfoil.errors import DestinationDown, DestinationRefused

Connection = psycopg.Connection[tuple[Any, ...]]

# A statement that failed for one of these says nothing about the rows: the server was busy, full or on its way down.
_DOWN_CLASSES = ("08", "40", "53", "55", "57", "58", "XX")
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
    "25006": "the server takes no writes, as a standby does not: see the dsn of this destination, and the server",
    "28000": "the server lets this user in nowhere: see its pg_hba.conf and the dsn of this destination",
    "28P01": "the password is wrong: see the dsn of this destination",
    "3D000": "the database of the dsn is not there: make it",
    "3F000": "the schema is not there: make it, or name another in `schema_name`",
    "42501": "the user may not do this: grant it CREATE on the schema, and SELECT, INSERT, UPDATE on the tables",
}


_ALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
"""Of a connection over TCP, in s and ms: a server that is gone without a word is noticed in a minute, not in hours."""


def connect(settings: PostgresSettings) -> Connection:
    """A connection that commits each statement by itself where no transaction is begun.

    Raises DestinationRefused for a dsn that is none, and psycopg's errors: use it inside `Told`.
    """
    try:
        given = conninfo_to_dict(settings.dsn)
        return psycopg.connect(
            make_conninfo(settings.dsn, **{name: value for name, value in _ALIVE.items() if name not in given}),
            autocommit=True,
            connect_timeout=settings.connect_seconds,
            application_name="counterfoil",
            client_encoding="utf8",
        )
    except psycopg.ProgrammingError:
        raise DestinationRefused("the dsn is none: expected one like postgresql://user@host/database") from None


class Told:
    """Turns what PostgreSQL says inside `with` into DestinationDown or DestinationRefused, in our own words."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, psycopg.Error):
            return
        state = error.sqlstate or _refused_connection(error)
        if state in _SOMEBODY_MUST_ACT:
            raise DestinationRefused(f"sqlstate_{state}: {_SOMEBODY_MUST_ACT[state]}") from None
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or state[:2] in _DOWN_CLASSES:
            raise DestinationDown(reason_of(error)) from None
        raise DestinationRefused(f"{reason_of(error)}: PostgreSQL refuses the statement; see its log") from None


def reason_of(error: psycopg.Error) -> str:
    """Our words for an error: its SQLSTATE, and the column where it names one."""
    if error.sqlstate is None:
        return "postgres_unreachable: no connection: see host and port in the dsn of this destination, and the server"
    column = error.diag.column_name
    return f"sqlstate_{error.sqlstate}" + (f":{column}" if column else "")


def _refused_connection(error: psycopg.Error) -> str:
    """The SQLSTATE of a connection that the server refused, by its words; empty where it is something else."""
    told = str(error)
    if "FATAL" not in told:
        return ""
    return next((state for words, state in _REFUSED_CONNECTIONS if words in told), "")
