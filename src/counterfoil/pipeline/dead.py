"""Dead letters, found and planned: which there are, and the orders that send them again or give them up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from counterfoil.errors import FrameDamaged
from counterfoil.ledger import (
    ROWS_A_GROUP_MAX,
    Cause,
    DeadLetter,
    Group,
    LedgerReader,
    ResentRow,
    RowCopy,
    group_of,
)
from counterfoil.pipeline.handover import copy_of
from counterfoil.pipeline.orders import BYTES_AN_ORDER_MAX, ROWS_AN_ORDER_MAX, DropDead, SendAgain
from counterfoil.positions import RowPosition
from counterfoil.queue import FrameSource


class DeadFilter(msgspec.Struct, frozen=True):
    """Which dead letters are meant; None is any."""

    destination: str | None = None
    reason: str | None = None
    """How the reason begins: `sqlstate_22` is all of that class."""
    source: str | None = None
    from_ms: int | None = None
    """Died at this time or later."""
    to_ms: int | None = None
    """Died before this time."""

    def takes_letter(self, letter: DeadLetter) -> bool:
        is_late_enough = self.from_ms is None or letter.at_ms >= self.from_ms
        is_early_enough = self.to_ms is None or letter.at_ms < self.to_ms
        return is_late_enough and is_early_enough and letter.reason.startswith(self.reason or "")


class FoundDead(msgspec.Struct, frozen=True):
    """A dead letter, and what is known of its row."""

    letter: DeadLetter
    source: str | None
    """None when neither a copy nor its group is kept."""
    position: RowPosition | None
    row: RowCopy | None
    """None when it was dropped or erased, or its frame can't be read any more."""
    has_copy: bool
    """Whether the ledger keeps the row; otherwise it was read from the queue."""

    @property
    def is_retryable(self) -> bool:
        return self.row is not None and not self.letter.is_dropped


def find_dead(ledger: LedgerReader, source: FrameSource, wanted: DeadFilter) -> Iterator[FoundDead]:
    """The dead letters of all destinations that a filter takes, by destination and seq."""
    for name in ledger.destinations():
        if wanted.destination in (None, name):
            for letter in ledger.dead_letters(name):
                if not wanted.takes_letter(letter):
                    continue
                found = found_dead(ledger, source, letter)
                if wanted.source in (None, found.source):
                    yield found


def found_dead(ledger: LedgerReader, source: FrameSource, letter: DeadLetter) -> FoundDead:
    """What is known of the row of a dead letter."""
    copy = ledger.copy_of(letter.destination, letter.first_seq)
    if copy is not None:
        return FoundDead(letter, copy.source, copy.position, copy, has_copy=True)
    group = ledger.group(group_of(letter.first_seq))
    if not isinstance(group, Group):
        return FoundDead(letter, None, None, None, has_copy=False)
    position = group.position_of(letter.first_seq % ROWS_A_GROUP_MAX)
    name = next(part.source for part in group.frames if part.position == position.frame)
    try:
        row = None if letter.is_dropped else copy_of(source.fetch(position.frame), position.row_index)
    except FrameDamaged:
        row = None
    return FoundDead(letter, name, position, row, has_copy=False)


def plan_retry(found: Iterable[FoundDead]) -> Iterator[SendAgain]:
    """The orders that send dead rows again, those of each destination together; what can't be sent is left out."""
    rows: list[ResentRow] = []
    name, row_bytes = "", 0
    for each in found:
        if each.row is None or not each.is_retryable:
            continue
        is_full = len(rows) >= ROWS_AN_ORDER_MAX or row_bytes >= BYTES_AN_ORDER_MAX
        if rows and (is_full or each.letter.destination != name):
            yield SendAgain(name, Cause.RETRY, tuple(rows), row_bytes)
            rows, row_bytes = [], 0
        name = each.letter.destination
        position = None if each.has_copy else each.position
        rows.append(ResentRow(each.letter.first_seq, each.letter.seq, position, each.row.source))
        row_bytes += len(each.row.row)
    if rows:
        yield SendAgain(name, Cause.RETRY, tuple(rows), row_bytes)


def plan_drop(found: Iterable[FoundDead]) -> Iterator[DropDead]:
    """The orders that give dead letters up."""
    seqs: list[int] = []
    name = ""
    for each in found:
        if each.letter.is_dropped:
            continue
        if seqs and (len(seqs) >= ROWS_AN_ORDER_MAX or each.letter.destination != name):
            yield DropDead(name, tuple(seqs))
            seqs = []
        name = each.letter.destination
        seqs.append(each.letter.seq)
    if seqs:
        yield DropDead(name, tuple(seqs))


def sent_row(copy: RowCopy) -> bytes:
    """The row as a sender sends it: canonical, with the fields that the contract does not know at their places."""
    fields = _decode_fields(copy.row)
    extra = fields.pop("extra", None)
    if extra is not None:
        fields |= _decode_fields(extra)
    return msgspec.json.encode(fields)


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
