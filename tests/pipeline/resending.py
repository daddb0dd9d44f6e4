"""A life of the pipeline that replays what a table lost, which a test may end at any point and begin again.

Run as `python -m tests.pipeline.resending ROOT [DSN]`: what waits is delivered, then what is missing in the table is
sent again, until nothing is. The queue is in memory and the same in every life; the ledger lies below ROOT, and the
table too, or in PostgreSQL where a DSN is given.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from counterfoil.destinations.delta import DeltaDestination
from counterfoil.destinations.interface import Destination
from counterfoil.destinations.postgres import PostgresDestination
from counterfoil.destinations.settings import DeltaSettings, PostgresSettings
from counterfoil.files import RealFiles
from counterfoil.ledger import Ledger
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.audit import Audit, audit
from counterfoil.pipeline.deliver import Deliverer
from counterfoil.pipeline.orders import Done, carry_out
from counterfoil.pipeline.replay import Replay, ReplayFilter
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.positions import DirectoryId
from tests.destinations.lake import LEDGER, address
from tests.pipeline.frames import MemoryQueue, Row

WRITER = DirectoryId(b"writer-1")
IDS = [f"{frame}-{row}" for frame in range(4) for row in range(4)]
LOST = ["0-1", "0-2", "2-0", "3-3"]


def one_life(root: Path, dsn: str | None) -> Audit:
    """Deliver, replay and deliver until nothing is missing; the audit at the end."""
    queue = MemoryQueue()
    for frame in range(4):
        queue.append(WRITER, "web", [Row(each) for each in IDS if each.startswith(f"{frame}-")])
    ledger = Ledger.open(root / "ledger", LedgerSettings(), LEDGER)
    try:
        destination = made(root, dsn)
        settings = (DeltaSettings if dsn is None else PostgresSettings)(
            name="table", batch_seconds=0, **({} if dsn is None else {"dsn": dsn})
        )
        ledger.register_destination("table")
        settler = Settler(queue, ledger, PipelineSettings(group_rows=1), _clock_ms)
        while settler.step():
            pass
        deliverer = Deliverer(destination, ledger, queue, settings, clock_ms=_clock_ms)
        deliverer.open()
        is_more = True
        while is_more:
            while ledger.cursor("table") < ledger.last_group():
                deliverer.wake()
                deliverer.step()
            [counts] = ledger.books().destinations
            orders = list(Replay(ledger, queue, counts, destination.held, ReplayFilter()).orders())
            is_more = any(carry_out(ledger, order, _clock_ms()) != Done(0) for order in orders)
        found = audit(ledger, queue, {"table": destination.held})
        destination.close()
        return found
    finally:
        ledger.close()


def made(root: Path, dsn: str | None) -> Destination:
    if dsn is not None:
        return PostgresDestination(PostgresSettings(name="table", dsn=dsn), LEDGER)
    return DeltaDestination(
        DeltaSettings(name="table"),
        address=address(root),
        ledger_id=LEDGER,
        files=RealFiles(),
        quarantine=root / "quarantine",
        clock_ms=_clock_ms,
    )


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    one_life(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
