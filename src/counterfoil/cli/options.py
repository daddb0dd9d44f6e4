"""Options that several commands have."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration; else $COUNTERFOIL_CONFIG, else ./counterfoil.toml.",
        show_default=False,
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

FromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="TIME", help="ISO 8601; without a zone it is UTC.", show_default="without end"),
]

ToOption = Annotated[
    str | None, typer.Option("--to", metavar="TIME", help="The same; before this time.", show_default="without end")
]


def time_ms(text: str | None) -> int | None:
    """A time of the command line in ms since the Unix epoch; a day is its beginning."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("expected a time such as 2026-11-24 or 2026-11-24T02:00:00Z") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
