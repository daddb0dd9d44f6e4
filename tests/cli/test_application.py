"""The command line as a whole: help, exit status, and how soon it is there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from counterfoil import __version__
from counterfoil.cli.application import make_application
from tests.cli.calling import call, complaint


def commands(group: typer._click.Command | None = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    group = group or typer.main.get_command(make_application())
    for name, command in getattr(group, "commands", {}).items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def test_help_is_there_without_loading_what_is_heavy() -> None:
    """`counterfoil --help` loads no table, no ledger, no server and no settings."""
    program = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from counterfoil.cli import main\n"
        "try: main()\n"
        "except SystemExit: print([name for name in sys.argv[1:] + sorted(sys.modules)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = ("pyarrow", "deltalake", "rocksdict", "numpy", "granian", "pydantic", "structlog", "prometheus_client")
    assert [name for name in heavy if f"'{name}'" in done.stdout] == []


WITHOUT_CONFIGURATION = (("backfill",), ("conformance",), ("password",), ("selftest",))


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_command_explains_itself(tmp_path: Path, command: tuple[str, ...]) -> None:
    """--help says what a command does and what each option is for."""
    printed = call(tmp_path, *command, "--help").stdout
    assert printed.startswith(f"Usage: counterfoil {' '.join(command)} ")
    options = printed.partition("Options:\n")[2]
    assert ("--config" in options) is (command not in WITHOUT_CONFIGURATION)


@pytest.mark.parametrize(
    "arguments",
    [("nothing",), ("trace",), ("serve", "--nothing"), ("source", "rotate", "a", "--json=x"), ("query",)],
    ids=" ".join,
)
def test_what_is_used_wrongly_ends_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """An unknown command or option, or a missing argument, ends with 2 and prints to standard error."""
    done = call(tmp_path, *arguments, status=2)
    assert done.stdout == ""
    assert done.stderr


@pytest.mark.parametrize("command", ["serve", "gateway", "pipeline", "check", "audit"])
def test_a_configuration_that_cannot_be_used_ends_with_2(tmp_path: Path, command: str) -> None:
    """Every command refuses a damaged configuration with one line that names file, key and expectation."""
    (tmp_path / "counterfoil.toml").write_text("[gateway]\nport = 0\n")
    expected = "gateway.port = 0 (from counterfoil.toml): expected a whole number from 1 to 65535"
    assert complaint(tmp_path, command, status=2) == expected


@pytest.mark.parametrize("command", ["serve", "gateway", "pipeline", "check", "audit"])
def test_without_a_configuration_it_is_said_how_to_make_one(tmp_path: Path, command: str) -> None:
    """A first call in an empty directory names `init`."""
    assert "`counterfoil init` makes one" in complaint(tmp_path, command, status=2)


def test_the_version_is_printed(tmp_path: Path) -> None:
    """--version prints the version of the package."""
    assert call(tmp_path, "--version").stdout == f"counterfoil {__version__}\n"


def test_it_runs_as_a_module_too() -> None:
    """`python -m counterfoil` is `counterfoil`."""
    done = subprocess.run(
        [sys.executable, "-m", "counterfoil", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"counterfoil {__version__}\n"
