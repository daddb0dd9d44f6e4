"""Erasure: the rows of a person taken out of a closed segment, of which all else stays where it is.

A frame keeps its place and the bytes it takes, so every position that anybody holds names what it named. A segment is
written anew beside the old one, flushed, and put in its place at once:

    <number>.seg            the segment, the old one or the new one
    <number>.seg.erasing    the new one, as long as it is not whole; what a crash leaves of it is removed by the next

Rejected: writing into the frame where it lies. A power cut in the middle of that would damage the rows of others that
share the frame, which were acknowledged.

What lies past the end that the next segment's header names is read by nobody, and may be anything that a failed flush
left: it goes.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from counterfoil.contract.facts import Verdict
from counterfoil.contract.subject import Subject
from counterfoil.errors import FrameDamaged
from counterfoil.files import Files
from counterfoil.positions import FRAME_ALIGNMENT, FramePosition
from counterfoil.queue import ErasedRows
from counterfoil.queue.frame import Frame, erase_rows, parse_frame, whole_frames
from counterfoil.queue.segment import SEGMENT_HEADER_BYTES, SegmentFile

ERASING_SUFFIX = ".erasing"
SCAN_BYTES = 4 * 1024 * 1024
COPY_BYTES = 8 * 1024 * 1024

VerdictOf = Callable[[FramePosition, int], Verdict | None]
Read = Callable[[int, int], bytes]
"""Bytes of a segment, by offset and size: `SegmentFile.read_strictly`, or `read` for zeros where blocks are bad."""


class FoundRows(msgspec.Struct, frozen=True):
    """Where rows of a subject lie in a segment."""

    offsets: array[int]
    """Of the frames that hold any, in order."""
    counts: ErasedRows


def find_rows(segment: SegmentFile, limit: int, subject: Subject, read: Read) -> FoundRows:
    """Look through every frame of a segment up to `limit`.

    Raises OSError; for a block that can't be read too, unless `read` reads around it.
    """
    offsets = array("Q")
    rows = damaged = 0
    at = SEGMENT_HEADER_BYTES
    limit = min(limit, segment.size())
    while at < limit:
        buffer = read(at, min(SCAN_BYTES, limit - at))
        end, candidates = _look_through(buffer, _place(segment, at), subject)
        if end == 0:
            # Damage, or a frame that is larger than what was read.
            try:
                candidates = [segment.frame_at(at, limit)]
                end = candidates[0].frame_bytes
            except FrameDamaged:
                damaged += 1
                following = segment.next_frame(at + FRAME_ALIGNMENT, limit)
                end = (limit if following is None else following.position.offset) - at
        for frame in candidates:
            indexes = indexes_of(frame, subject)
            if indexes:
                offsets.append(frame.position.offset)
                rows += len(indexes)
        at += end
    return FoundRows(offsets, ErasedRows(rows, len(offsets), damaged))


def indexes_of(frame: Frame, subject: Subject) -> list[int]:
    """Which rows of a frame are a subject's."""
    facts = frame.facts
    if subject.source not in (None, facts.source):
        return []
    is_row, row, source = subject.is_row, frame.row, facts.source
    return [index for index in range(facts.row_count) if is_row(source, row(index))]


def write_without(
    segment: SegmentFile,
    limit: int,
    offsets: Iterable[int],
    subject: Subject,
    verdict_of: VerdictOf,
    files: Files,
    read: Read,
) -> Path:
    """Write a segment anew, up to `limit`, without a subject's rows in the frames at `offsets`; where it lies, flushed.

    It is read by `read`, as in `find_rows`.

    Raises OSError, and leaves nothing then.
    """
    target = segment.path.with_name(segment.path.name + ERASING_SUFFIX)
    if files.free_bytes(target.parent) < limit:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    with suppress(FileNotFoundError):
        files.remove(target)
    descriptor = files.create(target)
    try:
        waiting = bytearray()
        for part in _parts_without(segment, limit, offsets, subject, verdict_of, read):
            waiting += part
            if len(waiting) >= COPY_BYTES:
                files.append(descriptor, bytes(waiting))
                waiting.clear()
        files.append(descriptor, bytes(waiting))
        files.fdatasync(descriptor)
    except BaseException:
        with suppress(OSError):
            files.remove(target)
        raise
    finally:
        os.close(descriptor)
    return target


def remove_unfinished(directory: Path, files: Files) -> None:
    """Remove what an erasure in a writer's directory left that was cut short. Raises OSError."""
    for path in sorted(directory.glob(f"*{ERASING_SUFFIX}")):
        with suppress(FileNotFoundError):
            files.remove(path)


def _look_through(buffer: bytes, start: FramePosition, subject: Subject) -> tuple[int, list[Frame]]:
    """The bytes of the whole frames that `buffer` begins with, and those of them that may hold rows of a subject."""
    found, end = whole_frames(buffer, start)
    # One look at all that are not compressed: almost always it is no.
    may_be_plain = subject.may_be_in(buffer)
    candidates: list[Frame] = []
    for at, is_compressed in found:
        if is_compressed or may_be_plain:
            frame = parse_frame(buffer, at, start._replace(offset=start.offset + at))
            if subject.may_be_in(frame.rows):
                candidates.append(frame)
    return end, candidates


def _parts_without(
    segment: SegmentFile, limit: int, offsets: Iterable[int], subject: Subject, verdict_of: VerdictOf, read: Read
) -> Iterator[bytes]:
    at = 0
    for offset in offsets:
        yield from _parts(read, at, offset)
        frame = segment.frame_at(offset, limit)
        position = frame.position
        verdicts = {index: verdict_of(position, index) for index in indexes_of(frame, subject)}
        # A disk may have lost the last padding.
        buffer = segment.read_strictly(offset, min(frame.frame_bytes, limit - offset))
        erased = erase_rows(buffer.ljust(frame.frame_bytes, b"\0"), position, verdicts)
        # What can't be undone is looked at once more.
        parse_frame(erased, 0, position)
        yield erased
        at = offset + frame.frame_bytes
    yield from _parts(read, at, limit)


def _parts(read: Read, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, COPY_BYTES):
        yield read(at, min(COPY_BYTES, end - at))


def _place(segment: SegmentFile, offset: int) -> FramePosition:
    return FramePosition(segment.directory, segment.number, offset)
