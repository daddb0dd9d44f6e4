"""What the gateway's benchmark measures, each in a process of its own on one core:

    python -m bench.server gateway PORT DIRECTORY     a worker with its queue, metrics and logs as in production
    python -m bench.server constant PORT              Granian answering a constant after reading the body

Writes `listening` when it is, and for each line on its standard input a line of JSON (`Figures`); ends with the input.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import msgspec
import structlog
from granian.constants import Interfaces
from granian.server.embed import Server

from counterfoil.contract.limits import Limits
from counterfoil.files import RealFiles
from counterfoil.gateway.rates import SharedRates
from counterfoil.gateway.rsgi import Exchange, Scope
from counterfoil.gateway.settings import GatewaySettings
from counterfoil.gateway.tuning import end_process, tune_process
from counterfoil.gateway.worker import run_worker
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import FlushFacts, SegmentWriter
from counterfoil.sources import Sources, SourceSettings, token_sha256
from counterfoil.telemetry.metrics import GatewayMetrics, QueueMetrics, start_metrics

TOKEN = "t"
"""As short as one can be, so that the bodies of bench/worst.py fit."""
CONSTANT = b'{"success":true}'


class Figures(msgspec.Struct):
    """What a server has done so far."""

    flush_count: int = 0
    flushed_bytes: int = 0
    row_count: int = 0
    cpu_seconds: float = 0.0
    memory_bytes_max: int = 0
    """The most memory that the process has had."""

    def now(self) -> Figures:
        """These and what the system counts."""
        status = Path("/proc/self/status").read_text()
        memory = 1024 * int(status.partition("VmHWM:")[2].split()[0])
        return msgspec.structs.replace(self, cpu_seconds=sum(os.times()[:2]), memory_bytes_max=memory)


async def serve_gateway(port: int, directory: Path) -> None:
    figures = Figures()
    registry = start_metrics(directory / "metrics", "gateway-1")
    queue_metrics = QueueMetrics(registry)

    def observe(facts: FlushFacts) -> None:
        figures.flush_count += 1
        figures.flushed_bytes += facts.flushed_bytes
        figures.row_count += facts.row_count
        queue_metrics.flushed(facts)

    limits, queue = Limits(), QueueSettings()
    sources = Sources([SourceSettings(name="website", token_sha256=(token_sha256(TOKEN),))], limits)
    stop = asyncio.Event()
    writer = SegmentWriter.open(
        directory / "queue", RealFiles(), queue, quarantine=directory / "quarantine", observe=observe
    )
    answering = asyncio.create_task(answer_lines(figures, stop))
    await run_worker(
        GatewaySettings(port=port),
        limits,
        queue,
        sources,
        writer,
        stop=stop,
        rates=SharedRates.open(directory / "rates"),
        observer=GatewayMetrics(registry),
        on_listening=say_listening,
    )
    await answering
    await writer.close()


async def serve_constant(port: int) -> None:
    async def application(scope: Scope, exchange: Exchange) -> None:
        length = int(scope.headers.get("content-length") or 0)
        exchange = exchange.__aiter__()
        while length > 0:
            length -= len(await exchange.__anext__())
        exchange.response_bytes(200, [("content-type", "application/json")], CONSTANT)

    class Target:
        __rsgi__ = staticmethod(application)

        def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
            loop.call_soon(say_listening)

    server = Server(
        Target(),
        port=port,
        interface=Interfaces.RSGI,
        websockets=False,
        backlog=2048,
        backpressure=16_384,
        runtime_blocking_threads=1,
        log_enabled=False,
    )
    stop = asyncio.Event()
    serving = asyncio.create_task(server.serve())
    await answer_lines(Figures(), stop)
    server.stop()  # type: ignore[no-untyped-call]
    await serving


async def answer_lines(figures: Figures, stop: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(msgspec.json.encode(figures.now()).decode(), flush=True)
    stop.set()


def say_listening() -> None:
    print("listening", flush=True)


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    kind, port_text, *rest = sys.argv[1:]
    tune_process()
    serving = serve_gateway(int(port_text), Path(rest[0])) if kind == "gateway" else serve_constant(int(port_text))
    asyncio.run(serving)
    end_process()
