"""What an earlier life left in a writer's directory, closed: flushed, its torn tail cut, its length known.

Reads first, then decides (`plan_tail`), then acts. Where nothing more than a place can be proven, nothing is cut away
that may have been acknowledged: a whole frame counts as durable once the file was flushed anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from counterfoil.aside import copy_aside
from counterfoil.errors import FrameDamaged
from counterfoil.files import Files, is_standing
from counterfoil.positions import SegmentNumber
from counterfoil.queue.directory import WriterDirectory, take_idle_directories
from counterfoil.queue.published import PublishedPlace, PublishedView
from counterfoil.queue.quarantine import Quarantine, wall_clock_ms
from counterfoil.queue.segment import SEGMENT_HEADER_BYTES, SegmentFile, segment_numbers

log = structlog.get_logger()

SCAN_BYTES = 4 * 1024 * 1024


class Left(msgspec.Struct, frozen=True):
    """The newest segment of an earlier life."""

    newest: SegmentNumber
    """0 when there is none."""
    flushed: int
    """Its length: what the next header will say of it."""
    last_number: SegmentNumber
    """The highest number that was ever taken, as far as anything tells."""


class Tail(msgspec.Struct, frozen=True):
    """How a segment ends that no later header closes."""

    flushed: int
    """Everything below was flushed, or is whole and may have been acknowledged."""
    cut_at: int | None
    """Where the torn bytes begin that nothing proves; None when there are none."""
    reason: str = ""


class Scan(msgspec.Struct, frozen=True):
    """The frames of a segment from a proven place on: where they begin, end, and what each says was flushed."""

    start: int
    size: int
    frames: list[tuple[int, int, int]]
    reasons: dict[int, str]
    """Why no whole frame begins at a place where one should."""


def close_leftovers(directory: WriterDirectory, files: Files, quarantine: Quarantine) -> Left:
    """Flush and close what an earlier life left; the directory's lock is held. Raises OSError, StartRefused."""
    published = PublishedView(directory.published_path, directory.id).place()
    if published is None:
        _copy_published_aside(directory, files, quarantine)
    numbers = segment_numbers(directory.path)
    highest = max([*numbers, *([published.segment] if published is not None else [])], default=SegmentNumber(0))
    proven = published.segment if published is not None else SegmentNumber(0)
    newest = _set_strays_aside(directory, numbers, proven, files, quarantine)
    if published is not None and newest < published.segment:
        # The newest segment is lost: naming it is how a reader learns of that.
        return Left(newest=published.segment, flushed=published.offset, last_number=highest)
    if newest == 0:
        return Left(newest=SegmentNumber(0), flushed=0, last_number=highest)
    start = published.offset if published is not None and published.segment == newest else SEGMENT_HEADER_BYTES
    segment = SegmentFile(directory.segment_path(newest), directory.id, newest)
    is_flushed = _flush(segment.path, files)
    segment.forget_cached()
    tail = plan_tail(scan_frames(segment, start), is_flushed=is_flushed, is_published=published is not None)
    if tail.cut_at is not None:
        _cut(segment, tail.cut_at, tail.reason, files, quarantine)
    return Left(newest=newest, flushed=tail.flushed, last_number=highest)


