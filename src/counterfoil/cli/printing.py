"""How facts are printed: tables for people, one JSON document for programs."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any


def print_json(value: Any) -> None:
    """One JSON document; Structs become objects."""
    import msgspec

    sys.stdout.write(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False) + "\n")


def print_line(text: str = "") -> None:
    """A line for people; never wrapped, and nothing in it is markup."""
    sys.stdout.write(text + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """A table for people; numbers stand at the right. As wide as it must be where no person reads along."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        is_number = bool(found) and all(isinstance(row[place], int | float | Decimal | None) for row in found)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in found:
        # Text, because brackets in a name are no markup.
        table.add_row(*(Text(shown(cell)) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)
    console.print(table)


def iso_utc(at_ms: int | None) -> str | None:
    """A time as people and programs read it: `2026-11-24T02:00:00.123Z`."""
    if at_ms is None:
        return None
    at = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown(cell: object) -> str:
    """A cell's text; exact numbers with their thousands apart, nothing for none."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:,}" if isinstance(cell, int | Decimal) else str(cell)
