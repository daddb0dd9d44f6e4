"""How fast rows come into the Delta table, and how long a commit takes after how many.

Speed counts processor time of all threads, merging and other upkeep included: rows a second of one core, settle with
an index that is nearly empty beside it. Frames are made before the clock starts; reading them back (checksum, parsing)
is inside, the disk's part of it is not. Commits are timed by the wall clock, a few rows each, with flushes; what counts
is how the figure develops.

    python -m bench.delta --commits 3000 --rows 500000
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from uuid import UUID

import msgspec
import numpy as np
import structlog

from counterfoil.destinations.delta import DeltaDestination
from counterfoil.destinations.delta_address import TableAddress
from counterfoil.destinations.interface import DeliveredRow, Delivery
from counterfoil.destinations.settings import DeltaSettings
from counterfoil.errors import FrameDamaged
from counterfoil.files import RealFiles
from counterfoil.ledger import Ledger
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.deliver import Deliverer
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue import ReadResult
from counterfoil.queue.frame import Frame, Origin, draft_frame, parse_frame, seal_frame

LEDGER = UUID(int=1)
DIRECTORY = DirectoryId(b"delivers")
FRAME_ROWS = 1000
ROWS_A_SECOND_MIN = 100_000
_ORIGIN = msgspec.json.encode(Origin("bench"))


def canonical_row(number: int) -> bytes:
    """A row of some 400 bytes, as a shop sends it."""
    return msgspec.json.encode(
        {
            "event": ("Purchase", "Sign Up", "Page View")[number % 3],
            "distinctId": f"order-{number:012d}-4f1c9a7e",
            "userId": f"user-{number % 100_000}",
            "email": f"someone{number}@example.com",
            "time": 1_780_000_000_000 + number,
            "eventProperties": {"price": number / 7, "currency": "EUR", "quantity": number % 9, "sku": "A-123456"},
            "userProperties": {"first_name": "Ada", "custom_properties": {"plan": "pro"}},
            "defaultProperties": {
                "ip": "192.0.2.1",
                "user_agent": "Mozilla/5.0 (X11; Linux x86_64)",
                "current_url": f"https://example.com/a/b?c={number}",
            },
        }
    )


class MadeFrames:
    """A `FrameSource` of frames that lie ready as bytes."""

    def __init__(self, rows: int) -> None:
        self._sealed: dict[FramePosition, bytes] = {}
        self._end = FramePosition(DIRECTORY, SegmentNumber(1), 64)
        random = np.random.default_rng(1)
        for start in range(0, rows, FRAME_ROWS):
            draft = draft_frame(
                origin=_ORIGIN,
                rows=[canonical_row(number) for number in range(start, start + FRAME_ROWS)],
                key_hashes=[random.bytes(16) for _ in range(FRAME_ROWS)],
                content_hashes=[random.bytes(8) for _ in range(FRAME_ROWS)],
                received_at_ms=1_780_000_000_000,
                request_id=bytes(16),
            )
            sealed = b"".join(seal_frame(draft, self._end, 0))
            self._sealed[self._end] = sealed
            self._end = FramePosition(DIRECTORY, SegmentNumber(1), self._end.offset + len(sealed))

    def directories(self) -> dict[DirectoryId, int]:
        return {DIRECTORY: 0}

    def read(self, directory: DirectoryId, start: FramePosition | None, bytes_max: int) -> ReadResult:
        frames: list[Frame] = []
        position = start or next(iter(self._sealed))
        while position != self._end and bytes_max > 0:
            frames.append(self.fetch(position))
            bytes_max -= frames[-1].frame_bytes
            position = FramePosition(DIRECTORY, SegmentNumber(1), position.offset + frames[-1].frame_bytes)
        return ReadResult(frames, [], position)

    def fetch(self, position: FramePosition) -> Frame:
        if position not in self._sealed:
            raise FrameDamaged
        return parse_frame(self._sealed[position], 0, position)

    def durable_end(self, directory: DirectoryId) -> FramePosition:
        return self._end

    def oldest(self, directory: DirectoryId) -> FramePosition:
        return next(iter(self._sealed))


class Speed(msgspec.Struct, frozen=True):
    """Rows a second of one core."""

    settle: float
    deliver: float
    both: float
    deliver_by_the_clock: float
    memory_bytes: int


def measured_speed(directory: Path, rows: int) -> Speed:
    """Settle all, then deliver all, from frames that lie ready."""
    queue = MadeFrames(rows)
    ledger = Ledger.open(directory / "ledger", LedgerSettings(), LEDGER)
    destination = _destination(directory)
    ledger.register_destination("lake")
    settler = Settler(queue, ledger, PipelineSettings(), _clock_ms)
    deliverer = Deliverer(destination, ledger, queue, DeltaSettings(name="lake"), clock_ms=_clock_ms)
    deliverer.open()
    begun_core = time.process_time()
    while settler.step():
        pass
    settle_core = time.process_time() - begun_core
    begun_core, begun = time.process_time(), time.perf_counter()
    while ledger.cursor("lake") < ledger.last_group():
        deliverer.step()
    while destination.tend():
        pass
    core, seconds = time.process_time() - begun_core, time.perf_counter() - begun
    destination.close()
    ledger.close()
    return Speed(rows / settle_core, rows / core, rows / (settle_core + core), rows / seconds, _memory_peak_bytes())


class Commits(msgspec.Struct, frozen=True):
    """Medians over a stretch of commits, in ms, and what lay on the disk at its end."""

    upto: int
    commit_ms: float
    upkeep_ms: float
    """Of all steps after a commit, on average."""
    longest_step_ms: float
    table_files: int
    log_files: int


def measured_commits(directory: Path, commits: int, stretch: int) -> list[Commits]:
    """How long commits of ten rows take, stretch by stretch."""
    destination = _destination(directory)
    destination.open()
    found: list[Commits] = []
    took: list[float] = []
    steps: list[float] = []
    for group in range(1, commits + 1):
        rows = [_row(group * 65_536 + place) for place in range(10)]
        begun = time.perf_counter()
        destination.deliver(Delivery(group, group, rows))
        took.append(time.perf_counter() - begun)
        more = True
        while more:
            begun = time.perf_counter()
            more = destination.tend()
            steps.append(time.perf_counter() - begun)
        if group % stretch == 0:
            found.append(
                Commits(
                    group,
                    statistics.median(took) * 1000,
                    sum(steps) / stretch * 1000,
                    max(steps) * 1000,
                    sum(1 for _ in (directory / "lake").glob("*/*.parquet")),
                    sum(1 for _ in (directory / "lake" / "_delta_log").iterdir()),
                )
            )
            took.clear()
            steps.clear()
    destination.close()
    return found


def _destination(directory: Path) -> DeltaDestination:
    return DeltaDestination(
        DeltaSettings(name="lake"),
        address=TableAddress(directory / "lake", ""),
        ledger_id=LEDGER,
        files=RealFiles(),
        quarantine=directory / "quarantine",
        clock_ms=_clock_ms,
    )


def _row(seq: int) -> DeliveredRow:
    now_ms = _clock_ms()
    return DeliveredRow(seq, "bench", bytes(16), now_ms, "Purchase", f"order-{seq}", now_ms, '{"received_at":"now"}')


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _memory_peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def run(commits: int = 2000, rows: int = 500_000) -> None:
    """Measure and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    where = os.environ.get("COUNTERFOIL_BENCH_DIR")
    with tempfile.TemporaryDirectory(prefix="counterfoil-bench-", dir=where) as path:
        speed = measured_speed(Path(path) / "speed", rows)
        print(
            f"settle and deliver to Delta, {rows:,} rows of 400 bytes: {speed.both:,.0f} rows/s a core "
            f"(at least {ROWS_A_SECOND_MIN:,}); settle {speed.settle:,.0f}, deliver {speed.deliver:,.0f}, "
            f"by the clock {speed.deliver_by_the_clock:,.0f}; "
            f"memory, frames included, {speed.memory_bytes / 2**20:,.0f} MiB"
        )
        for each in measured_commits(Path(path) / "commits", commits, max(commits // 8, 1)):
            print(
                f"commits to {each.upto:,}: {each.commit_ms:.1f} ms each (median), upkeep {each.upkeep_ms:.1f} ms a "
                f"commit, its longest step {each.longest_step_ms:.0f} ms; {each.table_files:,} data files, "
                f"{each.log_files:,} log files"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=500_000)
    given = parser.parse_args()
    run(given.commits, given.rows)
