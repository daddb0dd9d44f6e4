"""The audit: both equations of promise P4, counted again from what is on disk.

What is counted: the rows of the queue's frames, the verdicts of the ledger's groups, the ledger's records of
deliveries, and the rows that a destination holds. What it is compared with: the ledger's counters. The ledger is read
at one moment, and of a frame nothing changes but the content of a row that is erased, so it works while the server
runs.

Groups that retention removed are counted by the balances that were carried forward when they went; what destinations
hold of their rows is not asked.

Groups are gone through in order, and beside them each writer's directory: frames and groups name the same positions in
the same order, so nothing is kept but a place in each. Memory does not grow with the rows: what a destination holds is
asked for window by window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

from counterfoil.contract.facts import Verdict
from counterfoil.destinations.interface import HeldRows
from counterfoil.errors import DestinationError, FrameDamaged
from counterfoil.ledger import (
    ROWS_A_GROUP_MAX,
    AnyGroup,
    Carried,
    Cause,
    DestinationCounts,
    Group,
    GroupFrame,
    LedgerReader,
    Places,
    ResentGroup,
    SourceCounts,
    count_sources,
    seq_of,
)
from counterfoil.pipeline.routes import SetColumns, set_columns
from counterfoil.positions import DirectoryId, FramePosition, RowPosition
from counterfoil.queue import FrameSource
from counterfoil.queue.frame import Frame

DIFFERENCES_MAX = 1000
"""How many differences are told one by one; all are counted."""

WINDOW_ROWS = 1_000_000
"""Rows after which destinations are asked what they hold of them."""

ASKS_MAX = 20

_READ_BYTES = 8 * 1024 * 1024
_GROUPS_AT_ONCE = 16
_NO_SEQS = np.empty(0, np.int64)

Held = Callable[[int, int], Iterable[HeldRows] | None]
"""`Destination.held`: the rows whose `seq` lies between two, ends included; None where it can't be asked."""


class DifferenceKind(StrEnum):
    """What does not fit together."""

    FRAME_UNSETTLED = "frame_unsettled"
    """A frame before the place where settle goes on that no group names."""
    FRAME_UNREADABLE = "frame_unreadable"
    """A frame that a group names, that can't be read, and that is not known as damaged."""
    FRAME_DIFFERS = "frame_differs"
    """A frame of another source or with another number of rows than its group says."""
    ROUTED_DIFFERS = "routed_differs"
    """A group whose frames' new rows are meant for others than it says."""
    GROUP_MISSING = "group_missing"
    """A number of the sequence that no group has."""
    DELIVERY_DIFFERS = "delivery_differs"
    """A delivery of more or fewer rows than its groups hold for the destination, or of the wrong groups."""
    ROW_MISSING = "row_missing"
    """A delivered row that the destination does not hold."""
    ROW_SURPLUS = "row_surplus"
    """A row that the destination holds and was never handed, or holds twice."""


class Difference(msgspec.Struct, frozen=True):
    """One thing that does not fit, and where."""

    kind: DifferenceKind
    group: int | None = None
    position: FramePosition | RowPosition | None = None
    destination: str | None = None


class AuditedSource(msgspec.Struct, frozen=True):
    """A source's line: accepted = new + duplicate + conflict + blocked + test."""

    recounted: SourceCounts
    counted: SourceCounts

    @property
    def is_balanced(self) -> bool:
        return self.recounted.is_balanced and self.recounted == self.counted


class HeldCount(msgspec.Struct, frozen=True):
    """What a destination should hold of a source and what it does."""

    source: str
    expected: int
    held: int


