"""Erasing: the rows of a person leave ledger and queue, and destinations are asked to let them go.

One erasure after the other, on a thread of its own. What is meant are the rows that came before it was ordered; each
step may be cut off anywhere and is gone through again by the next life:

    1. The segments that are written to are closed, and settle passes them.
    2. Every kept group is gone through, and the rows are marked (`Ledger.mark_erased`): from then on nobody is handed
       them. At the cut the last groups have been gone through; a destination waits with later ones until it is done.
    3. The rows' bytes leave the segments. Meanwhile each destination carries its part out, on its own thread, before
       its next delivery (`Deliverer`).

Where a row of the person's came in while 2 went on, its segment is not closed: then it goes on with 1 once more. After
ROUNDS_MAX of that, what comes in while it goes on is erased with the rest.

What the disk does not let do is tried again after a pause, while other erasures go on. A block that can't be read for
BAD_BLOCK_SECONDS is damage: it is left out where its segment is written anew.

Retention stands still while groups or segments are gone through, and only then: an erasure that waits for a disk with
room must not be what keeps it full.
"""

from __future__ import annotations

import errno
import math
import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol
from uuid import UUID

import msgspec
import structlog

from counterfoil.contract.facts import Verdict, key_hash, key_prefix
from counterfoil.contract.subject import UNREADABLE_ERRORS, Subject
from counterfoil.errors import FrameDamaged
from counterfoil.failpoints import reach
from counterfoil.ledger import (
    ROWS_A_GROUP_MAX,
    Erasure,
    Group,
    GroupNumber,
    Ledger,
    LedgerReader,
    MarkedRows,
    ResentGroup,
    RowCopy,
    Seq,
    SubjectRow,
    group_of,
    seq_of,
)
from counterfoil.pipeline.handover import FrameCache, copy_of
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue import ErasedRows, ErasingShelf, FrameSource
from counterfoil.queue.erasure import indexes_of

ROUNDS_MAX = 5
ROWS_A_STEP = 500
"""Rows that are marked in one batch: settle and deliveries wait for it."""

POLL_SECONDS = 0.2
AGAIN_SECONDS = 60.0
"""After a disk that is full or can't be read, it is tried again after this time."""

BAD_BLOCK_SECONDS = 600.0
"""After this time a block that can't be read is taken for damage; until then it may only not be readable now."""

_GROUPS_AT_ONCE = 16

log = structlog.get_logger()


class ErasableQueue(FrameSource, ErasingShelf, Protocol):
    """The queue, of which rows are read and erased."""


class Interrupted(Exception):
    """The process is to stop, or a writer was waited for in vain."""


