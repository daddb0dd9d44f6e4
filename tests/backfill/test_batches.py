"""Records into batches, against a plain loop that takes one record after the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from counterfoil.backfill.batches import Batch, Batcher
from counterfoil.backfill.reading import Records
from counterfoil.backfill.rows import Made

# A record is the length of its row; one of length 0 makes none.
RUNS = st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=10)


def make(originals: list[bytes]) -> Made:
    """Rows as they are; what is empty is a fault."""
    return Made(originals, {place: "empty" for place, original in enumerate(originals) if not original})


def batches_of(runs: list[list[int]], records_max: int, bytes_max: int) -> list[Batch]:
    """What a batcher makes of records in runs, numbered from 1."""
    batcher = Batcher(0, make, records_max, bytes_max)
    batches: list[Batch] = []
    number = 1
    for run in runs:
        batches += batcher.add(Records(range(number, number + len(run)), [b"x" * length for length in run]))
        number += len(run)
    return [*batches, *batcher.rest()]


def expected_of(lengths: list[int], records_max: int, bytes_max: int) -> list[list[int]]:
    """Numbers of the records of each batch: one more fits while neither bound is passed."""
    batches: list[list[int]] = []
    size_bytes = 0
    for number, length in enumerate(lengths, 1):
        size_bytes += length + 1
        if not batches or len(batches[-1]) == records_max or size_bytes > bytes_max:
            batches.append([])
            size_bytes = length + 1
        batches[-1].append(number)
    return batches


@given(RUNS, st.integers(1, 12), st.integers(1, 80))
def test_batches_are_the_same_wherever_a_run_ends(runs: list[list[int]], records_max: int, bytes_max: int) -> None:
    """Each is as full as its bounds let it be, and every record stands in one, as a row or as a fault."""
    lengths = [length for run in runs for length in run]
    found = batches_of(runs, records_max, bytes_max)
    assert [list(range(one.first, one.last + 1)) for one in found] == expected_of(lengths, records_max, bytes_max)
    for batch in found:
        numbers = range(batch.first, batch.last + 1)
        assert list(batch.rows.numbers) == [number for number in numbers if lengths[number - 1]]
        assert batch.rows.bodies == batch.rows.originals == [b"x" * lengths[n - 1] for n in batch.rows.numbers]
        assert [fault.number for fault in batch.faults] == [number for number in numbers if not lengths[number - 1]]
        assert batch.original_bytes == sum(lengths[number - 1] for number in numbers)


def test_a_row_larger_than_a_batch_goes_alone() -> None:
    """The server says what it takes."""
    assert [(one.first, one.last) for one in batches_of([[5, 100, 5]], 10, 20)] == [(1, 1), (2, 2), (3, 3)]
