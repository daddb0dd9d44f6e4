"""`counterfoil rebuild`: the ledger made anew, when the old one is damaged or gone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from counterfoil.cli.options import ConfigOption, JsonOption
from counterfoil.cli.printing import print_json, print_line, print_table

if TYPE_CHECKING:
    from pathlib import Path

    from counterfoil.config import Settings
    from counterfoil.datadir import DataDir
    from counterfoil.pipeline.rebuild import Rebuilt

UNKNOWN = (
    "What can't be known any more: the counts and verdicts of rows whose segments are gone, which dead letters there "
    "were and why, and what was dropped. A repeat of a row that only a destination still holds counts as a duplicate, "
    "whatever it says. Rows that a destination refused are sent to it once more."
)


def rebuild(
    config: ConfigOption = None,
    assume_delivered: Annotated[
        bool | None,
        typer.Option(
            "--assume-delivered/--send-again",
            help="Of destinations that can't be asked (webhooks): take all rows of the queue for delivered, so that "
            "those that were not are never sent; or send all of them, so that most arrive twice.",
            show_default=False,
        ),
    ] = None,
    ledger_id: Annotated[
        UUID | None,
        typer.Option(
            "--id", metavar="UUID", help="The id of the data directory, when it is lost and nothing tells it."
        ),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Rebuild a ledger that can be read as a whole, too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the ledger anew from what the queue and the destinations hold.

    For a ledger that is damaged or gone. The server must be stopped, the destinations be up. What each destination
    holds counts as delivered there, what it lacks is sent to it, and repeats are known as before. The old ledger is
    moved to quarantine/, never deleted. Interrupted at any moment, it may be started again. At the end it says what it
    rebuilt and what can't be known.
    """
    from counterfoil.config import load_settings
    from counterfoil.datadir import DataDir, Part
    from counterfoil.errors import SettingsInvalid, StartRefused
    from counterfoil.telemetry.logs import write_events

    settings = load_settings(config)
    write_events("counterfoil")
    unasked = [each.name for each in settings.destinations if each.type == "webhook"]
    if unasked and assume_delivered is None:
        raise SettingsInvalid(
            f"{', '.join(unasked)} can't be asked what it holds: say --assume-delivered or --send-again (see --help)"
        )
    data = DataDir(settings.data_dir)
    if not data.queue.is_dir():
        raise StartRefused(f"{data.path}: there is no data directory to rebuild a ledger in")
    with data.lock(Part.SERVE, wait_seconds=1.0):
        rebuilt, aside = _rebuild(settings, data, ledger_id, assume_delivered=bool(assume_delivered), anyway=anyway)
    if rebuilt is None:
        print_line("The rebuild that was interrupted is finished.")
    elif as_json:
        print_json(rebuilt_facts(rebuilt, aside))
    else:
        _print_rebuilt(rebuilt, aside, unasked, assume_delivered=bool(assume_delivered))


def _rebuild(
    settings: Settings, data: DataDir, told_id: UUID | None, *, assume_delivered: bool, anyway: bool
) -> tuple[Rebuilt | None, Path | None]:
    import os
    import time

    from counterfoil.cli.reading import destinations
    from counterfoil.errors import StartRefused
    from counterfoil.files import RealFiles
    from counterfoil.ledger import LedgerReader
    from counterfoil.pipeline.rebuild import Places, is_half_in_place, put_in_place, rebuild
    from counterfoil.queue.reader import QueueReader
    from counterfoil.supervisor import recover_queue, stored_ledger_id

    def clock_ms() -> int:
        return time.time_ns() // 1_000_000

    os.umask(0o077)
    files = RealFiles()
    places = Places(data.ledger, data.quarantine)
    ledger_id = data.make(lambda: told_id or stored_ledger_id(settings)) or told_id or _table_id(settings)
    if ledger_id is None:
        raise StartRefused(f"{data.path}: its id is lost, and nothing tells it: name it with --id")
    if is_half_in_place(places):
        return None, put_in_place(places, ledger_id, files, clock_ms())
    if not anyway and LedgerReader.is_whole(data.ledger, settings.ledger, ledger_id):
        raise StartRefused(f"{data.ledger}: can be read as a whole, and needs no rebuild (--anyway makes one)")
    try:
        is_written = data.id == ledger_id
    except StartRefused:
        is_written = False
    if not is_written:
        data.put_id(ledger_id)
    recover_queue(data)
    rebuilt = rebuild(
        places,
        ledger_id,
        QueueReader(data.queue, files, data.quarantine),
        destinations(settings),
        settings.ledger,
        settings.pipeline,
        files,
        assume_delivered=assume_delivered,
        clock_ms=clock_ms,
        tell=lambda step: print(step, file=sys.stderr, flush=True),  # noqa: T201
    )
    return rebuilt, put_in_place(places, ledger_id, files, clock_ms())


def _table_id(settings: Settings) -> UUID | None:
    """The id of the ledger that the first Delta table belongs to."""
    from counterfoil.destinations.settings import DeltaSettings

    for each in settings.destinations:
        if isinstance(each, DeltaSettings):
            from counterfoil.destinations.delta_address import table_address
            from counterfoil.destinations.delta_table import ledger_of

            found = ledger_of(table_address(each, settings.data_dir))
            if found is not None:
                return found
    return None


def rebuilt_facts(rebuilt: Rebuilt, aside: Path | None) -> dict[str, Any]:
    """What was rebuilt, as it stands in the JSON document."""
    import msgspec

    facts: dict[str, Any] = msgspec.to_builtins(rebuilt)
    return {**facts, "old_ledger": None if aside is None else str(aside)}


def _print_rebuilt(rebuilt: Rebuilt, aside: Path | None, unasked: list[str], *, assume_delivered: bool) -> None:
    names = ("accepted", "new", "duplicate", "conflict", "blocked", "test")
    print_table(
        ("source", *names), [(each.source, *(getattr(each, name) for name in names)) for each in rebuilt.sources]
    )
    print_line()
    print_table(
        ("destination", "held there", "counted as delivered", "sent to it now"),
        [
            (each.destination, each.held if each.is_asked else None, each.delivered, each.pending)
            for each in rebuilt.destinations
        ],
    )
    print_line()
    print_line(f"Groups {rebuilt.first_group:,} to {rebuilt.last_group:,} of the queue's rows.")
    if rebuilt.keys_without_frames:
        print_line(
            f"Keys that only a destination still holds: {rebuilt.keys_without_frames:,}; repeats of them are known."
        )
    if rebuilt.damaged_frames:
        print_line(f"Damages of the queue, whose rows are in none of these counts: {rebuilt.damaged_frames:,}.")
    for name in unasked:
        what = "are taken for delivered; what was not yet is never sent" if assume_delivered else "are sent, most again"
        print_line(f"{name} can't be asked: all rows of the queue {what}.")
    if aside is not None:
        print_line(f"The old ledger lies in {aside}.")
    print_line(UNKNOWN)
