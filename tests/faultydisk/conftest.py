from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from counterfoil.faultydisk.disk import FaultyDisk
from tests.faultydisk.mounting import mounted


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultyDisk]:
    """A disk at `tmp_path / "disk"`."""
    with mounted(tmp_path / "disk", seed=1) as disk:
        yield disk
