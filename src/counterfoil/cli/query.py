"""`counterfoil query`: SQL over the default table."""

from __future__ import annotations

import datetime
import decimal
import itertools
import json
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from counterfoil.cli.options import ConfigOption, JsonOption
from counterfoil.cli.printing import print_line, print_table

if TYPE_CHECKING:
    from counterfoil.config import Settings
    from counterfoil.destinations.delta_address import TableAddress

ROWS_SHOWN = 1000


def query(
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="One statement that reads; the table is `events`.", show_default=False)
    ],
    config: ConfigOption = None,
    destination: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which Delta Lake table.", show_default="the first"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run SQL over the default table, read only.

    Works while the server runs and while it doesn't. Columns: source, event, distinct_id, user_id, external_id, email,
    time, received_at, seq, and as JSON text event_properties, user_properties, default_properties, identity_context,
    extra.
    """
    from counterfoil.config import load_settings
    from counterfoil.destinations.query import run_query

    result = run_query(_address(load_settings(config), destination), sql)
    if as_json:
        _print_document(result.columns, result.rows())
        return
    rows = result.rows()
    print_table(result.columns, [[_shown(value) for value in row] for row in itertools.islice(rows, ROWS_SHOWN)])
    if next(rows, None) is not None:
        print_line(f"and more than these {ROWS_SHOWN:,} rows; --json prints all")


def _address(settings: Settings, name: str | None) -> TableAddress:
    """Where the table of a destination lies; raises QueryRefused when there is none."""
    from counterfoil.destinations.delta_address import table_address
    from counterfoil.destinations.settings import DeltaSettings
    from counterfoil.errors import QueryRefused

    tables = {one.name: one for one in settings.destinations if isinstance(one, DeltaSettings)}
    if not tables:
        raise QueryRefused("no destination of the configuration is a Delta Lake table")
    if name is not None and name not in tables:
        raise QueryRefused(f"{name}: no Delta Lake table of the configuration; there are: {', '.join(tables)}")
    return table_address(tables[name or next(iter(tables))], settings.data_dir)


def _print_document(columns: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> None:
    """One JSON document with a row a line; rows are printed as they come, however many they are."""
    sys.stdout.write(f'{{"columns": {json.dumps(columns)}, "rows": [')
    for place, row in enumerate(rows):
        line = json.dumps([_cell(value) for value in row], ensure_ascii=False)
        sys.stdout.write(f"{',' if place else ''}\n{line}")
    sys.stdout.write("]}\n")


def _shown(value: object) -> object:
    """A value as a table shows it: a decimal stays a number, and stands at the right."""
    return value if isinstance(value, decimal.Decimal) else _cell(value)


def _cell(value: object) -> object:
    """A value as JSON has it; times in ISO 8601."""
    if isinstance(value, datetime.datetime):
        value = value.astimezone(datetime.UTC) if value.tzinfo else value
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_cell(each) for each in value]
    if isinstance(value, dict):
        return {key: _cell(each) for key, each in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