class Eraser:
    """Carries erasures out in ledger and queue; `run` is its thread's work."""

    name = "erase"

    def __init__(
        self,
        ledger: Ledger,
        queue: ErasableQueue,
        gate: threading.Lock,
        *,
        on_marked: Callable[[], None] = lambda: None,
        settle: Callable[[], int] | None = None,
        patience_seconds: float = math.inf,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`gate` is held while groups or segments are gone through, and by whoever removes any.

        `on_marked` is called when destinations have something to do; `settle` settles some
        rows where nobody else does. A writer that does not close its segment is waited for so long.
        """
        self._ledger = ledger
        self._queue = queue
        self._gate = gate
        self._on_marked = on_marked
        self._settle = settle
        self._patience_seconds = patience_seconds
        self._monotonic = monotonic
        self._woken = threading.Event()
        self._put_off: dict[UUID, float] = {}
        """Until when an erasure is that the disk did not let be done, by the monotonic clock."""
        self._unreadable: dict[tuple[DirectoryId, SegmentNumber], float] = {}
        """Since when a segment is known to have a block that can't be read."""

    def wake(self) -> None:
        """There may be an erasure, or `run` is to stop."""
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        """Carry out what is ordered until `stop` is set and `wake` called. Raises LedgerWriteFailed, LedgerUnusable."""
        self._ledger.let_subjects_go()
        while not stop.is_set():
            self._woken.clear()
            try:
                while self.step(stop.is_set):
                    pass
            except Interrupted:
                return
            except OSError:
                continue
            self._woken.wait(self._seconds_left())

    def step(self, is_stopped: Callable[[], bool] = lambda: False) -> bool:
        """Carry out the oldest erasure that is open here and not put off; whether there was one.

        Raises Interrupted, OSError where the disk does not let it, which puts it off, LedgerWriteFailed and
        LedgerUnusable.
        """
        now = self._monotonic()
        left = (one for one in self._ledger.erasures() if not one.is_blanked)
        erasure = next((one for one in left if self._put_off.get(one.id, now) <= now), None)
        if erasure is None:
            return False
        try:
            self._carry_out(erasure, is_stopped)
        except OSError as problem:
            self._put_off[erasure.id] = self._monotonic() + AGAIN_SECONDS
            log.error("erase.waits", erasure=str(erasure.id), errno=problem.errno, wait_seconds=AGAIN_SECONDS)
            raise
        self._put_off.pop(erasure.id, None)
        log.info("erase.blanked", erasure=str(erasure.id))
        return True

    def _seconds_left(self) -> float | None:
        """Until what was put off is tried again; None where nothing was."""
        soonest = min(self._put_off.values(), default=None)
        return None if soonest is None else max(soonest - self._monotonic(), 0.0)

    def _carry_out(self, erasure: Erasure, is_stopped: Callable[[], bool]) -> None:
        assert erasure.subject is not None
        search = _Search(self._ledger, self._queue, erasure.subject)
        if not erasure.is_marked:
            try:
                erasure = self._mark(erasure, search, is_stopped)
            except OSError:
                # Deliveries are what may make room: they don't wait for it behind a cut.
                self._ledger.change_erasure(erasure.id, lambda one: msgspec.structs.replace(one, cut=GroupNumber(0)))
                raise
            self._on_marked()
        self._blank(erasure, search, is_stopped)

    # Marking

    def _mark(self, erasure: Erasure, search: _Search, is_stopped: Callable[[], bool]) -> Erasure:
        marked = MarkedRows(0, 0, 0)
        was_begun = erasure.is_begun
        self._ledger.change_erasure(erasure.id, lambda one: msgspec.structs.replace(one, is_begun=True))
        for _ in range(ROUNDS_MAX):
            segments = self._closed(is_stopped)
            with self._gate:
                marked = _sum(marked, self._mark_found(search.rows_up_to_now()))
                reach("erase.before_cut")
                cut = self._ledger.cut_erasure(erasure.id).cut
                marked = _sum(marked, self._mark_found(search.rows_up_to(cut)))
                marked = _sum(marked, self._mark_found(search.rows_unread(cut)))
            reach("erase.after_cut")
            if all(number <= segments.get(directory, 0) for directory, number in search.segments()):
                break
        else:
            segments = self._closed(is_stopped)
            with self._gate:
                cut = self._ledger.cut_erasure(erasure.id).cut
                # What lies in later segments is not erased there, so it is not marked either.
                marked = _sum(marked, self._mark_found(search.rows_up_to(cut, segments)))

        self._ledger.let_rows_go(of_earlier_lives=was_begun)

        def change(one: Erasure) -> Erasure:
            return msgspec.structs.replace(
                one,
                is_marked=True,
                segments={directory.hex(): int(number) for directory, number in segments.items()},
                row_count=one.row_count + marked.row_count,
                key_count=one.key_count + marked.key_count,
                dead_count=one.dead_count + marked.dead_count,
            )

        changed = self._ledger.change_erasure(erasure.id, change)
        reach("erase.after_marks")
        return changed

    def _closed(self, is_stopped: Callable[[], bool]) -> dict[DirectoryId, SegmentNumber]:
        """Close what is written to, and wait until it is settled; the last segment of each directory that is."""
        live = self._queue.live_segments()
        closing = {
            directory: live.get(directory) or SegmentNumber(self._queue.durable_end(directory).segment - 1)
            for directory in self._queue.directories()
        }
        waiting = {directory: number for directory, number in closing.items() if number > 0}
        deadline = time.monotonic() + self._patience_seconds
        while waiting:
            reading = self._ledger.reading_positions()
            waiting = {
                directory: number
                for directory, number in waiting.items()
                if not (self._queue.roll(directory, number) and _has_passed(reading.get(directory), number))
            }
            if waiting:
                self._wait(lambda: is_stopped() or time.monotonic() >= deadline)
        return closing

    def _wait(self, is_stopped: Callable[[], bool]) -> None:
        if self._settle is not None and self._settle():
            return
        if is_stopped():
            raise Interrupted
        self._woken.clear()
        self._woken.wait(POLL_SECONDS)

    def _mark_found(self, rows: Iterable[SubjectRow]) -> MarkedRows:
        marked = MarkedRows(0, 0, 0)
        waiting: list[SubjectRow] = []
        for row in rows:
            waiting.append(row)
            if len(waiting) >= ROWS_A_STEP:
                marked = _sum(marked, self._ledger.mark_erased(waiting))
                waiting = []
        return _sum(marked, self._ledger.mark_erased(waiting)) if waiting else marked

    # The queue

    def _blank(self, erasure: Erasure, search: _Search, is_stopped: Callable[[], bool]) -> None:
        assert erasure.subject is not None
        with self._gate:
            # What an earlier life marked has to be found again: the frames keep the verdicts.
            for _ in search.rows_up_to(erasure.cut):
                pass
        damaged_frames = 0
        unreadable: OSError | None = None
        for directory, number in self._segments(erasure):
            if is_stopped():
                raise Interrupted
            try:
                with self._gate:
                    found = self._erase(erasure.subject, directory, number, search)
            except OSError as problem:
                if problem.errno != errno.EIO:
                    raise
                unreadable = problem
                continue
            reach("erase.between_segments")
            damaged_frames += found.damaged
            if found.rows:
                self._count_blanked(erasure, found.rows)
        if unreadable is not None:
            raise unreadable
        self._ledger.change_erasure(
            erasure.id, lambda one: msgspec.structs.replace(one, is_blanked=True, damaged_frames=damaged_frames)
        )

    def _erase(self, subject: Subject, directory: DirectoryId, number: SegmentNumber, search: _Search) -> ErasedRows:
        place = directory, number
        try:
            found = self._queue.erase(directory, number, subject, search.verdict_of)
        except OSError as problem:
            if problem.errno != errno.EIO:
                raise
            since = self._unreadable.setdefault(place, self._monotonic())
            if self._monotonic() - since < BAD_BLOCK_SECONDS:
                raise
        else:
            self._unreadable.pop(place, None)
            return found
        log.error("erase.around_bad_blocks", directory=directory.hex(), segment=number)
        return self._queue.erase(directory, number, subject, search.verdict_of, around_bad_blocks=True)

    def _count_blanked(self, erasure: Erasure, row_count: int) -> None:
        def change(one: Erasure) -> Erasure:
            return msgspec.structs.replace(
                one, blanked_rows=one.blanked_rows + row_count, blanked_segments=one.blanked_segments + 1
            )

        self._ledger.change_erasure(erasure.id, change)

    def _segments(self, erasure: Erasure) -> Iterator[tuple[DirectoryId, SegmentNumber]]:
        for name, last in erasure.segments.items():
            directory = DirectoryId(bytes.fromhex(name))
            if directory in self._queue.directories():
                yield from ((directory, each) for each in self._queue.segment_numbers(directory) if each <= last)


class _Search:
    """The rows of a subject in groups that are kept, and what the ledger keeps of others."""

    def __init__(self, ledger: LedgerReader, queue: FrameSource, subject: Subject) -> None:
        self._ledger = ledger
        self._queue = queue
        self._subject = subject
        self._reached = 0
        self._found: dict[tuple[DirectoryId, SegmentNumber], _FoundRows] = {}

    def verdict_of(self, position: FramePosition, row_index: int) -> Verdict | None:
        """The verdict of a row that was found; None of one that was not."""
        found = self._found.get((position.directory, position.segment))
        return None if found is None else found.verdict_of(position.offset, row_index)

    def segments(self) -> Iterable[tuple[DirectoryId, SegmentNumber]]:
        """The segments in which rows were found."""
        return self._found

    def rows_up_to_now(self) -> Iterator[SubjectRow]:
        """The rows of the groups that are there when it ends, or nearly: others go on settling."""
        for _ in range(ROUNDS_MAX):
            yield from self.rows_up_to(self._ledger.last_group())

    def rows_up_to(
        self, last: int, segments: Mapping[DirectoryId, SegmentNumber] | None = None
    ) -> Iterator[SubjectRow]:
        """The rows of the groups up to `last` that were not gone through yet; only of `segments` and before."""
        while self._reached < last:
            groups = self._ledger.groups(self._reached, min(_GROUPS_AT_ONCE, last - self._reached))
            if not groups or groups[0].number > last:
                self._reached = last
            for group in groups:
                if group.number <= last:
                    if isinstance(group, ResentGroup):
                        yield from self._resent(group)
                    else:
                        yield from self._settled(group, segments)
                    self._reached = group.number

    def rows_unread(self, last: int) -> Iterator[SubjectRow]:
        """Rows whose groups are gone or whose frames are damaged, of which the ledger still keeps a key or a copy.

        The groups up to `last` were gone through, and what was found there is marked.
        """
        for name in self._ledger.destinations():
            for letter in self._ledger.dead_letters(name):
                # Also of groups that are kept: the frame may be damaged since.
                if not self._ledger.is_erased(letter.first_seq):
                    copy = self._ledger.copy_of(name, letter.first_seq)
                    if copy is not None and self._subject.is_row(copy.source, copy.row):
                        yield _of_copy(letter.first_seq, copy)
        # After the copies, which say more of the same rows.
        for source in (each.source for each in self._ledger.books().sources):
            if self._subject.distinct_id is not None and self._subject.source in (None, source):
                hashed = key_hash(key_prefix(source), self._subject.distinct_id)
                for found in self._ledger.lookup(hashed):
                    if group_of(found.seq) <= last and not self._ledger.is_erased(found.seq):
                        is_gone = found.position is None
                        yield SubjectRow(
                            found.seq, source, found.verdict is Verdict.NEW, key_hash=hashed, is_read=is_gone
                        )

    def _settled(self, group: Group, segments: Mapping[DirectoryId, SegmentNumber] | None) -> Iterator[SubjectRow]:
        for part, place in group.parts():
            if self._subject.source not in (None, part.source):
                continue
            if segments is not None and not _is_within(part.position, segments):
                continue
            try:
                frame = self._queue.fetch(part.position)
            except FrameDamaged:
                # Counted when its segment is gone through.
                continue
            if not self._subject.may_be_in(frame.rows):
                continue
            facts = frame.facts
            for index in indexes_of(frame, self._subject):
                verdict = Verdict(group.verdicts[place + index])
                segment = part.position.directory, part.position.segment
                self._found.setdefault(segment, _FoundRows()).add(part.position.offset, index, verdict)
                yield SubjectRow(
                    seq_of(group.number, place + index),
                    part.source,
                    verdict is Verdict.NEW,
                    facts.destinations_of(int(facts.destination_set[index])),
                    facts.key_hashes[index].tobytes(),
                )

    def _resent(self, group: ResentGroup) -> Iterator[SubjectRow]:
        """Those that were not found in their first group: it is gone, or its frame is damaged."""
        frames = FrameCache(self._queue)
        for named in group.rows:
            if self._ledger.is_erased(named.first_seq):
                continue
            if named.position is None:
                copy = self._ledger.copy_of(group.destination, named.first_seq)
            else:
                frame = frames.fetch(named.position.frame)
                copy = None if frame is None else copy_of(frame, named.position.row_index)
            if copy is not None and self._subject.is_row(named.source, copy.row):
                yield _of_copy(named.first_seq, copy)


class _FoundRows:
    """Where rows were found in a segment and their verdicts, 9 bytes a row: a person may have a million."""

    def __init__(self) -> None:
        self._places = array("Q")
        self._verdicts = bytearray()

    def add(self, offset: int, row_index: int, verdict: Verdict) -> None:
        """Add a row; frames are settled in their order, so each comes after the one before."""
        self._places.append(offset * ROWS_A_GROUP_MAX + row_index)
        self._verdicts.append(verdict)

    def verdict_of(self, offset: int, row_index: int) -> Verdict | None:
        place = offset * ROWS_A_GROUP_MAX + row_index
        at = bisect_left(self._places, place)
        return Verdict(self._verdicts[at]) if at < len(self._places) and self._places[at] == place else None


class _Named(msgspec.Struct, frozen=True, gc=False):
    """What of a canonical row makes its key."""

    distinctId: str  # noqa: N815


def _of_copy(first_seq: Seq, copy: RowCopy) -> SubjectRow:
    return SubjectRow(first_seq, copy.source, destinations=copy.destinations, key_hash=_key_of(copy.source, copy.row))


def _key_of(source: str, row: bytes) -> bytes | None:
    try:
        return key_hash(key_prefix(source), _decode(row).distinctId)
    except UNREADABLE_ERRORS:
        return None


_decode = msgspec.json.Decoder(_Named).decode


def _has_passed(reading: FramePosition | None, number: SegmentNumber) -> bool:
    return reading is not None and reading.segment > number


def _is_within(position: FramePosition, segments: Mapping[DirectoryId, SegmentNumber]) -> bool:
    return position.segment <= segments.get(position.directory, 0)


def _sum(one: MarkedRows, other: MarkedRows) -> MarkedRows:
    return MarkedRows(
        one.row_count + other.row_count, one.key_count + other.key_count, one.dead_count + other.dead_count
    )
