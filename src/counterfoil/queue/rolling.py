"""A segment closed on purpose: its writer is asked to begin the next one.

Writer and asker are processes of their own, so what is asked stands in the writer's directory as a file, `roll`, of no
content. The writer looks for it about once a second, and removes it when the segment it writes to holds nothing from
before. Where nobody writes, whoever holds the data directory opens the writer's directory and closes it again, as a
life of a moment: what an earlier one left is closed, and a fresh segment begun.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from counterfoil.files import Files
from counterfoil.queue.directory import take_idle_directory
from counterfoil.queue.quarantine import Quarantine
from counterfoil.queue.recovery import close_leftovers
from counterfoil.queue.tail import SegmentTail

ROLL_NAME = "roll"


def ask_for_roll(path: Path, files: Files) -> None:
    """Ask the writer of a directory for a fresh segment; asking twice is harmless. Raises OSError."""
    # Not flushed: it is asked again as long as it is not done.
    with suppress(FileExistsError):
        os.close(files.create(path / ROLL_NAME))


def has_request(path: Path) -> bool:
    """Whether somebody asks for a fresh segment in a directory."""
    return (path / ROLL_NAME).exists()


def remove_request(path: Path, files: Files) -> None:
    """Say that it was begun. Raises OSError."""
    with suppress(FileNotFoundError):
        files.remove(path / ROLL_NAME)


def roll_idle(path: Path, files: Files, quarantine: Path, clock_ms: Callable[[], int]) -> bool:
    """Begin a fresh segment in a directory; False while a writer holds it. Raises OSError, StartRefused."""
    directory = take_idle_directory(path, files, quarantine)
    if directory is None:
        return False
    try:
        tail = SegmentTail(
            directory, files, close_leftovers(directory, files, Quarantine(quarantine, files, clock_ms)), clock_ms
        )
        try:
            tail.begin()
        finally:
            tail.close()
        remove_request(path, files)
    finally:
        directory.release()
    return True
