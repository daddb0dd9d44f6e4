"""A destination in memory, for tests that need to say when it fails; it passes the suite of the real ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from counterfoil.contract.subject import Subject
from counterfoil.destinations.interface import DeliveredRow, Delivery, HeldRows, Receipt, RefusedRow


class Shelf:
    """What outlives a life of the destination."""

    def __init__(self) -> None:
        self.rows: list[DeliveredRow] = []
        self.receipts: list[Receipt] = []


class MemoryDestination:
    """Takes rows onto a shelf; `before` and `after` its commit a test may raise what it likes."""

    keeps_cursor = True

    def __init__(self, name: str = "shelf", shelf: Shelf | None = None) -> None:
        self.name = name
        self.shelf = shelf or Shelf()
        self.deliveries: list[Delivery] = []
        self.opened = self.closed = 0
        self.before: Callable[[Delivery], None] = lambda _: None
        self.after: Callable[[Delivery], None] = lambda _: None
        self.tending = 0
        self.refuses: dict[str, str] = {}
        """Reasons by distinctId; such rows are dead."""

    def open(self) -> Receipt | None:
        self.opened += 1
        return self.shelf.receipts[-1] if self.shelf.receipts else None

    def deliver(self, delivery: Delivery) -> Receipt:
        self.before(delivery)
        self.deliveries.append(delivery)
        dead = tuple(
            RefusedRow(row.seq, self.refuses[row.distinct_id])
            for row in delivery.rows
            if row.distinct_id in self.refuses
        )
        taken = [row for row in delivery.rows if row.distinct_id not in self.refuses]
        commit = str(len(self.shelf.receipts) + 1)
        receipt = Receipt(delivery.first_group, delivery.last_group, len(taken), commit, dead)
        self.shelf.rows += taken
        self.shelf.receipts.append(receipt)
        self.after(delivery)
        return receipt

    def tend(self) -> bool:
        self.tending = max(0, self.tending - 1)
        return self.tending > 0

    def close(self) -> None:
        self.closed += 1

    def check(self) -> list[str]:
        return []

    def counts(self) -> dict[str, int]:
        return dict(Counter(row.source for row in self.shelf.rows))

    def held(self, first_seq: int = 0, last_seq: int | None = None) -> Iterator[HeldRows]:
        for row in self.shelf.rows:
            if row.seq >= first_seq and (last_seq is None or row.seq <= last_seq):
                yield HeldRows(row.source, [row.seq], [row.distinct_id])

    def seqs_of(self, subject: Subject) -> Sequence[int] | None:
        return [row.seq for row in self.shelf.rows if is_of(row, subject)]

    def erase(self, subject: Subject) -> int | None:
        before = len(self.shelf.rows)
        self.shelf.rows = [row for row in self.shelf.rows if not is_of(row, subject)]
        return before - len(self.shelf.rows)

    def ids(self) -> list[str]:
        """The distinctId of each row on the shelf, in the order of delivery."""
        return [row.distinct_id for row in self.shelf.rows]


def is_of(row: DeliveredRow, subject: Subject) -> bool:
    """Whether a row is a subject's."""
    if subject.source not in (None, row.source):
        return False
    return row.user_id == subject.user_id if subject.distinct_id is None else row.distinct_id == subject.distinct_id
