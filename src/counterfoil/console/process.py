"""The console's process: the operator's port, until its lifeline ends."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import uvicorn
from pydantic import BaseModel, ConfigDict

from counterfoil.console.application import make_application
from counterfoil.console.reading import LedgerView, Readiness, StateReader
from counterfoil.console.settings import ConsoleSettings
from counterfoil.files import DIRECTORY_MODE, RealFiles
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.lifeline import Lifeline
from counterfoil.queue.reader import QueueReader
from counterfoil.telemetry.logs import configure_logs

STOP_SECONDS = 2


class ConsoleProcess(BaseModel):
    """What the console's process must know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path
    ledger_id: UUID
    metrics_dir: Path
    console: ConsoleSettings
    ledger: LedgerSettings
    readyz_url: str | None
    """The gateway's /readyz; None when the gateway runs apart."""
    source_names: tuple[str, ...]
    destination_names: tuple[str, ...]


def main() -> None:
    """Run the console as its supervisor asks."""
    line = Lifeline.of_stdin()
    asked = ConsoleProcess.model_validate_json(line.settings())
    configure_logs("console")
    asked.metrics_dir.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    state = StateReader(
        quarantine=asked.data_dir / "quarantine",
        ledger=LedgerView(asked.data_dir / "ledger", asked.ledger, asked.ledger_id),
        queue=QueueReader(asked.data_dir / "queue", RealFiles(), None),
        readiness=Readiness(asked.readyz_url),
        source_names=asked.source_names,
        destination_names=asked.destination_names,
        clock=lambda: time.time_ns() // 1_000_000,
    )
    application = make_application(
        status=state.read,
        not_ready=state.not_ready,
        metrics=lambda: state.metrics(asked.metrics_dir),
        host=asked.console.host,
    )
    try:
        listening = listen(asked.console.host, asked.console.port)
    except OSError as problem:
        line.refuse(f"port {asked.console.port} on {asked.console.host} can't be listened on: {problem.strerror}")
        sys.exit(1)
    server = _Server(
        uvicorn.Config(
            application, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=STOP_SECONDS
        )
    )

    def stop() -> None:
        server.should_exit = True

    line.watch(stop, state.hear)
    line.ready()
    server.run(sockets=[listening])
    state.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: the lifeline watches them, and its end."""
        yield


if __name__ == "__main__":
    main()