def recover_idle(root: Path, files: Files, quarantine: Path, *, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
    """Close and publish what lies in directories that no writer holds, so that all of it can be read.

    For a pipeline that starts where fewer gateway workers run than before, or none. Call it before the workers start:
    a worker passes by a directory that is held just then. Raises OSError, StartRefused.
    """
    for directory in take_idle_directories(root, files, quarantine):
        try:
            left = close_leftovers(directory, files, Quarantine(quarantine, files, clock_ms))
            if left.newest:
                place = PublishedPlace(directory.published_path, files, directory.id)
                place.publish(left.newest, left.flushed)
                place.close()
        finally:
            directory.release()


def scan_frames(segment: SegmentFile, start: int) -> Scan:
    """Every whole frame from `start` to the file's end."""
    size = segment.size()
    frames: list[tuple[int, int, int]] = []
    reasons: dict[int, str] = {}
    at = start
    while at < size:
        found, end = segment.frames_from(at, size, SCAN_BYTES)
        frames += [(frame.position.offset, frame.frame_bytes, frame.flushed) for frame in found]
        at = end
        if found or at >= size:
            continue
        try:
            frame = segment.frame_at(at, size)
        except FrameDamaged as damage:
            reasons[at] = str(damage)
            next_frame = segment.next_frame(at + 8, size)
            if next_frame is None:
                break
            at = next_frame.position.offset
        else:
            frames.append((at, frame.frame_bytes, frame.flushed))
            at += frame.frame_bytes
    return Scan(start=start, size=size, frames=frames, reasons=reasons)


def plan_tail(scan: Scan, *, is_flushed: bool, is_published: bool = True) -> Tail:
    """Where a segment ends that was just flushed, or could not be (I5, I6).

    A bad place is proven when a whole frame, anywhere after it, was written when it had been flushed. The first that
    is not proven is where the tail is torn. Where nothing is published, which no power cut does, every whole frame
    may have been acknowledged, and proves all that lies before it.
    """
    proven = max((flushed for _, _, flushed in scan.frames), default=scan.start)
    proven = max(proven, scan.start)
    if is_published and not is_flushed:
        return Tail(flushed=proven, cut_at=None)
    whole = max((offset + frame_bytes for offset, frame_bytes, _ in scan.frames), default=scan.start)
    if not is_published:
        proven = max(proven, whole)
    for at, reason in scan.reasons.items():
        if at >= proven:
            return Tail(flushed=at, cut_at=at, reason=reason)
    return Tail(flushed=max(whole, proven), cut_at=None)


def _set_strays_aside(
    directory: WriterDirectory,
    numbers: list[SegmentNumber],
    proven: SegmentNumber,
    files: Files,
    quarantine: Quarantine,
) -> SegmentNumber:
    """The newest segment that is this directory's; those after it with no good header were never begun."""
    for number in reversed(numbers):
        segment = SegmentFile(directory.segment_path(number), directory.id, number)
        reason = _stray_reason(segment)
        if number <= proven or reason is None:
            return number
        _set_stray_aside(segment, reason, files, quarantine)
    return SegmentNumber(0)


def _stray_reason(segment: SegmentFile) -> str | None:
    """Why a segment was never begun here; None when its header is good, or a frame of this directory stands in it."""
    try:
        segment.header()
    except FrameDamaged as damage:
        has_frame = segment.next_frame(SEGMENT_HEADER_BYTES, segment.size()) is not None
        return None if has_frame else str(damage)
    return None


def _set_stray_aside(segment: SegmentFile, reason: str, files: Files, quarantine: Quarantine) -> None:
    """Where that fails it stays: no header names it, so it is not read."""
    try:
        quarantine.set_aside(segment, 0, segment.size(), reason)
        files.remove(segment.path)
    except OSError as error:
        log.error("queue.segment_not_set_aside", segment=segment.number, errno=error.errno)
    else:
        log.warning("queue.segment_set_aside", segment=segment.number, reason=reason)


def _copy_published_aside(directory: WriterDirectory, files: Files, quarantine: Quarantine) -> None:
    """Of zeros it is one that was just made, and no damage."""
    path = directory.published_path
    try:
        if path.exists() and any(path.read_bytes()):
            name = f"queue/{directory.path.name}/{path.name}"
            copy_aside(path, name, quarantine.path, "names no place that is durable", files)
    except OSError as error:
        if is_standing(error):
            raise  # No place could be published there either.
        log.error("queue.file_not_set_aside", file=path.name, errno=error.errno)


def _flush(path: Path, files: Files) -> bool:
    try:
        files.sync_file(path)
        files.sync_dir(path.parent)
    except OSError as error:
        log.error("queue.leftover_not_flushed", segment=path.name, errno=error.errno)
        return False
    return True


def _cut(segment: SegmentFile, cut_at: int, reason: str, files: Files, quarantine: Quarantine) -> None:
    """Set the torn tail aside, then cut it; where that fails it stays, and the next header keeps it from being read."""
    cut_bytes = segment.size() - cut_at
    try:
        quarantine.set_aside(segment, cut_at, segment.size(), f"torn tail: {reason}")
        files.truncate(segment.path, cut_at)
    except OSError as error:
        log.error("queue.tail_not_cut", segment=segment.number, cut_bytes=cut_bytes, errno=error.errno)
    else:
        log.warning("queue.tail_cut", segment=segment.number, offset=cut_at, cut_bytes=cut_bytes, reason=reason)
