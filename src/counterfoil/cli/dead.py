"""`counterfoil dead`: dead letters are listed, shown, sent again, exported and given up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from counterfoil.cli.options import ConfigOption, FromOption, JsonOption, ToOption, time_ms
from counterfoil.cli.printing import iso_utc, print_json, print_line, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from counterfoil.config import Settings
    from counterfoil.pipeline.dead import DeadFilter, FoundDead

DestinationOption = Annotated[
    str | None, typer.Option("--destination", metavar="NAME", help="Only those of this one.", show_default="all")
]
ReasonOption = Annotated[
    str | None,
    typer.Option("--reason", metavar="TEXT", help="Only those whose reason begins so.", show_default="any"),
]
SourceOption = Annotated[
    str | None, typer.Option("--source", metavar="NAME", help="Only rows of this source.", show_default="all")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say how many, and change nothing.")]

LISTED_MAX = 100


def make_application() -> typer.Typer:
    """The sub-commands of `dead`."""
    application = typer.Typer(
        help="Rows that a destination could not take: why, and once more.", no_args_is_help=True, rich_markup_mode=None
    )
    application.command("list")(list_dead)
    for command in (show, retry, export, drop):
        application.command()(command)
    return application


def list_dead(
    config: ConfigOption = None,
    destination: DestinationOption = None,
    reason: ReasonOption = None,
    source: SourceOption = None,
    from_time: FromOption = None,
    to_time: ToOption = None,
    limit: Annotated[int, typer.Option(min=0, help="How many are listed at most; all are counted.")] = LISTED_MAX,
    as_json: JsonOption = False,
) -> None:
    """List dead letters: how many of each destination and reason, and the first ones.

    --from and --to are times at which rows died. Nothing of a row's content is shown.
    """
    from collections import Counter

    from counterfoil.config import load_settings

    settings = load_settings(config)
    counts: Counter[tuple[str, str, bool]] = Counter()
    letters: list[dict[str, Any]] = []
    for found in _found(settings, _filter(settings, destination, reason, source, from_time, to_time)):
        counts[found.letter.destination, found.letter.reason, found.is_retryable] += 1
        if len(letters) < limit:
            letters.append(letter_facts(found))
    summary = [
        {"destination": name, "reason": why, "is_retryable": may, "rows": rows}
        for (name, why, may), rows in sorted(counts.items())
    ]
    if as_json:
        print_json({"total": counts.total(), "counts": summary, "letters": letters})
        return
    if not summary:
        print_line("No dead letters.")
        return
    print_table(("destination", "reason", "can be retried", "rows"), [tuple(each.values()) for each in summary])
    if letters:
        print_line()
        columns = ("destination", "seq", "source", "died_at", "reason")
        print_table(columns, [tuple(str(letter[name] or "") for name in columns) for letter in letters])
    if counts.total() > len(letters):
        print_line(f"and {counts.total() - len(letters):,} more")


def show(
    destination: Annotated[str, typer.Argument(metavar="DESTINATION", show_default=False)],
    seq: Annotated[int, typer.Argument(metavar="SEQ", help="As `dead list` shows it.", show_default=False)],
    config: ConfigOption = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="Show the row as well: it may tell of a person.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter.

    When and why it died, when it was received, and how often it was sent again. Exit status 1 when there is none.
    """
    from counterfoil.cli.reading import opened
    from counterfoil.config import load_settings
    from counterfoil.pipeline.dead import found_dead, sent_row

    with opened(load_settings(config)) as (ledger, queue):
        letter = ledger.dead_letter(destination, seq)
        if letter is None:
            if as_json:
                print_json(None)
            else:
                print_line(f"{destination}: no dead letter has the seq {seq}")
            raise typer.Exit(1)
        found = found_dead(ledger, queue, letter)
        facts = letter_facts(found)
        facts["sent_again"] = [
            {"cause": each.cause.name.lower(), "group": each.group, "died_at": iso_utc(each.died_at_ms),
             "reason": each.reason}
            for each in ledger.resendings(destination, letter.first_seq)
        ]  # fmt: skip
    row = sent_row(found.row) if reveal and found.row is not None else None
    if as_json:
        import msgspec

        print_json(facts | ({"row": None if row is None else msgspec.json.decode(row)} if reveal else {}))
        return
    for name, value in facts.items():
        if name != "sent_again":
            print_line(f"{name:<13} {'' if value is None else value}")
    for each in facts["sent_again"]:
        was = f", after it had died {each['died_at']}: {each['reason']}" if each["reason"] else ""
        print_line(f"{'sent again':<13} {each['cause']} in group {each['group']}{was}")
    if reveal:
        print_line(f"{'row':<13} {'can not be read any more' if row is None else row.decode()}")


