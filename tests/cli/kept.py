"""A configuration and a data directory with rows in it, as a server would have left them: real files, no server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from counterfoil.cli.reading import destinations
from counterfoil.config import Settings, load_settings
from counterfoil.contract.facts import Verdict, key_hash, key_prefix
from counterfoil.datadir import DataDir
from counterfoil.destinations.interface import DeliveredRow, Delivery
from counterfoil.destinations.rows import delivered_rows
from counterfoil.files import RealFiles
from counterfoil.ledger import Group, Ledger, seq_of
from counterfoil.pipeline.settle import Settler
from counterfoil.queue.frame import FrameDraft, Origin, draft_frame
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.writer import SegmentWriter
from tests.cli.calling import call

RECEIVED_AT_MS = 1_700_000_000_123
SETTLED_AT_MS = 1_700_000_001_456


class Kept:
    """What a server keeps, made step by step."""

    def __init__(self, home: Path) -> None:
        self.home = home
        call(home, "init")
        self.settings: Settings = load_settings(home / "counterfoil.toml")
        self.data = DataDir(self.settings.data_dir)
        self.data.make()

    def receive(self, source: str, rows: Sequence[tuple[str, int]]) -> None:
        """Let rows, each a distinctId and an amount, become durable as one frame."""
        asyncio.run(self._receive(_draft(source, rows)))

    async def _receive(self, draft: FrameDraft) -> None:
        settings = self.settings.queue.model_copy(update={"reserve_bytes": 0})
        writer = SegmentWriter.open(self.data.queue, RealFiles(), settings, quarantine=self.data.quarantine)
        try:
            await asyncio.gather(*writer.append([draft]))
        finally:
            await writer.close()

    def settle(self) -> None:
        """Give every durable row its verdict, and keep the destination known to the ledger."""
        ledger = self._ledger()
        try:
            ledger.register_destination("lake")
            settler = Settler(self._queue(), ledger, self.settings.pipeline, lambda: SETTLED_AT_MS)
            while settler.step():
                pass
        finally:
            ledger.close()

    def deliver(self) -> None:
        """Hand every settled group to the table."""
        ledger = self._ledger()
        [lake] = destinations(self.settings)
        try:
            lake.open()
            for group in ledger.groups(0, 1000):
                assert isinstance(group, Group)
                rows = list(self._rows(group))
                receipt = lake.deliver(Delivery(group.number, group.number, rows))
                ledger.record_delivery(
                    "lake",
                    first_group=group.number,
                    last_group=group.number,
                    delivered_rows=receipt.row_count,
                    commit=receipt.commit,
                    at_ms=SETTLED_AT_MS + 1,
                )
        finally:
            lake.close()
            ledger.close()

    def _rows(self, group: Group) -> Iterator[DeliveredRow]:
        queue = self._queue()
        for named, first in group.parts():
            frame = queue.fetch(named.position)
            verdicts = group.verdicts[first : first + named.row_count]
            indexes = [index for index, verdict in enumerate(verdicts) if verdict == Verdict.NEW]
            yield from delivered_rows(frame, indexes, seq_of(group.number, first))[0]

    def _ledger(self) -> Ledger:
        return Ledger.open(self.data.ledger, self.settings.ledger, self.data.id)

    def _queue(self) -> QueueReader:
        return QueueReader(self.data.queue, RealFiles(), quarantine=None)


def _draft(source: str, rows: Sequence[tuple[str, int]]) -> FrameDraft:
    return draft_frame(
        origin=msgspec.json.encode(Origin(source)),
        rows=[
            msgspec.json.encode({"event": "Purchase", "distinctId": distinct_id, "eventProperties": {"amount": amount}})
            for distinct_id, amount in rows
        ],
        key_hashes=[key_hash(key_prefix(source), distinct_id) for distinct_id, _ in rows],
        content_hashes=[amount.to_bytes(8, "little") for _, amount in rows],
        received_at_ms=RECEIVED_AT_MS,
        request_id=bytes(range(16)),
    )
