"""A gateway worker's process: HTTP in, and a queue writer of its own, until its lifeline ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from counterfoil.contract.limits import Limits
from counterfoil.errors import SettingsInvalid, StartRefused
from counterfoil.files import RealFiles
from counterfoil.gateway.settings import GatewaySettings
from counterfoil.gateway.tuning import end_process, tune_process
from counterfoil.gateway.worker import run_worker
from counterfoil.lifeline import Lifeline
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import SegmentWriter
from counterfoil.sources import Sources, SourceSettings
from counterfoil.telemetry.logs import configure_logs
from counterfoil.telemetry.metrics import GatewayMetrics, QueueMetrics, start_metrics


class GatewayProcess(BaseModel):
    """What a gateway worker's process must know."""

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


async def work(asked: GatewayProcess, line: Lifeline) -> None:
    """Take events until the lifeline ends; everything acknowledged is flushed when this returns."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begin_stop() -> None:
        loop.call_soon_threadsafe(stop.set)

    line.watch(begin_stop)
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
            observer=GatewayMetrics(registry),
            on_listening=line.ready,
        )
    finally:
        await writer.close()


if __name__ == "__main__":
    main()