class AuditedDestination(msgspec.Struct, frozen=True):
    """A destination's line: routed = delivered + dead + skipped + erased + pending."""

    destination: str
    routed: int
    delivered: int
    dead: int
    skipped: int
    """Rows that went before it took them, while it was not in the configuration."""
    erased: int
    """Rows that were erased, whatever they were before."""
    pending: int
    """Routed rows of the groups after the cursor."""
    counted: DestinationCounts
    held: tuple[HeldCount, ...] | None = None
    """None when it was not asked or can't be."""
    missing: int = 0
    """Rows that it should hold and does not."""
    surplus: int = 0
    """Rows that it holds and should not, or more than once."""
    failure: str | None = None
    """Why it could not be asked."""

    @property
    def is_balanced(self) -> bool:
        return self.is_even and self.failure is None

    @property
    def is_even(self) -> bool:
        """Whether nothing differs, as far as it could be asked."""
        counted = self.counted
        return (
            self.routed == self.delivered + self.dead + self.skipped + self.erased + self.pending
            and (self.routed, self.delivered, self.dead) == (counted.routed, counted.delivered, counted.dead)
            and self.erased == counted.erased
            and (self.missing, self.surplus) == (0, 0)
        )


class Audit(msgspec.Struct, frozen=True):
    """Everything that was counted again."""

    sources: tuple[AuditedSource, ...]
    destinations: tuple[AuditedDestination, ...]
    damaged_frames: int
    """Known damage; it stands beside the equations."""
    oldest_group: int
    """The oldest group that is kept: of those before it the counts were carried forward."""
    last_group: int
    differences: tuple[Difference, ...]
    difference_count: int

    @property
    def is_balanced(self) -> bool:
        return self.is_even and all(line.is_balanced for line in self.destinations)

    @property
    def is_even(self) -> bool:
        """Whether nothing differs, as far as destinations could be asked."""
        is_even = all(line.is_balanced for line in self.sources) and all(line.is_even for line in self.destinations)
        return is_even and not self.difference_count


def audit(
    ledger: LedgerReader,
    source: FrameSource,
    held: Mapping[str, Held] | None = None,
    last_gone: Callable[[], int] | None = None,
    erased_now: Callable[[list[int]], set[int]] | None = None,
) -> Audit:
    """Recount the books from disk and compare them with the counters, and with what destinations hold.

    `held` has for each destination that can be asked its `Destination.held`. `last_gone` gives the last group that is
    gone by now, which may be later than the moment at which `ledger` is read: retention goes on meanwhile. So do
    erasures: `erased_now` gives those of some seqs whose rows were erased by now.
    """
    books = ledger.books()
    carried = ledger.carried()
    found = _Differences()
    walks = {
        directory: _Walk(source, directory, carried.ends.get(directory), end)
        for directory, end in ledger.reading_positions().items()
    }
    known = frozenset(damage.position for damage in ledger.damages())
    gone = _Gone(last_gone or (lambda: ledger.carried().last_group))
    recount = _Recount(found, walks, known, carried, gone, ledger.erased_places)
    tallies = [
        _Tally(ledger, counts, (held or {}).get(counts.destination), found, erased_now or (lambda _: set()))
        for counts in books.destinations
    ]
    rows = 0
    for group in _all_groups(ledger, found):
        if isinstance(group, ResentGroup):
            # Its rows came in with an earlier group: the sources' side knows them already.
            for tally in tallies:
                tally.add_resent(group)
        else:
            group_rows = recount.add(group)
            for tally in tallies:
                tally.add(group, group_rows)
        rows += group.row_count
        if rows >= WINDOW_ROWS:
            rows = 0
            for tally in tallies:
                tally.compare_held()
    recount.finish()
    counted = {counts.source: counts for counts in books.sources}
    recounted = recount.sources()
    return Audit(
        sources=tuple(
            AuditedSource(recounted.get(name, SourceCounts(name)), counted.get(name, SourceCounts(name)))
            for name in sorted(counted.keys() | recounted.keys())
        ),
        destinations=tuple(tally.finish() for tally in tallies),
        damaged_frames=books.damaged_frames,
        oldest_group=carried.oldest_group,
        last_group=books.last_group,
        differences=tuple(found.first),
        difference_count=found.count,
    )


