"""Room on the disk: below the reserve the queue takes nothing, and half of the reserve is the ledger's alone.

A table on the same disk would fill what the queue leaves free. With no room for the ledger nothing could be settled or
delivered any more, nor removed: the disk would stay full.
"""

from __future__ import annotations

from pathlib import Path

from counterfoil.errors import DestinationDown
from counterfoil.files import Files
from counterfoil.queue.settings import QueueSettings


class Room:
    """Looks before each delivery whether a destination on the data directory's disk may write there."""

    def __init__(self, data_dir: Path, files: Files, settings: QueueSettings) -> None:
        self._data_dir = data_dir
        self._files = files
        self._settings = settings

    def is_shared_with(self, path: Path) -> bool:
        """Whether a path, there already or not, lies on the data directory's disk."""
        there = next(each for each in (path, *path.absolute().parents) if each.exists())
        return there.stat().st_dev == self._data_dir.stat().st_dev

    def look(self) -> None:
        """Raises DestinationDown when what is free is the ledger's; OSError."""
        reserve_bytes = self._settings.reserve_of(self._files.disk_bytes(self._data_dir))
        if self._files.free_bytes(self._data_dir) < reserve_bytes // 2:
            raise DestinationDown("less than half of the disk reserve is left, and that is the ledger's: make room")
