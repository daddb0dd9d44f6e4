"""The columns of the table `events`, and its Parquet files.

    column              Delta type   holds
    source              string       who sent it
    event               string       the event's name; `$identify` for /identify
    distinct_id         string       the row's identity within its source
    user_id             string       or null, as the next two
    external_id         string
    email               string
    time                timestamp    when it happened: as sent, or the time of receipt
    received_at         timestamp    when the gateway received it
    seq                 long         group x 65,536 + place in the group: the order of settling, each once
    event_properties    string       JSON object or null, as the next four; text, because senders name what is in it
    user_properties     string
    default_properties  string       never null: `received_at` stands in it
    identity_context    string
    extra               string       fields the contract does not know
    received_date       date         the day of `received_at` in UTC: the partition

Times are UTC in microseconds, whole milliseconds. A file's statistics in the log (rows, nulls, and the least and the
greatest `seq`, `source`, `time` and `received_at`) let readers pass over files; of what a person can be told by, none
is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, timedelta
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import Field, Schema
from deltalake.schema import PrimitiveType

from counterfoil.destinations.interface import DeliveredRow
from counterfoil.destinations.rows import iso_utc

TABLE_NAME = "events"
PARTITION = "received_date"

_STRING = pa.string()
_TIME = pa.timestamp("us", tz="UTC")

_FIELDS: list[pa.Field[Any]] = [
    pa.field("source", _STRING, nullable=False),
    pa.field("event", _STRING, nullable=False),
    pa.field("distinct_id", _STRING, nullable=False),
    pa.field("user_id", _STRING),
    pa.field("external_id", _STRING),
    pa.field("email", _STRING),
    pa.field("time", _TIME, nullable=False),
    pa.field("received_at", _TIME, nullable=False),
    pa.field("seq", pa.int64(), nullable=False),
    pa.field("event_properties", _STRING),
    pa.field("user_properties", _STRING),
    pa.field("default_properties", _STRING, nullable=False),
    pa.field("identity_context", _STRING),
    pa.field("extra", _STRING),
]

COLUMNS = pa.schema(_FIELDS)
"""What a Parquet file of the table holds; the partition's column stands in the path alone."""

_DELTA_TYPES = {pa.int64(): "long", _STRING: "string", _TIME: "timestamp"}

TABLE_SCHEMA = Schema(
    [
        *(Field(f.name, PrimitiveType(_DELTA_TYPES[f.type]), nullable=f.nullable) for f in COLUMNS),
        Field(PARTITION, PrimitiveType("date"), nullable=False),
    ]
)

STATISTICS = ("seq", "source", "time", "received_at")
"""The columns whose least and greatest value the log holds for each file."""

ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 64 * 1024 * 1024
"""Of a row group in memory; whoever reads one needs that much."""

_EPOCH_DATE = date(1970, 1, 1)
_MS_A_DAY = 86_400_000


