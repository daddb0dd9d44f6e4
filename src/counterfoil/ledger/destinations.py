"""The destinations' side of the ledger: deliveries, dead letters, and rows that are sent again.

What `Ledger` does under its lock stands here: reading, and putting into a batch what one step changes. Nothing is
written here and nothing remembered before the batch is written: `remember` is called after.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import TypeVar

import msgspec

from counterfoil.ledger.carried import Carried, CarriedDestination
from counterfoil.ledger.records import (
    DeadLetter,
    DeadRow,
    DeliveryRecord,
    DestinationState,
    GroupNumber,
    RowCopy,
    Seq,
    group_of,
    pack_dead,
    pack_delivery,
    unpack_dead,
    unpack_delivery,
    upgrade_delivery,
)
from counterfoil.ledger.resent import (
    Cause,
    Resending,
    ResentGroup,
    ResentRow,
    pack_copy,
    pack_resending,
    unpack_any,
    unpack_copy,
    unpack_resending,
)
from counterfoil.ledger.store import AGAIN, COPIES, DEAD, DELIVERIES, FACTS, GROUPS, Batch, Family, Store

DESTINATION = b"destination/"
RESENT = b"resent/"
REBUILT = b"rebuilt/"

_U64 = struct.Struct(">Q")
_TWO_U64 = struct.Struct(">QQ")


class Destinations:
    """What is known of each destination; made by `Ledger`, which holds its lock around every call that writes."""

    def __init__(self, store: Store, facts: dict[bytes, bytes]) -> None:
        self._store = store
        self.states = {
            key[len(DESTINATION) :].decode(): DestinationState.unpack(value)
            for key, value in facts.items()
            if key.startswith(DESTINATION)
        }
        self._rebuilt = {
            key[len(REBUILT) :].decode(): GroupNumber(_U64.unpack(value)[0])
            for key, value in facts.items()
            if key.startswith(REBUILT)
        }
        self._resent: dict[str, list[GroupNumber]] = {}
        for key in sorted(facts):
            if key.startswith(RESENT):
                name, number = key[len(RESENT) : -_U64.size - 1], _U64.unpack(key[-_U64.size :])[0]
                self._resent.setdefault(name.decode(), []).append(GroupNumber(number))

    def names(self) -> tuple[str, ...]:
        """All that were ever registered, sorted."""
        return tuple(sorted(self.states))

    def pending_resent(self, name: str) -> list[ResentGroup]:
        """The groups that send rows to it again and that it is not through with, in order."""
        found = []
        for number in self._resent.get(name, ()):
            packed = self._store.get(GROUPS, _U64.pack(number))
            group = None if packed is None else unpack_any(number, packed)
            assert isinstance(group, ResentGroup)
            found.append(group)
        return found

    def rebuilt_to(self, name: str) -> GroupNumber:
        """Up to this group its rows were found there when the ledger was rebuilt; 0 when it never was."""
        return self._rebuilt.get(name, GroupNumber(0))

    # Changing

    def put_rebuilt(self, batch: Batch, name: str, last_group: GroupNumber) -> None:
        batch.put(FACTS, REBUILT + name.encode(), _U64.pack(last_group))

    def remember_rebuilt(self, name: str, last_group: GroupNumber) -> None:
        self._rebuilt[name] = last_group

    def put_state(self, batch: Batch, name: str, state: DestinationState) -> None:
        batch.put(FACTS, DESTINATION + name.encode(), state.pack())

    def put_delivery(self, batch: Batch, record: DeliveryRecord, dead: Sequence[DeadRow]) -> DestinationState:
        """What became of the rows of a delivery; its state from then on."""
        name = record.destination
        batch.put(DELIVERIES, _key(name, record.last_group), pack_delivery(record))
        resent = [group for group in self.pending_resent(name) if group.number <= record.last_group]
        sent_again = {group.seq_at(place): row for group in resent for place, row in enumerate(group.rows)}
        for row in dead:
            first_seq = sent_again[row.seq].first_seq if row.seq in sent_again else row.seq
            letter = DeadLetter(name, row.seq, row.reason, record.at_ms, first_seq)
            batch.put(DEAD, _key(name, row.seq), pack_dead(letter))
            if row.copy is not None:
                batch.put(COPIES, _key(name, first_seq), pack_copy(row.copy))
        for seq in sent_again.keys() - {row.seq for row in dead}:
            if sent_again[seq].position is None:
                batch.delete(COPIES, _key(name, sent_again[seq].first_seq))
        for group in resent:
            batch.delete(FACTS, _resent_key(name, group.number))
        state = self.states[name]
        moved = msgspec.structs.replace(
            state,
            cursor=record.last_group,
            delivered=state.delivered + record.delivered_rows,
            dead=state.dead + len(dead),
            erased=state.erased + record.erased_rows,
        )
        self.put_state(batch, name, moved)
        return moved

    def fitting(self, name: str, cause: Cause, rows: Iterable[ResentRow]) -> Iterator[ResentRow]:
        """Those of the rows that may be sent again, each once: what was true when they were named may be no more."""
        taken: set[Seq] = set()
        for row in rows:
            if row.first_seq not in taken and self._is_fitting(name, cause, row):
                taken.add(row.first_seq)
                yield row

    def _is_fitting(self, name: str, cause: Cause, row: ResentRow) -> bool:
        state, letter = self.states[name], self.dead_letter(name, row.last_seq)
        if cause.is_of_dead:
            is_retryable = letter is not None and not letter.is_dropped and letter.first_seq == row.first_seq
            return is_retryable and (row.position is not None or self.copy(name, row.first_seq) is not None)
        # What was there when the ledger was rebuilt lies there under another number: it seems missing, and is not.
        first = self.rebuilt_to(name) if cause is Cause.REPLAY else GroupNumber(0)
        is_delivered = letter is None and max(state.start_group, first) < group_of(row.last_seq) <= state.cursor
        return is_delivered and self.last_seq(name, row.first_seq) == row.last_seq and row.position is not None

    def put_resent(self, batch: Batch, group: ResentGroup) -> DestinationState:
        """That these rows leave what they were and are pending; its state from then on."""
        name = group.destination
        for place, row in enumerate(group.rows):
            letter = self.dead_letter(name, row.last_seq)
            resending = Resending(name, row.first_seq, group.seq_at(place), group.cause, row.last_seq)
            if letter is not None:
                resending = msgspec.structs.replace(resending, died_at_ms=letter.at_ms, reason=letter.reason)
                batch.delete(DEAD, _key(name, row.last_seq))
            batch.put(AGAIN, _key(name, row.first_seq, group.number), pack_resending(resending))
        batch.put(FACTS, _resent_key(name, group.number), b"")
        state, row_count = self.states[name], group.row_count
        moved = msgspec.structs.replace(
            state,
            delivered=state.delivered - (row_count if group.cause is Cause.REPLAY else 0),
            dead=state.dead - (row_count if group.cause.is_of_dead else 0),
            again=state.again + (row_count if group.cause is Cause.AGAIN else 0),
        )
        self.put_state(batch, name, moved)
        return moved

    def put_erased(
        self, batch: Batch, name: str, delivered: Iterable[Seq], dead: Iterable[DeadLetter], side: CarriedDestination
    ) -> tuple[DestinationState, CarriedDestination]:
        """That rows leave what they were and are erased; its state from then on, and what is carried forward of it.

        `delivered` are last seqs of rows that count as such. The records of their deliveries change with the state, or
        the balances where a record is folded, so that who counts again comes to the same.
        """
        lowered: dict[GroupNumber, DeliveryRecord] = {}
        state = self.states[name]
        letters = tuple(dead)
        changes = [(seq, 1, 0) for seq in delivered] + [(letter.seq, 0, 1) for letter in letters]
        folded_to = side.delivered_to
        for seq, left_delivered, left_dead in changes:
            record = None if group_of(seq) <= folded_to else self.delivery_of(name, group_of(seq))
            if record is None:
                side = _erased_of(side, left_delivered, left_dead)
            else:
                record = lowered.get(record.last_group, record)
                lowered[record.last_group] = msgspec.structs.replace(
                    record,
                    delivered_rows=record.delivered_rows - left_delivered,
                    dead_rows=record.dead_rows - left_dead,
                    erased_rows=record.erased_rows + 1,
                )
            state = _erased_of(state, left_delivered, left_dead)
        for record in lowered.values():
            batch.put(DELIVERIES, _key(name, record.last_group), pack_delivery(record))
        for letter in letters:
            batch.delete(DEAD, _key(name, letter.seq))
        self.put_state(batch, name, state)
        return state, side

    def put_copies_gone(self, batch: Batch, name: str, first_seqs: Iterable[Seq]) -> list[bytes]:
        """Remove what copies there are of rows, whether they are dead or sent again; the keys of these."""
        keys = [_key(name, seq) for seq in first_seqs]
        there = [key for key, value in zip(keys, self._store.get_all(COPIES, keys), strict=True) if value is not None]
        for key in there:
            batch.delete(COPIES, key)
        return there

    def put_dropped(self, batch: Batch, name: str, seqs: Iterable[int]) -> int:
        """Forget the copies of dead rows, which stay dead for good; how many letters that changed."""
        count = 0
        for seq in sorted(set(seqs)):
            letter = self.dead_letter(name, seq)
            if letter is not None and not letter.is_dropped:
                count += 1
                batch.put(DEAD, _key(name, seq), pack_dead(msgspec.structs.replace(letter, is_dropped=True)))
                batch.delete(COPIES, _key(name, letter.first_seq))
        return count

    def remember(self, name: str, state: DestinationState, resent: ResentGroup | None = None) -> None:
        """What was written is so from now on."""
        self.states[name] = state
        pending = [number for number in self._resent.get(name, ()) if number > state.cursor]
        self._resent[name] = [*pending, resent.number] if resent is not None else pending

    def put_gone(self, batch: Batch, ended: Iterable[str], last: int) -> None:
        """Groups up to `last` go: so do the deliveries that end in them, and what was to be sent again and never is."""
        for name in ended:
            batch.delete_range(DELIVERIES, _key(name, 0), _key(name, last + 1))
        for name, numbers in self._resent.items():
            for group in self.pending_resent(name) if numbers and numbers[0] <= last else ():
                if group.number > last:
                    break
                batch.delete(FACTS, _resent_key(name, group.number))
                for row in group.rows:
                    batch.delete(COPIES, _key(name, row.first_seq))

    def forget(self, last: int) -> None:
        """What `put_gone` wrote is on disk."""
        self._resent = {name: [each for each in numbers if each > last] for name, numbers in self._resent.items()}

    # Reading

    def deliveries_within(self, before: Carried, last: int) -> list[DeliveryRecord]:
        """The deliveries that end in groups up to `last`, and that are not in these balances."""
        return [
            record
            for name in self.states
            for record in takewhile(
                lambda record: record.last_group <= last, self.deliveries(name, before.of(name).delivered_to + 1)
            )
        ]

    def delivery_of(self, name: str, group: int) -> DeliveryRecord | None:
        for (number,), value in self._numbered(DELIVERIES, name, _U64, group):
            record = unpack_delivery(name, GroupNumber(number), value)
            return record if record.first_group <= group else None
        return None

    def deliveries(self, name: str, first: int) -> Iterator[DeliveryRecord]:
        for (number,), value in self._numbered(DELIVERIES, name, _U64, first):
            yield unpack_delivery(name, GroupNumber(number), value)

    def dead_letter(self, name: str, seq: int) -> DeadLetter | None:
        packed = self._store.get(DEAD, _key(name, seq))
        return None if packed is None else unpack_dead(name, Seq(seq), packed)

    def dead_letters(self, name: str, after: int) -> Iterator[DeadLetter]:
        for (seq,), value in self._numbered(DEAD, name, _U64, after + 1):
            yield unpack_dead(name, Seq(seq), value)

    def copy(self, name: str, first_seq: int) -> RowCopy | None:
        packed = self._store.get(COPIES, _key(name, first_seq))
        return None if packed is None else unpack_copy(packed)

    def resendings(self, name: str, first_seq: int, last_seq: int) -> Iterator[Resending]:
        for (seq, group), value in self._numbered(AGAIN, name, _TWO_U64, first_seq):
            if seq > last_seq:
                return
            yield unpack_resending(name, Seq(seq), GroupNumber(group), value)

    def standing_seqs(self, name: str, first_seq: Seq) -> list[Seq]:
        """The seqs by which a row counts here: its last, and each that it had before it was sent twice on purpose."""
        last, standing = first_seq, []
        for each in self.resendings(name, first_seq, first_seq):
            if each.cause is Cause.AGAIN:
                standing.append(last)
            last = each.seq
        return [*standing, last]

    def last_seq(self, name: str, first_seq: Seq) -> Seq:
        """The last `seq` that a row was given for this destination."""
        return max((each.seq for each in self.resendings(name, first_seq, first_seq)), default=first_seq)

    def _numbered(
        self, family: Family, name: str, numbers: struct.Struct, start: int = 0
    ) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """The records of a destination from a number on, with the numbers of their keys."""
        prefix = _key(name)
        for key, value in self._store.items(family, _key(name, start), prefix):
            yield numbers.unpack(key[len(prefix) :]), value


_Counts = TypeVar("_Counts", DestinationState, CarriedDestination)


def _erased_of(counts: _Counts, delivered: int, dead: int) -> _Counts:
    return msgspec.structs.replace(
        counts,
        delivered=counts.delivered - delivered,
        dead=counts.dead - dead,
        erased=counts.erased + delivered + dead,
    )


def _key(name: str, *numbers: int) -> bytes:
    return name.encode() + b"\0" + b"".join(map(_U64.pack, numbers))


def _resent_key(name: str, number: int) -> bytes:
    return RESENT + name.encode() + b"/" + _U64.pack(number)


def upgrade_destinations(store: Store, batch: Batch, version: int) -> None:
    """From formats before 3, which knew no row that was sent again and kept no copies; before 4, no row was erased."""
    added = bytes(_U64.size * (2 if version < 3 else 1))
    for key, value in store.items(FACTS, DESTINATION, DESTINATION):
        batch.put(FACTS, key, value + added)
    if version < 3:
        for key, value in store.items(DEAD, b""):
            batch.put(DEAD, key, value[: _U64.size] + key[-_U64.size :] + b"\0" + value[_U64.size :])
    for key, value in store.items(DELIVERIES, b""):
        batch.put(DELIVERIES, key, upgrade_delivery(value))
