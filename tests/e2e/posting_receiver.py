"""A webhook's receiver in a process of its own (`posting_process`), to be killed and started again at will."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.e2e.server import until
from tests.ports import free_port

SECRET = "whsec_Y291bnRlcmZvaWwtY3Jhc2gtY2FtcGFpZ24="
START_SECONDS = 600.0
"""Long, because the machine may be busy."""


class PostingReceiver:
    """The process, and what it has taken so far."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "postings.ndjson"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}/rows"

    @property
    def toml(self) -> str:
        """The destination, for a configuration."""
        return (
            f'[[destinations]]\nname = "hook"\ntype = "webhook"\nurl = "{self.url}"\nsecret = "{SECRET}"\n'
            "batch_seconds = 0.1\ntimeout_seconds = 5\n"
        )

    def start(self) -> None:
        """Start it and return when it listens."""
        command = [sys.executable, "-m", "tests.e2e.posting_process", str(self._port), str(self._path)]
        self._process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        until(self._answers, "the receiver listens", START_SECONDS)

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def bodies(self) -> Iterator[bytes]:
        """The bodies of the requests that it has taken."""
        with self._path.open("rb") as file:
            yield from file

    def _answers(self) -> bool:
        try:
            return httpx.get(self.url, timeout=1, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False