class _Differences:
    def __init__(self) -> None:
        self.first: list[Difference] = []
        self.count = 0

    def add(
        self,
        kind: DifferenceKind,
        *,
        group: int | None = None,
        position: FramePosition | RowPosition | None = None,
        destination: str | None = None,
    ) -> None:
        self.count += 1
        if len(self.first) < DIFFERENCES_MAX:
            self.first.append(Difference(kind, group, position, destination))


def _all_groups(ledger: LedgerReader, found: _Differences) -> Iterator[AnyGroup]:
    last = ledger.last_group()
    expected: int = ledger.carried().last_group
    while groups := ledger.groups(expected, _GROUPS_AT_ONCE):
        for group in groups:
            expected += 1
            for missing in range(expected, group.number):
                found.add(DifferenceKind.GROUP_MISSING, group=missing)
            expected = group.number
            yield group
    for missing in range(expected + 1, last + 1):
        found.add(DifferenceKind.GROUP_MISSING, group=missing)


class _Gone:
    """Whether a group is gone by now that was there at the moment which is audited."""

    def __init__(self, last_gone: Callable[[], int]) -> None:
        self._ask = last_gone
        self._last = 0
        self._asks_left = ASKS_MAX

    def is_gone(self, group: int) -> bool:
        """Asks where it must; when it often was asked in vain, nothing is gone and much is damaged."""
        if group > self._last and self._asks_left:
            self._last = self._ask()
            self._asks_left -= group > self._last
        return group <= self._last


class _Walk:
    """The frames of a directory in order, from the oldest that a kept group names to where settle goes on."""

    def __init__(
        self, source: FrameSource, directory: DirectoryId, start: FramePosition | None, end: FramePosition
    ) -> None:
        self._frames = _frames_until(source, directory, start, end)
        self.next = next(self._frames, None)

    def take(self) -> Frame | None:
        taken, self.next = self.next, next(self._frames, None)
        return taken


def _frames_until(
    source: FrameSource, directory: DirectoryId, start: FramePosition | None, end: FramePosition
) -> Iterator[Frame]:
    while True:
        try:
            result = source.read(directory, start, _READ_BYTES)
        except FrameDamaged:
            # The directory is gone: what groups name in it shows as unreadable.
            return
        for frame in result.frames:
            if frame.position >= end:
                return
            yield frame
        if result.next == start or result.next >= end:
            return
        start = result.next


class _GroupRows(msgspec.Struct, frozen=True):
    """A group's rows, as far as the queue still holds them."""

    verdicts: NDArray[np.uint8]
    frames: list[Frame | None]
    """Each of the group's frames, None where it can't be read."""
    columns: SetColumns | None
    """Of all rows; None where a frame can't be read."""


