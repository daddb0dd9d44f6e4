"""The pipeline's process: settle on the main thread, and one thread a destination, until its lifeline ends.

Settle wakes the destinations when it has made a group; each goes at its own pace. What one destination can't do
stays with it. What goes wrong in settle or in the ledger ends the process: the next life opens the ledger anew and
finds there what really is.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol
from uuid import UUID

import structlog
from pydantic import BaseModel, ConfigDict

from counterfoil.destinations.settings import DestinationSettings
from counterfoil.errors import LedgerUnusable, LedgerWriteFailed
from counterfoil.files import RealFiles
from counterfoil.ledger import Ledger
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.lifeline import Lifeline
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.queue.reader import QueueReader
from counterfoil.telemetry.logs import configure_logs
from counterfoil.telemetry.metrics import PipelineMetrics, start_metrics

log = structlog.get_logger()

STOP_SECONDS = 6.0
"""How long a destination may take to finish its step at the stop."""

AGAIN_SECONDS = 5.0
"""After an error that nobody understood, a destination is tried again after this time."""


class PipelineProcess(BaseModel):
    """What the pipeline's process must know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path
    ledger_id: UUID
    metrics_dir: Path
    ledger: LedgerSettings
    pipeline: PipelineSettings
    destinations: tuple[DestinationSettings, ...]


class Delivering(Protocol):
    """What delivers to one destination."""

    @property
    def name(self) -> str:
        """The destination's name."""
        ...

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set; what the outside can cause is dealt with inside."""
        ...


class Pipeline:
    """Settle and deliver, in one process."""

    def __init__(
        self,
        settle_step: Callable[[], int],
        deliverers: Sequence[Delivering],
        wake: Callable[[], None],
        *,
        poll_seconds: float,
    ) -> None:
        """`settle_step` settles a group and gives its rows, 0 when there is none; `wake` tells all deliverers."""
        self._settle_step = settle_step
        self._wake = wake
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._deliver, args=(each,), name=f"deliver {each.name}", daemon=True)
            for each in deliverers
        ]

    def stop(self) -> None:
        """Let each finish its step; from any thread, and harmless twice."""
        self._stop.set()
        self._wake()

    def run(self) -> bool:
        """Settle and deliver until `stop`; whether every destination came to its end then.

        Raises what settle raised, and what a destination met in the ledger.
        """
        for thread in self._threads:
            thread.start()
        try:
            self._settle()
        finally:
            self.stop()
            is_quiet = self._await_threads()
        if self._failure is not None:
            raise self._failure
        return is_quiet

    def _settle(self) -> None:
        while not self._stop.is_set():
            if self._settle_step():
                self._wake()
            else:
                self._stop.wait(self._poll_seconds)

    def _deliver(self, deliverer: Delivering) -> None:
        while not self._stop.is_set():
            try:
                deliverer.run(self._stop)
            except (LedgerWriteFailed, LedgerUnusable) as failure:
                self._failure = failure
                self.stop()
            except Exception as problem:
                log.error("deliver.failed", destination=deliverer.name, exc_info=problem)
                self._stop.wait(AGAIN_SECONDS)

    def _await_threads(self) -> bool:
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


def main() -> None:
    """Run the pipeline as its supervisor asks."""
    line = Lifeline.of_stdin()
    asked = PipelineProcess.model_validate_json(line.settings())
    configure_logs("pipeline")
    metrics = PipelineMetrics(start_metrics(asked.metrics_dir, "pipeline"))
    ledger = Ledger.open(asked.data_dir / "ledger", asked.ledger, asked.ledger_id, mode="write")
    queue = QueueReader(asked.data_dir / "queue", RealFiles(), asked.data_dir / "quarantine")
    settler = Settler(queue, ledger, asked.pipeline, _clock_ms)

    def settle_step() -> int:
        began = time.monotonic()
        row_count = settler.step()
        if row_count:
            metrics.settled(time.monotonic() - began)
        return row_count

    pipeline = Pipeline(settle_step, (), lambda: None, poll_seconds=asked.pipeline.poll_ms / 1000)
    line.watch(pipeline.stop)
    line.ready()
    if not pipeline.run():
        # A destination is still in its step, and holds the ledger: what it can't finish, the next life does.
        log.warning("pipeline.left_behind")
        os._exit(0)
    ledger.close()


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    main()
