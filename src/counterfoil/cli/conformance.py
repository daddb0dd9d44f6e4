"""`counterfoil conformance URL`: tests any server of this API, case by case."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from counterfoil.cli import DONE, NO
from counterfoil.cli.options import JsonOption
from counterfoil.cli.printing import print_json

if TYPE_CHECKING:
    from counterfoil.conformance.cases import Section
    from counterfoil.conformance.suite import Known, Outcome, Run
    from counterfoil.conformance.wire import Server

_HOLDS = "Holds the {} token of a source made for tests: some thousand rows will be sent to it."


def conformance(
    url: Annotated[str, typer.Argument(help="Base URL of the server, with or without /api/v1.")],
    token_file: Annotated[Path, typer.Option(metavar="FILE", help=_HOLDS.format("live"))],
    test_token_file: Annotated[Path | None, typer.Option(metavar="FILE", help=_HOLDS.format("test"))] = None,
    section: Annotated[
        list[str] | None, typer.Option(metavar="N", help="Only this section of the contract; may be repeated.")
    ] = None,
    slow: Annotated[
        bool, typer.Option("--slow", help="Also what takes long: bodies that drip, ten gigabytes of gzip.")
    ] = False,
    as_json: JsonOption = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JUnit's XML there.")] = None,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="How long to wait for an answer.")] = 30,
    ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificates to trust instead of the usual ones (PEM).")
    ] = None,
) -> None:
    """Test any server of this API, case by case, over HTTP.

    Exit status: 0 everything that was tried passed, 1 a case fell short, 2 nothing could be tried.
    """
    from counterfoil.conformance import report
    from counterfoil.conformance.suite import Run

    server = _server(url, timeout, ca_file)
    test_token = _token(test_token_file) if test_token_file else None
    run = Run(server, _token(token_file), test_token, run_id=secrets.token_hex(4), is_slow=slow)
    sections = _sections(section or [])
    known, outcomes = _run(sections, run)
    if junit is not None:
        _write(junit, report.as_junit(sections, outcomes))
    if as_json:
        print_json(report.as_json(server.url, known, outcomes))
    else:
        _print_table(server.url, sections, outcomes)
    raise typer.Exit(DONE if report.is_met(outcomes) else NO)


def _server(url: str, timeout_seconds: float, ca_file: Path | None) -> Server:
    from counterfoil.conformance.wire import UrlInvalid, server_at

    try:
        return server_at(url, timeout_seconds=timeout_seconds, ca_file=str(ca_file) if ca_file else None)
    except UrlInvalid as error:
        raise _wrong(f"{url}: {error}") from None
    except OSError as error:  # ssl.SSLError is one.
        raise _wrong(f"{ca_file}: expected certificates in PEM ({type(error).__name__})") from None


def _token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"{file}: can't be read ({type(error).__name__})") from None
    if not token:
        raise _wrong(f"{file}: expected a token, found nothing")
    return token


def _sections(wanted: Sequence[str]) -> list[Section]:
    from counterfoil.conformance.cases import shipped_sections

    sections = shipped_sections()
    names = [section.section for section in sections]
    for name in wanted:
        if name not in names:
            raise _wrong(f"--section {name}: expected one of {', '.join(names)}")
    return [section for section in sections if not wanted or section.section in wanted]


def _run(sections: Sequence[Section], run: Run) -> tuple[Known, list[Outcome]]:
    from rich.console import Console

    from counterfoil.conformance.suite import ServerUnusable, learn, run_sections

    case_count = sum(len(section.case) for section in sections)
    outcomes: list[Outcome] = []
    with Console(stderr=True).status("Asking for the limits") as status:
        try:
            known = learn(run)
        except ServerUnusable as error:
            raise _wrong(str(error)) from None
        for outcome in run_sections(sections, run, known):
            outcomes.append(outcome)
            status.update(f"{len(outcomes)} of {case_count} cases")
    return known, outcomes


def _print_table(url: str, sections: Sequence[Section], outcomes: Sequence[Outcome]) -> None:
    from rich.console import Console

    from counterfoil.conformance.report import print_table

    print_table(Console(width=None if sys.stdout.isatty() else 140), url, sections, outcomes)


def _write(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise _wrong(f"{file}: can't be written: {error.strerror}") from None


def _wrong(why: str) -> Exception:
    """Nothing can be tried this way: one line, status 2."""
    from counterfoil.errors import SettingsInvalid

    return SettingsInvalid(why)
