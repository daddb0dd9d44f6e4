"""`counterfoil audit`: the books, recounted from disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from counterfoil.cli.options import ConfigOption, JsonOption
from counterfoil.cli.printing import print_json, print_line, print_table

if TYPE_CHECKING:
    from counterfoil.pipeline.audit import Audit, AuditedDestination, Difference

DIFFERENCES_SHOWN = 20


def audit(
    config: ConfigOption = None,
    ask_destinations: Annotated[
        bool,
        typer.Option(
            "--ask-destinations/--no-destinations", help="Compare with what the destinations hold, row by row."
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Recount the books from disk, and say whether they balance.

    They are compared with the ledger's counters and with what destinations hold. For each source: accepted = new +
    duplicate + conflict + blocked + test. For each destination: routed = delivered + dead + skipped + erased + pending.
    Rows that retention removed are counted by the balances that were carried forward. Works while the server runs and
    while it doesn't. Exit status 0 when the books balance, 1 when not.
    """
    from counterfoil.cli.reading import destinations, erased_now, last_gone, opened
    from counterfoil.config import load_settings
    from counterfoil.pipeline.audit import audit as audited

    settings = load_settings(config)
    with opened(settings) as (ledger, queue):
        held = {one.name: one.held for one in destinations(settings)} if ask_destinations else {}
        found = audited(ledger, queue, held, lambda: last_gone(settings), lambda seqs: erased_now(settings, seqs))
    if as_json:
        print_json(audit_facts(found))
    else:
        _print_audit(found)
    raise typer.Exit(0 if found.is_balanced else 1)


def audit_facts(found: Audit) -> dict[str, Any]:
    """The audit as it stands in the JSON document."""
    return {
        "is_balanced": found.is_balanced,
        "sources": [
            {
                "source": line.recounted.source,
                **{name: getattr(line.recounted, name) for name in _SOURCE_COUNTS},
                "is_balanced": line.is_balanced,
            }
            for line in found.sources
        ],
        "destinations": [
            {
                **{name: getattr(line, name) for name in _DESTINATION_COUNTS},
                "held": _held(line),
                "missing": line.missing,
                "surplus": line.surplus,
                "failure": line.failure,
                "is_balanced": line.is_balanced,
            }
            for line in found.destinations
        ],
        "oldest_group": found.oldest_group,
        "last_group": found.last_group,
        "damaged_frames": found.damaged_frames,
        "difference_count": found.difference_count,
        "differences": [_difference(each) for each in found.differences],
    }


_SOURCE_COUNTS = ("accepted", "new", "duplicate", "conflict", "blocked", "test", "erased")
_DESTINATION_COUNTS = ("destination", "routed", "delivered", "dead", "skipped", "erased", "pending")


def _held(line: AuditedDestination) -> int | None:
    return None if line.held is None else sum(count.held for count in line.held)


def _difference(each: Difference) -> dict[str, Any]:
    return {
        "kind": str(each.kind),
        "group": each.group,
        "position": None if each.position is None else str(each.position),
        "destination": each.destination,
    }


def _print_audit(found: Audit) -> None:
    print_table(
        ("source", *_SOURCE_COUNTS, "balanced"),
        [
            (line.recounted.source, *(getattr(line.recounted, name) for name in _SOURCE_COUNTS), line.is_balanced)
            for line in found.sources
        ],
    )
    print_line()
    print_table(
        (*_DESTINATION_COUNTS, "held there", "missing", "surplus", "balanced"),
        [
            (
                *(getattr(line, name) for name in _DESTINATION_COUNTS),
                _held(line),
                line.missing,
                line.surplus,
                line.is_balanced,
            )
            for line in found.destinations
        ],
    )
    print_line()
    for line in found.destinations:
        if line.failure is not None:
            print_line(f"{line.destination} could not be asked: {line.failure}")
    if found.oldest_group > 1:
        print_line(
            f"Groups before {found.oldest_group:,} are gone by retention: their counts were carried forward, and what "
            "destinations hold of them is not compared."
        )
    if found.damaged_frames:
        print_line(f"Damages of the queue, beside the equations: {found.damaged_frames:,}")
    for each in found.differences[:DIFFERENCES_SHOWN]:
        facts = _difference(each)
        print_line(", ".join([facts.pop("kind"), *(f"{name} {value}" for name, value in facts.items() if value)]))
    if found.difference_count > DIFFERENCES_SHOWN:
        print_line(f"and {found.difference_count - DIFFERENCES_SHOWN:,} more; --json has the first thousand")
    print_line(_outcome(found))


def _outcome(found: Audit) -> str:
    if found.is_balanced:
        return "The books balance."
    if not found.is_even:
        return "The books do not balance."
    return "The books balance so far; not every destination could be asked what it holds."
