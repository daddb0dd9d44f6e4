"""A gateway worker's process: HTTP in, and a queue writer of its own, until its lifeline ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict

from counterfoil.contract.limits import Limits
from counterfoil.errors import SettingsInvalid, StartRefused
from counterfoil.files import RealFiles
from counterfoil.gateway.application import Application
from counterfoil.gateway.rates import SharedRates
from counterfoil.gateway.settings import GatewaySettings
from counterfoil.gateway.tuning import end_process, tune_process
from counterfoil.gateway.worker import run_worker
from counterfoil.lifeline import Lifeline
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import SegmentWriter
from counterfoil.sources import Sources, SourceSettings
from counterfoil.telemetry.logs import configure_logs
from counterfoil.telemetry.metrics import GatewayMetrics, QueueMetrics, start_metrics

log = structlog.get_logger()

RATES_FILE = "rates"


class GatewayProcess(BaseModel):
    """What a gateway worker's process must know; as news while it runs, what it shall know from then on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of this worker, as no other has it."""
    data_dir: Path
    metrics_dir: Path
    gateway: GatewaySettings
    limits: Limits
    queue: QueueSettings
    sources: tuple[SourceSettings, ...]


def main() -> None:
    """Run a gateway worker as its supervisor asks."""
    line = Lifeline.of_stdin()
    asked = GatewayProcess.model_validate_json(line.settings())
    configure_logs(asked.name)
    tune_process()
    try:
        asyncio.run(work(asked, line))
    except (StartRefused, SettingsInvalid) as refused:
        line.refuse(str(refused))
        end_process(1)
    end_process()


class Reload:
    """Gives a running worker the sources and limits of other settings; everything else of them waits for a start.

    Settings that come before the worker runs are kept until it does. What can't be used is logged, and changes nothing.
    """

    def __init__(self) -> None:
        self._application: Application | None = None
        self._asked: GatewayProcess | None = None

    def begin(self, application: Application) -> None:
        """The worker runs."""
        self._application = application
        if self._asked is not None:
            self.ask(self._asked)

    def ask(self, asked: GatewayProcess) -> None:
        """Take these from now on. On the event loop only."""
        self._asked = asked
        if self._application is None:
            return
        try:
            self._application.reload(asked.sources, asked.limits)
        except SettingsInvalid:
            log.error("gateway.reload_refused")
        else:
            log.info("gateway.reloaded", sources=len(asked.sources))


async def work(asked: GatewayProcess, line: Lifeline) -> None:
    """Take events until the lifeline ends; everything acknowledged is flushed when this returns."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begin_stop() -> None:
        loop.call_soon_threadsafe(stop.set)

    reload = Reload()

    def heed(news: bytes) -> None:
        loop.call_soon_threadsafe(reload.ask, GatewayProcess.model_validate_json(news))

    line.watch(begin_stop, heed)
    registry = start_metrics(asked.metrics_dir, asked.name)
    writer = SegmentWriter.open(
        asked.data_dir / "queue",
        RealFiles(),
        asked.queue,
        quarantine=asked.data_dir / "quarantine",
        observe=QueueMetrics(registry).flushed,
    )
    try:
        await run_worker(
            asked.gateway,
            asked.limits,
            asked.queue,
            Sources(asked.sources, asked.limits),
            writer,
            stop=stop,
            rates=SharedRates.open(asked.data_dir / RATES_FILE),
            observer=GatewayMetrics(registry),
            on_listening=line.ready,
            on_application=reload.begin,
        )
    finally:
        await writer.close()


if __name__ == "__main__":
    main()
