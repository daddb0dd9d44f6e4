"""What a destination is handed of a group, and what is kept of the rows it can't take.

Rows of settled frames are read from the queue; those that are sent again from the queue too, or from the copies that
the ledger keeps of dead rows. A copy is made into a frame of one row, so that all rows come about in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from counterfoil.contract.facts import EVERY_DESTINATION, KEY_HASH_BYTES, FrameFacts, RowFlag, Verdict
from counterfoil.destinations.interface import DeliveredRow, RefusedRow
from counterfoil.destinations.rows import delivered_rows
from counterfoil.errors import FrameDamaged
from counterfoil.ledger import (
    ROWS_A_GROUP_MAX,
    AnyGroup,
    DamageRecord,
    DeadRow,
    Group,
    LedgerReader,
    ResentGroup,
    ResentRow,
    RowCopy,
    Seq,
    group_of,
    seq_of,
)
from counterfoil.pipeline.routes import set_columns
from counterfoil.positions import FramePosition, RowPosition
from counterfoil.queue import FrameSource
from counterfoil.queue.frame import Frame

DAMAGED = "damaged"
"""Why a row is dead whose frame can't be read any more."""

log = structlog.get_logger()


class Handed(msgspec.Struct, frozen=True):
    """The rows of a group that are for a destination."""

    rows: list[DeliveredRow] = []
    dead: list[RefusedRow] = []
    """Those that are beyond reading."""
    erased_rows: int = 0
    """Those that were erased: nobody is handed them any more."""


class Handover:
    """The rows of groups that are meant for one destination."""

    def __init__(self, name: str, ledger: LedgerReader, source: FrameSource) -> None:
        self._name = name
        self._ledger = ledger
        self._source = source

    def rows_of(self, group: AnyGroup) -> Handed:
        """The rows of a group that are for this destination, by seq."""
        return self._resent_rows(group) if isinstance(group, ResentGroup) else self._settled_rows(group)

    def dead_rows(self, refused: Iterable[RefusedRow]) -> list[DeadRow]:
        """What the ledger is to keep of rows that were refused: a copy of each that can be read and has none yet."""
        dead = []
        frames = FrameCache(self._source)
        for number, of_group in groupby(sorted(refused, key=lambda row: row.seq), lambda row: group_of(Seq(row.seq))):
            rows = list(of_group)
            for row, position in zip(rows, self._positions(number, rows), strict=True):
                frame = None if position is None or row.reason == DAMAGED else frames.fetch(position.frame)
                copy = None if frame is None or position is None else copy_of(frame, position.row_index)
                dead.append(DeadRow(Seq(row.seq), row.reason, copy))
        return dead

    def damages_of(self, refused: Iterable[RefusedRow]) -> list[DamageRecord]:
        """The frames of the rows that are dead because they can't be read any more."""
        found: dict[FramePosition, int] = {}
        damaged = sorted((row for row in refused if row.reason == DAMAGED), key=lambda row: row.seq)
        for number, of_group in groupby(damaged, lambda row: group_of(Seq(row.seq))):
            group = self._ledger.group(number)
            sizes = {frame.position: frame.frame_bytes for frame in group.frames} if isinstance(group, Group) else {}
            for position in self._positions(number, list(of_group)):
                if position is not None:
                    found[position.frame] = sizes.get(position.frame, 0)
        return [DamageRecord(position, frame_bytes, DAMAGED) for position, frame_bytes in found.items()]

    # Rows as they came in

    def _settled_rows(self, group: Group) -> Handed:
        rows: list[DeliveredRow] = []
        dead: list[RefusedRow] = []
        damaged: list[int] = []
        erased_rows = 0
        marked = _marked(self._ledger, group)
        verdicts = np.frombuffer(group.verdicts, np.uint8)
        for part, place in group.parts():
            is_new = verdicts[place : place + part.row_count] == Verdict.NEW
            if not is_new.any():
                continue
            first_seq = seq_of(group.number, place)
            try:
                frame = self._source.fetch(part.position)
            except FrameDamaged as error:
                self._tell_damaged(part.position, error)
                damaged += (np.flatnonzero(is_new) + first_seq).tolist()
                continue
            indexes = self._indexes(frame, is_new)
            are_erased = marked[place : place + part.row_count] if marked is not None else None
            if frame.facts.has_erased:
                are_erased = frame.facts.are_erased if are_erased is None else are_erased | frame.facts.are_erased
            if are_erased is not None:
                erased_rows += int(are_erased[indexes].sum())
                indexes = [index for index in indexes if not are_erased[index]]
            taken, unreadable = delivered_rows(frame, indexes, first_seq)
            rows += taken
            dead += unreadable
        # Which rows of a damaged frame were meant for whom can't be read any more; how many, the group says.
        missing = group.routed_to(self._name) - len(rows) - len(dead) - erased_rows
        dead += [RefusedRow(seq, DAMAGED) for seq in damaged[:missing]]
        return Handed(rows, dead, erased_rows)

    def _indexes(self, frame: Frame, is_new: NDArray[np.bool_]) -> list[int]:
        if frame.facts.destination_sets:
            is_new = is_new & set_columns([frame.facts]).are_for(self._name)
        return np.flatnonzero(is_new).tolist()

    def _tell_damaged(self, position: FramePosition, error: FrameDamaged) -> None:
        log.error("deliver.frame_damaged", destination=self._name, position=str(position), reason=str(error))

    # Rows that are sent again

    def _resent_rows(self, group: ResentGroup) -> Handed:
        rows: list[DeliveredRow] = []
        dead: list[RefusedRow] = []
        erased_rows = 0
        marked = frozenset(self._ledger.erased_places(group.number))
        frames = FrameCache(self._source)
        for place, named in enumerate(group.rows):
            seq = group.seq_at(place)
            if place in marked:
                erased_rows += 1
                continue
            found = self._found(named, frames)
            if found is None:
                dead.append(RefusedRow(seq, DAMAGED))
                continue
            frame, index = found
            if frame.facts.is_erased(index):
                erased_rows += 1
                continue
            taken, unreadable = delivered_rows(frame, [index], seq - index)
            rows += [msgspec.structs.replace(row, first_seq=named.first_seq) for row in taken]
            dead += unreadable
        return Handed(rows, dead, erased_rows)

    def _found(self, named: ResentRow, frames: FrameCache) -> tuple[Frame, int] | None:
        if named.position is None:
            copy = self._ledger.copy_of(self._name, named.first_seq)
            return None if copy is None else (frame_of(copy), 0)
        frame = frames.fetch(named.position.frame)
        if frame is None:
            self._tell_damaged(named.position.frame, frames.failures[named.position.frame])
            return None
        return frame, named.position.row_index

    # Dead rows

    def _positions(self, number: int, rows: Sequence[RefusedRow]) -> Iterator[RowPosition | None]:
        """Where the rows of one group, by seq, lie in the queue; None where a copy is kept already."""
        group = self._ledger.group(number)
        places = [row.seq % ROWS_A_GROUP_MAX for row in rows]
        if isinstance(group, ResentGroup):
            yield from (group.rows[place].position for place in places)
        elif group is None:
            yield from (None for _ in places)
        else:
            yield from group.positions_of(places)


