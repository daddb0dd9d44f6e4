"""A segment: one file of a writer's directory, a header and then frames, aligned to 8 bytes.

The header, little-endian, 64 bytes; its first 18 keep their meaning in every later version:

    offset  bytes  field
    0       8      mark, SEGMENT_MARK
    8       8      checksum: xxh3-64 over bytes 0 to 8 and 16 to 64
    16      2      format version, 1
    18      2      zero
    20      4      segment: the file's own number
    24      8      the directory's id
    32      4      the number of the segment before it; 0 is none
    36      4      zero
    40      8      the flushed length of the segment before it: past it nothing there is ever read
    48      8      begun at, ms since the Unix epoch
    56      8      zero

The number before it need not be one less: a segment that could not be begun leaves its number unused.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import msgspec
import xxhash

from counterfoil.errors import FrameDamaged, StartRefused
from counterfoil.positions import FRAME_ALIGNMENT, DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue.frame import FRAME_MARK, FRAME_PREFIX_BYTES, Frame, frame_length, parse_frame

SEGMENT_MARK = b"\xf0CFSEG\x0d\x0a"
SEGMENT_VERSION = 1
SEGMENT_HEADER_BYTES = 64
SEGMENT_SUFFIX = ".seg"

SEARCH_BYTES = 1024 * 1024
_BLOCK_BYTES = 4096

_AFTER_CHECKSUM = struct.Struct("<HHI8sIIQqQ")


class SegmentHeader(msgspec.Struct, frozen=True):
    """What a segment says of itself and of the one before it."""

    number: SegmentNumber
    directory: DirectoryId
    previous: SegmentNumber
    """0 when it is the first."""
    previous_flushed: int
    begun_at_ms: int

    def pack(self) -> bytes:
        rest = _AFTER_CHECKSUM.pack(
            SEGMENT_VERSION,
            0,
            self.number,
            self.directory,
            self.previous,
            0,
            self.previous_flushed,
            self.begun_at_ms,
            0,
        )
        return SEGMENT_MARK + _checksum(rest) + rest


class SegmentFile:
    """A segment open for reading; it closes when nobody holds it any more, so that threads may share it."""

    __slots__ = ("_descriptor", "directory", "number", "path")

    def __init__(self, path: Path, directory: DirectoryId, number: SegmentNumber) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.path = path
        self.directory = directory
        self.number = number

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the file's end; blocks that the disk can't read are zeros."""
        parts = []
        while size > 0:
            try:
                part = os.pread(self._descriptor, size, offset)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                part = self._read_around_bad_blocks(offset, min(size, max(0, self.size() - offset)))
            if not part:
                break
            # Before a bad block there may be a part, and no error yet: what follows it is asked for again.
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_strictly(self, offset: int, size: int) -> bytes:
        """`size` bytes as they are on the disk. Raises OSError, also where there are fewer."""
        parts = []
        while size > 0:
            part = os.pread(self._descriptor, size, offset)
            if not part:
                raise OSError(errno.EIO, "shorter than it was", str(self.path))
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def is_at(self, path: Path) -> bool:
        """Whether this is the file that stands at a path now."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(status, os.fstat(self._descriptor))

    def forget_cached(self) -> None:
        """Have the next reads come from the disk: after a failed flush the cache may hold what the disk never got."""
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def header(self) -> SegmentHeader:
        """Raises FrameDamaged when there is none, or it is another directory's; StartRefused when it is newer."""
        header = parse_header(self.read(0, SEGMENT_HEADER_BYTES), self.path)
        if header.directory != self.directory:
            raise FrameDamaged("segment of another directory")
        if header.number != self.number:
            raise FrameDamaged("segment of another number")
        return header

    def frame_at(self, offset: int, limit: int) -> Frame:
        """The frame that begins at `offset` and ends at `limit` or before. Raises FrameDamaged."""
        position = FramePosition(self.directory, self.number, offset)
        length = frame_length(self.read(offset, FRAME_PREFIX_BYTES))
        if offset + length > limit:
            raise FrameDamaged("reaches past its segment's end")
        return parse_frame(self.read(offset, length), 0, position)

    def frames_from(self, offset: int, limit: int, bytes_max: int) -> tuple[list[Frame], int]:
        """The whole frames that stand one after the other within the next `bytes_max`, and where they end."""
        buffer = self.read(offset, min(limit - offset, bytes_max))
        directory, number = self.directory, self.number
        frames: list[Frame] = []
        at = 0
        while at < len(buffer):
            try:
                frame = parse_frame(buffer, at, FramePosition(directory, number, offset + at))
            except FrameDamaged:
                break
            frames.append(frame)
            at += frame.frame_bytes
        return frames, offset + at

    def next_frame(self, offset: int, limit: int) -> Frame | None:
        """The first whole frame that begins at `offset` or later, wherever its mark stands."""
        limit = min(limit, self.size())
        while offset < limit:
            window = self.read(offset, min(SEARCH_BYTES, limit - offset))
            at = window.find(FRAME_MARK)
            while at >= 0:
                if at % FRAME_ALIGNMENT == 0:
                    try:
                        return self.frame_at(offset + at, limit)
                    except FrameDamaged:
                        pass
                at = window.find(FRAME_MARK, at + 1)
            # A mark is as long as the alignment, so none lies across the end of a window.
            offset += SEARCH_BYTES
        return None

    def _read_around_bad_blocks(self, offset: int, size: int) -> bytes:
        blocks = []
        while size > 0:
            wanted = min(size, _BLOCK_BYTES - offset % _BLOCK_BYTES)
            try:
                block = os.pread(self._descriptor, wanted, offset)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                block = bytes(wanted)
            if not block:
                break
            blocks.append(block)
            offset += len(block)
            size -= len(block)
        return b"".join(blocks)


def parse_header(buffer: bytes, path: Path) -> SegmentHeader:
    """The header of the segment at `path`. Raises FrameDamaged with the reason, StartRefused when it is newer."""
    if len(buffer) < SEGMENT_HEADER_BYTES:
        raise FrameDamaged("header truncated")
    if buffer[:8] != SEGMENT_MARK:
        raise FrameDamaged("no segment mark")
    rest = buffer[16:SEGMENT_HEADER_BYTES]
    if _checksum(rest) != buffer[8:16]:
        raise FrameDamaged("header checksum differs")
    version, _, number, directory, previous, _, previous_flushed, begun_at_ms, _ = _AFTER_CHECKSUM.unpack(rest)
    if version > SEGMENT_VERSION:
        raise StartRefused(
            f"{path} has format version {version}, this Counterfoil reads versions up to {SEGMENT_VERSION}: "
            "run the version that wrote it, or a newer one"
        )
    return SegmentHeader(
        number=SegmentNumber(number),
        directory=DirectoryId(directory),
        previous=SegmentNumber(previous),
        previous_flushed=previous_flushed,
        begun_at_ms=begun_at_ms,
    )


def segment_name(number: SegmentNumber) -> str:
    """The name of a segment's file; names sort as numbers do."""
    return f"{number:010d}{SEGMENT_SUFFIX}"


def segment_numbers(directory: Path) -> list[SegmentNumber]:
    """The numbers of the segment files of a directory, in order."""
    stems = (path.stem for path in directory.iterdir() if path.suffix == SEGMENT_SUFFIX)
    return sorted(SegmentNumber(int(stem)) for stem in stems if len(stem) == 10 and stem.isdecimal() and stem.isascii())


def _checksum(rest: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(SEGMENT_MARK + rest).to_bytes(8, "little")
