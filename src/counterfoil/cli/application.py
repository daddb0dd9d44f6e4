"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from counterfoil import __version__
from counterfoil.cli import (
    audit,
    backfill,
    check,
    conformance,
    dead,
    erase,
    init,
    password,
    query,
    rebuild,
    replay,
    selftest,
    serve,
    source,
    trace,
)

HELP = """An event ingest gateway that keeps a counterfoil for every row.

`counterfoil init` writes a configuration with one source, `counterfoil serve` runs the server. Every command that
prints facts has --json. Exit status: 0 done, 1 the answer is no, 2 used or configured wrongly."""


COMMANDS = (
    init.init,
    serve.serve,
    serve.gateway,
    serve.pipeline,
    check.check,
    password.password,
    trace.trace,
    audit.audit,
    replay.replay,
    erase.erase,
    rebuild.rebuild,
    query.query,
    backfill.backfill,
    conformance.conformance,
    selftest.selftest,
)


def make_application() -> typer.Typer:
    """The application with all its commands."""
    application = typer.Typer(
        help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False
    )
    application.callback()(options)
    for command in COMMANDS:
        application.command()(command)
    application.add_typer(dead.make_application(), name="dead")
    application.add_typer(source.make_application(), name="source")
    return application


def _say_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"counterfoil {__version__}")
        raise typer.Exit


def options(
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """What stands before a command; the help is HELP."""
