"""The trace: what became of the rows of one distinctId.

The ledger knows the rows that were settled; the queue's frames know when and by which request each came. Rows that
still wait for settle are searched in the queue, as far as that is quick.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum

import msgspec
import numpy as np

from counterfoil.contract.facts import RowFlag, Verdict, key_hash, key_prefix
from counterfoil.errors import FrameDamaged
from counterfoil.ledger import (
    ROWS_A_GROUP_MAX,
    AnyGroup,
    DestinationCounts,
    FoundRow,
    Group,
    LedgerReader,
    Resending,
    Seq,
    group_of,
)
from counterfoil.positions import FramePosition, RowPosition
from counterfoil.queue import FrameSource
from counterfoil.queue.frame import Frame

WAITING_BYTES_MAX = 64 * 1024 * 1024
"""How much of what waits for settle is searched."""

COUNTED_GROUPS_MAX = 2_000
"""Over how many groups the rows before a pending one are counted; over more, all that are pending are told."""

_READ_BYTES = 4 * 1024 * 1024


class DeliveryState(StrEnum):
    """How a new row stands with a destination."""

    DELIVERED = "delivered"
    PENDING = "pending"
    DEAD = "dead"
    NOT_MEANT = "not_meant"
    """Its source's allowlist names other destinations for it."""
    TOO_EARLY = "too_early"
    """It was settled before the destination was there."""
    DELIVERED_IF_MEANT = "delivered_if_meant"
    """Its group is gone, and some rows of its source were meant for others: delivered, if it was meant for this one."""
    SKIPPED = "skipped"
    """It went before the destination took it, while that was not in the configuration."""


class TracedDelivery(msgspec.Struct, frozen=True):
    """A new row at one destination."""

    destination: str
    state: DeliveryState
    commit: str | None = None
    """What the destination calls the commit that holds the row."""
    at_ms: int | None = None
    """When it was delivered or became dead."""
    before_ms: int | None = None
    """A time by which it was delivered, when its group is gone and nothing more is known."""
    behind_rows: int | None = None
    """How many rows for this destination come before it, at most; when pending."""
    reason: str | None = None
    """Why it is dead."""
    resendings: tuple[Resending, ...] = ()
    """How it was sent again before it stood as it does, in order."""


class TracedRow(msgspec.Struct, frozen=True):
    """One row of the distinctId."""

    source: str
    verdict: Verdict | None
    """None when it waits for settle."""
    is_test: bool
    position: RowPosition | None
    """None when its place in the queue is no longer known."""
    seq: Seq | None
    received_at_ms: int | None
    """None when its frame can't be read any more, like `request_id`."""
    request_id: bytes | None
    settled_at_ms: int | None
    deliveries: tuple[TracedDelivery, ...] = ()
    """Of a new row, one for each destination."""


class Trace(msgspec.Struct, frozen=True):
    """All rows of a distinctId; by source, in the order of settling, and then those that wait."""

    rows: tuple[TracedRow, ...]
    is_whole: bool
    """False when more waits for settle than was searched."""


def trace(ledger: LedgerReader, source: FrameSource, names: Iterable[str], distinct_id: str) -> Trace:
    """What became of the rows of a distinctId at these sources; no rows when none is known."""
    hashes = {key_hash(key_prefix(name), distinct_id): name for name in names}
    destinations = ledger.books().destinations
    settled = [
        _settled(ledger, frame, destinations, name, row)
        for hashed, name in hashes.items()
        for row in ledger.lookup(hashed)
        if not _is_erased(frame := _fetched(source, row.position), row.position)
    ]
    search = _Search(ledger, source)
    waiting = [row for frame in search.frames() for row in _waiting(frame, hashes)]
    return Trace((*settled, *waiting), search.is_whole)


def _settled(
    ledger: LedgerReader, frame: Frame | None, destinations: tuple[DestinationCounts, ...], name: str, row: FoundRow
) -> TracedRow:
    deliveries: tuple[TracedDelivery, ...] = ()
    if row.verdict is Verdict.NEW:
        group = ledger.group(group_of(row.seq))
        deliveries = tuple(_traced(ledger, name, group, frame, counts, row) for counts in destinations)
    return TracedRow(
        source=name,
        verdict=row.verdict,
        is_test=row.verdict is Verdict.TEST,
        position=row.position,
        seq=row.seq,
        received_at_ms=None if frame is None else frame.received_at_ms,
        request_id=None if frame is None else frame.request_id,
        settled_at_ms=row.settled_at_ms,
        deliveries=deliveries,
    )


def _is_erased(frame: Frame | None, position: RowPosition | None) -> bool:
    return frame is not None and position is not None and frame.facts.is_erased(position.row_index)


def _fetched(source: FrameSource, position: RowPosition | None) -> Frame | None:
    if position is None:
        return None
    try:
        return source.fetch(position.frame)
    except FrameDamaged:
        return None


def _traced(
    ledger: LedgerReader,
    source: str,
    group: AnyGroup | None,
    frame: Frame | None,
    counts: DestinationCounts,
    row: FoundRow,
) -> TracedDelivery:
    resendings = tuple(ledger.resendings(counts.destination, row.seq))
    if resendings:
        # What counts is its last seq.
        stands = _stand(ledger, counts, resendings[-1].seq)
        return msgspec.structs.replace(stands, resendings=resendings)
    if isinstance(group, Group):
        return _delivery(ledger, group, frame, counts, row)
    return _gone_delivery(ledger, source, counts, row)