def retry(
    config: ConfigOption = None,
    destination: DestinationOption = None,
    reason: ReasonOption = None,
    source: SourceOption = None,
    from_time: FromOption = None,
    to_time: ToOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Send dead letters again, each once, after what stood in the way was mended.

    Works while the server runs and while it doesn't; then they are delivered when it starts. One that dies again is a
    dead letter again. Exit status 1 when there was none to send.
    """
    from counterfoil.cli.ordering import give
    from counterfoil.config import load_settings
    from counterfoil.pipeline.dead import plan_retry

    settings = load_settings(config)
    wanted = _filter(settings, destination, reason, source, from_time, to_time)
    configured = {one.name for one in settings.destinations}
    if destination is not None and destination not in configured:
        from counterfoil.errors import SettingsInvalid

        raise SettingsInvalid(f"{destination}: no destination of the configuration has this name")
    # Of one that is not configured nobody would take them.
    found = (each for each in _found(settings, wanted) if each.letter.destination in configured)
    orders = plan_retry(found)
    row_count = sum(len(order.rows) for order in orders) if dry_run else give(settings, orders)
    _tell("retried", row_count, dry_run=dry_run, as_json=as_json)


def export(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A new file, for its owner alone; - is standard output.", show_default=False
        ),
    ],
    config: ConfigOption = None,
    destination: DestinationOption = None,
    reason: ReasonOption = None,
    source: SourceOption = None,
    from_time: FromOption = None,
    to_time: ToOption = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="Let the rows go to standard output.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the rows of dead letters to a file, one JSON object a line, as `counterfoil backfill` takes them.

    The rows may tell of persons: the file is its owner's alone, and standard output needs --reveal. Exit status 1 when
    there was none to write.
    """
    import os

    from counterfoil.config import load_settings
    from counterfoil.errors import StartRefused
    from counterfoil.pipeline.dead import sent_row

    settings = load_settings(config)
    rows = (
        sent_row(found.row) + b"\n"
        for found in _found(settings, _filter(settings, destination, reason, source, from_time, to_time))
        if found.row is not None and found.is_retryable
    )
    if file == "-":
        if not reveal or as_json:
            raise typer.BadParameter("the rows may tell of persons: give a file, or --reveal and no --json")
        count = 0
        for row in rows:
            sys.stdout.write(row.decode())
            count += 1
        raise typer.Exit(0 if count else 1)
    try:
        descriptor = os.open(Path(file), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartRefused(f"{file}: {error.strerror}") from None
    count = 0
    with os.fdopen(descriptor, "wb") as out:
        for row in rows:
            out.write(row)
            count += 1
    if as_json:
        print_json({"rows": count, "file": file})
    else:
        print_line(f"{count:,} rows written to {file}")
    raise typer.Exit(0 if count else 1)


def drop(
    config: ConfigOption = None,
    destination: DestinationOption = None,
    reason: ReasonOption = None,
    source: SourceOption = None,
    from_time: FromOption = None,
    to_time: ToOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Give dead letters up for good: their rows are forgotten, and they stay in the books as dead.

    At least one of the options must say which. Exit status 1 when there was none to drop.
    """
    from counterfoil.cli.ordering import give
    from counterfoil.config import load_settings
    from counterfoil.pipeline.dead import plan_drop

    if not any((destination, reason, source, from_time, to_time)):
        raise typer.BadParameter("say which: by --destination, --reason, --source, --from or --to")
    settings = load_settings(config)
    orders = plan_drop(_found(settings, _filter(settings, destination, reason, source, from_time, to_time)))
    row_count = sum(len(order.seqs) for order in orders) if dry_run else give(settings, orders)
    _tell("dropped", row_count, dry_run=dry_run, as_json=as_json)


def letter_facts(found: FoundDead) -> dict[str, Any]:
    """A dead letter as it stands in the JSON document; nothing of the row's content."""
    letter, row = found.letter, found.row
    return {
        "destination": letter.destination,
        "seq": letter.seq,
        "first_seq": letter.first_seq,
        "source": found.source,
        "reason": letter.reason,
        "died_at": iso_utc(letter.at_ms),
        "received_at": None if row is None else iso_utc(row.received_at_ms),
        "request_id": None if row is None else str(UUID(bytes=row.request_id)),
        "position": None if found.position is None else str(found.position),
        "is_retryable": found.is_retryable,
        "is_dropped": letter.is_dropped,
    }


def _filter(
    settings: Settings,
    destination: str | None,
    reason: str | None,
    source: str | None,
    from_time: str | None,
    to_time: str | None,
) -> DeadFilter:
    from counterfoil.cli.reading import refuse_unknown
    from counterfoil.pipeline.dead import DeadFilter

    refuse_unknown(settings, destination=destination, source=source)
    return DeadFilter(destination, reason, source, time_ms(from_time), time_ms(to_time))


def _found(settings: Settings, wanted: DeadFilter) -> Iterator[FoundDead]:
    from counterfoil.cli.reading import opened
    from counterfoil.pipeline.dead import find_dead

    with opened(settings) as (ledger, queue):
        yield from find_dead(ledger, queue, wanted)


def _tell(what: str, row_count: int, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({"rows": row_count, "is_dry_run": dry_run})
    elif dry_run:
        print_line(f"{row_count:,} rows would be {what}")
    else:
        print_line(f"{row_count:,} rows {what}")
    raise typer.Exit(0 if row_count else 1)
