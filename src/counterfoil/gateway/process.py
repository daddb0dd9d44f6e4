"""A gateway worker's process: HTTP in, and a queue writer of its own, until its lifeline ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from counterfoil.datadir import DataDir
from counterfoil.errors import SettingsInvalid, StartRefused
from counterfoil.files import RealFiles, is_standing
from counterfoil.gateway.application import Application
from counterfoil.gateway.rates import SharedRates
from counterfoil.gateway.task import GatewayTask
from counterfoil.gateway.tuning import end_process, tune_process
from counterfoil.gateway.worker import run_worker
from counterfoil.lifeline import Lifeline
from counterfoil.queue.writer import SegmentWriter
from counterfoil.sources import Sources
from counterfoil.telemetry.logs import configure_logs
from counterfoil.telemetry.metrics import GatewayMetrics, QueueMetrics, start_metrics

log = structlog.get_logger()

RATES_FILE = Path("run", "rates")
"""In the data directory, with what is worth nothing after a stop."""


def main() -> None:
    """Run a gateway worker as its supervisor asks."""
    line = Lifeline.of_stdin()
    task = GatewayTask.model_validate_json(line.settings())
    configure_logs(task.name)
    tune_process()
    try:
        with DataDir(task.data_dir).refusing(is_standing):
            asyncio.run(work(task, line))
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
        self._task: GatewayTask | None = None

    def begin(self, application: Application) -> None:
        """The worker runs."""
        self._application = application
        if self._task is not None:
            self.ask(self._task)

    def ask(self, task: GatewayTask) -> None:
        """Take these from now on. On the event loop only."""
        self._task = task
        if self._application is None:
            return
        try:
            self._application.reload(task.sources, task.limits)
        except SettingsInvalid:
            log.error("gateway.reload_refused")
        else:
            log.info("gateway.reloaded", sources=len(task.sources))


async def work(task: GatewayTask, line: Lifeline) -> None:
    """Take events until the lifeline ends; everything acknowledged is flushed when this returns."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begin_stop() -> None:
        loop.call_soon_threadsafe(stop.set)

    reload = Reload()

    def heed(news: bytes) -> None:
        loop.call_soon_threadsafe(reload.ask, GatewayTask.model_validate_json(news))

    line.watch(begin_stop, heed)
    registry = start_metrics(task.metrics_dir, task.name)
    writer = SegmentWriter.open(
        task.data_dir / "queue",
        RealFiles(),
        task.queue,
        quarantine=task.data_dir / "quarantine",
        observe=QueueMetrics(registry).flushed,
    )
    try:
        await run_worker(
            task.gateway,
            task.limits,
            task.queue,
            Sources(task.sources, task.limits),
            writer,
            stop=stop,
            rates=SharedRates.open(task.data_dir / RATES_FILE),
            observer=GatewayMetrics(registry),
            on_listening=line.ready,
            on_application=reload.begin,
        )
    finally:
        await writer.close()


if __name__ == "__main__":
    main()
