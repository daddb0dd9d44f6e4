"""How full the disk is, and what of it is ours."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from counterfoil.files import Files
from counterfoil.queue.settings import QueueSettings

LOOK_SECONDS = 10.0
"""How often the files are counted anew, however many ask: a lake may have thousands."""

_BLOCK_BYTES = 512

PARTS = ("queue", "ledger", "lake", "quarantine")
"""The directories that are counted, by their names below the data directory."""


class DiskFacts(msgspec.Struct, frozen=True):
    """The disk of the data directory, in bytes."""

    total_bytes: int
    free_bytes: int
    """What an unprivileged process may still write."""
    reserve_bytes: int
    """Below this the queue refuses requests."""
    used_bytes: Mapping[str, int]
    """What the parts of the data directory take on the disk; those that are not there are left out."""


class Disk:
    """Looks at the disk of a data directory; safe to use from several threads."""

    def __init__(
        self, data_dir: Path, files: Files, settings: QueueSettings, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._data_dir = data_dir
        self._files = files
        self._settings = settings
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._kept: tuple[float, DiskFacts] | None = None

    def read(self) -> DiskFacts | None:
        """What there is now, or was LOOK_SECONDS ago at most; None when the disk can't be looked at."""
        with self._lock:
            now = self._monotonic()
            if self._kept is None or now - self._kept[0] > LOOK_SECONDS:
                try:
                    self._kept = (now, self._look())
                except OSError:
                    return None
            return self._kept[1]

    def _look(self) -> DiskFacts:
        total = self._files.disk_bytes(self._data_dir)
        used = {part: bytes_below(self._data_dir / part) for part in PARTS if (self._data_dir / part).is_dir()}
        return DiskFacts(total, self._files.free_bytes(self._data_dir), self._settings.reserve_of(total), used)


def bytes_below(path: Path) -> int:
    """What the files below a directory take on the disk; what is removed meanwhile is left out."""
    found = 0
    waiting = [path]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        found += _taken(entry)
        except FileNotFoundError:
            continue
    return found


def _taken(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
    except FileNotFoundError:
        return 0
