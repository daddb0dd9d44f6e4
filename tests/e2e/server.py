"""A real `counterfoil serve` in a directory of its own, as an operator would start it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from tests.ports import free_port

TOKEN = "e2e-live-token"
TEST_TOKEN = "e2e-test-token"
WAIT_SECONDS = 120.0
"""For what comes at once, and on a busy machine some time later."""
POLL_SECONDS = 0.02


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


T = TypeVar("T")


def until(found: Callable[[], T | None], what: str, seconds: float = WAIT_SECONDS) -> T:
    """What `found` finds, asked again and again; fails with `what` when it finds nothing in time."""
    deadline = time.monotonic() + seconds
    while True:
        result = found()
        if result is not None and result is not False:
            return result
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(POLL_SECONDS)


class Server:
    """A configuration in a directory, and `counterfoil serve` on it."""

    def __init__(
        self, directory: Path, *, workers: int = 1, more: str = "", tls: bool = False, **sections: str
    ) -> None:
        self.directory = directory
        self.patience_seconds = WAIT_SECONDS
        """How long a stop or a command may take."""
        self.port = free_port()
        self.console_port = free_port()
        self.scheme = "https" if tls else "http"
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.config = directory / "counterfoil.toml"
        self.config.write_text(
            f"""
data_dir = "data"

[gateway]
port = {self.port}
workers = {workers}
{sections.pop("gateway", "")}

[console]
port = {self.console_port}

[queue]
reserve_bytes = 0
{sections.pop("queue", "")}

[[sources]]
name = "website"
token_sha256 = ["{sha256(TOKEN)}"]
test_token_sha256 = ["{sha256(TEST_TOKEN)}"]
{sections.pop("source", "")}

[[destinations]]
name = "lake"
type = "delta"
path = "data/lake"
{sections.pop("destination", "batch_seconds = 0.1")}

{more}
"""
        )
        assert not sections

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/api/v1"

    @property
    def lake(self) -> Path:
        return self.directory / "data" / "lake"

    @property
    def log_path(self) -> Path:
        return self.directory / "server.log"

    def log(self) -> list[dict[str, Any]]:
        """What the server has logged, one object a line; one that is being written is none yet."""
        whole = self.log_path.read_text().rpartition("\n")[0] if self.log_path.exists() else ""
        lines = whole.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def start(self, *, wait: bool = True, environment: dict[str, str] | None = None) -> Server:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command("serve", "--config", str(self.config)),
                cwd=self.directory,
                stdout=subprocess.PIPE,
                stderr=log,
                env=clean_environment() | (environment or {}),
            )
        if wait:
            until(
                self._is_ready,
                f"the server is ready; its log:\n{self.log_path.read_text()[-3000:]}",
                self.patience_seconds,
            )
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        status = self.process.poll()
        assert status is None, f"the server ended with {status}:\n{self.log_path.read_text()[-3000:]}"
        return self.console("/readyz") == 200

    def console(self, path: str) -> int:
        """The status that the console answers with; 0 when there is no answer."""
        return get(f"http://127.0.0.1:{self.console_port}{path}")

    def gateway(self, path: str) -> int:
        """The status that the gateway answers with; 0 when there is no answer."""
        return get(f"{self.scheme}://127.0.0.1:{self.port}{path}")

    def status(self) -> dict[str, Any]:
        """The console's /api/status."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.console_port}/api/status", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def pid_of(self, name: str) -> int | None:
        """The process id of a part that is ready."""
        for process in self.status()["processes"]:
            if process["name"] == name and process["state"] == "ready":
                return int(process["pid"])
        return None

    def pids(self) -> list[int]:
        """The supervisor and every process below it."""
        assert self.process is not None
        return [self.process.pid, *children_of(self.process.pid)]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Stop the server and give its exit status; 0 when it doesn't run."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(how)
        status = self.process.wait(self.patience_seconds)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None
        return status

    def kill(self, let_go: Callable[[], None] = lambda: None) -> None:
        """SIGKILL for the supervisor and all below it at once, as when the machine dies; returns when they are gone.

        `let_go` is called when all are killed: on a disk that answers nothing they can't end before.
        """
        assert self.process is not None
        pids = self.pids()
        watched = [os.pidfd_open(pid) for pid in pids]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        let_go()
        self.process.wait(self.patience_seconds)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None
        for descriptor in watched:
            assert ended(descriptor, self.patience_seconds)
            os.close(descriptor)

    # What lies in the table

    def rows(self) -> list[dict[str, Any]]:
        """Every row of the table, in the order of `seq`."""
        try:
            table = pa.table(DeltaTable(self.lake).to_pyarrow_table())
        except TableNotFoundError:
            return []
        found: list[dict[str, Any]] = table.sort_by("seq").to_pylist()
        return found

    def rows_of(self, *distinct_ids: str) -> list[dict[str, Any]]:
        """The rows of these distinctIds, once all of them are there."""

        def found() -> list[dict[str, Any]] | None:
            rows = [row for row in self.rows() if row["distinct_id"] in distinct_ids]
            return rows if {row["distinct_id"] for row in rows} == set(distinct_ids) else None

        return until(found, f"{len(distinct_ids)} rows in the table")

    def settle_down(self, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """The state once every row that was accepted is delivered."""

        def quiet() -> dict[str, Any] | None:
            status = self.status()
            is_done = all(d["pending"] == 0 for d in status["destinations"]) and all(
                writer["settled"] == writer["written"] for writer in status["writers"] if writer["settled"]
            )
            return status if is_done else None

        return until(quiet, "everything delivered", seconds)

    def run(self, *arguments: str, status: int = 0) -> str:
        """What a command prints on this server's configuration; fails when it ends with another status."""
        done = subprocess.run(
            command(*arguments),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=self.patience_seconds,
            env=clean_environment() | {"COUNTERFOIL_CONFIG": str(self.config)},
        )
        assert done.returncode == status, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def facts(self, *arguments: str, status: int = 0) -> Any:
        """The JSON document that a command prints, likewise."""
        return json.loads(self.run(*arguments, "--json", status=status))


def get(url: str) -> int:
    """The status of an answer; 0 when there is none."""
    try:
        return httpx.get(url, timeout=60, verify=False, trust_env=False).status_code
    except httpx.HTTPError:
        return 0


def command(*arguments: str) -> list[str]:
    """The command line of `counterfoil`, by the Python that runs the tests."""
    return [sys.executable, "-c", "from counterfoil.cli import main; main()", *arguments]


def clean_environment() -> dict[str, str]:
    """The environment without what would change the configuration."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COUNTERFOIL_")}


def children_of(pid: int) -> list[int]:
    """The processes directly below one; empty when it is gone."""
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task")
        return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    return []


def ended(pidfd: int, seconds: float) -> bool:
    """Whether the process of a descriptor ends within the time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(int(seconds * 1000)))


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server, started, and stopped at the end whatever happens."""
    try:
        yield server.start()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
