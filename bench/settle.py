"""How fast settle is with many keys in the index, and how much memory it takes.

Frames are made before the clock starts; reading them (checksum, parsing) is inside, the disk's part of it is not. The
figure counts processor time of all threads, RocksDB's background work included: rows a second of one core. A tenth
of the rows repeat an earlier one.

    python -m bench.settle --keys 10000000
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from uuid import UUID

import msgspec
import numpy as np

from counterfoil.ledger import Ledger
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue import ReadResult
from counterfoil.queue.frame import Frame, FrameDraft, Origin, parse_frame, seal_frame

DIRECTORY = DirectoryId(b"settling")
ROW_BYTES = 200
ROWS_A_SECOND_MIN = 150_000
MEMORY_BYTES_MAX = 512 * 1024 * 1024
_ORIGIN = msgspec.json.encode(Origin("bench"))


class Figures(msgspec.Struct, frozen=True):
    """What was measured."""

    keys: int
    rows: int
    frame_rows: int
    rows_a_core_second: float
    rows_a_second: float
    """Of the wall clock."""
    memory_bytes: int
    """Of the whole process, at its highest."""


class MadeFrames:
    """A `FrameSource` of frames that lie ready as bytes."""

    def __init__(self, frame_rows: int) -> None:
        self._frame_rows = frame_rows
        self._random = np.random.default_rng(1)
        self._sealed: list[tuple[FramePosition, bytes]] = []
        self._end = FramePosition(DIRECTORY, SegmentNumber(1), 64)
        self._earlier = np.zeros((0, 16), np.uint8)

    def prepare(self, rows: int, repeated: float) -> None:
        """Make frames of this many rows, a part of them repeating rows of the last call."""
        self._sealed.clear()
        keys = self._random.integers(0, 256, (rows, 16), np.uint8)
        repeats = min(int(rows * repeated), len(self._earlier))
        if repeats:
            keys[self._random.choice(rows, repeats, replace=False)] = self._earlier[:repeats]
        self._earlier = keys[self._random.choice(rows, rows // 4, replace=False)]
        contents = keys[:, :8]
        lines = b"\n".join([b"x" * ROW_BYTES] * self._frame_rows)
        for start in range(0, rows, self._frame_rows):
            self._append(keys[start : start + self._frame_rows], contents[start : start + self._frame_rows], lines)

    def _append(self, keys: np.typing.NDArray[np.uint8], contents: np.typing.NDArray[np.uint8], lines: bytes) -> None:
        count = len(keys)
        ends = np.arange(ROW_BYTES, count * (ROW_BYTES + 1), ROW_BYTES + 1, dtype="<u4")
        columns = (keys, contents, ends, np.zeros(count, "<u2"), np.zeros(count, "u1"))
        body = b"".join(part + bytes(-len(part) % 8) for part in (_ORIGIN, *(each.tobytes() for each in columns)))
        rows = lines[: count * (ROW_BYTES + 1) - 1]
        draft = FrameDraft(body + rows, count, 0, bytes(16), len(_ORIGIN), len(rows), False)
        sealed = b"".join(seal_frame(draft, self._end, 0))
        self._sealed.append((self._end, sealed))
        # Segments of about 1 GiB, so that an offset fits.
        offset = self._end.offset + len(sealed)
        if offset < 2**30:
            self._end = FramePosition(DIRECTORY, self._end.segment, offset)
        else:
            self._end = FramePosition(DIRECTORY, SegmentNumber(self._end.segment + 1), 64)

    def directories(self) -> dict[DirectoryId, int]:
        return {DIRECTORY: 0}

    def read(self, directory: DirectoryId, start: FramePosition | None, bytes_max: int) -> ReadResult:
        frames: list[Frame] = []
        while self._sealed and bytes_max > 0:
            position, sealed = self._sealed.pop(0)
            frames.append(parse_frame(sealed, 0, position))
            bytes_max -= len(sealed)
        return ReadResult(frames, [], self._sealed[0][0] if self._sealed else self._end)

    def fetch(self, position: FramePosition) -> Frame:
        raise NotImplementedError

    def durable_end(self, directory: DirectoryId) -> FramePosition:
        return self._end

    def oldest(self, directory: DirectoryId) -> FramePosition:
        return self._end


def measured(directory: Path, keys: int, rows: int, frame_rows: int) -> Figures:
    """The figures of settling `rows` rows into an index that already holds `keys` keys."""
    settings = PipelineSettings()
    ledger = Ledger.open(directory, LedgerSettings(), UUID(int=1))
    queue = MadeFrames(frame_rows)
    settler = Settler(queue, ledger, settings, lambda: time.time_ns() // 1_000_000)
    batch = 8 * settings.group_rows

    def settle(repeated: float) -> int:
        settled = 0
        while count := settler.step():
            settled += count
        return settled

    filled = 0
    while filled < keys:
        queue.prepare(min(batch, keys - filled), 0)
        filled += settle(0)
    settled, core_seconds, seconds = 0, 0.0, 0.0
    while settled < rows:
        queue.prepare(batch, 0.1)
        begun_core, begun = time.process_time(), time.perf_counter()
        settled += settle(0.1)
        core_seconds += time.process_time() - begun_core
        seconds += time.perf_counter() - begun
    ledger.close()
    return Figures(keys, settled, frame_rows, settled / core_seconds, settled / seconds, _memory_peak_bytes())


def _memory_peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def run(keys: int = 1_000_000) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="counterfoil-bench-", dir=os.environ.get("COUNTERFOIL_BENCH_DIR")) as path:
        for frame_rows in (1000, 100):
            got = measured(Path(path) / str(frame_rows), keys, max(1_000_000, keys // 4), frame_rows)
            print(
                f"settle, {got.keys:,} keys, {got.frame_rows} rows a frame: "
                f"{got.rows_a_core_second:,.0f} rows/s a core (at least {ROWS_A_SECOND_MIN:,}), "
                f"{got.rows_a_second:,.0f} rows/s by the clock, "
                f"memory {got.memory_bytes / 2**20:,.0f} MiB (at most {MEMORY_BYTES_MAX // 2**20})"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    run(parser.parse_args().keys)
