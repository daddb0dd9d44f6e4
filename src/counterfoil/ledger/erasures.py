"""Erasures: whose rows are to go, how far that is, and which rows of the groups that are kept went.

An erasure is ordered once and goes on over any number of lives until it is done everywhere; then the id of the person
leaves its record, and counts and times stay. A row that is erased is marked in the one batch in which it leaves what it
was in the books; so everybody who comes to it later passes over it, whatever the queue still holds of it.

A mark is a row's place in a group: in the one it was settled in, and in each that sends it again. It goes with its
group, or when no erasure is open any more: until then a destination may say that it holds the row.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import groupby
from uuid import UUID

import msgspec
import numpy as np

from counterfoil.contract.subject import Subject
from counterfoil.ledger.carried import CarriedDestination
from counterfoil.ledger.destinations import Destinations
from counterfoil.ledger.kept import Kept
from counterfoil.ledger.records import (
    ROWS_A_GROUP_MAX,
    DeadLetter,
    DestinationState,
    Group,
    GroupNumber,
    Places,
    Seq,
    SourceCounts,
    count_sources,
    group_of,
    unpack_seen,
)
from counterfoil.ledger.resent import unpack_any
from counterfoil.ledger.store import COPIES, FACTS, GROUPS, Batch, Family, Store, repeats_family, seen_family

ERASURE = b"erasure/"
ERASED = b"erased/"

DONE_MAX = 1000
"""How many erasures that are done are remembered."""

_U64 = struct.Struct(">Q")


class ErasureState(StrEnum):
    """How far an erasure is at a destination."""

    WAITING = "waiting"
    DONE = "done"
    REFUSED = "refused"
    """Somebody must act; it is tried again at leisure, and deliveries go on."""
    NOT_SET = "not_set"
    """It is not in the configuration: what it holds stays there."""
    GIVEN_UP = "given_up"
    """Somebody decided not to wait for it any more: what it holds stays there."""


class ErasedThere(msgspec.Struct, frozen=True):
    """An erasure at one destination."""

    state: ErasureState
    row_count: int | None = None
    """Rows that were removed there; None where it can't be counted."""
    reason: str = ""
    """Of waiting or being refused, in our own words."""

    @property
    def is_open(self) -> bool:
        """Whether something is left to do there."""
        return self.state in (ErasureState.WAITING, ErasureState.REFUSED)


