"""What stops a backfill."""

from __future__ import annotations

from counterfoil.errors import CounterfoilError


class BackfillError(CounterfoilError):
    """The backfill can't go on: the message says what and where, and what to do."""
