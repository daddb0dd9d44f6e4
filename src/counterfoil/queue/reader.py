"""The reader: durable frames in order, over the ends of segments, whatever is damaged (I3, I5, I8)."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import structlog

from counterfoil.contract.facts import Verdict
from counterfoil.contract.subject import Subject
from counterfoil.errors import FrameDamaged
from counterfoil.files import Files
from counterfoil.positions import FRAME_ALIGNMENT, DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue import Damage, DamageKind, ErasedRows, ReadResult
from counterfoil.queue.chain import NOTHING, Chain, Link, Links
from counterfoil.queue.directory import SegmentFacts, list_segments, read_id, remove_oldest, writer_numbers
from counterfoil.queue.erasure import find_rows, remove_unfinished, write_without
from counterfoil.queue.frame import Frame
from counterfoil.queue.quarantine import Quarantine, wall_clock_ms
from counterfoil.queue.rolling import ask_for_roll, roll_idle
from counterfoil.queue.segment import SEGMENT_HEADER_BYTES, SegmentFile, segment_numbers

log = structlog.get_logger()

OPEN_SEGMENTS_MAX = 8
LOOK_SECONDS = 1.0
"""How often it is looked whether a segment that is open still stands in its directory: another process may have erased
rows of it."""


class QueueReader:
    """A `FrameSource` and `ErasingShelf` of segment files.

    With a quarantine it sets aside and logs what it finds damaged; without one it only reads. Safe to use from
    several threads.
    """

    def __init__(
        self, root: Path, files: Files, quarantine: Path | None, *, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._root = root
        self._files = files
        self._quarantine = None if quarantine is None else Quarantine(quarantine, files, clock_ms)
        self._chains: dict[DirectoryId, Chain] = {}
        self._open: OrderedDict[tuple[DirectoryId, SegmentNumber], SegmentFile] = OrderedDict()
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._clock_ms = clock_ms
        # A rename must not bring back what retention removed.
        self._replacing = threading.Lock()
        self._erasing = threading.Lock()

    def directories(self) -> dict[DirectoryId, int]:
        """`FrameSource.directories`."""
        with self._lock:
            known = {chain.number for chain in self._chains.values()}
            for number in writer_numbers(self._root):
                directory = None if number in known else read_id(self._root / str(number))
                if directory is not None:
                    self._chains[directory] = Chain(self._root / str(number), number, directory)
            return {directory: chain.number for directory, chain in self._chains.items()}

    def read(self, directory: DirectoryId, start: FramePosition | None, bytes_max: int) -> ReadResult:
        """`FrameSource.read`. Raises StartRefused when a segment is of a newer version, OSError."""
        chain = self._chain(directory)
        try:
            return self._read(chain, start, bytes_max)
        except FileNotFoundError:
            # Retention removed it after the chain was walked.
            chain.refresh(is_stale=True)
            return self._read(chain, start, bytes_max)

    def fetch(self, position: FramePosition) -> Frame:
        """`FrameSource.fetch`."""
        try:
            segment = self._segment(self._chain(position.directory), position.segment)
        except FileNotFoundError:
            raise FrameDamaged("its segment is gone") from None
        try:
            return segment.frame_at(position.offset, segment.size())
        except FrameDamaged as bad:
            self._set_aside(segment, _bad_bytes(segment, position, segment.size(), str(bad)))
            raise

    def durable_end(self, directory: DirectoryId) -> FramePosition:
        """`FrameSource.durable_end`."""
        return self._chain(directory).refresh()[0]

    def oldest(self, directory: DirectoryId) -> FramePosition:
        """The oldest place that is kept."""
        return _oldest(directory, self._chain(directory).refresh(is_stale=True)[1])

    def segment_numbers(self, directory: DirectoryId) -> list[SegmentNumber]:
        """The numbers of a directory's segments, oldest first."""
        return segment_numbers(self._chain(directory).path)

    def segments(self, directory: DirectoryId) -> list[SegmentFacts]:
        """The segments of a directory, oldest first, with size and age."""
        return list_segments(self._chain(directory).path)

    def remove_oldest(self, directory: DirectoryId, number: SegmentNumber) -> None:
        """Remove a directory's oldest segment for good; it must not be the newest too. Raises OSError."""
        with self._replacing:
            # Or its bytes would stay on the disk as long as it is open.
            self._let_go(directory, number)
            remove_oldest(self._chain(directory).path, number, self._files)

    # The shelf's segments closed, and rows in them erased

    def live_segments(self) -> dict[DirectoryId, SegmentNumber]:
        """`ErasingShelf.live_segments`."""
        ends = [self.durable_end(directory) for directory in self.directories()]
        return {end.directory: end.segment for end in ends if end.segment and end.offset > SEGMENT_HEADER_BYTES}

    def roll(self, directory: DirectoryId, number: SegmentNumber) -> bool:
        """`ErasingShelf.roll`."""
        chain = self._chain(directory)
        end = chain.refresh()[0]
        if end.segment == number and end.offset > SEGMENT_HEADER_BYTES:
            if not roll_idle(chain.path, self._files, self._quarantine_path(), self._clock_ms):
                ask_for_roll(chain.path, self._files)
                return False
            end = chain.refresh()[0]
        return end.segment > number or end.offset <= SEGMENT_HEADER_BYTES

    def count_rows(self, directory: DirectoryId, number: SegmentNumber, subject: Subject) -> ErasedRows:
        """`ErasingShelf.count_rows`."""
        chain = self._chain(directory)
        link = _link_of(number, chain)
        try:
            segment = chain.open(number)
        except FileNotFoundError:
            return ErasedRows()
        limit = segment.size() if link.limit is None else link.limit
        return find_rows(segment, limit, subject, segment.read_strictly).counts

    def erase(
        self,
        directory: DirectoryId,
        number: SegmentNumber,
        subject: Subject,
        verdict_of: Callable[[FramePosition, int], Verdict | None],
        *,
        around_bad_blocks: bool = False,
    ) -> ErasedRows:
        """`ErasingShelf.erase`."""
        chain = self._chain(directory)
        with self._erasing:
            link = _link_of(number, chain)
            if link.following is None:
                raise ValueError("rows are erased in closed segments alone, and never in a directory's newest")
            try:
                segment = chain.open(number)
            except FileNotFoundError:
                return ErasedRows()
            size = segment.size()
            limit = size if link.limit is None else min(link.limit, size)
            read = segment.read if around_bad_blocks else segment.read_strictly
            found = find_rows(segment, limit, subject, read)
            if found.offsets:
                written = write_without(segment, limit, found.offsets, subject, verdict_of, self._files, read)
                if not self._put_in_place(written, segment):
                    return ErasedRows()
            elif limit < size:
                self._cut(segment, limit)
            # Also where nothing was found: an earlier call may have died before this.
            self._files.sync_dir(chain.path)
            return found.counts

    def remove_unfinished(self) -> None:
        """`ErasingShelf.remove_unfinished`."""
        with self._erasing:
            for number in writer_numbers(self._root):
                try:
                    remove_unfinished(self._root / str(number), self._files)
                except OSError as error:
                    log.error("queue.unfinished_not_removed", directory=number, errno=error.errno)

    def _put_in_place(self, written: Path, segment: SegmentFile) -> bool:
        """Whether the segment was still there to be replaced."""
        with self._replacing:
            if not segment.is_at(segment.path):
                self._files.remove(written)
                return False
            self._files.rename(written, segment.path)
            self._let_go(segment.directory, segment.number)
        return True

    def _cut(self, segment: SegmentFile, limit: int) -> None:
        with self._replacing:
            if segment.is_at(segment.path):
                self._files.truncate(segment.path, limit)

    def _quarantine_path(self) -> Path:
        assert self._quarantine is not None, "a reader that only reads"
        return self._quarantine.path

    # Reading

    def _read(self, chain: Chain, start: FramePosition | None, bytes_max: int) -> ReadResult:
        end, links = chain.refresh()
        at = start if start is not None and start.segment else _oldest(chain.directory, links)
        if at.segment not in links:
            end, links = chain.refresh(is_stale=True)
        if at.segment < next(iter(links), NOTHING):
            return ReadResult(frames=[], damages=[], next=_oldest(chain.directory, links), is_gone=start is not None)
        damages: list[Damage] = []
        while links and at.segment <= end.segment:
            before = at
            frames, damage, at = self._step(chain, _link_at(at, links), at, bytes_max)
            if damage is not None:
                damages.append(damage)
            if frames or at == before:
                return ReadResult(frames=frames, damages=damages, next=at)
        return ReadResult(frames=[], damages=damages, next=at)

    def _step(
        self, chain: Chain, link: Link, at: FramePosition, bytes_max: int
    ) -> tuple[list[Frame], Damage | None, FramePosition]:
        """What stands at a place: frames or damage, and where to go on; the same place when there is nothing yet."""
        segment = None if link.is_missing else self._segment(chain, at.segment)
        limit = link.limit if link.limit is not None else at.offset if segment is None else segment.size()
        beyond = at if link.following is None else _beginning(chain.directory, link.following)
        if at.offset >= limit:
            return [], _proven_by_start(link, at, limit), beyond
        if segment is None:
            lost = Damage(DamageKind.SEGMENT_MISSING, at, limit - at.offset, "segment missing")
            self._note_missing(lost)
            return [], lost, at._replace(offset=limit) if link.following is None else beyond
        frames, stop = segment.frames_from(at.offset, limit, bytes_max)
        if frames:
            return frames, None, at._replace(offset=stop)
        try:
            frame = segment.frame_at(at.offset, limit)
        except FrameDamaged as bad:
            damage = _bad_bytes(segment, at, limit, str(bad))
            self._set_aside(segment, damage)
            return [], damage, at._replace(offset=at.offset + damage.damaged_bytes)
        return [frame], None, at._replace(offset=at.offset + frame.frame_bytes)

    def _chain(self, directory: DirectoryId) -> Chain:
        if directory not in self._chains and directory not in self.directories():
            raise FrameDamaged("its directory is gone")
        return self._chains[directory]

    def _segment(self, chain: Chain, number: SegmentNumber) -> SegmentFile:
        key = chain.directory, number
        with self._lock:
            self._drop_replaced()
            segment = self._open.get(key)
            if segment is None:
                segment = self._open[key] = chain.open(number)
            self._open.move_to_end(key)
            while len(self._open) > OPEN_SEGMENTS_MAX:
                self._open.popitem(last=False)
        return segment

    def _drop_replaced(self) -> None:
        """Let go of segments that another process put others in the place of, or removed."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            for key, segment in list(self._open.items()):
                if not segment.is_at(segment.path):
                    del self._open[key]

    def _let_go(self, directory: DirectoryId, number: SegmentNumber) -> None:
        with self._lock:
            self._open.pop((directory, number), None)

    def _set_aside(self, segment: SegmentFile, damage: Damage) -> None:
        """Copy what is damaged; where that fails it stays in its segment until that goes."""
        if self._quarantine is None:
            return
        _log_damage(damage)
        try:
            start = damage.position.offset
            self._quarantine.set_aside(segment, start, start + damage.damaged_bytes, damage.reason)
        except OSError as error:
            log.error("queue.damage_not_set_aside", errno=error.errno)

    def _note_missing(self, damage: Damage) -> None:
        if self._quarantine is None:
            return
        _log_damage(damage)
        try:
            self._quarantine.note_missing(damage.position, damage.reason)
        except OSError as error:
            log.error("queue.damage_not_noted", errno=error.errno)


def _oldest(directory: DirectoryId, links: Links) -> FramePosition:
    """The beginning of a chain; segment 0 when there is none yet, which is before every other place."""
    number = next(iter(links), NOTHING)
    return _beginning(directory, number) if number else FramePosition(directory, NOTHING, 0)


def _beginning(directory: DirectoryId, number: SegmentNumber) -> FramePosition:
    return FramePosition(directory, number, SEGMENT_HEADER_BYTES)


def _link_at(at: FramePosition, links: Links) -> Link:
    """The link of a place; a segment that no header names any more, and that once held the place, is lost."""
    link = links.get(at.segment)
    if link is not None:
        return link
    return Link(limit=at.offset + 1, following=min(other for other in links if other > at.segment), is_missing=True)


def _link_of(number: SegmentNumber, chain: Chain) -> Link:
    """The link of a segment; one that no header names any more ends where its file ends."""
    for is_stale in (False, True):
        links = chain.refresh(is_stale=is_stale)[1]
        if number in links:
            return links[number]
    following = min((other for other in links if other > number), default=None)
    return Link(limit=None, following=following, is_missing=False)


def _proven_by_start(link: Link, at: FramePosition, limit: int) -> Damage | None:
    """A closed segment that ends before the place a reader had come to was cut."""
    if link.following is None or link.limit is None or at.offset <= limit:
        return None
    position = at._replace(offset=limit)
    return Damage(DamageKind.BYTES_MISSING, position, at.offset - limit, "shorter than what was read of it")


def _bad_bytes(segment: SegmentFile, at: FramePosition, limit: int, reason: str) -> Damage:
    """The damage at a place where no whole frame begins: up to the next one, or to the segment's end."""
    found = segment.next_frame(at.offset + FRAME_ALIGNMENT, limit)
    if found is not None:
        return Damage(DamageKind.BAD_BYTES, at, found.position.offset - at.offset, reason)
    is_cut = segment.size() < limit
    return Damage(DamageKind.BYTES_MISSING if is_cut else DamageKind.BAD_BYTES, at, limit - at.offset, reason)


def _log_damage(damage: Damage) -> None:
    log.error(
        "queue.damage",
        directory=damage.position.directory.hex(),
        segment=damage.position.segment,
        offset=damage.position.offset,
        damaged_bytes=damage.damaged_bytes,
        kind=damage.kind.value,
        reason=damage.reason,
    )
