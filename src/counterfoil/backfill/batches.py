"""Records into batches: runs of one file that are sent, answered and confirmed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import msgspec

from counterfoil.backfill.reading import Records
from counterfoil.backfill.rejected import INVALID_EVENT, Rejection
from counterfoil.backfill.rows import RowMaker


class Rows(msgspec.Struct, frozen=True):
    """Records and the JSON that is sent for them, place by place."""

    numbers: Sequence[int]
    originals: list[bytes]
    bodies: list[bytes]

    def __len__(self) -> int:
        return len(self.bodies)

    def at(self, places: Sequence[int]) -> Rows:
        """Those at some places."""
        return Rows(
            [self.numbers[place] for place in places],
            [self.originals[place] for place in places],
            [self.bodies[place] for place in places],
        )

    def rejection(self, place: int, message: str) -> Rejection:
        """The row at a place, refused."""
        return Rejection(self.numbers[place], self.originals[place], INVALID_EVENT, message)


class Batch(msgspec.Struct, frozen=True):
    """Consecutive records of one input: those that make rows, and those that make none."""

    input_index: int
    first: int
    """Number of the first record."""
    last: int
    rows: Rows
    faults: list[Rejection]
    original_bytes: int


class Batcher:
    """Gathers the records of one input until a batch is full: by records, or by the bytes of its rows."""

    def __init__(self, input_index: int, make: RowMaker, records_max: int, bytes_max: int) -> None:
        self._input_index = input_index
        self._make = make
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._begin()

    def add(self, records: Records) -> Iterator[Batch]:
        """Take records that follow those before; gives the batches that are full with them."""
        made = self._make(records.originals)
        start = 0
        while start < len(records):
            bodies = made.bodies[start : start + self._records_max - len(self._numbers)]
            fitting = self._fitting(bodies)
            self._take(records.part(start, start + fitting), bodies[:fitting])
            self._faults += [
                Rejection(records.numbers[place], records.originals[place], INVALID_EVENT, message)
                for place, message in made.faults.items()
                if start <= place < start + fitting
            ]
            if fitting < len(bodies) or len(self._numbers) == self._records_max:
                yield from self.rest()
            start += fitting

    def rest(self) -> Iterator[Batch]:
        """The batch that was begun, if one was: the records after it do not follow it, or there are none."""
        if not self._numbers:
            return
        rows = Rows(self._numbers, self._originals, self._bodies)
        if self._faults:
            rows = rows.at([place for place, body in enumerate(self._bodies) if body])
        yield Batch(
            self._input_index,
            first=self._numbers[0],
            last=self._numbers[-1],
            rows=rows,
            faults=self._faults,
            original_bytes=sum(map(len, self._originals)),
        )
        self._begin()

    def _begin(self) -> None:
        self._numbers: list[int] = []
        self._originals: list[bytes] = []
        self._bodies: list[bytes] = []
        self._faults: list[Rejection] = []
        self._body_bytes = 0

    def _take(self, records: Records, bodies: list[bytes]) -> None:
        self._numbers += records.numbers
        self._originals += records.originals
        self._bodies += bodies
        self._body_bytes += _joined_bytes(bodies)

    def _fitting(self, bodies: list[bytes]) -> int:
        """How many of the next bodies the batch has room for."""
        room = self._bytes_max - self._body_bytes
        if _joined_bytes(bodies) <= room:
            return len(bodies)
        fitting = sum(size <= room for size in accumulate(len(body) + 1 for body in bodies))
        # One that is larger than a batch is sent alone: the server says what it takes.
        return fitting if fitting or self._numbers else 1


def _joined_bytes(bodies: list[bytes]) -> int:
    """The length of bodies with a comma after each."""
    return sum(map(len, bodies)) + len(bodies)
