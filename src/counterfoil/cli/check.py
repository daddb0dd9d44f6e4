"""`counterfoil check`: what would keep the server from its work, found before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from counterfoil.cli.options import ConfigOption, JsonOption
from counterfoil.cli.printing import print_json, print_line

if TYPE_CHECKING:
    from counterfoil.config import Settings

Finding = tuple[str, list[str]]
"""What was looked at, and what is wrong with it; an empty list is well."""


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say what would keep the server from its work.

    Reads the configuration, looks at the data directory and the ports, and tries every destination. Says what is wrong
    and what to do; exit status 1 when something is, 2 when the configuration can't be used. Changes nothing, also while
    the server runs.
    """
    from counterfoil.config import find_file, load_settings

    settings = load_settings(config)
    findings: list[Finding] = [(f"configuration {find_file(config) or 'of the environment'}", []), *_findings(settings)]
    is_well = not any(problems for _, problems in findings)
    if as_json:
        facts: list[dict[str, Any]] = [{"what": what, "problems": problems} for what, problems in findings]
        print_json({"is_well": is_well, "checks": facts})
    else:
        for what, problems in findings:
            print_line(f"{'wrong' if problems else 'ok':<6} {what}")
            for problem in problems:
                print_line(f"       {problem}")
    raise typer.Exit(0 if is_well else 1)


def _findings(settings: Settings) -> Iterator[Finding]:
    from counterfoil.cli.reading import destinations
    from counterfoil.datadir import DataDir

    data = DataDir(settings.data_dir)
    fault = data.fault()
    yield f"data directory {data.path}", [] if fault is None else [fault]
    holder = data.holder() if fault is None else None
    yield _listening(settings, holder)
    for destination in destinations(settings):
        yield f"destination {destination.name}", _tried(destination.check)


def _listening(settings: Settings, holder: str | None) -> Finding:
    from counterfoil.datadir import Part
    from counterfoil.errors import CounterfoilError
    from counterfoil.supervisor import check_listening

    what = f"ports {settings.gateway.port} and {settings.console.port}"
    if holder is not None:
        return f"{what}: {holder}, works here", []
    try:
        check_listening(Part.SERVE, settings)
    except CounterfoilError as error:
        return what, [str(error)]
    return what, []


def _tried(look: Callable[[], list[str]]) -> list[str]:
    from counterfoil.errors import DestinationError

    try:
        return look()
    except DestinationError as error:
        return [str(error)]
