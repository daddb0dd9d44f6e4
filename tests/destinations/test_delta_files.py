"""Data files on a local disk: what a failure leaves of one."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from counterfoil.destinations.delta_columns import tables_by_day
from counterfoil.destinations.delta_files import TableFiles
from tests.destinations.rows import delivery
from tests.faults.files import FaultyFiles


def test_a_file_that_was_abandoned_writes_nothing_into_another(tmp_path: Path) -> None:
    """Its writer still holds bytes when it is collected, and the descriptor's number is another file's by then."""
    files = FaultyFiles()
    table_files = TableFiles(tmp_path, files, iter(("failed", "next")).__next__)
    ((day, rows),) = tables_by_day(delivery(1).rows)
    files.break_down("append", 1)
    failed = table_files.begin(day)
    failed.write(rows)
    with pytest.raises(OSError, match="Input/output"):
        failed.finish()
    number = failed._descriptor
    failed.abandon()
    files.heal()

    other = files.create(tmp_path / "other")
    assert other == number, "the system gives the lowest number that is free"
    del failed
    gc.collect()

    assert os.fstat(other).st_size == 0
    os.close(other)
