"""`counterfoil erase`: a person's rows go from everywhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

import typer

from counterfoil.cli.options import ConfigOption, JsonOption
from counterfoil.cli.printing import iso_utc, print_json, print_line, print_table

if TYPE_CHECKING:
    from counterfoil.config import Settings
    from counterfoil.contract.subject import Subject
    from counterfoil.ledger import Erasure

POLL_SECONDS = 0.5
WAIT_SECONDS = 60.0
STANDARD_INPUT = "-"


def erase(
    distinct_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[DISTINCT_ID]",
            help="Whose rows: those of this distinctId; - reads it from standard input, so that no history has it.",
            show_default=False,
        ),
    ] = None,
    user_id: Annotated[
        str | None,
        typer.Option("--user-id", metavar="U", help="Instead: all rows with this userId.", show_default=False),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="Only rows of this source.", show_default="all")
    ] = None,
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and erase nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait_seconds: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="How long to wait until it is done everywhere.")
    ] = WAIT_SECONDS,
    list_all: Annotated[bool, typer.Option("--list", help="Show what was ordered, and how far that is.")] = False,
    give_up: Annotated[
        str | None,
        typer.Option(
            "--give-up",
            metavar="DESTINATION",
            help="Let no order wait for this destination any more: what it holds stays there.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Erase a person's rows: from the queue, the ledger, its dead letters, and the destinations.

    Delta and PostgreSQL tables lose the rows, their old files and versions included; a webhook's receiver is told. It
    can't be undone. Meant are the rows that came before it was ordered; a row that comes after that is a new one. What
    a destination can't do now it does when it is back; one that never will may be given up. Works while the server runs
    and while it doesn't. Exit status 0 when it is done everywhere, 1 when something waits, is refused, or nothing was
    found.
    """
    from counterfoil.config import load_settings

    settings = load_settings(config)
    if list_all:
        _list(settings, as_json=as_json)
        return
    if give_up is not None:
        _give_up(settings, give_up, yes=yes, as_json=as_json)
        return
    subject = _subject(distinct_id, user_id, source)
    if source is not None and source not in {each.name for each in settings.sources}:
        print_line(f"{source} is no source of the configuration; rows of it are looked for all the same")
    if dry_run:
        _count(settings, subject, as_json=as_json)
        return
    if not yes:
        _ask("Erase all rows of this person? It can't be undone.", as_json=as_json)
    erasure = _carried_out(settings, subject, wait_seconds)
    facts = erasure_facts(erasure) | {"quarantined_files": _quarantined(settings)}
    if as_json:
        print_json(facts)
    else:
        _print(facts)
    is_done = erasure.is_done and all(each["state"] == "done" for each in facts["destinations"])
    raise typer.Exit(0 if is_done and _is_anything(facts) else 1)


def erasure_facts(erasure: Erasure) -> dict[str, Any]:
    """An erasure as it stands in the JSON document; nothing of the person."""
    return {
        "id": str(erasure.id),
        "asked_at": iso_utc(erasure.asked_at_ms),
        "is_done": erasure.is_done,
        "queue": {
            "is_done": erasure.is_blanked,
            "rows": erasure.blanked_rows,
            "segments": erasure.blanked_segments,
            "damaged_frames": erasure.damaged_frames,
        },
        "ledger": {
            "is_done": erasure.is_marked,
            "rows": erasure.row_count,
            "keys": erasure.key_count,
            "dead_letters": erasure.dead_count,
        },
        "destinations": [
            {"destination": name, "state": str(there.state), "rows": there.row_count, "reason": there.reason or None}
            for name, there in sorted(erasure.destinations.items())
        ],
    }


def _subject(distinct_id: str | None, user_id: str | None, source: str | None) -> Subject:
    from counterfoil.contract.subject import Subject

    if (distinct_id is None) == (user_id is None):
        raise typer.BadParameter("say whose rows: a distinctId, or --user-id, and not both")
    try:
        return Subject(distinct_id=_given(distinct_id), user_id=_given(user_id), source=source)
    except ValueError as wrong:
        raise typer.BadParameter(str(wrong)) from None


