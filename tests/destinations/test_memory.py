from __future__ import annotations

import pytest

from tests.destinations.conformance import CursorKeepingDestination, Make
from tests.destinations.memory import MemoryDestination, Shelf


class TestConformance(CursorKeepingDestination):
    """The fake keeps the promises of the real ones."""

    @pytest.fixture
    def make(self) -> Make:
        shelf = Shelf()
        return lambda: MemoryDestination(shelf=shelf)
