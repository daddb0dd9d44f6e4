"""A pipeline whose queue and destinations outlive its ledgers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from counterfoil.destinations.settings import DeltaSettings
from counterfoil.files import RealFiles
from counterfoil.ledger import Ledger, LedgerReader, SourceCounts
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.audit import audit
from counterfoil.pipeline.deliver import Deliverer
from counterfoil.pipeline.rebuild import EPOCH_GROUPS, Places, Rebuilt, put_in_place, rebuild
from counterfoil.pipeline.replacements import Replacements
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.positions import DirectoryId
from tests.destinations.lake import LEDGER
from tests.destinations.memory import MemoryDestination
from tests.pipeline.frames import MemoryQueue, Row

ONE, TWO = DirectoryId(b"writer-1"), DirectoryId(b"writer-2")
SETTINGS = LedgerSettings(cache_bytes=8 * 1024 * 1024, write_buffer_bytes=4 * 1024 * 1024)
PIPELINE = PipelineSettings(group_rows=4)


class House:
    """A queue and destinations that outlive ledgers."""

    def __init__(self, root: Path, *destinations: MemoryDestination) -> None:
        self.queue = MemoryQueue()
        self.places = Places(root / "ledger", root / "quarantine")
        self.destinations = destinations or (MemoryDestination("a"), MemoryDestination("b"))
        self._now_ms = 1_000

    def clock_ms(self) -> int:
        self._now_ms += 1
        return self._now_ms

    def receive(self, *rows: Row | str, writer: DirectoryId = ONE) -> None:
        """Let a request's rows lie in the queue."""
        made = [row if isinstance(row, Row) else Row(row) for row in rows]
        self.queue.append(writer, "web", made, received_at_ms=self.clock_ms())

    def run(self, delivering: Iterable[str] = ("a", "b")) -> None:
        """A life of the pipeline: everything is settled, and delivered to some of the destinations."""
        ledger = Ledger.open(self.places.ledger, SETTINGS, LEDGER)
        try:
            for destination in self.destinations:
                ledger.register_destination(destination.name)
            settler = Settler(self.queue, ledger, PIPELINE, self.clock_ms)
            replacements = Replacements(ledger, self.queue, self.clock_ms)
            while settler.step():
                replacements.step()
            for _ in range(2):
                for destination in self.destinations:
                    if destination.name in delivering:
                        self._deliver(ledger, destination)
                for _ in range(ledger.last_group() % EPOCH_GROUPS + 1):
                    replacements.step()
        finally:
            ledger.close()

    def _deliver(self, ledger: Ledger, destination: MemoryDestination) -> None:
        settings = DeltaSettings(name=destination.name, batch_seconds=0)
        deliverer = Deliverer(destination, ledger, self.queue, settings, clock_ms=self.clock_ms)
        deliverer.open()
        while any(group.routed_to(destination.name) for group in ledger.groups(ledger.cursor(destination.name), 1000)):
            deliverer.step()

    def lose_ledger(self) -> None:
        shutil.rmtree(self.places.ledger)

    def rebuild(self, *, assume_delivered: bool = False) -> Rebuilt:
        files = RealFiles()
        rebuilt = rebuild(
            self.places, LEDGER, self.queue, self.destinations, SETTINGS, PIPELINE, files,
            assume_delivered=assume_delivered, clock_ms=self.clock_ms,
        )  # fmt: skip
        put_in_place(self.places, LEDGER, files, self.clock_ms())
        return rebuilt

    def source(self, *, dead: int = 0) -> SourceCounts:
        """The books of the one source, after an audit that balances; so many rows are dead at each destination."""
        ledger = LedgerReader.open(self.places.ledger, SETTINGS, LEDGER)
        try:
            found = audit(ledger, self.queue, {each.name: each.held for each in self.destinations if each.keeps_cursor})
            assert found.is_balanced, found
            assert all((each.dead, each.pending) == (dead, 0) for each in found.destinations)
            return found.sources[0].counted
        finally:
            ledger.close()

    def ids(self) -> list[list[str]]:
        """What lies at each destination."""
        return [sorted(destination.ids()) for destination in self.destinations]
