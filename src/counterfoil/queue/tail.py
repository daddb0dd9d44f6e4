"""The tail of a writer's directory: the segment that is written to now.

Knows nothing of threads and futures. Where an operation fails the segment is given up for good (I4): after a failed
fdatasync the kernel may call pages clean that never reached the disk, so nothing may be written or flushed there
again. The next `begin` names the length that was flushed before, and past it nothing is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from counterfoil.errors import QueueRefused
from counterfoil.files import Files
from counterfoil.positions import FramePosition, SegmentNumber
from counterfoil.queue.directory import WriterDirectory
from counterfoil.queue.frame import FrameDraft, seal_frame
from counterfoil.queue.published import PublishedPlace
from counterfoil.queue.recovery import Left
from counterfoil.queue.segment import SEGMENT_HEADER_BYTES, SegmentHeader


class SegmentTail:
    """Writes frames to the end of a directory. Not open after it is made, nor after a failure: `begin` opens it."""

    def __init__(self, directory: WriterDirectory, files: Files, left: Left, clock_ms: Callable[[], int]) -> None:
        self._directory = directory
        self._files = files
        self._clock_ms = clock_ms
        self._published = PublishedPlace(directory.published_path, files, directory.id)
        self._descriptor = -1
        self._number = left.newest
        self._flushed = left.flushed
        self._last_number = left.last_number

    @property
    def is_open(self) -> bool:
        return self._descriptor >= 0

    @property
    def number(self) -> SegmentNumber:
        """The number of the newest segment that was begun."""
        return self._number

    @property
    def flushed(self) -> int:
        """The flushed length of that segment."""
        return self._flushed

    def begin(self) -> None:
        """Close the segment and begin a fresh one, durable and published. Raises OSError: there is none open then."""
        self._give_up()
        # Counted before anything can fail: a number whose header may have been flushed never comes again.
        self._last_number = SegmentNumber(self._last_number + 1)
        number = self._last_number
        header = SegmentHeader(
            number=number,
            directory=self._directory.id,
            previous=self._number,
            previous_flushed=self._flushed,
            begun_at_ms=self._clock_ms(),
        )
        path = self._directory.segment_path(number)
        descriptor = self._files.create(path)
        try:
            self._files.append(descriptor, header.pack())
            self._files.fdatasync(descriptor)
            self._files.sync_dir(self._directory.path)
            self._published.publish(number, SEGMENT_HEADER_BYTES)
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):
                self._files.remove(path)
            raise
        self._descriptor = descriptor
        self._number = number
        self._flushed = SEGMENT_HEADER_BYTES
        with suppress(OSError):
            # Only so that a power cut leaves the newest number behind; where frames are durable the headers tell.
            self._published.flush()

    def write(self, drafts: Sequence[FrameDraft]) -> list[FramePosition]:
        """Make frames durable and published: one write, one fdatasync.

        Raises OSError when that can't be known of any of them; the segment is given up.
        """
        if not self.is_open:
            raise QueueRefused("no segment is open")
        directory, number, flushed = self._directory.id, self._number, self._flushed
        positions: list[FramePosition] = []
        parts: list[bytes] = []
        end = flushed
        for draft in drafts:
            position = FramePosition(directory, number, end)
            sealed = seal_frame(draft, position, flushed)
            positions.append(position)
            parts += sealed
            end += len(sealed[0]) + len(sealed[1]) + len(sealed[2])
        try:
            self._files.append(self._descriptor, b"".join(parts))
            self._files.fdatasync(self._descriptor)
            self._published.publish(number, end)
        except BaseException:
            self._give_up()
            raise
        self._flushed = end
        return positions

    def close(self) -> None:
        """Let go of the files; closing twice is harmless."""
        if self.is_open:
            with suppress(OSError):
                self._published.flush()
        self._give_up()
        self._published.close()

    def _give_up(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
