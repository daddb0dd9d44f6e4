"""A Delta destination in a directory of the test, and how the tests read its table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
from deltalake import DeltaTable

from counterfoil.destinations.delta import DeltaDestination
from counterfoil.destinations.delta_address import TableAddress
from counterfoil.destinations.settings import DeltaSettings
from counterfoil.files import Files, RealFiles

LEDGER = UUID("018f0000-0000-7000-8000-000000000001")


class Clock:
    """The wall clock, which a test can put forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


def lake(
    root: Path, *, ledger_id: UUID = LEDGER, clock: Clock | None = None, files: Files | None = None, **settings: Any
) -> DeltaDestination:
    """The destination `lake` with its table below `root`."""
    return DeltaDestination(
        DeltaSettings(name="lake", **settings),
        address=address(root),
        ledger_id=ledger_id,
        files=files or RealFiles(),
        quarantine=root / "quarantine",
        clock_ms=clock or Clock(),
    )


def address(root: Path) -> TableAddress:
    """Where the table lies."""
    return TableAddress(root / "lake", "")


def table(root: Path) -> DeltaTable:
    """The table as anybody opens it."""
    return DeltaTable(root / "lake")


def read(root: Path) -> list[dict[str, Any]]:
    """All rows of the table, by `seq`, as another reader sees them."""
    rows: list[dict[str, Any]] = pa.table(table(root).to_pyarrow_table()).to_pylist()
    return sorted(rows, key=lambda row: row["seq"])


def seqs(root: Path) -> list[int]:
    """The `seq` of every row of the table, sorted."""
    return [row["seq"] for row in read(root)]


def log_path(root: Path) -> Path:
    """The table's log."""
    return root / "lake" / "_delta_log"


def newest_entry(root: Path) -> Path:
    """The log entry of the newest version."""
    return max(log_path(root).glob("*.json"))


def data_files(root: Path) -> set[str]:
    """Every Parquet file of the table's directory, whether the log names it or not."""
    return {path.relative_to(root / "lake").as_posix() for path in (root / "lake").glob("received_date=*/*.parquet")}