class Erasure(msgspec.Struct, frozen=True):
    """An order to erase a person's rows, and what was done."""

    id: UUID
    asked_at_ms: int
    subject: Subject | None
    """None when all is done: nobody needs to know any more whose rows it were."""
    destinations: Mapping[str, ErasedThere]
    cut: GroupNumber = GroupNumber(0)
    """Rows of groups up to this one are meant, and no later ones; 0 as long as that is not fixed."""
    segments: Mapping[str, int] = {}
    """The last segment, by the id of its directory in hex, that holds rows of these groups; closed since."""
    is_begun: bool = False
    """Rows may be marked; whose keys and copies a life that ended then may have left in files."""
    is_marked: bool = False
    """Every row of these groups is marked."""
    is_blanked: bool = False
    """No segment holds their bytes any more."""
    row_count: int = 0
    """Rows of kept groups that were marked."""
    key_count: int = 0
    """Keys and repeats that the seen index forgot."""
    dead_count: int = 0
    """Dead letters, of all destinations, that went."""
    blanked_rows: int = 0
    """Rows that went from segments; also of groups that are gone."""
    blanked_segments: int = 0
    damaged_frames: int = 0
    """Frames that can't be read, so that nobody knows whether a row of the person's is in them."""
    is_let_go: bool = False
    """All is done, and no file of the ledger has the subject any more."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.is_blanked and not any(there.is_open for there in self.destinations.values())

    def rows_at(self, name: str) -> int:
        """How many rows a destination was found to hold, as far as is known."""
        return self.destinations[name].row_count or 0

    def at(self, name: str, there: ErasedThere) -> Erasure:
        """The same, with another standing at a destination."""
        return msgspec.structs.replace(self, destinations={**self.destinations, name: there})

    def may_reach(self, name: str) -> bool:
        """Whether a destination that is set now may hold rows that are meant, and is not asked yet."""
        there = self.destinations.get(name)
        return not self.is_marked if there is None else there.state is ErasureState.NOT_SET

    def is_open_at(self, name: str) -> bool:
        """Whether something is left to do at a destination."""
        there = self.destinations.get(name)
        return there is not None and there.is_open

    def holds(self, name: str) -> bool:
        """Whether a destination may not be handed groups after the cut yet.

        What it removes are all rows of the person's that it holds: none may be among them that came later.
        """
        there = self.destinations.get(name)
        return self.cut > 0 and there is not None and there.state is ErasureState.WAITING


class SubjectRow(msgspec.Struct, frozen=True, gc=False):
    """A row to be erased, as it was settled."""

    first_seq: Seq
    source: str
    is_new: bool = True
    destinations: tuple[str, ...] | None = None
    """Whom it was meant for, as in `RoutedCount`."""
    key_hash: bytes | None = None
    """None where its group is gone, and the seen index was asked for its key by others."""
    is_read: bool = True
    """False: its frame is damaged, so whom it was for is not known, and only its key is forgotten."""


class MarkedRows(msgspec.Struct, frozen=True):
    """What became of rows that were to be marked; those that were marked before are not in it."""

    row_count: int
    key_count: int
    dead_count: int


class Leaving(msgspec.Struct, frozen=True):
    """What a batch changes for rows that leave what they were."""

    counted: MarkedRows
    marks: dict[GroupNumber, Places]
    sources: tuple[SourceCounts, ...]
    moved: dict[str, tuple[DestinationState, CarriedDestination]]
    keys: dict[Family, list[bytes]]
    """Whose values are removed."""


class Erasures:
    """What `Ledger` knows of them in memory; not shared between threads without its lock."""

    def __init__(self, store: Store, facts: Mapping[bytes, bytes], destinations: Destinations, kept: Kept) -> None:
        """`facts`: everything in the family of that name."""
        self._store = store
        self._destinations = destinations
        self._kept = kept
        self.all: dict[UUID, Erasure] = {}
        self.marks: dict[GroupNumber, Places] = {}
        for key, value in facts.items():
            if key.startswith(ERASURE):
                erasure = _decode(value)
                self.all[erasure.id] = erasure
            elif key.startswith(ERASED):
                self.marks[GroupNumber(_U64.unpack(key[len(ERASED) :])[0])] = unpack_places(value)

    def open_at(self, name: str) -> list[Erasure]:
        """Those whose rows are all marked and that are left to be done at a destination, oldest first."""
        waiting = [one for one in self.all.values() if one.is_marked and one.is_open_at(name)]
        return sorted(waiting, key=lambda one: (one.asked_at_ms, one.id))

    def reaching(self, name: str) -> list[Erasure]:
        """Those that are open and become a destination's as it is set: it was not, or not known before rows went."""
        return [
            one.at(name, ErasedThere(ErasureState.WAITING))
            for one in self.all.values()
            if not one.is_done and one.may_reach(name)
        ]

    def is_marked(self, seq: int) -> bool:
        """Whether a row was erased, asked by any `seq` that it has in a kept group."""
        places = self.marks.get(group_of(Seq(seq)), ())
        at = bisect_left(places, seq % ROWS_A_GROUP_MAX)
        return at < len(places) and places[at] == seq % ROWS_A_GROUP_MAX

    def marked_among(self, seqs: Iterable[int], first_group: int, last_group: int) -> set[int]:
        """Which of these rows, all of groups between two, were erased; looks at none when no row there was."""
        if not any(first_group <= number <= last_group for number in self.marks):
            return set()
        return {seq for seq in seqs if self.is_marked(seq)}

    def put(self, batch: Batch, erasure: Erasure) -> list[UUID]:
        """Write an erasure's record; which of those that are done are forgotten for it."""
        batch.put(FACTS, _key(erasure.id), _encode(erasure))
        done = sorted((one.asked_at_ms, one.id) for one in self.all.values() if one.is_done and one.id != erasure.id)
        forgotten = [each for _, each in done[: max(0, len(done) - DONE_MAX)]]
        for each in forgotten:
            batch.delete(FACTS, _key(each))
        if not self._is_open_with(erasure):
            self._put_marks_gone(batch, self._kept.carried.last_group)
        return forgotten

    def remember(self, erasure: Erasure, forgotten: Iterable[UUID]) -> None:
        """What `put` wrote is on disk."""
        self.all[erasure.id] = erasure
        for each in forgotten:
            del self.all[each]
        self.forget(self._kept.carried.last_group)

    def put_erased(self, batch: Batch, rows: Iterable[SubjectRow], generations: Sequence[int]) -> Leaving:
        """That rows leave what they were; each of the seen index's `generations` forgets their keys."""
        found: dict[Seq, SubjectRow] = {}
        for row in rows:
            # The same row may be found by its key, by its copy and where it is sent again.
            if not self.is_marked(row.first_seq):
                found.setdefault(row.first_seq, row)
        new = list(found.values())
        keys = self._put_keys_gone(batch, new, generations)
        key_count = sum(map(len, keys.values()))
        new = [row for row in new if row.is_read]
        kept = [row for row in new if self._is_kept(row.first_seq)]
        marks = {row.first_seq for row in kept}
        moved = {}
        dead_count = 0
        copies: list[bytes] = []
        for name in self._destinations.names():
            delivered: list[Seq] = []
            dead: list[DeadLetter] = []
            for row in new:
                if row.is_new and (row.destinations is None or name in row.destinations):
                    marks.update(self._seqs_again(name, row))
                    self._stand(name, row, delivered, dead)
            dead_count += len(dead)
            moved[name] = self._put_moved(batch, name, delivered, dead)
            copies += self._destinations.put_copies_gone(batch, name, (row.first_seq for row in new))
        return Leaving(
            MarkedRows(len(kept), key_count, dead_count),
            self.put_marks(batch, marks),
            tuple(SourceCounts(source, erased=count) for source, count in Counter(row.source for row in kept).items()),
            moved,
            {**keys, COPIES: copies},
        )

    def put_held(self, batch: Batch, name: str, seqs: Iterable[int]) -> Leaving:
        """That rows which a destination holds leave being delivered, where they did not yet."""
        cursor, side = self._destinations.states[name].cursor, self._kept.carried.of(name)
        # What it held when the ledger was rebuilt lies there under numbers that say nothing today.
        folded = 0 if self._destinations.rebuilt_to(name) else side.delivered
        delivered: list[Seq] = []
        for seq in sorted({Seq(seq) for seq in seqs}):
            if group_of(seq) > cursor or self.is_marked(seq):
                continue
            is_folded = group_of(seq) <= side.delivered_to or not self._destinations.delivery_of(name, group_of(seq))
            if folded or not is_folded:
                delivered.append(seq)
                folded -= is_folded
        kept = [seq for seq in delivered if self._is_kept(seq)]
        moved = {name: self._put_moved(batch, name, delivered, ())}
        sources = self._sources_of(kept)
        return Leaving(MarkedRows(len(delivered), 0, 0), self.put_marks(batch, kept), sources, moved, {})

    def remember_erased(self, left: Leaving) -> None:
        """What `put_erased` or `put_held` wrote is on disk."""
        self.marks.update(left.marks)
        for name, (state, side) in left.moved.items():
            self._destinations.remember(name, state)
            self._kept.remember_side(name, side)

    def put_marks(self, batch: Batch, seqs: Iterable[Seq]) -> dict[GroupNumber, Places]:
        """Mark rows; what to add to `marks` when that is written."""
        added: dict[GroupNumber, set[int]] = {}
        for seq in seqs:
            added.setdefault(group_of(seq), set()).add(seq % ROWS_A_GROUP_MAX)
        merged = {number: tuple(sorted(places.union(self.marks.get(number, ())))) for number, places in added.items()}
        for number, places in merged.items():
            batch.put(FACTS, _mark_key(number), pack_places(places))
        return merged

    def put_gone(self, batch: Batch, last: int) -> None:
        """Groups up to `last` go, and their marks unless an erasure is open."""
        if not self._is_open():
            self._put_marks_gone(batch, last)

    def forget(self, last: int) -> None:
        """What `put_gone` wrote is on disk."""
        if not self._is_open() and any(number <= last for number in self.marks):
            self.marks = {number: places for number, places in self.marks.items() if number > last}

    def _is_open(self) -> bool:
        return any(not one.is_done for one in self.all.values())

    def _is_open_with(self, erasure: Erasure) -> bool:
        return not erasure.is_done or any(not one.is_done for one in self.all.values() if one.id != erasure.id)

    def _put_marks_gone(self, batch: Batch, last: int) -> None:
        for number in self.marks:
            if number <= last:
                batch.delete(FACTS, _mark_key(number))

    def _is_kept(self, seq: Seq) -> bool:
        return group_of(seq) > self._kept.carried.last_group

    def _seqs_again(self, name: str, row: SubjectRow) -> Iterator[Seq]:
        """The seqs of a row in kept groups that send it again."""
        again = self._destinations.resendings(name, row.first_seq, row.first_seq)
        return (each.seq for each in again if self._is_kept(each.seq))

    def _stand(self, name: str, row: SubjectRow, delivered: list[Seq], dead: list[DeadLetter]) -> None:
        """Add how a row stands at a destination; one that is pending leaves that when it is passed over.

        Whether it was delivered in a group that is gone, the destination is asked: see `put_held`.
        """
        state = self._destinations.states[name]
        for seq in self._destinations.standing_seqs(name, row.first_seq):
            letter = self._destinations.dead_letter(name, seq)
            if letter is not None:
                dead.append(letter)
            elif state.start_group < group_of(seq) <= state.cursor and self._is_kept(seq) and not self.is_marked(seq):
                delivered.append(seq)

    def _put_moved(
        self, batch: Batch, name: str, delivered: Iterable[Seq], dead: Iterable[DeadLetter]
    ) -> tuple[DestinationState, CarriedDestination]:
        moved, side = self._destinations.put_erased(batch, name, delivered, dead, self._kept.carried.of(name))
        self._kept.put_side(batch, name, side)
        return moved, side

    def _sources_of(self, seqs: Iterable[Seq]) -> tuple[SourceCounts, ...]:
        """Whose rows these are, which were not marked before; those that send a row again count with its first one."""
        counted: dict[str, SourceCounts] = {}
        for number, of_group in groupby(seqs, group_of):
            packed = self._store.get(GROUPS, _U64.pack(number))
            group = None if packed is None else unpack_any(number, packed)
            if isinstance(group, Group):
                places = tuple(seq % ROWS_A_GROUP_MAX for seq in of_group)
                for counts in count_sources(group.frames, np.frombuffer(group.verdicts, np.uint8), places):
                    known = counted.get(counts.source, SourceCounts(counts.source))
                    counted[counts.source] = known.plus(SourceCounts(counts.source, erased=counts.erased))
        return tuple(counted.values())

    def _put_keys_gone(
        self, batch: Batch, rows: Iterable[SubjectRow], generations: Sequence[int]
    ) -> dict[Family, list[bytes]]:
        """Forget the keys and repeats that are these rows' own; which they are, by family."""
        gone: dict[Family, list[bytes]] = {}
        for row in rows:
            if row.key_hash is None:
                continue
            for generation in generations:
                seen, repeats = seen_family(generation), repeats_family(generation)
                packed = self._store.get(seen, row.key_hash)
                if packed is not None and unpack_seen(packed)[0] == row.first_seq:
                    gone.setdefault(seen, []).append(row.key_hash)
                repeat = row.key_hash + _U64.pack(row.first_seq)
                if self._store.get(repeats, repeat) is not None:
                    gone.setdefault(repeats, []).append(repeat)
        for family, keys in gone.items():
            for key in keys:
                batch.delete(family, key)
        return gone


def pack_places(places: Places) -> bytes:
    """2 bytes each."""
    return struct.pack(f">{len(places)}H", *places)


def unpack_places(packed: bytes) -> Places:
    return struct.unpack(f">{len(packed) // 2}H", packed)


def _key(erasure: UUID) -> bytes:
    return ERASURE + erasure.bytes


def _mark_key(number: int) -> bytes:
    return ERASED + _U64.pack(number)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Erasure).decode
