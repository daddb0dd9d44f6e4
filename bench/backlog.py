"""How a whole server works off what came in while its pipeline stood still.

A backlog of rows is appended to the queue as a gateway does it. Then the server is started, with a Delta table,
PostgreSQL (which flushes) and a webhook's receiver, and settles and delivers at once until nothing is pending. By the
wall clock, everything on this machine. A small backlog goes first: full speed means that the large one is worked off at
the same rate, and bounded memory that its pipeline is no larger for it.

    python -m bench.backlog --rows 10000000 --small 500000
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from bench.deliver import RECEIVER, SECRET
from bench.delta import FRAME_ROWS, canonical_row
from counterfoil.contract.facts import key_hash, key_prefix
from counterfoil.files import RealFiles
from counterfoil.queue.frame import FrameDraft, Origin, draft_frame
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import SegmentWriter
from tests.e2e.server import Server
from tests.postgres_server import postgres_server, why_not

SOURCE = "website"
FRAMES_A_FLUSH = 16
POLL_SECONDS = 0.5
_ORIGIN = msgspec.json.encode(Origin(SOURCE))


class Measured(msgspec.Struct, frozen=True):
    """A backlog that was worked off."""

    rows: int
    seconds: dict[str, float]
    """From the start of the server until each destination had everything."""
    memory_mib: float
    """The most that the pipeline's process took."""

    def report(self) -> str:
        rates = ", ".join(f"{name} {self.rows / seconds:,.0f} rows/s" for name, seconds in self.seconds.items())
        return f"{self.rows:,} rows in {max(self.seconds.values()):.0f} s: {rates}; pipeline {self.memory_mib:.0f} MiB"


def append_rows(server: Server, rows: int) -> None:
    """Let rows lie in the queue, durable, as if a gateway had taken them."""
    asyncio.run(_append(server.directory / "data", rows))


async def _append(data: Path, rows: int) -> None:
    writer = SegmentWriter.open(
        data / "queue", RealFiles(), QueueSettings(reserve_bytes=0), quarantine=data / "quarantine"
    )
    try:
        drafts = _drafts(rows)
        while some := list(islice(drafts, FRAMES_A_FLUSH)):
            await asyncio.gather(*writer.append(some))
    finally:
        await writer.close()


def _drafts(rows: int) -> Iterator[FrameDraft]:
    random = np.random.default_rng(1)
    prefix = key_prefix(SOURCE)
    for start in range(0, rows, FRAME_ROWS):
        numbers = range(start, min(start + FRAME_ROWS, rows))
        yield draft_frame(
            origin=_ORIGIN,
            rows=[canonical_row(number) for number in numbers],
            key_hashes=[key_hash(prefix, f"order-{number:012d}-4f1c9a7e") for number in numbers],
            content_hashes=[random.bytes(8) for _ in numbers],
            received_at_ms=1_780_000_000_000,
            request_id=bytes(16),
        )


def worked_off(server: Server, rows: int) -> Measured:
    """Start the server and wait until every destination has all rows."""
    began = time.monotonic()
    server.start()
    seconds: dict[str, float] = {}
    while True:
        destinations = server.status()["destinations"]
        for each in destinations:
            if each["delivered"] >= rows and each["name"] not in seconds:
                seconds[each["name"]] = time.monotonic() - began
        if len(seconds) == len(destinations):
            break
        time.sleep(POLL_SECONDS)
    pid = server.pid_of("pipeline")
    status = Path(f"/proc/{pid}/status").read_text()
    peak_kib = int(status.split("VmHWM:", 1)[1].split(None, 1)[0])
    server.stop()
    return Measured(rows, seconds, peak_kib / 1024)


def measured(directory: Path, rows: int, more: str) -> Measured:
    """A backlog of so many rows on a server of its own."""
    server = Server(directory, more=more, destination="")
    server.start()
    server.stop()
    append_rows(server, rows)
    return worked_off(server, rows)


@contextmanager
def webhook_receiver() -> Iterator[str]:
    """The address of a receiver that takes everything, in a process of its own."""
    receiver = subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert receiver.stdout is not None
        yield f"http://127.0.0.1:{int(receiver.stdout.readline())}/"
    finally:
        receiver.kill()
        receiver.wait()


def run(rows: int = 1_000_000, small: int = 200_000) -> None:
    """Measure and print."""
    reason = why_not()
    if reason is not None:
        print(reason)
        return
    for row_count in (small, rows):
        # A database of its own for each, so that the second does not pay for the first one's table.
        with (
            tempfile.TemporaryDirectory(prefix="counterfoil-bench-") as path,
            postgres_server(flushes=True) as postgres,
            webhook_receiver() as url,
        ):
            more = f"""
[[destinations]]
name = "warehouse"
type = "postgres"
dsn = "{postgres.dsn()}"

[[destinations]]
name = "hook"
type = "webhook"
url = "{url}"
secret = "{SECRET}"
"""
            print(measured(Path(path) / "server", row_count, more).report(), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=200_000)
    asked = parser.parse_args()
    run(asked.rows, asked.small)
