"""Replay: what is kept is compared with what a destination holds, and what is missing there is sent again.

Groups up to the cursor are gone through in order, some rows at a time: `Destination.held` is asked for the same stretch
of the sequence, and what should be there and is not becomes an order. Memory does not grow with the rows. A receiver
that can't be asked is sent all of it once more, which has to be asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile

import msgspec
import numpy as np
from numpy.typing import NDArray

from counterfoil.contract.facts import Verdict
from counterfoil.destinations.interface import HeldRows
from counterfoil.ledger import (
    ROWS_A_GROUP_MAX,
    AnyGroup,
    Cause,
    DestinationCounts,
    Group,
    GroupFrame,
    LedgerReader,
    ResentGroup,
    ResentRow,
    Seq,
    group_of,
    seq_of,
)
from counterfoil.pipeline.handover import FrameCache
from counterfoil.pipeline.orders import BYTES_AN_ORDER_MAX, ROWS_AN_ORDER_MAX, SendAgain
from counterfoil.pipeline.routes import set_columns
from counterfoil.positions import RowPosition
from counterfoil.queue import FrameSource

WINDOW_ROWS = 200_000
"""Rows after which the destination is asked what it holds of them."""

_GROUPS_AT_ONCE = 16

Held = Callable[[int, int], Iterable[HeldRows] | None]


class ReplayFilter(msgspec.Struct, frozen=True):
    """Which rows are compared; None is any."""

    source: str | None = None
    from_ms: int | None = None
    """Received at this time or later."""
    to_ms: int | None = None
    """Received before this time."""

    @property
    def needs_frames(self) -> bool:
        return self.from_ms is not None or self.to_ms is not None

    def takes_time(self, received_at_ms: int) -> bool:
        is_late_enough = self.from_ms is None or received_at_ms >= self.from_ms
        return is_late_enough and (self.to_ms is None or received_at_ms < self.to_ms)


class Replay:
    """A comparison; `orders` carries it out, and the counts are whole when it is at its end."""

    def __init__(
        self,
        ledger: LedgerReader,
        source: FrameSource,
        counts: DestinationCounts,
        held: Held | None,
        wanted: ReplayFilter,
        *,
        window_rows: int = WINDOW_ROWS,
    ) -> None:
        """`held` is that of the destination; None sends all of it once more, on purpose."""
        self._ledger = ledger
        self._frames = FrameCache(source)
        self._places: _Places | None = None
        self._counts = counts
        self._held = held
        self._wanted = wanted
        self._window_rows = window_rows
        self.compared = 0
        """Rows that were delivered and are kept."""
        self.missing: Counter[str] = Counter()
        """Rows to be sent, by source."""
        self.unreadable = 0
        """Rows that could not be compared or sent, because their frame can't be read any more."""
        # What it held when the ledger was rebuilt lies there under other numbers: it would seem to be missing.
        rebuilt_to = 0 if held is None else ledger.rebuilt_to(counts.destination)
        self.oldest_group = max(counts.start_group, ledger.carried().last_group, rebuilt_to) + 1
        """The oldest group that can be compared."""

    def orders(self) -> Iterator[SendAgain]:
        """What is to be sent again. Raises DestinationDown and DestinationRefused where it can't be asked."""
        cause = Cause.AGAIN if self._held is None else Cause.REPLAY
        rows: list[ResentRow] = []
        row_bytes = 0
        for row, size in self._missing_rows():
            self.missing[row.source] += 1
            rows.append(row)
            row_bytes += size
            if len(rows) >= ROWS_AN_ORDER_MAX or row_bytes >= BYTES_AN_ORDER_MAX:
                yield SendAgain(self._counts.destination, cause, tuple(rows), row_bytes)
                rows, row_bytes = [], 0
        if rows:
            yield SendAgain(self._counts.destination, cause, tuple(rows), row_bytes)

    def _missing_rows(self) -> Iterator[tuple[ResentRow, int]]:
        """Each row that is to be sent, by seq, with its bytes at about."""
        first = self.oldest_group
        window: list[NDArray[np.int64]] = []
        row_count = 0
        for group in self._groups():
            seqs = self._delivered(group)
            window.append(seqs)
            row_count += len(seqs)
            if row_count >= self._window_rows:
                yield from self._named(self._not_held(first, group.number, window))
                first, window, row_count = group.number + 1, [], 0
        if window:
            yield from self._named(self._not_held(first, self._counts.cursor, window))

    def _groups(self) -> Iterator[AnyGroup]:
        number: int = self.oldest_group - 1
        while number < self._counts.cursor:
            groups = self._ledger.groups(number, min(_GROUPS_AT_ONCE, self._counts.cursor - number))
            if not groups:
                return
            yield from groups
            number = groups[-1].number

    def _not_held(self, first: int, last: int, window: list[NDArray[np.int64]]) -> list[int]:
        seqs = np.concatenate(window)
        self.compared += len(seqs)
        if self._held is not None and len(seqs):
            answer = self._held(seq_of(first, 0), seq_of(last + 1, 0) - 1)
            # Else everything would be taken for lost.
            assert answer is not None, "a destination that can't be asked"
            held = [np.asarray(rows.seqs, np.int64) for rows in answer]
            seqs = np.setdiff1d(seqs, np.concatenate([seqs[:0], *held]))
        missing: list[int] = seqs.tolist()
        return missing

    # What the destination should hold

    def _delivered(self, group: AnyGroup) -> NDArray[np.int64]:
        """The last seqs, among those of a group, of rows that count as delivered and are wanted."""
        chosen = self._resent(group) if isinstance(group, ResentGroup) else self._settled(group)
        dead = self._dead_in(group.number)
        erased = frozenset(self._ledger.erased_places(group.number))
        left = [seq for seq in chosen if seq not in dead and seq % ROWS_A_GROUP_MAX not in erased]
        return np.array(left, np.int64)

    def _dead_in(self, number: int) -> set[int]:
        letters = self._ledger.dead_letters(self._counts.destination, seq_of(number, 0) - 1)
        return {letter.seq for letter in takewhile(lambda letter: group_of(letter.seq) == number, letters)}

    def _settled(self, group: Group) -> list[int]:
        name = self._counts.destination
        routed = group.routed_to(name)
        if not routed:
            return []
        chosen: list[int] = []
        verdicts = np.frombuffer(group.verdicts, np.uint8)
        is_for_all = all(count.is_for(name) for count in group.routed)
        for part, place in group.parts():
            is_new = verdicts[place : place + part.row_count] == Verdict.NEW
            if self._wanted.source in (None, part.source) and is_new.any():
                if not is_for_all or self._wanted.needs_frames:
                    is_new = self._wanted_of(part, is_new)
                chosen += (np.flatnonzero(is_new) + seq_of(group.number, place)).tolist()
        again = self._ledger.resendings(name, seq_of(group.number, 0), seq_of(group.number + 1, 0) - 1)
        moved = {each.first_seq for each in again}
        return [seq for seq in chosen if seq not in moved] if moved else chosen

    def _wanted_of(self, part: GroupFrame, is_new: NDArray[np.bool_]) -> NDArray[np.bool_]:
        frame = self._frames.fetch(part.position)
        if frame is None:
            self.unreadable += int(is_new.sum())
            return np.zeros_like(is_new)
        if not self._wanted.takes_time(frame.received_at_ms):
            return np.zeros_like(is_new)
        return is_new & set_columns([frame.facts]).are_for(self._counts.destination)

    def _resent(self, group: ResentGroup) -> list[int]:
        if group.destination != self._counts.destination:
            return []
        chosen: list[int] = []
        for place, row in enumerate(group.rows):
            last = max(each.seq for each in self._ledger.resendings(group.destination, row.first_seq))
            if last == group.seq_at(place) and self._wanted.source in (None, row.source) and self._is_in_time(row):
                chosen.append(last)
        return chosen

    def _is_in_time(self, row: ResentRow) -> bool:
        if not self._wanted.needs_frames:
            return True
        found = self._place_of(row.first_seq)
        frame = None if found is None else self._frames.fetch(found[0].position)
        if frame is None:
            self.unreadable += 1
            return False
        return self._wanted.takes_time(frame.received_at_ms)

    # How a row is named

    def _named(self, seqs: list[int]) -> Iterator[tuple[ResentRow, int]]:
        group: AnyGroup | None = None
        for seq in seqs:
            if group is None or group.number != group_of(Seq(seq)):
                group = self._ledger.group(group_of(Seq(seq)))
            first_seq = Seq(seq)
            if isinstance(group, ResentGroup):
                first_seq = group.rows[seq % ROWS_A_GROUP_MAX].first_seq
            found = self._place_of(first_seq)
            frame = None if found is None else self._frames.fetch(found[0].position)
            if found is None or frame is None:
                self.unreadable += 1
                continue
            part, position = found
            if frame.facts.is_erased(position.row_index):
                continue
            yield ResentRow(first_seq, Seq(seq), position, part.source), part.frame_bytes // part.row_count

    def _place_of(self, first_seq: Seq) -> tuple[GroupFrame, RowPosition] | None:
        """The frame of a row, and its place; None where its first group is gone."""
        if self._places is None or self._places.number != group_of(first_seq):
            group = self._ledger.group(group_of(first_seq))
            if not isinstance(group, Group):
                return None
            self._places = _Places(group)
        return self._places.of(first_seq % ROWS_A_GROUP_MAX)


class _Places:
    """Where the rows of a group lie; found in the same time however many frames it has."""

    def __init__(self, group: Group) -> None:
        self.number = group.number
        self._parts = list(group.parts())
        self._firsts = [first for _, first in self._parts]

    def of(self, place: int) -> tuple[GroupFrame, RowPosition]:
        part, first = self._parts[bisect_right(self._firsts, place) - 1]
        return part, RowPosition(part.position, place - first)
