"""`counterfoil replay`: what a destination lost is sent again."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from counterfoil.cli.options import ConfigOption, FromOption, JsonOption, ToOption, time_ms
from counterfoil.cli.printing import print_json, print_line

if TYPE_CHECKING:
    from counterfoil.config import Settings
    from counterfoil.pipeline.replay import ReplayFilter
    from counterfoil.queue.frame import FrameDraft

_FRAMES_AT_ONCE = 64
"""Frames that share a flush; each has 8 MiB at most as a rule."""


def replay(
    destination: Annotated[str, typer.Argument(metavar="DESTINATION", help="Its name.", show_default=False)],
    config: ConfigOption = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only rows of this source.", show_default="all")
    ] = None,
    from_time: FromOption = None,
    to_time: ToOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many, and send nothing.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Send everything once more on purpose; for webhooks alone.")
    ] = False,
    verdict: Annotated[
        str | None,
        typer.Option(
            metavar="blocked",
            help="Settle rows anew that were blocked when they came and may go there by today's allowlist.",
            show_default="new rows that are missing there",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send again what a destination should hold and does not.

    Compares the rows that are kept with what a Delta or PostgreSQL table really holds, up to its cursor, and sends
    exactly those that are missing. --from and --to are times of receipt. A webhook's receiver can't be asked; with
    --again it is sent all of them twice. Exit status 1 when nothing was missing.

    With --verdict blocked rows are looked for that the allowlist of their source blocked and lets pass today, to this
    destination among others: they are accepted once more, and judged as if they came now.
    """
    from counterfoil.cli.ordering import give
    from counterfoil.cli.reading import destinations, opened, refuse_unknown
    from counterfoil.config import load_settings
    from counterfoil.errors import SettingsInvalid
    from counterfoil.pipeline.replay import Replay, ReplayFilter

    settings = load_settings(config)
    wanted = ReplayFilter(source, time_ms(from_time), time_ms(to_time))
    target = next((one for one in destinations(settings) if one.name == destination), None)
    if target is None:
        raise SettingsInvalid(f"{destination}: no destination of the configuration has this name")
    refuse_unknown(settings, source=source)
    if verdict not in (None, "blocked") or (verdict and again):
        raise typer.BadParameter("--verdict is blocked, or left out; and never beside --again")
    if verdict is not None:
        _unblock(settings, destination, wanted, dry_run=dry_run, as_json=as_json)
    if target.keeps_cursor == again:
        raise typer.BadParameter(
            f"{destination} can be asked what it holds: what is missing is sent without --again"
            if again
            else f"{destination} can't be asked what it holds: --again sends all rows twice on purpose"
        )
    with opened(settings) as (ledger, queue):
        counts = next((one for one in ledger.books().destinations if one.destination == destination), None)
        if counts is None:
            raise SettingsInvalid(f"{destination}: nothing was ever delivered to it")
        comparison = Replay(ledger, queue, counts, None if again else target.held, wanted)
        orders = comparison.orders()
        planned = 0
        if dry_run:
            planned = sum(len(order.rows) for order in orders)
        sent = 0 if dry_run else give(settings, orders)
    facts: dict[str, Any] = {
        "destination": destination,
        "compared": comparison.compared,
        "missing": comparison.missing.total(),
        "missing_by_source": dict(sorted(comparison.missing.items())),
        "sent": sent,
        "unreadable": comparison.unreadable,
        "oldest_group": comparison.oldest_group,
        "is_dry_run": dry_run,
    }
    if as_json:
        print_json(facts)
    else:
        _print(facts, again=again)
    raise typer.Exit(0 if sent or planned else 1)


def _print(facts: dict[str, Any], *, again: bool) -> None:
    print_line(f"{facts['compared']:,} rows that are kept were delivered to {facts['destination']}")
    if not again:
        print_line(f"{facts['missing']:,} of them are not there")
    for source, row_count in facts["missing_by_source"].items():
        print_line(f"  {source}: {row_count:,}")
    if facts["unreadable"]:
        print_line(f"{facts['unreadable']:,} can't be sent: their part of the queue can't be read any more")
    if facts["oldest_group"] > 1:
        print_line(f"Rows before group {facts['oldest_group']} are not kept, or came before the destination did")
    print_line(
        f"{facts['missing']:,} rows would be sent" if facts["is_dry_run"] else f"{facts['sent']:,} rows are sent again"
    )


def _unblock(settings: Settings, destination: str, wanted: ReplayFilter, *, dry_run: bool, as_json: bool) -> NoReturn:
    from counterfoil.cli.reading import opened
    from counterfoil.errors import OrderRefused
    from counterfoil.pipeline.unblock import Unblocking
    from counterfoil.sources import router

    routers = {source.name: router(source) for source in settings.sources}
    with opened(settings) as (ledger, queue):
        if not dry_run and not all(erasure.is_blanked for erasure in ledger.erasures()):
            # A blocked row of the person's, read now, would come in once more after that.
            raise OrderRefused("a person's rows are being erased; try again when `counterfoil erase --list` says done")
        search = Unblocking(
            ledger,
            queue,
            destination,
            lambda source, event: routers[source](event) if source in routers else None,
            wanted,
        )
        sent = sum(draft.row_count for draft in search.drafts()) if dry_run else _write(settings, search.drafts())
    facts: dict[str, Any] = {
        "destination": destination,
        "blocked": search.blocked,
        "allowed": search.allowed.total(),
        "allowed_by_source": {name: rows for name, rows in sorted(search.allowed.items()) if rows},
        "known": search.known,
        "sent": 0 if dry_run else sent,
        "unreadable": search.unreadable,
        "is_dry_run": dry_run,
    }
    if as_json:
        print_json(facts)
    else:
        print_line(f"{facts['blocked']:,} rows that are kept were blocked")
        print_line(f"{facts['known']:,} of them are allowed today and were settled anew, or came again, since")
        for source, row_count in facts["allowed_by_source"].items():
            print_line(f"  {source}: {row_count:,}")
        done = "would be settled anew" if dry_run else "are accepted once more, and settled as if they came now"
        print_line(f"{facts['allowed']:,} rows {done}")
    raise typer.Exit(0 if sent else 1)


def _write(settings: Settings, drafts: Iterable[FrameDraft]) -> int:
    """Append frames to the queue, by a writer of our own; how many rows are durable then. Raises QueueRefused."""
    import asyncio

    from counterfoil.datadir import DataDir
    from counterfoil.files import RealFiles
    from counterfoil.queue.writer import SegmentWriter

    data = DataDir(settings.data_dir)

    async def write() -> int:
        writer = SegmentWriter.open(data.queue, RealFiles(), settings.queue, quarantine=data.quarantine)
        row_count = 0
        try:
            waiting = iter(drafts)
            while some := list(islice(waiting, _FRAMES_AT_ONCE)):
                await asyncio.gather(*writer.append(some))
                row_count += sum(draft.row_count for draft in some)
        finally:
            await writer.close()
        return row_count

    return asyncio.run(write())
