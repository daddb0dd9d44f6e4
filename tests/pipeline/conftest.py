"""A ledger and a queue for the pipeline's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from counterfoil.ledger import Ledger
from counterfoil.ledger.settings import LedgerSettings
from tests.pipeline.frames import MemoryQueue


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger that was just made, open for writing."""
    ledger = Ledger.open(tmp_path / "ledger", LedgerSettings(), UUID(int=7))
    yield ledger
    ledger.close()


@pytest.fixture
def queue() -> MemoryQueue:
    """A queue without frames."""
    return MemoryQueue()
