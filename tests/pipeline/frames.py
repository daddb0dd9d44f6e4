"""Frames made without a gateway, and a queue that holds them in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from counterfoil.contract.facts import RowFlag, Verdict, key_hash, key_prefix
from counterfoil.contract.subject import Subject
from counterfoil.errors import FrameDamaged
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue import Damage, DamageKind, ReadResult
from counterfoil.queue.erasure import indexes_of
from counterfoil.queue.frame import (
    Frame,
    FrameDraft,
    Origin,
    draft_frame,
    erase_rows,
    parse_frame,
    seal_frame,
    sealed_bytes,
)

HEADER_BYTES = 64


class Row(msgspec.Struct, frozen=True):
    """A row as a test thinks of it."""

    distinct_id: str
    content: int = 0
    flags: RowFlag = RowFlag(0)
    destinations: tuple[str, ...] | None = None
    user_id: str | None = None

    def canonical(self) -> bytes:
        """Its JSON."""
        named = {} if self.user_id is None else {"userId": self.user_id}
        return msgspec.json.encode({"event": "e", "distinctId": self.distinct_id, **named})


def made_frame(
    position: FramePosition,
    source: str,
    rows: Sequence[Row],
    *,
    received_at_ms: int = 1,
    request_id: bytes = bytes(16),
) -> Frame:
    """A frame as a reader gives it."""
    sealed = sealed_frame(position, source, rows, received_at_ms=received_at_ms, request_id=request_id)
    return parse_frame(sealed, 0, position)


def sealed_frame(
    position: FramePosition, source: str, rows: Sequence[Row], *, received_at_ms: int, request_id: bytes
) -> bytes:
    """A frame as it lies in a segment."""
    draft = made_draft(source, rows, received_at_ms=received_at_ms, request_id=request_id)
    sealed = b"".join(seal_frame(draft, position, 0))
    assert len(sealed) == sealed_bytes(draft)
    return sealed


def made_draft(
    source: str, rows: Sequence[Row], *, received_at_ms: int = 1, request_id: bytes = bytes(16)
) -> FrameDraft:
    """A frame as a writer is handed it."""
    sets = sorted({row.destinations for row in rows if row.destinations is not None})
    return draft_frame(
        origin=msgspec.json.encode(Origin(source, tuple(sets))),
        rows=[row.canonical() for row in rows],
        key_hashes=[key_hash(key_prefix(source), row.distinct_id) for row in rows],
        content_hashes=[row.content.to_bytes(8, "little") for row in rows],
        destination_set=np.array(
            [0 if row.destinations is None else 1 + sets.index(row.destinations) for row in rows], "<u2"
        ).tobytes(),
        flags=bytes(row.flags for row in rows),
        received_at_ms=received_at_ms,
        request_id=request_id,
    )


class MemoryQueue:
    """A `FrameSource` of frames that are durable as soon as they are appended."""

    def __init__(self) -> None:
        self.frames: dict[DirectoryId, list[Frame]] = {}
        self.sealed: dict[FramePosition, bytes] = {}
        self.ends: dict[DirectoryId, FramePosition] = {}
        self.damaged: set[FramePosition] = set()
        self.removed: dict[DirectoryId, int] = {}

    def append(
        self,
        directory: DirectoryId,
        source: str,
        rows: Sequence[Row],
        *,
        received_at_ms: int = 1,
        request_id: bytes = bytes(16),
    ) -> Frame:
        """Append a frame."""
        start = self.ends.get(directory, FramePosition(directory, SegmentNumber(1), HEADER_BYTES))
        sealed = sealed_frame(start, source, rows, received_at_ms=received_at_ms, request_id=request_id)
        self.sealed[start] = sealed
        frame = parse_frame(sealed, 0, start)
        self.frames.setdefault(directory, []).append(frame)
        self.ends[directory] = FramePosition(directory, start.segment, start.offset + frame.frame_bytes)
        return frame

    def new_segment(self, directory: DirectoryId) -> None:
        """Let what comes next lie in another segment."""
        end = self.ends[directory]
        self.ends[directory] = FramePosition(directory, SegmentNumber(end.segment + 1), HEADER_BYTES)

    def erase(self, subject: Subject, verdict_of: Callable[[FramePosition, int], Verdict | None]) -> int:
        """Erase a subject's rows in every frame, as in closed segments; how many they were."""
        count = 0
        for frames in self.frames.values():
            for place, frame in enumerate(frames):
                verdicts = {index: verdict_of(frame.position, index) for index in indexes_of(frame, subject)}
                count += len(verdicts)
                self.sealed[frame.position] = erase_rows(self.sealed[frame.position], frame.position, verdicts)
                frames[place] = parse_frame(self.sealed[frame.position], 0, frame.position)
        return count

    def all_frames(self) -> Iterable[Frame]:
        """Every frame, directory by directory."""
        for frames in self.frames.values():
            yield from frames

    def directories(self) -> dict[DirectoryId, int]:
        return {directory: number for number, directory in enumerate(self.frames)}

    def read(self, directory: DirectoryId, start: FramePosition | None, bytes_max: int) -> ReadResult:
        found: list[Frame] = []
        damages: list[Damage] = []
        for frame in self.frames[directory]:
            if start is not None and frame.position < start:
                continue
            if found and bytes_max < frame.frame_bytes:
                return ReadResult(found, damages, frame.position)
            bytes_max -= frame.frame_bytes
            if frame.position in self.damaged:
                damages.append(Damage(DamageKind.BAD_BYTES, frame.position, frame.frame_bytes, "checksum differs"))
            else:
                found.append(frame)
        return ReadResult(found, damages, self.ends[directory])

    def fetch(self, position: FramePosition) -> Frame:
        for frame in self.frames.get(position.directory, []):
            if frame.position == position and position not in self.damaged:
                return frame
        raise FrameDamaged("no frame mark")

    def durable_end(self, directory: DirectoryId) -> FramePosition:
        return self.ends[directory]

    def oldest(self, directory: DirectoryId) -> FramePosition:
        return self.frames[directory][0].position

    def segment_numbers(self, directory: DirectoryId) -> list[SegmentNumber]:
        first = self.removed.get(directory, 0) + 1
        return [SegmentNumber(number) for number in range(first, self.ends[directory].segment + 1)]

    def remove_oldest(self, directory: DirectoryId, number: SegmentNumber) -> None:
        assert self.segment_numbers(directory)[0] == number < self.ends[directory].segment
        self.removed[directory] = number
        self.frames[directory] = [each for each in self.frames[directory] if each.position.segment > number]