def tables_by_day(rows: Sequence[DeliveredRow]) -> list[tuple[date, pa.Table]]:
    """The rows as columns, apart for each day of receipt, in their order."""
    if len({row.received_at_ms // _MS_A_DAY for row in rows}) == 1:
        return [(_day(rows[0]), _table(rows))]
    days: dict[date, list[DeliveredRow]] = {}
    for row in rows:
        days.setdefault(_day(row), []).append(row)
    return [(day, _table(of_day)) for day, of_day in sorted(days.items())]


def _day(row: DeliveredRow) -> date:
    return _EPOCH_DATE + timedelta(days=row.received_at_ms // _MS_A_DAY)


def _table(rows: Sequence[DeliveredRow]) -> pa.Table:
    # One comprehension a column: several times faster than rows turned into tuples and those into columns.
    columns: list[Any] = [
        [row.source for row in rows],
        [row.event for row in rows],
        [row.distinct_id for row in rows],
        [row.user_id for row in rows],
        [row.external_id for row in rows],
        [row.email for row in rows],
        [row.time_ms * 1000 for row in rows],
        [row.received_at_ms * 1000 for row in rows],
        [row.seq for row in rows],
        [row.event_properties for row in rows],
        [row.user_properties for row in rows],
        [row.default_properties for row in rows],
        [row.identity_context for row in rows],
        [row.extra for row in rows],
    ]
    arrays = []
    for field, values in zip(COLUMNS, columns, strict=True):
        plain = pa.int64() if field.type == _TIME else field.type
        array = pa.array(values, plain)
        arrays.append(array.view(field.type) if plain is not field.type else array)
    return pa.table(arrays, schema=COLUMNS)


class FileStatistics:
    """What the log says of a file, so that a reader can pass over it; grows with each table that is added."""

    def __init__(self) -> None:
        self.row_count = 0
        self.least: dict[str, Any] = {}
        self.greatest: dict[str, Any] = {}
        self._nulls = dict.fromkeys(COLUMNS.names, 0)

    def add(self, table: pa.Table) -> None:
        """Take the rows of a table into account."""
        if not table.num_rows:
            return
        self.row_count += table.num_rows
        for name in COLUMNS.names:
            self._nulls[name] += table.column(name).null_count
        for name in STATISTICS:
            column = table.column(name)
            if column.type == _TIME:
                column = column.cast(pa.int64())
            bounds: Any = pc.min_max(column).as_py()
            self.least[name] = min(bounds["min"], self.least.get(name, bounds["min"]))
            self.greatest[name] = max(bounds["max"], self.greatest.get(name, bounds["max"]))

    def text(self) -> str:
        """The statistics as Delta Lake writes them."""
        return json.dumps(
            {
                "numRecords": self.row_count,
                "minValues": _statistics(self.least),
                "maxValues": _statistics(self.greatest),
                "nullCount": self._nulls,
            }
        )


def _statistics(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: iso_utc(value // 1000) if COLUMNS.field(name).type == _TIME else value for name, value in values.items()
    }


class ParquetFile:
    """A Parquet file that is being written, with its statistics; row groups are bounded in rows and bytes."""

    def __init__(self, sink: IO[bytes]) -> None:
        self.statistics = FileStatistics()
        self._writer = pq.ParquetWriter(
            sink,
            COLUMNS,
            compression="zstd",
            compression_level=1,
            # Other columns hold a value a row; a dictionary of those costs time and saves nothing.
            use_dictionary=["source", "event"],  # type: ignore[arg-type]
            store_schema=False,
        )
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._waiting_bytes = 0

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self.statistics.add(table)
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        self._waiting_bytes += table.nbytes
        if self._waiting_rows >= ROW_GROUP_ROWS or self._waiting_bytes >= ROW_GROUP_BYTES:
            self._write_waiting()

    def close(self) -> None:
        """Write what waits and the footer; the sink stays open."""
        self._write_waiting()
        self._writer.close()

    def _write_waiting(self) -> None:
        if not self._waiting_rows:
            return
        table = pa.concat_tables(self._waiting)
        pieces = max(1, -(-self._waiting_bytes // ROW_GROUP_BYTES))
        rows_a_group = min(ROW_GROUP_ROWS, -(-self._waiting_rows // pieces))
        self._writer.write_table(table, row_group_size=rows_a_group)
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0


def column_faults(schema: Schema, partition_columns: Sequence[str]) -> list[str]:
    """How a table's columns differ from ours, each by name; empty when they are the same."""
    ours = {field.name: field for field in TABLE_SCHEMA.fields}
    theirs = {field.name: field for field in schema.fields}
    faults = [f"column {name} is missing" for name in ours if name not in theirs]
    for name, field in theirs.items():
        if name not in ours:
            faults.append(f"column {name} is not ours")
        elif field.type != ours[name].type:
            faults.append(f"column {name} is {_type_name(field)}, expected {_type_name(ours[name])}")
        elif field.nullable and not ours[name].nullable:
            faults.append(f"column {name} may be null, expected not null")
        elif not field.nullable and ours[name].nullable:
            faults.append(f"column {name} may not be null, expected nullable")
    if list(partition_columns) != [PARTITION]:
        faults.append(f"it is partitioned by {', '.join(partition_columns) or 'nothing'}, expected {PARTITION}")
    return faults


def _type_name(field: Field) -> str:
    return field.type.type if isinstance(field.type, PrimitiveType) else str(field.type.type)