def _ask(question: str, *, as_json: bool) -> None:
    if not sys.stdin.isatty() or as_json:
        raise typer.BadParameter("nobody can be asked here: say --yes")
    typer.confirm(question, abort=True)


def _given(value: str | None) -> str | None:
    if value is None:
        return None
    return (sys.stdin.readline() if value == STANDARD_INPUT else value).strip()


def _carried_out(settings: Settings, subject: Subject, wait_seconds: float) -> Erasure:
    from counterfoil.cli.ordering import give
    from counterfoil.pipeline.orders import Erase

    order = Erase(uuid4(), subject)
    give(settings, [order])
    deadline = time.monotonic() + wait_seconds
    is_tried = False
    while True:
        if not is_tried:
            is_tried = _erased_here(settings, wait_seconds)
        erasure = _found(settings, order.id)
        if erasure.is_done or is_tried or time.monotonic() >= deadline:
            return erasure
        time.sleep(POLL_SECONDS)


def _erased_here(settings: Settings, wait_seconds: float) -> bool:
    """Carry orders out where no pipeline runs; False where one does."""
    from counterfoil.datadir import DataDir, Part
    from counterfoil.errors import StartRefused
    from counterfoil.ledger import Ledger
    from counterfoil.pipeline.process import erase_here
    from counterfoil.supervisor import pipeline_task
    from counterfoil.telemetry.logs import write_events

    write_events("counterfoil")
    data = DataDir(settings.data_dir)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(data.lock(Part.PIPELINE, wait_seconds=0))
        except StartRefused:
            return False
        task = pipeline_task(settings, data.id, settings.data_dir)
        ledger = Ledger.open(data.ledger, settings.ledger, data.id)
        try:
            erase_here(task, data.id, ledger, wait_seconds)
        except OSError as problem:
            raise StartRefused(f"{settings.data_dir}: {problem.strerror}; what is ordered stays ordered") from None
        finally:
            ledger.close()
    return True


def _found(settings: Settings, erasure_id: UUID) -> Erasure:
    from counterfoil.cli.reading import opened

    with opened(settings) as (ledger, _):
        return next(each for each in ledger.erasures() if each.id == erasure_id)


def _quarantined(settings: Settings) -> int:
    """Files of damaged bytes, in which nobody can look for a person."""
    from counterfoil.datadir import DataDir

    quarantine = DataDir(settings.data_dir).quarantine
    return sum(path.is_file() and path.suffix != ".json" for path in quarantine.rglob("*"))


def _is_anything(facts: dict[str, Any]) -> bool:
    counts = (facts["queue"]["rows"], *(facts["ledger"][name] for name in ("rows", "keys", "dead_letters")))
    return any(counts) or any(each["rows"] for each in facts["destinations"])


def _print(facts: dict[str, Any]) -> None:
    queue, ledger = facts["queue"], facts["ledger"]
    print_table(
        ("where", "what was erased"),
        [
            ("queue", _queue_words(queue)),
            ("ledger", f"{ledger['keys']:,} keys, {ledger['dead_letters']:,} dead letters"),
            *((each["destination"], _destination_words(each)) for each in facts["destinations"]),
        ],
    )
    print_line()
    if queue["damaged_frames"]:
        print_line(
            f"{queue['damaged_frames']:,} damaged places of the queue can't be searched; they are left as they are"
        )
    if facts["quarantined_files"]:
        print_line(f"{facts['quarantined_files']:,} files in quarantine/ can't be searched: remove what nobody needs")
    if not _is_anything(facts):
        print_line("No row of this person was found.")
    if facts["is_done"]:
        print_line(f"Done; order {facts['id']}.")
    else:
        print_line(
            f"Not done everywhere yet: it goes on by itself; see `counterfoil erase --list`, order {facts['id']}."
        )


