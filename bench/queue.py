"""The queue by itself: durable frames against `write` and `fdatasync` of the same bytes.

The floor writes what the queue's segments hold, in writes of the same size as the queue's flushes were on average: what
is lost beside it is the writer's own work (drafting, sealing, threads, futures).
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

import msgspec
import xxhash

from counterfoil.contract.facts import key_hash, key_prefix
from counterfoil.files import RealFiles
from counterfoil.queue.frame import FrameDraft, Origin, draft_frame
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.writer import FlushFacts, SegmentWriter

ORIGIN = msgspec.json.encode(Origin(source="website"))
ROW = msgspec.json.encode(
    {
        "event": "Purchase",
        "distinctId": "0190163d-8694-739b-aea5-966c26f8ad91",
        "userId": "user-123456",
        "time": 1_700_000_000_000,
        "eventProperties": {"plan": "pro", "amount": 49.99, "currency": "EUR", "items": ["a-1", "b-2", "c-3"]},
        "userProperties": {"email": "somebody@example.com", "first_name": "Some", "last_name": "Body"},
    }
)


def draft(row_count: int) -> FrameDraft:
    """A frame as the gateway drafts it; the hashes are made before, as they are the contract's work."""
    return draft_frame(
        origin=ORIGIN,
        rows=[ROW] * row_count,
        key_hashes=KEYS[:row_count],
        content_hashes=CONTENTS[:row_count],
        received_at_ms=1_700_000_000_000,
        request_id=bytes(16),
    )


KEYS = [key_hash(key_prefix("website"), f"{i}") for i in range(1000)]
CONTENTS = [xxhash.xxh3_64_digest(ROW)] * 1000


async def measure(root: Path, row_count: int, clients: int, seconds: float) -> tuple[float, list[FlushFacts], float]:
    """Frames a second that `clients` tasks make durable, each waiting for its own; the flushes; µs an append."""
    flushes: list[FlushFacts] = []
    settings = QueueSettings(reserve_bytes=0)
    writer = SegmentWriter.open(root / "queue", RealFiles(), settings, quarantine=root / "q", observe=flushes.append)
    frame_count = 0
    appending = 0.0
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal frame_count, appending
        while time.perf_counter() < end:
            one = draft(row_count)
            before = time.perf_counter()
            (future,) = writer.append([one])
            appending += time.perf_counter() - before
            await future
            frame_count += 1

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    took = time.perf_counter() - began
    await writer.close()
    return frame_count / took, flushes, appending / frame_count * 1e6


def floor(root: Path, flush_bytes: int, seconds: float) -> float:
    """Bytes a second of `write` and `fdatasync` in pieces of `flush_bytes`."""
    files = RealFiles()
    descriptor = files.create(root / "floor")
    data = os.urandom(flush_bytes)
    count = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        files.append(descriptor, data)
        files.fdatasync(descriptor)
        count += 1
    took = time.perf_counter() - began
    os.close(descriptor)
    (root / "floor").unlink()
    return count * flush_bytes / took


def reading(root: Path) -> tuple[float, float]:
    """Frames and rows a second that a reader reads of what was written, from the page cache."""
    reader = QueueReader(root / "queue", RealFiles(), None)
    (directory,) = reader.directories()
    at = reader.oldest(directory)
    frame_count = row_count = 0
    began = time.perf_counter()
    while True:
        result = reader.read(directory, at, 4 * 1024 * 1024)
        if result.next == at:
            break
        at = result.next
        frame_count += len(result.frames)
        row_count += sum(frame.facts.row_count for frame in result.frames)
    took = time.perf_counter() - began
    return frame_count / took, row_count / took


def run(seconds: float = 2.0) -> None:
    """Print rows a second, beside the floor, for small and large frames."""
    print("queue: durable rows/s, and the same bytes by write + fdatasync alone")
    for row_count, clients in ((1, 256), (100, 64), (1000, 32)):
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
            root = Path(name)
            frames_a_second, flushes, append_us = asyncio.run(measure(root, row_count, clients, seconds))
            flushed_bytes = sum(flush.flushed_bytes for flush in flushes)
            frame_bytes = flushed_bytes / sum(flush.frame_count for flush in flushes)
            floor_rows = floor(root, flushed_bytes // len(flushes), seconds) / frame_bytes * row_count
            rows = frames_a_second * row_count
            frames_read, rows_read = reading(root)
            print(
                f"  {row_count:5} rows a frame, {clients:3} waiting: {rows:10,.0f} rows/s = {rows / floor_rows:.2f} x "
                f"floor; {len(flushes) / seconds:5,.0f} flushes/s of {flushed_bytes // len(flushes):,} bytes; "
                f"append {append_us:.1f} µs; read {frames_read:,.0f} frames/s, {rows_read:,.0f} rows/s"
            )


if __name__ == "__main__":
    run()
