"""Calling the command line as an operator would: a process of its own, in a directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def call(directory: Path, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a command printed; fails when it ended with another status."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("COUNTERFOIL_")}
    done = subprocess.run(
        [sys.executable, "-m", "counterfoil", *arguments],
        cwd=directory,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, f"{arguments}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def facts(directory: Path, *arguments: str, status: int = 0, **environment: str) -> Any:
    """The JSON document that a command printed with --json."""
    return json.loads(call(directory, *arguments, "--json", status=status, **environment).stdout)


def complaint(directory: Path, *arguments: str, status: int, **environment: str) -> str:
    """The one line with which a command refused; it printed nothing else."""
    done = call(directory, *arguments, status=status, **environment)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("counterfoil: ")
    return line.removeprefix("counterfoil: ")
