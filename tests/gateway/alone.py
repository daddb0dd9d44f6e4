"""A gateway worker in a process of its own, for what must not happen to the test's: limits, signals, memory.

    python -m tests.gateway.alone DIRECTORY PORT [JSON of {"limits": …, "gateway": …, "queue": …, "file_bytes": n}]

Writes `listening` when it is, and stops on SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import structlog

from counterfoil.contract.limits import Limits
from counterfoil.files import RealFiles
from counterfoil.gateway.rates import SharedRates
from counterfoil.gateway.settings import GatewaySettings
from counterfoil.gateway.tuning import end_process, tune_process, worker_environment
from counterfoil.gateway.worker import run_worker
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import SegmentWriter
from counterfoil.sources import Sources
from tests.gateway.server import SOURCE, WAIT_SECONDS, RunningGateway


class AloneGateway(RunningGateway):
    """Like `RunningGateway`, in a process of its own."""

    def __init__(self, directory: Path, *, file_bytes: int | None = None, **groups: dict[str, Any]) -> None:
        super().__init__(directory)
        self._given = {"file_bytes": file_bytes, **groups}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> AloneGateway:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gateway.alone", self.directory, str(self.port), json.dumps(self._given)],
            stdout=subprocess.PIPE,
            env=worker_environment(os.environ),
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"listening\n"
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def begin_stop(self) -> None:
        self.process.terminate()

    def wait_stopped(self) -> None:
        assert self.process.wait(WAIT_SECONDS) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()

    def memory_bytes_max(self) -> int:
        """The most memory that the process has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])


async def serve(directory: Path, port: int, given: dict[str, Any]) -> None:
    limits = Limits.model_validate(given.get("limits", {}))
    queue = QueueSettings.model_validate({"reserve_bytes": 0} | given.get("queue", {}))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    writer = SegmentWriter.open(directory / "queue", RealFiles(), queue, quarantine=directory / "quarantine")
    if (file_bytes := given.get("file_bytes")) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    settings = GatewaySettings.model_validate({"port": port} | given.get("gateway", {}))
    await run_worker(
        settings,
        limits,
        queue,
        Sources([SOURCE], limits),
        writer,
        stop=stop,
        rates=SharedRates.open(directory / "rates"),
        on_listening=lambda: print("listening", flush=True),  # noqa: T201
    )
    await writer.close()


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    tune_process()
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])))
    end_process()
