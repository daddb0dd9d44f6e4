"""The rows that a destination holds, read by its own public format and nothing of the server's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from counterfoil.selftest.judging import FoundRow

_PLAIN = {"event": "event", "user_id": "userId", "external_id": "externalId", "email": "email"}
_JSON = {
    "event_properties": "eventProperties",
    "user_properties": "userProperties",
    "default_properties": "defaultProperties",
    "identity_context": "identityContext",
    "extra": "extra",
}
COLUMNS = ("distinct_id", "time", *_PLAIN, *_JSON)
"""What is read of a table, whichever kind it is."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_decode = msgspec.json.decode


def read_delta(path: Path | str) -> Iterator[FoundRow]:
    """The rows of a Delta table in a directory, batch by batch; none where no table is."""
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(str(path)):
        return
    for batch in DeltaTable(path).to_pyarrow_dataset().to_batches(columns=list(COLUMNS)):
        columns = batch.to_pydict()
        for values in zip(*(columns[name] for name in COLUMNS), strict=True):
            yield _of_columns(values)


def read_postgres(dsn: str, table: str = "events") -> Iterator[FoundRow]:
    """The rows of a PostgreSQL table, fetched piece by piece; none where no table is. `table` may name its schema."""
    import psycopg
    from psycopg import sql

    chosen = sql.SQL(", ").join(
        sql.SQL("{}::text").format(sql.Identifier(name)) if name in _JSON else sql.Identifier(name) for name in COLUMNS
    )
    with psycopg.connect(dsn) as connection, connection.cursor("selftest") as cursor:
        try:
            cursor.execute(sql.SQL("SELECT {} FROM {}").format(chosen, sql.Identifier(*table.split("."))))
        except psycopg.errors.UndefinedTable:
            return
        for values in cursor:
            yield _of_columns(values)


def read_postings(bodies: Iterable[bytes]) -> Iterator[FoundRow]:
    """The rows of the requests that a webhook's receiver has taken, as a receiver reads them that minds each row's id.

    A row whose id came before is passed over: a webhook delivers at least once, and says which rows are the same.
    """
    seen: set[str] = set()
    for body in bodies:
        for row in _decode(body)["rows"]:
            if row["id"] not in seen:
                seen.add(row["id"])
                yield FoundRow(row["distinctId"], row)


def _of_columns(values: Iterable[Any]) -> FoundRow:
    row = dict(zip(COLUMNS, values, strict=True))
    fields: dict[str, Any] = {of_api: row[name] for name, of_api in _PLAIN.items()}
    fields["time"] = (row["time"] - _EPOCH) // timedelta(milliseconds=1)
    for name, of_api in _JSON.items():
        fields[of_api] = None if row[name] is None else _decode(row[name])
    return FoundRow(row["distinct_id"], fields)
