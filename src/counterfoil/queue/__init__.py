"""The durable log: frames in, and nothing acknowledged that is not flushed.

`FrameSink` and `FrameSource` are all that the rest of the house knows of it. Here they are segment files of this
machine (`writer.SegmentWriter`, `reader.QueueReader`); a Kafka cluster fits behind the same two.

    queue/<n>/              what one writer wrote; a gateway worker holds one, so that none waits for another
      lock                  held by the writer while it lives
      id                    8 random bytes, part of every position (`directory`)
      roll                  stands there while somebody waits for a fresh segment (`rolling`)
      flushed               what is durable: segment and offset, twice, checksummed, mapped by who reads (`published`)
      <number>.seg          segments: a header, then frames (`segment`, `frame`)
    quarantine/             what was damaged, byte for byte, with a note why (`quarantine`)

What it promises, each with tests of its name in tests/queue/:

    I1. A number never repeats: what a position names stays the same for good, or is said to be erased or gone.
    I2. A frame is acknowledged only after the flush that covers its last byte, and its publication.
    I3. Nothing past the published offset is read; past the length that the next header names, nothing ever is.
    I4. After a failed flush the file is never written again: its frames fail and a fresh segment begins.
    I5. A bad frame below any proof that it was flushed is damage: set aside, reported, and the next whole frame is
        searched for. Proofs: the published offset, a later good frame, the next header, the place a reader starts at.
    I6. A bad frame above all of them is a torn tail: set aside, then cut.
    I7. One directory has one writer at a time, and what an earlier life left is flushed before it is read.
    I8. Frames of a directory are read in the order in which they were appended, over the ends of segments.
    I9. What can't be taken is refused before a byte of it is written: too little disk, too much waiting, a disk that
        does not flush.
    I10. What is erased is nowhere in the directory any more, and nothing else changes: a closed segment is as it was
        or without the rows, whole, and every position names what it named (`erasure`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from counterfoil.queue.frame import Frame, FrameDraft

if TYPE_CHECKING:
    import asyncio

    from counterfoil.contract.facts import Verdict
    from counterfoil.contract.subject import Subject
    from counterfoil.errors import QueueRefused
    from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber


class DamageKind(StrEnum):
    """What kind of damage a reader met."""

    BAD_BYTES = "bad_bytes"
    """Bytes that no whole frame begins at."""
    BYTES_MISSING = "bytes_missing"
    """The file is shorter than what was flushed of it."""
    SEGMENT_MISSING = "segment_missing"
    """A later header names a segment that is not there."""


class Damage(msgspec.Struct, frozen=True):
    """Bytes that were flushed and can't be read any more; they are in quarantine, as far as there are any."""

    kind: DamageKind
    position: FramePosition
    """Where it begins."""
    damaged_bytes: int
    """How far the next whole frame lies, or the segment's end."""
    reason: str


class ReadResult(msgspec.Struct, frozen=True):
    """What stands in a directory from a place on."""

    frames: list[Frame]
    damages: list[Damage]
    next: FramePosition
    """Where to read on; the same as the start when there was nothing new."""
    is_gone: bool = False
    """The segment of the start was removed: there are no frames, and `next` is the oldest place there is."""


class ErasedRows(msgspec.Struct, frozen=True):
    """What was erased of a segment, or would be."""

    rows: int = 0
    """Rows that were the subject's. What was erased before is nobody's any more and not counted."""
    frames: int = 0
    """Frames they lie in."""
    damaged: int = 0
    """Places where no whole frame begins, which can't be searched: they are left as they are."""


class FrameSink(Protocol):
    """Where frames become durable."""

    def append(self, drafts: Sequence[FrameDraft]) -> list[asyncio.Future[FramePosition]]:
        """One future a draft, done when that frame is durable; in the order given. On the event loop only.

        Each becomes durable or fails by itself: with QueueRefused when nothing of it was written, with FlushFailed
        when that can't be known. Drafts are refused all together.
        """
        ...

    def refusal(self) -> QueueRefused | None:
        """Why no row can be taken now; None when it can."""
        ...

    async def close(self) -> None:
        """Flush what waits, then stop. Later drafts are refused; closing twice is harmless."""
        ...


class FrameSource(Protocol):
    """Where durable frames are read, in order; safe to use from several threads."""

    def directories(self) -> dict[DirectoryId, int]:
        """Every writer's directory, with the writer's number."""
        ...

    def read(self, directory: DirectoryId, start: FramePosition | None, bytes_max: int) -> ReadResult:
        """The durable frames from `start` on (None: from the oldest), at least one when there is one.

        Stops before the frame that would make it more than `bytes_max`. Raises FrameDamaged when the directory
        itself is not there.
        """
        ...

    def fetch(self, position: FramePosition) -> Frame:
        """The frame at a position that `read` gave before. Raises FrameDamaged when it is damaged or gone."""
        ...

    def durable_end(self, directory: DirectoryId) -> FramePosition:
        """The place up to which everything is durable."""
        ...


class SegmentShelf(Protocol):
    """Where segments are kept until they may go."""

    def directories(self) -> dict[DirectoryId, int]:
        """Every writer's directory, with the writer's number."""
        ...

    def segment_numbers(self, directory: DirectoryId) -> list[SegmentNumber]:
        """The numbers of a directory's segments, oldest first."""
        ...

    def remove_oldest(self, directory: DirectoryId, number: SegmentNumber) -> None:
        """Remove a directory's oldest segment for good; it must not be the newest too. Raises OSError."""
        ...


class ErasingShelf(SegmentShelf, Protocol):
    """A shelf whose segments can be closed, and rows of closed segments erased."""

    def live_segments(self) -> dict[DirectoryId, SegmentNumber]:
        """Each directory's newest segment, where it holds frames: it must be closed before it can be searched whole."""
        ...

    def roll(self, directory: DirectoryId, number: SegmentNumber) -> bool:
        """Whether a segment is closed, or holds no frame; when not, its writer is asked to begin the next one.

        To be called again, once a second or so, until it is: a writer looks once a second whether it is asked. Where
        no writer holds the directory, it is done here and now. Raises OSError, StartRefused.
        """
        ...

    def count_rows(self, directory: DirectoryId, number: SegmentNumber, subject: Subject) -> ErasedRows:
        """What `erase` would erase now; also of the newest segment, as far as it is durable. Raises OSError."""
        ...

    def erase(
        self,
        directory: DirectoryId,
        number: SegmentNumber,
        subject: Subject,
        verdict_of: Callable[[FramePosition, int], Verdict | None],
        *,
        around_bad_blocks: bool = False,
    ) -> ErasedRows:
        """Blank every row of a closed segment that is the subject's, for good when this returns.

        `verdict_of` is asked for each by its frame and its index there, and answers None where nobody knows its verdict
        any more; a row that was erased before is not asked for. Idempotent, and to be called again after anything that
        it raised: then the segment is the old or the new one, whole. A segment that is gone has no rows.

        Raises ValueError for a directory's newest segment, which may be written to; OSError, also where a block of the
        disk can't be read (the segment is left, or what only could not be read now would be lost for good), and where
        there is no room for the segment a second time. `around_bad_blocks`: blocks that can't be read are damage, and
        where the segment is written anew they are zeros.
        """
        ...

    def remove_unfinished(self) -> None:
        """Remove what erasures of an earlier life left that were cut short: room on the disk, and nothing else."""
        ...