class _Recount:
    """The sources' side: frames and groups, each once."""

    def __init__(
        self,
        found: _Differences,
        walks: dict[DirectoryId, _Walk],
        known_damages: frozenset[FramePosition],
        carried: Carried,
        gone: _Gone,
        erased_places: Callable[[int], Places],
    ) -> None:
        self._found = found
        self._walks = walks
        self._known_damages = known_damages
        self._gone = gone
        self._erased_places = erased_places
        self._accepted = Counter({source: counts.accepted for source, counts in carried.sources.items()})
        self._judged = dict(carried.sources)

    def add(self, group: Group) -> _GroupRows:
        """Count a group's rows."""
        frames = [self._frame(group, named) for named in group.frames]
        verdicts = np.frombuffer(group.verdicts, np.uint8)
        for counts in count_sources(group.frames, verdicts, self._erased_places(group.number)):
            self._judged[counts.source] = self._judged.get(counts.source, SourceCounts(counts.source)).plus(counts)
        readable = [frame.facts for frame in frames if frame is not None]
        columns = set_columns(readable) if len(readable) == len(frames) else None
        if columns is not None and set(columns.count(verdicts == Verdict.NEW)) != set(group.routed):
            self._found.add(DifferenceKind.ROUTED_DIFFERS, group=group.number)
        return _GroupRows(verdicts, frames, columns)

    def _frame(self, group: Group, named: GroupFrame) -> Frame | None:
        """The frame that a group names, counted; None when it can't be read."""
        position = named.position
        walk = self._walks.get(position.directory)
        while walk is not None and walk.next is not None and walk.next.position < position:
            self._unsettled(walk)
        if walk is None or walk.next is None or walk.next.position != position:
            # What it held is known from the group alone; the equations stand, and the damage stands beside them.
            self._accepted[named.source] += named.row_count
            if position not in self._known_damages and not self._gone.is_gone(group.number):
                self._found.add(DifferenceKind.FRAME_UNREADABLE, group=group.number, position=position)
            return None
        frame = walk.take()
        assert frame is not None
        facts = frame.facts
        self._accepted[facts.source] += facts.row_count
        if (facts.source, facts.row_count) != (named.source, named.row_count):
            self._found.add(DifferenceKind.FRAME_DIFFERS, group=group.number, position=position)
            return None
        return frame

    def _unsettled(self, walk: _Walk) -> None:
        frame = walk.take()
        assert frame is not None
        self._accepted[frame.facts.source] += frame.facts.row_count
        self._found.add(DifferenceKind.FRAME_UNSETTLED, position=frame.position)

    def finish(self) -> None:
        """Count what lies after the last group's frames and was passed over."""
        for walk in self._walks.values():
            while walk.next is not None:
                self._unsettled(walk)

    def sources(self) -> dict[str, SourceCounts]:
        """Rows accepted as the queue has them, verdicts as the groups do."""
        return {
            source: msgspec.structs.replace(self._judged.get(source, SourceCounts(source)), accepted=accepted)
            for source, accepted in self._accepted.items()
        }


