"""Calling the command line as an operator would, in a directory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog

from counterfoil.cli import main


class Done(NamedTuple):
    """What a command printed."""

    stdout: str
    stderr: str


def call(directory: Path, *arguments: str, status: int = 0, environment: Mapping[str, str] | None = None) -> Done:
    """Run a command in a directory, in this process; fails when it ends with another status."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(directory),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _called(arguments, environment or {}),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    structlog.reset_defaults()
    found = ended.value.code or 0
    assert found == status, f"{arguments}: exit status {found}\n{out.getvalue()}\n{err.getvalue()}"
    return Done(out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _called(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[None]:
    """The arguments, and an environment in which nothing else changes the configuration."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["counterfoil", *arguments])
        for name in os.environ:
            if name.upper().startswith("COUNTERFOIL_"):
                patched.delenv(name)
        for name, value in environment.items():
            patched.setenv(name, value)
        yield


def facts(directory: Path, *arguments: str, status: int = 0, environment: Mapping[str, str] | None = None) -> Any:
    """The JSON document that a command printed with --json."""
    return json.loads(call(directory, *arguments, "--json", status=status, environment=environment).stdout)


def complaint(directory: Path, *arguments: str, status: int, environment: Mapping[str, str] | None = None) -> str:
    """The one line with which a command refused; it printed nothing else."""
    done = call(directory, *arguments, status=status, environment=environment)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("counterfoil: ")
    return line.removeprefix("counterfoil: ")
