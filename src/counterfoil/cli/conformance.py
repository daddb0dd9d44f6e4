"""`counterfoil conformance URL`: tests any server of this API, row by row."""

from __future__ import annotations

import secrets
import ssl
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from counterfoil.conformance.cases import Section, shipped_sections
from counterfoil.conformance.report import as_junit, is_met, print_json, print_table
from counterfoil.conformance.suite import Known, Outcome, Run, ServerUnusable, learn, run_sections
from counterfoil.conformance.wire import Server, UrlInvalid, server_at

_HOLDS = "File that holds the {} token of a source, made for tests: some hundred rows will be sent to it."


def conformance(
    url: Annotated[str, typer.Argument(help="Base URL of the server, with or without /api/v1.")],
    token_file: Annotated[Path, typer.Option(help=_HOLDS.format("live"))],
    test_token_file: Annotated[Path | None, typer.Option(help=_HOLDS.format("test"))] = None,
    section: Annotated[
        list[str] | None, typer.Option(help="Only this section of the contract; may be repeated.")
    ] = None,
    slow: Annotated[bool, typer.Option(help="Also the cases that take long: slow bodies, ten gigabytes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit's XML into this file.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer.")] = 30,
    ca_file: Annotated[Path | None, typer.Option(help="Certificates to trust instead of the usual ones (PEM).")] = None,
) -> None:
    """Tests any server of this API, case by case, over HTTP.

    Exit status: 0 every case that was tried passed, 1 one fell short, 2 nothing could be tried.
    """
    console = Console(stderr=True)
    run = Run(
        _server(console, url, timeout, ca_file),
        _token(console, token_file),
        _token(console, test_token_file) if test_token_file else None,
        run_id=secrets.token_hex(4),
        is_slow=slow,
    )
    sections = _sections(console, section or [])
    known, outcomes = _run(console, sections, run)
    if junit is not None:
        junit.write_bytes(as_junit(sections, outcomes))
    if json:
        print_json(Console(), run.server.url, known, outcomes)
    else:
        print_table(Console(width=None if sys.stdout.isatty() else 140), run.server.url, sections, outcomes)
    raise typer.Exit(0 if is_met(outcomes) else 1)


def _server(console: Console, url: str, timeout_seconds: float, ca_file: Path | None) -> Server:
    try:
        return server_at(url, timeout_seconds=timeout_seconds, ca_file=str(ca_file) if ca_file else None)
    except UrlInvalid as error:
        _refuse(console, f"{url}: {error}")
    except (OSError, ssl.SSLError) as error:
        _refuse(console, f"{ca_file}: {type(error).__name__}: expected certificates in PEM")


def _token(console: Console, file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        _refuse(console, f"{file}: can't be read ({type(error).__name__})")
    return token or _refuse(console, f"{file}: expected a token, found nothing")


def _sections(console: Console, wanted: list[str]) -> list[Section]:
    sections = shipped_sections()
    names = [section.section for section in sections]
    for name in wanted:
        if name not in names:
            _refuse(console, f"--section {name}: expected one of {', '.join(names)}")
    return [section for section in sections if not wanted or section.section in wanted]


def _run(console: Console, sections: list[Section], run: Run) -> tuple[Known, list[Outcome]]:
    case_count = sum(len(section.case) for section in sections)
    outcomes: list[Outcome] = []
    with console.status("Asking for the limits") as status:
        try:
            known = learn(run)
        except ServerUnusable as error:
            _refuse(console, str(error))
        for outcome in run_sections(sections, run, known):
            outcomes.append(outcome)
            status.update(f"{len(outcomes)} of {case_count} cases")
    return known, outcomes


def _refuse(console: Console, why: str) -> NoReturn:
    console.print(escape(why), soft_wrap=True, highlight=False)
    raise typer.Exit(2)
