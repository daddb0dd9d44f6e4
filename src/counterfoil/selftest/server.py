"""A server of its own in a directory of its own, started by the command line as an operator would start it.

Everything known of it comes from outside: its ports, its commands, and what /proc says of its processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

PATIENCE_SECONDS = 120.0
_POLL_SECONDS = 0.05
_COMMAND_SECONDS = 1800.0


class ServerFailed(Exception):
    """The server did not do what any server must: start, come up again, deliver, balance its books."""


class Part(StrEnum):
    """The processes of a server, by how their command line names them."""

    WORKER = "counterfoil.gateway.process"
    PIPELINE = "counterfoil.pipeline.process"
    CONSOLE = "counterfoil.console.process"


class ServerUnderTest:
    """A configuration, and `counterfoil serve` on it.

    `queue` and `lake` are further lines of TOML for the queue and for the table, `more` is for further destinations.
    `patience_seconds` is how long whatever it must do by itself may take.
    """

    def __init__(
        self,
        directory: Path,
        *,
        workers: int = 2,
        queue: str = "",
        lake: str = "",
        more: str = "",
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        # Commands run in it, so a path that is relative to here would lead elsewhere.
        self.directory = directory = directory.absolute()
        self._patience_seconds = patience_seconds
        self.token = f"selftest-{secrets.token_urlsafe(24)}"
        self.config = directory / "counterfoil.toml"
        self._port, self._console_port = _free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.config.write_text(
            f"""\
data_dir = "data"

[gateway]
port = {self._port}
workers = {workers}

[console]
port = {self._console_port}

[queue]
reserve_bytes = 67108864
{queue}

[[sources]]
name = "selftest"
token_sha256 = ["{hashlib.sha256(self.token.encode()).hexdigest()}"]

[[destinations]]
name = "lake"
type = "delta"
path = "data/lake"
batch_seconds = 0.1
{lake}

{more}
"""
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/api/v1"

    @property
    def lake(self) -> Path:
        return self.directory / "data" / "lake"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    # Its life

    def start(self, *, wait: bool = True) -> None:
        """Start it, and return when it is ready. Raises ServerFailed when it ends instead, or takes too long."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "counterfoil", "serve", "--config", str(self.config)],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_clean_environment(),
            )
        if wait:
            self.await_ready()

    def await_ready(self) -> None:
        """Return when every part is ready. Raises ServerFailed."""
        self._until(lambda: self._get("/readyz") is not None, "the server is ready")

    def await_delivery(self) -> None:
        """Return when every row that is durable is settled and delivered. Raises ServerFailed."""

        def is_done() -> bool:
            status = self.status()
            return (
                status is not None
                and all(writer["settled"] == writer["written"] for writer in status["writers"])
                and all(destination["pending"] == 0 for destination in status["destinations"])
            )

        self._until(is_done, "everything settled and delivered")

    def stop(self) -> None:
        """Stop it by SIGTERM. Raises ServerFailed when it does not end with status 0."""
        if self._process is None:
            return
        self._process.terminate()
        status = self._process.wait(self._patience_seconds)
        self._process = None
        if status != 0:
            raise ServerFailed(f"SIGTERM ended the server with status {status}; see {self.log}")

    def kill_all(self, let_go: Callable[[], None] = lambda: None) -> None:
        """SIGKILL for every process of it at once; returns when they are gone. Harmless when none runs.

        `let_go` is called when all are killed: on a disk that answers nothing they can't end before.
        """
        self._end(self._all(), let_go)

    def kill_supervisor(self) -> None:
        """SIGKILL for the supervisor alone; returns when the others have noticed and are gone. Raises ServerFailed."""
        self._end(self._all()[:1])

    def _end(self, killed: list[int], let_go: Callable[[], None] = lambda: None) -> None:
        if self._process is None:
            return
        watched = [descriptor for pid in self._all() if (descriptor := _pidfd(pid)) is not None]
        for pid in killed:
            send(pid, signal.SIGKILL)
        let_go()
        self._process.wait(self._patience_seconds)
        self._process = None
        for descriptor in watched:
            has_ended = _ended(descriptor, self._patience_seconds)
            os.close(descriptor)
            if not has_ended:
                raise ServerFailed("a process outlived its supervisor")

    # Its processes

    @property
    def supervisor(self) -> int:
        """The process id of the supervisor, which runs."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def pids(self, part: Part) -> list[int]:
        """The processes of a part that run now."""
        return [pid for pid in self._all()[1:] if part.encode() in _command_line(pid)]

    def _all(self) -> list[int]:
        if self._process is None:
            return []
        return [self._process.pid, *_children_of(self._process.pid)]

    # What it says

    def status(self) -> dict[str, Any] | None:
        """The console's /api/status; None when it does not answer."""
        answer = self._get("/api/status")
        return None if answer is None else answer.json()

    def metrics(self) -> str:
        """The console's /metrics; empty when it does not answer."""
        answer = self._get("/metrics")
        return "" if answer is None else answer.text

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of the command line on this server's configuration, ended."""
        return subprocess.run(
            [sys.executable, "-m", "counterfoil", *arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            env=_clean_environment() | {"COUNTERFOIL_CONFIG": str(self.config)},
            check=False,
        )

    def audit(self) -> None:
        """Recount the books, destinations included. Raises ServerFailed when they don't balance."""
        done = self.run("audit")
        if done.returncode != 0:
            raise ServerFailed(f"the audit ended with status {done.returncode}:\n{done.stdout}{done.stderr}")

    def _get(self, path: str) -> httpx.Response | None:
        try:
            answer = httpx.get(f"http://127.0.0.1:{self._console_port}{path}", timeout=5, trust_env=False)
        except httpx.HTTPError:
            return None
        return answer if answer.status_code == 200 else None

    def _until(self, is_done: Callable[[], bool], what: str) -> None:
        seconds = self._patience_seconds
        deadline = time.monotonic() + seconds
        while not is_done():
            status = None if self._process is None else self._process.poll()
            if status is not None:
                raise ServerFailed(f"the server ended with status {status}; see {self.log}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"not in {seconds:.0f} s: {what}; see {self.log}; its state: {self.status()}")
            time.sleep(_POLL_SECONDS)


def send(pid: int, which: signal.Signals) -> None:
    """Send a signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, which)


def _clean_environment() -> dict[str, str]:
    """The environment without what would change the configuration."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COUNTERFOIL_")}


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, no two alike, outside the range from which the kernel takes those of connections."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = 20_000 + secrets.randbelow(12_000)
            with contextlib.suppress(OSError):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def _children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task")
        return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    return []


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _pidfd(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.pidfd_open(pid)
    return None


def _ended(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(int(seconds * 1000)))
