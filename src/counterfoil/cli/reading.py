"""Opening what is on disk for commands that read: beside a running server, or without one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from counterfoil.config import Settings
    from counterfoil.destinations.interface import Destination
    from counterfoil.ledger import LedgerReader
    from counterfoil.queue.reader import QueueReader


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[tuple[LedgerReader, QueueReader]]:
    """The ledger at this moment and the queue, both to be read only.

    Raises StartRefused when there is no data directory yet, LedgerUnusable when the ledger can't be read.
    """
    from counterfoil.datadir import DataDir
    from counterfoil.files import RealFiles
    from counterfoil.ledger import LedgerReader
    from counterfoil.queue.reader import QueueReader
    from counterfoil.telemetry.logs import write_events

    write_events("counterfoil")
    data = DataDir(settings.data_dir)
    ledger = LedgerReader.open(data.ledger, settings.ledger, data.id)
    try:
        yield ledger, QueueReader(data.queue, RealFiles(), quarantine=None)
    finally:
        ledger.close()


def refuse_unknown(settings: Settings, *, destination: str | None = None, source: str | None = None) -> None:
    """Raise SettingsInvalid for a name that neither the configuration nor the ledger has: "none" would be no answer.

    Raises what `opened` does.
    """
    from counterfoil.errors import SettingsInvalid

    is_set = destination is None or destination in {one.name for one in settings.destinations}
    if is_set and (source is None or source in {one.name for one in settings.sources}):
        return
    with opened(settings) as (ledger, _):
        books = ledger.books()
    if not is_set and destination not in {one.destination for one in books.destinations}:
        raise SettingsInvalid(f"{destination}: neither the configuration nor the ledger has a destination of this name")
    if source is not None and source not in {one.name for one in settings.sources} | {
        one.source for one in books.sources
    }:
        raise SettingsInvalid(f"{source}: neither the configuration nor the ledger has a source of this name")


def last_gone(settings: Settings) -> int:
    """The last group that retention has removed by now."""
    with opened(settings) as (ledger, _):
        return ledger.carried().last_group


def erased_now(settings: Settings, seqs: list[int]) -> set[int]:
    """Those of some seqs whose rows are erased by now."""
    with opened(settings) as (ledger, _):
        return {seq for seq in seqs if ledger.is_erased(seq)}


def destinations(settings: Settings) -> Iterator[Destination]:
    """Every destination of the configuration, not opened; for one that was never delivered to any id will do."""
    from counterfoil.datadir import DataDir
    from counterfoil.destinations.build import build_destination
    from counterfoil.errors import StartRefused
    from counterfoil.files import RealFiles
    from counterfoil.telemetry.logs import write_events

    write_events("counterfoil")
    data = DataDir(settings.data_dir)
    try:
        ledger_id = data.id
    except StartRefused:
        ledger_id = uuid4()
    for destination in settings.destinations:
        yield build_destination(
            destination,
            ledger_id=ledger_id,
            base=settings.data_dir,
            files=RealFiles(),
            quarantine=data.quarantine,
            clock_ms=lambda: time.time_ns() // 1_000_000,
        )
