"""The console's process: the operator's port, until its lifeline ends."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator

import uvicorn

from counterfoil.console.application import make_application
from counterfoil.console.disk import Disk
from counterfoil.console.reading import LedgerView, Readiness, StateReader
from counterfoil.console.task import ConsoleTask
from counterfoil.files import DIRECTORY_MODE, RealFiles
from counterfoil.lifeline import Lifeline
from counterfoil.queue.reader import QueueReader
from counterfoil.telemetry.logs import configure_logs

STOP_SECONDS = 2


def main() -> None:
    """Run the console as its supervisor asks."""
    line = Lifeline.of_stdin()
    task = ConsoleTask.model_validate_json(line.settings())
    configure_logs("console")
    task.metrics_dir.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    state = StateReader(
        quarantine=task.data_dir / "quarantine",
        ledger=LedgerView(task.data_dir / "ledger", task.ledger, task.ledger_id),
        queue=QueueReader(task.data_dir / "queue", RealFiles(), None),
        readiness=Readiness(task.readyz_url),
        disk=Disk(task.data_dir, RealFiles(), task.queue),
        source_names=task.source_names,
        destination_names=task.destination_names,
        clock=lambda: time.time_ns() // 1_000_000,
    )
    application = make_application(
        status=state.read,
        not_ready=state.not_ready,
        metrics=lambda: state.metrics(task.metrics_dir),
        host=task.console.host,
        password_sha256=task.console.password_sha256,
    )
    try:
        listening = listen(task.console.host, task.console.port)
    except OSError as problem:
        line.refuse(f"port {task.console.port} on {task.console.host} can't be listened on: {problem.strerror}")
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