def _gone_delivery(ledger: LedgerReader, source: str, counts: DestinationCounts, row: FoundRow) -> TracedDelivery:
    """Of a row whose group is gone: retention waits for every destination that is in the configuration."""
    name, number = counts.destination, group_of(row.seq)
    carried = ledger.carried()
    if number <= counts.start_group:
        # A key that a destination held when the ledger was rebuilt, and no frame: which of them, nobody knows.
        is_rebuilt = ledger.rebuilt_to(name) > 0
        return TracedDelivery(name, DeliveryState.DELIVERED_IF_MEANT if is_rebuilt else DeliveryState.TOO_EARLY)
    letter = ledger.dead_letter(name, row.seq)
    if letter is not None:
        return TracedDelivery(name, DeliveryState.DEAD, at_ms=letter.at_ms, reason=letter.reason)
    are_meant = {count.is_for(name) for count in carried.routed if count.source == source}
    if are_meant == {False}:
        return TracedDelivery(name, DeliveryState.NOT_MEANT)
    if carried.of(name).has_skipped(number):
        return TracedDelivery(name, DeliveryState.SKIPPED)
    state = DeliveryState.DELIVERED if are_meant == {True} else DeliveryState.DELIVERED_IF_MEANT
    record = ledger.delivery_of(name, number)
    if record is not None:
        return TracedDelivery(name, state, commit=record.commit, at_ms=record.at_ms)
    return TracedDelivery(name, state, before_ms=carried.at_ms)


def _delivery(
    ledger: LedgerReader, group: Group, frame: Frame | None, counts: DestinationCounts, row: FoundRow
) -> TracedDelivery:
    name = counts.destination
    if group.number <= counts.start_group:
        return TracedDelivery(name, DeliveryState.TOO_EARLY)
    if ledger.dead_letter(name, row.seq) is None and not _is_meant(group, frame, name, row):
        return TracedDelivery(name, DeliveryState.NOT_MEANT)
    return _stand(ledger, counts, row.seq)


def _stand(ledger: LedgerReader, counts: DestinationCounts, seq: Seq) -> TracedDelivery:
    """How a row that is meant for a destination stands there, by its last seq."""
    name, number = counts.destination, group_of(seq)
    carried = ledger.carried()
    letter = ledger.dead_letter(name, seq)
    if letter is not None:
        return TracedDelivery(name, DeliveryState.DEAD, at_ms=letter.at_ms, reason=letter.reason)
    if carried.of(name).has_skipped(number):
        return TracedDelivery(name, DeliveryState.SKIPPED)
    record = ledger.delivery_of(name, number)
    if record is not None:
        return TracedDelivery(name, DeliveryState.DELIVERED, commit=record.commit, at_ms=record.at_ms)
    if number <= counts.cursor:
        before_ms = carried.at_ms if ledger.is_gone(number) else None
        return TracedDelivery(name, DeliveryState.DELIVERED, before_ms=before_ms)
    if number - counts.cursor > COUNTED_GROUPS_MAX:
        behind = counts.pending - 1
    else:
        behind = ledger.routed_between(name, counts.cursor, number) + _before_in_group(ledger.group(number), name, seq)
    return TracedDelivery(name, DeliveryState.PENDING, behind_rows=behind)


def _before_in_group(group: AnyGroup | None, name: str, seq: Seq) -> int:
    """How many rows of its group come before a row at a destination, at most."""
    place = seq % ROWS_A_GROUP_MAX
    if isinstance(group, Group):
        return min(group.verdicts.count(Verdict.NEW, 0, place), group.routed_to(name) - 1)
    return 0 if group is None else place


def _is_meant(group: Group, frame: Frame | None, name: str, row: FoundRow) -> bool:
    if frame is None or row.position is None:
        # What is known without the frame: whether the group has any row for it.
        return group.routed_to(name) > 0
    names = frame.facts.destinations_of(int(frame.facts.destination_set[row.position.row_index]))
    return names is None or name in names


class _Search:
    """The frames between the place where settle goes on and the durable end."""

    def __init__(self, ledger: LedgerReader, source: FrameSource) -> None:
        self._ledger = ledger
        self._source = source
        self.is_whole = True

    def frames(self) -> Iterator[Frame]:
        left = WAITING_BYTES_MAX
        positions = self._ledger.reading_positions()
        for directory in self._source.directories():
            start: FramePosition | None = positions.get(directory)
            while left > 0:
                result = self._source.read(directory, start, _READ_BYTES)
                yield from result.frames
                left -= sum(frame.frame_bytes for frame in result.frames)
                if result.next == start:
                    break
                start = result.next
            else:
                self.is_whole = False


def _waiting(frame: Frame, hashes: dict[bytes, str]) -> Iterator[TracedRow]:
    facts = frame.facts
    for hashed, name in hashes.items():
        if name != facts.source:
            continue
        is_it = (facts.key_hashes == np.frombuffer(hashed, np.uint8)).all(axis=1)
        for row_index in np.flatnonzero(is_it).tolist():
            yield TracedRow(
                source=name,
                verdict=None,
                is_test=bool(facts.flags[row_index] & RowFlag.TEST),
                position=RowPosition(frame.position, row_index),
                seq=None,
                received_at_ms=frame.received_at_ms,
                request_id=frame.request_id,
                settled_at_ms=None,
            )