def _with_unset(facts: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The same, with a reason for destinations that nobody delivers to any more."""
    names = {each.name for each in settings.destinations}
    for there in facts["destinations"]:
        if there["state"] in ("waiting", "refused") and there["destination"] not in names:
            there["reason"] = "it is not in the configuration any more; put it back, or --give-up"
    return facts


def _queue_words(queue: dict[str, Any]) -> str:
    words = f"{queue['rows']:,} rows in {queue['segments']:,} segments"
    return words if queue["is_done"] else f"{words} so far"


def _destination_words(there: dict[str, Any]) -> str:
    match there["state"]:
        case "done":
            return "its receiver was told" if there["rows"] is None else f"{there['rows']:,} rows"
        case "not_set":
            return "nothing: it is not in the configuration, and what it holds stays there"
        case "given_up":
            return "given up: what it holds stays there"
        case state:
            return f"{state}: {there['reason'] or 'it has not come to it yet'}"


def _count(settings: Settings, subject: Subject, *, as_json: bool) -> None:
    from counterfoil.cli.reading import destinations, opened
    from counterfoil.errors import DestinationError
    from counterfoil.pipeline.dead import DeadFilter, find_dead

    rows = segments = 0
    with opened(settings) as (ledger, queue):
        for directory in queue.directories():
            for number in queue.segment_numbers(directory):
                found = queue.count_rows(directory, number, subject)
                rows += found.rows
                segments += found.rows > 0
        letters = Counter(
            each.letter.destination
            for each in find_dead(ledger, queue, DeadFilter())
            if each.row is not None and subject.is_row(each.row.source, each.row.row)
        )
        known = ledger.destinations()
    held: list[dict[str, Any]] = []
    for each in destinations(settings):
        count: int | None = None
        reason: str | None = None
        try:
            seqs = each.seqs_of(subject) if each.name in known else ()
            count = None if seqs is None else len(seqs)
        except DestinationError as error:
            reason = str(error)
        held.append({"destination": each.name, "rows": count, "reason": reason})
    facts: dict[str, Any] = {
        "is_dry_run": True,
        "queue": {"rows": rows, "segments": segments},
        "ledger": {"dead_letters": letters.total()},
        "destinations": held,
    }
    if as_json:
        print_json(facts)
    else:
        print_table(
            ("where", "what would be erased"),
            [
                ("queue", f"{rows:,} rows in {segments:,} segments"),
                ("ledger", f"their keys, {letters.total():,} dead letters"),
                *((each["destination"], each["reason"] or _held_words(each["rows"])) for each in held),
            ],
        )
    raise typer.Exit(0 if rows or letters or any(each["rows"] for each in held) else 1)


def _held_words(row_count: int | None) -> str:
    return "its receiver would be told" if row_count is None else f"{row_count:,} rows"


def _list(settings: Settings, *, as_json: bool) -> None:
    from counterfoil.cli.reading import opened

    with opened(settings) as (ledger, _):
        found = [_with_unset(erasure_facts(each), settings) for each in ledger.erasures()]
    if as_json:
        print_json({"erasures": found})
        return
    print_table(
        ("order", "asked at", "done", "queue", "ledger", "destinations"),
        [
            (
                each["id"],
                each["asked_at"],
                each["is_done"],
                _queue_words(each["queue"]),
                f"{each['ledger']['keys']:,} keys, {each['ledger']['dead_letters']:,} dead letters",
                "; ".join(f"{one['destination']}: {_destination_words(one)}" for one in each["destinations"]),
            )
            for each in found
        ],
    )


def _give_up(settings: Settings, name: str, *, yes: bool, as_json: bool) -> None:
    from counterfoil.cli.ordering import give
    from counterfoil.pipeline.orders import GiveUpErasures

    if not yes:
        _ask(f"Leave in {name} what it holds of everybody who is to be erased there?", as_json=as_json)
    count = give(settings, [GiveUpErasures(name)])
    if as_json:
        print_json({"destination": name, "orders": count})
    elif count:
        print_line(f"{count:,} orders wait for {name} no more; what it holds stays there.")
    else:
        print_line(f"No order waits for {name}.")
    raise typer.Exit(0 if count else 1)
