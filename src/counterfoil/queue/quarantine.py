"""What was damaged, byte for byte, with a note why.

Two files a find, named after its place, so that who finds it again writes nothing:

    <directory id>-<segment>-<offset>.bytes     the bytes as they stood; none when there were none left
    <directory id>-<segment>-<offset>.json      `Note`

Nothing here is read by the server again; it is for a person. The bytes hold rows, so only the owner can read them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from counterfoil.files import Files
from counterfoil.positions import FramePosition
from counterfoil.queue.segment import SegmentFile

COPY_BYTES = 1024 * 1024


def wall_clock_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class Note(msgspec.Struct, frozen=True):
    """Why bytes were set aside, and from where."""

    reason: str
    file: str
    directory: str
    segment: int
    offset: int
    copied_bytes: int
    found_at_ms: int


class Quarantine:
    """Takes copies of damaged bytes; the note is written last, so where it stands the copy is whole."""

    def __init__(self, path: Path, files: Files, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self.path = path
        self._files = files
        self._clock_ms = clock_ms
        self._lock = threading.Lock()

    def set_aside(self, segment: SegmentFile, offset: int, end: int, reason: str) -> None:
        """Copy a segment's bytes from `offset` to `end`, or to the file's end. Raises OSError."""
        with self._lock:
            self._copy(FramePosition(segment.directory, segment.number, offset), segment, end, reason)

    def note_missing(self, position: FramePosition, reason: str) -> None:
        """Note that nothing is left of a segment's bytes. Raises OSError."""
        with self._lock:
            self._copy(position, None, position.offset, reason)

    def _copy(self, position: FramePosition, segment: SegmentFile | None, end: int, reason: str) -> None:
        name = f"{position.directory.hex()}-{position.segment}-{position.offset}"
        if (self.path / f"{name}.json").exists():
            return
        self._files.make_dir(self.path)
        copied_bytes = 0 if segment is None else self._copy_bytes(segment, position.offset, end, name)
        note = Note(
            reason=reason,
            file="" if segment is None else f"{segment.path.parent.name}/{segment.path.name}",
            directory=position.directory.hex(),
            segment=position.segment,
            offset=position.offset,
            copied_bytes=copied_bytes,
            found_at_ms=self._clock_ms(),
        )
        self._files.write_whole(self.path / f"{name}.json", msgspec.json.encode(note) + b"\n")

    def _copy_bytes(self, segment: SegmentFile, offset: int, end: int, name: str) -> int:
        end = min(end, segment.size())
        if end <= offset:
            return 0
        target = self.path / f"{name}.bytes"
        if target.exists():
            self._files.remove(target)  # A crash cut this copy short, or there would be a note.
        descriptor = self._files.create(target)
        try:
            for at in range(offset, end, COPY_BYTES):
                self._files.append(descriptor, segment.read(at, min(COPY_BYTES, end - at)))
            self._files.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        return end - offset
