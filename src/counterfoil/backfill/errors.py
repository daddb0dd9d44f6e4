"""What stops a backfill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from counterfoil.errors import CounterfoilError


class BackfillError(CounterfoilError):
    """The backfill can't go on: the message says what and where, and what to do."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What a full disk or a missing directory raises becomes a BackfillError that names the file."""
    try:
        yield
    except OSError as error:
        raise BackfillError(f"{path}: can't be written ({error.strerror or type(error).__name__})") from None
