"""A life of the pipeline over a fixed list of frames, which a test may end at any point and begin again.

Run as `python -m tests.pipeline.delivering ROOT FRAMES [URL]`: settles and delivers until everything is in the table, a
group a delivery, upkeep after each. The queue is in memory and the same in every life; the ledger and the table lie
below ROOT, or the table at an object store's URL, reached by the JSON in $STORAGE_OPTIONS.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from counterfoil.destinations.delta import DeltaDestination
from counterfoil.destinations.delta_address import TableAddress
from counterfoil.destinations.settings import DeltaSettings
from counterfoil.files import RealFiles
from counterfoil.ledger import Books, Ledger
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.deliver import Deliverer
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.positions import DirectoryId
from tests.destinations.lake import LEDGER, address
from tests.pipeline.frames import MemoryQueue, Row

WRITER = DirectoryId(b"writer-1")
ROWS_A_FRAME = 4


def new_ids(frame: int) -> list[str]:
    """The distinctIds of the rows of a frame that are new: all but its first, which repeats the frame before."""
    return [f"{frame}-{row}" for row in range(ROWS_A_FRAME)]


def one_life(root: Path, frame_count: int, place: TableAddress | None = None) -> Books:
    """Settle and deliver all frames; the books at the end."""
    queue = MemoryQueue()
    for frame in range(frame_count):
        repeated = f"{max(frame - 1, 0)}-0"
        queue.append(WRITER, "web", [Row(repeated), *(Row(each) for each in new_ids(frame))])
    ledger = Ledger.open(root / "ledger", LedgerSettings(), LEDGER)
    try:
        settings = DeltaSettings(name="lake", batch_seconds=0, merge_commits=2, keep_hours=0)
        destination = DeltaDestination(
            settings,
            address=place or address(root),
            ledger_id=LEDGER,
            files=RealFiles(),
            quarantine=root / "quarantine",
            clock_ms=_clock_ms,
        )
        ledger.register_destination("lake")
        settler = Settler(queue, ledger, PipelineSettings(group_rows=1), _clock_ms)
        deliverer = Deliverer(destination, ledger, queue, settings, clock_ms=_clock_ms)
        deliverer.open()
        settled = 1
        while settled or ledger.cursor("lake") < ledger.last_group():
            settled = settler.step()
            deliverer.wake()
            deliverer.step()
            while destination.tend():
                pass
        destination.close()
        return ledger.books()
    finally:
        ledger.close()


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    urls = [TableAddress(None, url, json.loads(os.environ["STORAGE_OPTIONS"])) for url in sys.argv[3:]]
    one_life(Path(sys.argv[1]), int(sys.argv[2]), *urls)
