"""A webhook's receiver in a process of its own, to be killed and started again at will.

It appends each request's body to a file, one a line, before it answers; now and then it takes a request and answers
nothing, or answers 503 or 429 and takes nothing, as receivers do.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.e2e.server import free_port, until

SECRET = "whsec_Y291bnRlcmZvaWwtY3Jhc2gtY2FtcGFpZ24="
TROUBLE = 0.1


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
        command = [sys.executable, "-m", "tests.e2e.posting_receiver", str(self._port), str(self._path)]
        self._process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        until(self._answers, "the receiver listens")

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


def main(port: int, path: Path) -> None:
    """Receive until it is killed."""
    chance = random.Random()
    # A life before this one may have been killed in the middle of a line.
    held = path.read_bytes() if path.exists() else b""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.truncate(path, held.rfind(b"\n") + 1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(200)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            trouble = chance.choice(("cut", "503", "429")) if chance.random() < TROUBLE else ""
            if trouble in ("503", "429"):
                self._reply(int(trouble))
                return
            line = body + b"\n"
            assert os.write(file, line) == len(line)
            if trouble == "cut":
                self.close_connection = True
                return
            self._reply(204)

        def _reply(self, status: int) -> None:
            self.send_response(status)
            if status == 429:
                self.send_header("retry-after", "1")
            if status != 204:
                self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