class _Tally:
    """A destination's side."""

    def __init__(
        self,
        ledger: LedgerReader,
        counts: DestinationCounts,
        held: Held | None,
        found: _Differences,
        erased_now: Callable[[list[int]], set[int]],
    ) -> None:
        self._counts = counts
        self._held = held
        self._found = found
        self._erased_now = erased_now
        self._deliveries = iter(ledger.deliveries(counts.destination))
        self._dead_seqs = np.array(sorted(each.seq for each in ledger.dead_letters(counts.destination)), np.int64)
        self._ledger = ledger
        carried = ledger.carried().of(counts.destination)
        self._routed, self._delivered, self._dead = carried.routed, carried.delivered, carried.dead
        self._skipped, self._erased, self._pending = carried.skipped, carried.erased, 0
        self._open_rows = carried.open_rows
        self._delivery = next(self._deliveries, None)
        self._next_first = max(counts.start_group, carried.delivered_to) + 1
        self._expected: list[NDArray[np.int64]] = []
        self._unknown: list[NDArray[np.int64]] = []
        self._expected_of: Counter[str] = Counter()
        self._held_of: Counter[str] = Counter()
        self._reached: int = max(counts.start_group, ledger.carried().last_group)
        # What it held when the ledger was rebuilt it holds under other numbers.
        self._rebuilt_to = ledger.rebuilt_to(counts.destination)
        self._asked_to = seq_of(max(self._reached, self._rebuilt_to) + 1, 0)
        self._missing = self._surplus = 0
        self._failure: str | None = None
        # Until it has carried an erasure out it still holds rows that nobody expects of it any more.
        self._is_erasing = any(each.is_open_at(counts.destination) for each in ledger.erasures())
        # One that was recorded after its groups had gone is folded with the next that go.
        while self._delivery is not None and self._delivery.last_group <= ledger.carried().last_group:
            self._close_delivery(self._delivery.last_group)

    def add(self, group: Group, rows: _GroupRows) -> None:
        """Count a group's rows that are for this destination."""
        name = self._counts.destination
        if group.number <= self._counts.start_group:
            return
        routed = group.routed_to(name)
        self._routed += routed
        is_passed = self._is_passed(group, routed)
        if not is_passed or self._held is None or group.number <= self._rebuilt_to:
            return
        if rows.columns is None:
            self._expect_some(group, rows)
        else:
            self._expect(rows.columns, rows.verdicts, seq_of(group.number, 0))

    def add_resent(self, group: ResentGroup) -> None:
        """Move the rows of a group that sends them to this destination again from what they were to what they are."""
        if group.number <= self._counts.start_group:
            return
        row_count = group.routed_to(self._counts.destination)
        match group.cause:
            case Cause.RETRY | Cause.REPLACEMENT:
                self._dead -= row_count
            case Cause.REPLAY:
                self._delivered -= row_count
            case Cause.AGAIN:
                self._routed += row_count
        if self._is_passed(group, row_count) and row_count and self._held is not None:
            self._expect_resent(group)

    def _is_passed(self, group: AnyGroup, row_count: int) -> bool:
        """Whether the destination is through with a group that has so many rows for it, which are counted."""
        if group.number > self._counts.cursor:
            self._pending += row_count
            return False
        self._reached = group.number
        self._open_rows += row_count
        self._close_delivery(group.number)
        return True

    def _expect_some(self, group: Group, rows: _GroupRows) -> None:
        """Of the frames that can be read; what the others' rows were meant for is not known."""
        for (named, first), frame in zip(group.parts(), rows.frames, strict=True):
            verdicts = rows.verdicts[first : first + named.row_count]
            first_seq = seq_of(group.number, first)
            if frame is None:
                self._unknown.append(first_seq + np.flatnonzero(verdicts == Verdict.NEW))
            else:
                self._expect(set_columns([frame.facts]), verdicts, first_seq)

    def _expect(self, columns: SetColumns, verdicts: NDArray[np.uint8], first_seq: int) -> None:
        chosen = columns.are_for(self._counts.destination) & (verdicts == Verdict.NEW)
        seqs = first_seq + np.flatnonzero(chosen)
        # A row that was sent again is held under its last seq, if at all.
        is_elsewhere = np.isin(seqs, self._dead_seqs) | np.isin(seqs, self._sent_again(first_seq, len(verdicts)))
        are_erased = self._are_erased(seqs)
        if self._is_erasing:
            self._unknown.append(seqs[are_erased])
        is_elsewhere |= are_erased
        if is_elsewhere.any():
            chosen[seqs[is_elsewhere] - first_seq] = False
        self._expected.append(seqs[~is_elsewhere])
        for count in columns.count(chosen):
            self._expected_of[count.source] += count.row_count

    def _sent_again(self, first_seq: int, row_count: int) -> NDArray[np.int64]:
        found = self._ledger.resendings(self._counts.destination, first_seq, first_seq + row_count - 1)
        return np.array(sorted({each.first_seq for each in found}), np.int64)

    def _are_erased(self, seqs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows of one group were erased."""
        places = self._ledger.erased_places(int(seqs[0]) // ROWS_A_GROUP_MAX) if len(seqs) else ()
        return np.isin(seqs % ROWS_A_GROUP_MAX, places) if places else np.zeros(len(seqs), np.bool_)

    def _expect_resent(self, group: ResentGroup) -> None:
        name = self._counts.destination
        expected = []
        for place, row in enumerate(group.rows):
            seq = group.seq_at(place)
            if self._ledger.is_erased(seq):
                if self._is_erasing:
                    self._unknown.append(np.array([seq], np.int64))
                continue
            last_seq = max(each.seq for each in self._ledger.resendings(name, row.first_seq))
            if seq == last_seq and self._ledger.dead_letter(name, seq) is None:
                expected.append(seq)
                self._expected_of[row.source] += 1
        self._expected.append(np.array(expected, np.int64))

    def _close_delivery(self, group_number: int) -> None:
        delivery = self._delivery
        if delivery is None:
            return
        if delivery.first_group != self._next_first:
            self._differs(self._next_first)
            self._next_first = delivery.first_group
        if group_number < delivery.last_group:
            return
        self._delivered += delivery.delivered_rows
        self._dead += delivery.dead_rows
        self._erased += delivery.erased_rows
        if self._open_rows != delivery.row_count:
            self._differs(delivery.first_group)
        self._open_rows = 0
        self._next_first = delivery.last_group + 1
        self._delivery = next(self._deliveries, None)

    def _differs(self, group: int) -> None:
        self._found.add(DifferenceKind.DELIVERY_DIFFERS, group=group, destination=self._counts.destination)

    def compare_held(self) -> None:
        """Ask the destination for the rows gone through since it was last asked."""
        last = seq_of(self._reached + 1, 0) - 1
        if self._held is None or self._failure is not None or last < self._asked_to:
            return
        expected = np.concatenate([_NO_SEQS, *self._expected])
        unknown = np.concatenate([_NO_SEQS, *self._unknown])
        self._expected.clear()
        self._unknown.clear()
        try:
            answer = self._held(self._asked_to, last)
            if answer is None:
                self._held = None
                return
            parts = [_NO_SEQS]
            for rows in answer:
                seqs = np.asarray(rows.seqs, np.int64)
                self._held_of[rows.source] += int(np.count_nonzero(~np.isin(seqs, unknown)))
                parts.append(seqs)
        except DestinationError as error:
            self._failure = str(error)
            return
        self._asked_to = seq_of(self._reached + 1, 0)
        self._compare(expected, unknown, np.concatenate(parts))

    def _compare(self, expected: NDArray[np.int64], unknown: NDArray[np.int64], held: NDArray[np.int64]) -> None:
        once, times = np.unique(held, return_counts=True)
        missing = np.setdiff1d(expected, once, assume_unique=True)
        if len(missing):
            # What was erased since the moment that is audited is not there any more, and rightly so.
            missing = np.setdiff1d(missing, np.array(sorted(self._erased_now(missing.tolist())), np.int64))
        strange = np.setdiff1d(np.setdiff1d(once, expected, assume_unique=True), unknown)
        repeated = once[times > 1]
        self._missing += len(missing)
        self._surplus += len(strange) + int((times[times > 1] - 1).sum())
        for seq in missing.tolist():
            self._row(DifferenceKind.ROW_MISSING, seq)
        for seq in [*strange.tolist(), *repeated.tolist()]:
            self._row(DifferenceKind.ROW_SURPLUS, seq)

    def _row(self, kind: DifferenceKind, seq: int) -> None:
        number, place = divmod(seq, ROWS_A_GROUP_MAX)
        group = self._ledger.group(number) if len(self._found.first) < DIFFERENCES_MAX else None
        position = group.position_of(place) if group is not None and place < group.row_count else None
        self._found.add(kind, group=number, position=position, destination=self._counts.destination)

    def finish(self) -> AuditedDestination:
        """The destination's line."""
        self.compare_held()
        if self._delivery is not None or self._next_first != self._counts.cursor + 1:
            self._differs(self._next_first)
        names = sorted(self._expected_of.keys() | self._held_of.keys())
        is_asked = self._held is not None and self._failure is None
        return AuditedDestination(
            destination=self._counts.destination,
            routed=self._routed,
            delivered=self._delivered,
            dead=self._dead,
            skipped=self._skipped,
            erased=self._erased,
            pending=self._pending,
            counted=self._counts,
            held=tuple(HeldCount(name, self._expected_of[name], self._held_of[name]) for name in names)
            if is_asked
            else None,
            missing=self._missing,
            surplus=self._surplus,
            failure=self._failure,
        )
