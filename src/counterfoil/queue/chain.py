"""The chain of a directory's segments: which belong to it, in which order, and where each of them ends.

The newest segment ends at the published offset, every other at the length that the header after it names. So the
chain is walked from the newest back, each header naming the one before it; what no header names was never begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from counterfoil.errors import FrameDamaged
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue.published import PUBLISHED_NAME, PublishedView
from counterfoil.queue.recovery import plan_tail, scan_frames
from counterfoil.queue.segment import (
    SEGMENT_HEADER_BYTES,
    SegmentFile,
    SegmentHeader,
    segment_name,
    segment_numbers,
)

NOTHING = SegmentNumber(0)


class Link(msgspec.Struct, frozen=True):
    """A segment of the chain."""

    limit: int | None
    """Where it ends; None when the header that would tell is damaged or lost: at the end of its file."""
    following: SegmentNumber | None
    """The one after it; None: it is the newest."""
    is_missing: bool
    """A header or the published place names it, and it is not there."""


Links = dict[SegmentNumber, Link]


def link_segments(
    numbers: Sequence[SegmentNumber], end: FramePosition, header_of: Callable[[SegmentNumber], SegmentHeader | None]
) -> Links:
    """The chain that ends at `end`, oldest first, of the segments that are there.

    The chain begins after the last one that retention removed: what is missing further on was lost.
    """
    there = [number for number in numbers if number <= end.segment]
    links: Links = {}
    number = end.segment
    limit: int | None = end.offset
    following: SegmentNumber | None = None
    while number:
        is_missing = number not in there
        older = [other for other in there if other < number]
        if is_missing and following is not None and not older:
            break
        links[number] = Link(limit=limit, following=following, is_missing=is_missing)
        header = None if is_missing else header_of(number)
        following = number
        if header is not None:
            number, limit = header.previous, header.previous_flushed
        else:
            number, limit = max(older, default=NOTHING), None
    return dict(sorted(links.items()))


class Chain:
    """A directory's chain as it stands on disk; `refresh` looks again. Shared by threads."""

    def __init__(self, path: Path, number: int, directory: DirectoryId) -> None:
        self.path = path
        self.number = number
        self.directory = directory
        self._published = PublishedView(path / PUBLISHED_NAME, directory)
        self._headers: dict[SegmentNumber, SegmentHeader] = {}
        self._proven: tuple[SegmentNumber, int, int] = (NOTHING, 0, 0)
        # Both in one reference, so that a thread never sees the end of one chain with the links of another.
        self._state: tuple[FramePosition, Links] = (FramePosition(directory, NOTHING, 0), {})

    def refresh(self, *, is_stale: bool = False) -> tuple[FramePosition, Links]:
        """Where everything durable ends, and the links; looked up anew when a segment was begun or `is_stale`.

        Raises StartRefused when a segment is of a newer version.
        """
        end = self._published.place() or self._proven_end()
        before, links = self._state
        if is_stale or end.segment != before.segment:
            links = link_segments(segment_numbers(self.path), end, self._header)
        elif end != before:
            links = {**links, end.segment: msgspec.structs.replace(links[end.segment], limit=end.offset)}
        self._state = (end, links)
        return self._state

    def open(self, number: SegmentNumber) -> SegmentFile:
        """Raises FileNotFoundError."""
        return SegmentFile(self.path / segment_name(number), self.directory, number)

    def _header(self, number: SegmentNumber) -> SegmentHeader | None:
        header = self._headers.get(number)
        if header is None:
            try:
                header = self._headers[number] = self.open(number).header()
            except (FrameDamaged, FileNotFoundError):
                return None
        return header

    def _proven_end(self) -> FramePosition:
        """Where durable frames end when nothing is published: what the newest segment's frames say of themselves."""
        for number in reversed(segment_numbers(self.path)):
            if self._header(number) is None:
                continue
            segment = self.open(number)
            size = segment.size()
            # The scan of a whole segment, once a flush at most.
            if self._proven[:2] != (number, size):
                tail = plan_tail(scan_frames(segment, SEGMENT_HEADER_BYTES), is_flushed=False)
                self._proven = (number, size, tail.flushed)
            return FramePosition(self.directory, number, self._proven[2])
        return FramePosition(self.directory, NOTHING, 0)
