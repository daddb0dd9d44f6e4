"""Where a frame or a row lies in the queue; a leaf that queue, ledger and pipeline share.

A packed frame position is 16 bytes, big-endian so that positions of one directory sort as they were written:

    0   8   random id of the writer's directory
    8   4   segment number
    12  4   offset in the segment, in units of 8 bytes (frames are aligned to 8)

A packed row position is that and 2 bytes more: the row's index in its frame.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, NewType

DirectoryId = NewType("DirectoryId", bytes)
"""The 8 random bytes made when a writer's directory is made."""

SegmentNumber = NewType("SegmentNumber", int)
"""From 1; a number never repeats in its directory."""

FRAME_ALIGNMENT = 8
FRAME_POSITION_BYTES = 16
ROW_POSITION_BYTES = 18

_FRAME = struct.Struct(">8sII")
_ROW = struct.Struct(">8sIIH")


class FramePosition(NamedTuple):
    """The place of a frame: `offset` is in bytes from the segment's beginning, a multiple of 8."""

    directory: DirectoryId
    segment: SegmentNumber
    offset: int

    def pack(self) -> bytes:
        return _FRAME.pack(self.directory, self.segment, self.offset // FRAME_ALIGNMENT)

    @classmethod
    def unpack(cls, packed: bytes) -> FramePosition:
        directory, segment, units = _FRAME.unpack(packed)
        return cls(DirectoryId(directory), SegmentNumber(segment), units * FRAME_ALIGNMENT)

    def __str__(self) -> str:
        return f"{self.directory.hex()}/{self.segment}@{self.offset}"


class RowPosition(NamedTuple):
    """The place of a row: its frame, and its index in that frame from 0."""

    frame: FramePosition
    row_index: int

    def pack(self) -> bytes:
        directory, segment, offset = self.frame
        return _ROW.pack(directory, segment, offset // FRAME_ALIGNMENT, self.row_index)

    @classmethod
    def unpack(cls, packed: bytes) -> RowPosition:
        directory, segment, units, row_index = _ROW.unpack(packed)
        frame = FramePosition(DirectoryId(directory), SegmentNumber(segment), units * FRAME_ALIGNMENT)
        return cls(frame, row_index)

    def __str__(self) -> str:
        return f"{self.frame}#{self.row_index}"
