"""Erasing a person's rows from the queue: a person who has one row, in one of eight full segments.

The floor reads all segments, and writes and flushes the one anew: what is lost beside it is the search.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import msgspec
import zstandard

from bench.queue import CONTENTS, KEYS, ORIGIN, ROW
from counterfoil.contract.facts import Verdict
from counterfoil.contract.subject import Subject
from counterfoil.files import RealFiles
from counterfoil.positions import FramePosition
from counterfoil.queue.directory import take_directory
from counterfoil.queue.frame import FrameDraft, draft_frame
from counterfoil.queue.quarantine import Quarantine
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.recovery import close_leftovers
from counterfoil.queue.tail import SegmentTail

SEGMENTS = 8
SEGMENT_BYTES = 128 * 1024 * 1024
FRAMES_A_WRITE = 200
HIS_ROW = msgspec.json.encode({**msgspec.json.decode(ROW), "distinctId": "his"})
CHANCE = random.Random(1)
ROWS = [
    msgspec.json.encode(
        {
            **msgspec.json.decode(ROW),
            "distinctId": f"{CHANCE.getrandbits(128):032x}",
            "userId": f"user-{CHANCE.getrandbits(40)}",
            "userProperties": {"email": f"{CHANCE.getrandbits(40):x}@example.com", "first_name": f"{CHANCE.random()}"},
        }
    )
    for _ in range(500)
]


def draft(row_count: int, last: bytes, compressor: zstandard.ZstdCompressor | None) -> FrameDraft:
    return draft_frame(
        origin=ORIGIN,
        rows=[*ROWS[: row_count - 1], last],
        key_hashes=KEYS[:row_count],
        content_hashes=CONTENTS[:row_count],
        received_at_ms=1_700_000_000_000,
        request_id=bytes(16),
        compressor=compressor,
    )


def fill(root: Path, row_count: int, compressor: zstandard.ZstdCompressor | None) -> None:
    """Full segments, his row in the middle of one."""
    files = RealFiles()
    directory = take_directory(root / "queue", files)
    tail = SegmentTail(directory, files, close_leftovers(directory, files, Quarantine(root / "q", files)), lambda: 1)
    others, his = draft(row_count, ROWS[-1], compressor), draft(row_count, HIS_ROW, compressor)
    for number in range(SEGMENTS):
        tail.begin()
        is_there = number != SEGMENTS // 2
        while tail.flushed < SEGMENT_BYTES:
            if not is_there and tail.flushed > SEGMENT_BYTES // 2:
                is_there = True
                tail.write([his])
            tail.write([others] * FRAMES_A_WRITE)
    tail.begin()
    tail.close()
    directory.release()


def floor(root: Path) -> float:
    """Seconds to read every segment, and to write one of them and flush it."""
    began = time.perf_counter()
    paths = sorted((root / "queue" / "1").glob("*.seg"))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(4 * 1024 * 1024):
                pass
    with (root / "copy").open("wb") as file:
        with paths[0].open("rb") as source:
            shutil.copyfileobj(source, file, 8 * 1024 * 1024)
        os.fdatasync(file.fileno())
    return time.perf_counter() - began


def new(position: FramePosition, row_index: int) -> Verdict:
    return Verdict.NEW


def run() -> None:
    """Print the figures of frames of one row and of many, compressed or not."""
    for row_count, compressor in ((1, None), (500, None), (500, zstandard.ZstdCompressor())):
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            fill(root, row_count, compressor)
            reader = QueueReader(root / "queue", RealFiles(), root / "q")
            (directory,) = reader.directories()
            floor_seconds = floor(root)
            closed = reader.segment_numbers(directory)[:-1]
            began, cpu_began = time.perf_counter(), time.process_time()
            erased = [reader.erase(directory, number, Subject(distinct_id="his"), new) for number in closed]
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
            assert sum(each.rows for each in erased) == 1
            gib = SEGMENTS * SEGMENT_BYTES / 2**30
            print(
                f"  {row_count:>4} rows a frame{', zstd' if compressor else '':<7} {seconds:6.2f} s for {gib:.1f} GiB, "
                f"{cpu_seconds:6.2f} s of a processor, floor {floor_seconds:5.2f} s"
            )


if __name__ == "__main__":
    run()
