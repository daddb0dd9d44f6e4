"""`counterfoil trace`: what became of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from counterfoil.cli.options import ConfigOption, JsonOption
from counterfoil.cli.printing import iso_utc, print_json, print_line

if TYPE_CHECKING:
    from counterfoil.ledger import Resending
    from counterfoil.pipeline.trace import TracedDelivery, TracedRow


def trace(
    distinct_id: Annotated[str, typer.Argument(metavar="DISTINCT_ID", help="As it was sent.", show_default=False)],
    config: ConfigOption = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the rows of this source.", show_default="all")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what became of every row of a distinctId.

    When it was received, its verdict, where it went and when, or why not. Works while the server runs and while it
    doesn't. Exit status 1 when no row is known.
    """
    from counterfoil.cli.reading import opened, refuse_unknown
    from counterfoil.config import load_settings
    from counterfoil.contract.text import trim
    from counterfoil.pipeline.trace import trace as traced

    settings = load_settings(config)
    refuse_unknown(settings, source=source)
    with opened(settings) as (ledger, queue):
        # A source that is no longer in the configuration still has its rows.
        known = {one.name for one in settings.sources} | {one.source for one in ledger.books().sources}
        names = sorted(known) if source is None else [source]
        found = traced(ledger, queue, names, trim(distinct_id))
    if as_json:
        print_json(
            {"distinct_id": distinct_id, "rows": [row_facts(row) for row in found.rows], "is_whole": found.is_whole}
        )
    else:
        for row in found.rows:
            _print_row(row, {one.name for one in settings.destinations})
        if not found.rows:
            print_line(f"{distinct_id}: no row of it is known")
        if not found.is_whole:
            print_line("More rows wait to be settled than were searched; ask again in a moment.")
    raise typer.Exit(0 if found.rows else 1)


def row_facts(row: TracedRow) -> dict[str, Any]:
    """A row as it stands in the JSON document."""
    return {
        "source": row.source,
        "verdict": None if row.verdict is None else row.verdict.name.lower(),
        "is_test": row.is_test,
        "received_at": iso_utc(row.received_at_ms),
        "request_id": None if row.request_id is None else str(UUID(bytes=row.request_id)),
        "settled_at": iso_utc(row.settled_at_ms),
        "seq": row.seq,
        "position": None if row.position is None else str(row.position),
        "deliveries": [delivery_facts(delivery) for delivery in row.deliveries],
    }


def delivery_facts(delivery: TracedDelivery) -> dict[str, Any]:
    """A row at a destination as it stands in the JSON document."""
    return {
        "destination": delivery.destination,
        "state": str(delivery.state),
        "at": iso_utc(delivery.at_ms),
        "before": iso_utc(delivery.before_ms),
        "commit": delivery.commit,
        "behind_rows": delivery.behind_rows,
        "reason": delivery.reason,
        "sent_again": [
            {
                "cause": each.cause.name.lower(),
                "group": each.group,
                "seq": each.seq,
                "died_at": iso_utc(each.died_at_ms),
                "reason": each.reason,
            }
            for each in delivery.resendings
        ],
    }


def _print_row(row: TracedRow, set_names: set[str]) -> None:
    facts = row_facts(row)
    print_line(f"{row.source}: {_VERDICTS[facts['verdict']]}")
    if row.verdict is not None and row.position is None:
        print_line(f"  settled    on {facts['settled_at'][:10]}, seq {row.seq}; the row itself is gone by retention")
    elif row.received_at_ms is None:
        print_line("  received   its frame can't be read any more")
    else:
        print_line(f"  received   {facts['received_at']}, request {facts['request_id']}")
    if row.settled_at_ms is not None and row.position is not None:
        print_line(f"  settled    {facts['settled_at']}, seq {row.seq}")
    if row.position is not None:
        print_line(f"  lies at    {row.position}")
    for delivery in row.deliveries:
        is_unset = delivery.state.value == "pending" and delivery.destination not in set_names
        unset = "; it is not in the configuration" if is_unset else ""
        earlier = "".join(f"{_resending_text(each)}; " for each in delivery.resendings)
        print_line(f"  {delivery.destination:<10} {earlier}{_delivery_text(delivery)}{unset}")


_VERDICTS = {
    None: "waits to be settled",
    "new": "new",
    "duplicate": "duplicate: an earlier row has the same distinctId and content",
    "conflict": "conflict: an earlier row has the same distinctId and other content, and stays",
    "blocked": "blocked: its event is not on the source's allowlist",
    "test": "test: it came with the test token, and is not delivered",
}


def _resending_text(each: Resending) -> str:
    was = f"dead {iso_utc(each.died_at_ms)}: {each.reason}, " if each.reason else ""
    return f"{was}{_CAUSES[each.cause.name.lower()]} in group {each.group}"


_CAUSES = {
    "retry": "retried",
    "replay": "replayed, because it was not there any more,",
    "again": "sent again on purpose",
    "replacement": "replaced by its repeat",
}


def _delivery_text(delivery: TracedDelivery) -> str:
    at = iso_utc(delivery.at_ms)
    match delivery.state.value:
        case "delivered" | "delivered_if_meant":
            commit = f", commit {delivery.commit}" if delivery.commit else ""
            when = f" {at}" if at else f" before {iso_utc(delivery.before_ms)}" if delivery.before_ms else ""
            unsure = ", if it was meant for it" if delivery.state.value == "delivered_if_meant" else ""
            return f"delivered{when}{commit}{unsure}"
        case "skipped":
            return "skipped: it went by retention while this destination was not in the configuration"
        case "pending":
            return f"pending, behind {delivery.behind_rows or 0:,} rows"
        case "dead":
            return f"dead {at}: {delivery.reason}"
        case "not_meant":
            return "not meant for it, by the source's allowlist"
    return "settled before this destination was there"