def _marked(ledger: LedgerReader, group: Group) -> NDArray[np.bool_] | None:
    """Shape (n,): whether each row of a group was erased; None where none was."""
    places = ledger.erased_places(group.number)
    if not places:
        return None
    marked = np.zeros(group.row_count, np.bool_)
    marked[list(places)] = True
    return marked


class FrameCache:
    """Frames of the queue, the last one kept: neighbours lie in the same."""

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self._last: Frame | None = None
        self.failures: dict[FramePosition, FrameDamaged] = {}

    def fetch(self, position: FramePosition) -> Frame | None:
        """The frame, or None where it can't be read any more."""
        if self._last is not None and self._last.position == position:
            return self._last
        if position in self.failures:
            return None
        try:
            self._last = self._source.fetch(position)
        except FrameDamaged as error:
            self.failures[position] = error
            return None
        return self._last


def copy_of(frame: Frame, row_index: int) -> RowCopy | None:
    """What the ledger keeps of a row that is dead; None of one that was erased."""
    facts = frame.facts
    if facts.is_erased(row_index):
        return None
    return RowCopy(
        source=facts.source,
        position=RowPosition(frame.position, row_index),
        received_at_ms=frame.received_at_ms,
        request_id=frame.request_id,
        flags=RowFlag(int(facts.flags[row_index])),
        sender_version=frame.sender_version,
        destinations=facts.destinations_of(int(facts.destination_set[row_index])),
        row=frame.row(row_index),
    )


def frame_of(copy: RowCopy) -> Frame:
    """A frame of one row that gives what the row's own frame gave; hashes, which settle alone asks for, are zeros."""
    sets = () if copy.destinations is None else (copy.destinations,)
    return Frame(
        position=copy.position.frame,
        frame_bytes=len(copy.row),
        flushed=0,
        received_at_ms=copy.received_at_ms,
        request_id=copy.request_id,
        sender_version=copy.sender_version,
        facts=FrameFacts(
            source=copy.source,
            destination_sets=sets,
            key_hashes=np.zeros((1, KEY_HASH_BYTES), np.uint8),
            content_hashes=np.zeros(1, np.uint64),
            destination_set=np.array([EVERY_DESTINATION if copy.destinations is None else 1], np.uint16),
            flags=np.array([copy.flags], np.uint8),
        ),
        row_ends=[len(copy.row)],
        rows=copy.row,
    )
