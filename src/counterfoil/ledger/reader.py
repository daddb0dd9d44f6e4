"""A ledger as it is read, also by other processes than the one that writes.

The keys of its facts stand in `format.py`.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Self
from uuid import UUID

from counterfoil.contract.facts import Verdict
from counterfoil.errors import LedgerUnusable
from counterfoil.ledger.carried import Carried
from counterfoil.ledger.destinations import Destinations
from counterfoil.ledger.erasures import Erasure, Erasures
from counterfoil.ledger.format import (
    CLOCK,
    DAMAGE,
    GENERATIONS,
    GROUP,
    ID,
    READING,
    ROUTED,
    SOURCE,
    check,
    stored,
)
from counterfoil.ledger.generations import unpack_clock, unpack_generations
from counterfoil.ledger.kept import AgeMark, Kept, RoutedKey, Segment, unpack_routed_key
from counterfoil.ledger.records import (
    MS_A_DAY,
    ROWS_A_GROUP_MAX,
    Books,
    DamageRecord,
    DeadLetter,
    DeliveryRecord,
    DestinationCounts,
    DestinationState,
    FoundRow,
    GroupNumber,
    Places,
    RoutedCount,
    RowCopy,
    Seq,
    SourceCounts,
    group_of,
    settled_at_ms,
    unpack_counts,
    unpack_damage,
    unpack_repeat,
    unpack_seen,
)
from counterfoil.ledger.resent import AnyGroup, Resending, rows_routed, unpack_any
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.ledger.store import FACTS, FAMILIES, GROUPS, Store, repeats_family, seen_family
from counterfoil.positions import DirectoryId, FramePosition

_U64 = struct.Struct(">Q")


class LedgerReader:
    """What became of each row, at one moment. Made by `open`; the threads of one process may share it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._load()

    # Opening

    @classmethod
    def open(cls, path: Path, settings: LedgerSettings, ledger_id: UUID) -> Self:
        """The ledger at `path` at the moment of opening (see `catch_up`), also while another process writes.

        Raises LedgerUnusable with one line when it is another queue's, of a newer format, damaged or not there.
        """
        store = Store(path, settings, is_writer=False)
        try:
            check(store, path, ledger_id, is_writer=False)
            return cls(store)
        except BaseException:
            store.close()
            raise

    @classmethod
    def is_whole(cls, path: Path, settings: LedgerSettings, ledger_id: UUID) -> bool:
        """Whether everything of the ledger at `path` can be read; reads all of it."""
        try:
            ledger = LedgerReader.open(path, settings, ledger_id)
        except LedgerUnusable:
            return False
        try:
            for family in FAMILIES:
                for _ in ledger._store.items(family, b""):
                    pass
        except LedgerUnusable:
            return False
        finally:
            ledger.close()
        return True

    @classmethod
    def stored_last_group(cls, path: Path, settings: LedgerSettings) -> GroupNumber | None:
        """The number of the last group of the ledger at `path`, as far as it can be read; None when it can't."""
        packed = stored(path, settings, GROUP)
        return GroupNumber(_U64.unpack(packed)[0]) if packed else None

    @classmethod
    def stored_id(cls, path: Path, settings: LedgerSettings) -> UUID | None:
        """The id that the ledger at `path` has; None when it can't be read or there is none."""
        packed = stored(path, settings, ID)
        return UUID(bytes=packed) if packed else None

    def close(self) -> None:
        """Close; closing twice is harmless."""
        with self._lock:
            self._store.close()

    def catch_up(self) -> None:
        """Let a reader see the present moment; the one who writes sees it anyway."""
        with self._lock:
            self._store.catch_up()
            self._load()

    def _load(self) -> None:
        facts = dict(self._store.items(FACTS, b""))
        self._last_group = GroupNumber(_U64.unpack(facts[GROUP])[0])
        self._clock = unpack_clock(facts[CLOCK])
        self._generations = unpack_generations(facts[GENERATIONS])
        self._sources: dict[str, SourceCounts] = {}
        self._routed: dict[RoutedKey, int] = {}
        self._reading: dict[DirectoryId, FramePosition] = {}
        self._destinations = Destinations(self._store, facts)
        self._damages: set[FramePosition] = set()
        self._damaged_deaths = 0
        self._kept = Kept(facts)
        self._erasures = Erasures(self._store, facts, self._destinations, self._kept)
        for key, value in facts.items():
            if key.startswith(SOURCE):
                name = key[len(SOURCE) :].decode()
                self._sources[name] = unpack_counts(name, value)
            elif key.startswith(ROUTED):
                self._routed[unpack_routed_key(key[len(ROUTED) :])] = _U64.unpack(value)[0]
            elif key.startswith(READING):
                position = FramePosition.unpack(value)
                self._reading[position.directory] = position
            elif key.startswith(DAMAGE):
                self._damages.add(FramePosition.unpack(key[len(DAMAGE) :]))

    # What settle has read and knows

    def reading_positions(self) -> dict[DirectoryId, FramePosition]:
        """Where settle goes on reading, for each writer's directory it has read from."""
        with self._lock:
            return dict(self._reading)

    def last_group(self) -> GroupNumber:
        """The number of the last group; 0 when nothing was settled yet."""
        return self._last_group

    def time_ms(self) -> int:
        """The latest time the ledger has recorded; what it records next is no earlier."""
        return self._clock.time_ms

    def seen(self, key_hashes: list[bytes]) -> list[bytes | None]:
        """For each key hash what `pack_seen` made of its first row, or None; sorted hashes are cheapest."""
        newest, *older = [seen_family(generation.number) for generation in reversed(self._generations)]
        found = self._store.get_all(newest, key_hashes)
        for family in older:
            missing = [index for index, value in enumerate(found) if value is None]
            if not missing:
                break
            values = self._store.get_all(family, [key_hashes[index] for index in missing])
            for index, value in zip(missing, values, strict=True):
                found[index] = value
        return found

    # Which groups are kept

    def carried(self) -> Carried:
        """What is carried forward of the groups that are gone."""
        return self._kept.carried

    def is_gone(self, number: int) -> bool:
        """Whether a group was there and is no longer kept."""
        return number <= self._kept.carried.last_group

    def observed_ms(self) -> int:
        """How long the ledger was observed running, over all its lives."""
        return self._clock.observed_ms

    def age_marks(self) -> tuple[AgeMark, ...]:
        """How old the groups are that are kept, oldest first."""
        with self._lock:
            return tuple(self._kept.marks)

    def last_group_of(self) -> dict[Segment, GroupNumber]:
        """For each segment that a kept group names the last group that does."""
        with self._lock:
            return dict(self._kept.last_group_of)

    # What destinations are handed

    def groups(self, after: int, count_max: int) -> list[AnyGroup]:
        """Up to `count_max` groups with larger numbers than `after`, in order."""
        first = max(after + 1, self.carried().oldest_group)
        found = islice(self._store.items(GROUPS, _U64.pack(first)), count_max)
        return [unpack_any(GroupNumber(_U64.unpack(key)[0]), value) for key, value in found]

    def group(self, number: int) -> AnyGroup | None:
        """One group, or None when it is not kept."""
        packed = None if self.is_gone(number) else self._store.get(GROUPS, _U64.pack(number))
        return None if packed is None else unpack_any(GroupNumber(number), packed)

    def routed_between(self, name: str, after: int, before: int) -> int:
        """How many rows for a destination lie in the groups between two that are kept, both left out."""
        count = 0
        first = max(after + 1, self.carried().oldest_group)
        for key, packed in self._store.items(GROUPS, _U64.pack(first)):
            if _U64.unpack(key)[0] >= before:
                break
            count += rows_routed(packed, name)
        return count

    def oldest_pending_ms(self, name: str) -> int | None:
        """When the oldest row was settled that a destination is still to take; None when there is none."""
        first = max(self.cursor(name) + 1, self.carried().oldest_group)
        for _, packed in self._store.items(GROUPS, _U64.pack(first)):
            if rows_routed(packed, name):
                return settled_at_ms(packed)
        return None

    def oldest_kept_ms(self) -> int | None:
        """When the oldest group that is kept was settled; None when none is."""
        for _, packed in self._store.items(GROUPS, _U64.pack(self.carried().oldest_group)):
            return settled_at_ms(packed)
        return None

    def destinations(self) -> tuple[str, ...]:
        """The names of all destinations that were ever registered, sorted."""
        with self._lock:
            return self._destinations.names()

    def cursor(self, name: str) -> GroupNumber:
        """The last group that a destination is through with, by the ledger's copy; 0 is none."""
        with self._lock:
            return self._destinations.states[name].cursor

    def damaged_deaths(self) -> int:
        """A number that changes whenever rows die because their frame can't be read; it begins anew with each life."""
        return self._damaged_deaths

    def rebuilt_to(self, name: str) -> GroupNumber:
        """Up to this group a destination holds rows under the numbers of a ledger that was lost; 0 when none was."""
        return self._destinations.rebuilt_to(name)

    # Erasures

    def erasures(self) -> tuple[Erasure, ...]:
        """All erasures that are remembered, in the order in which they were ordered."""
        with self._lock:
            return tuple(sorted(self._erasures.all.values(), key=lambda one: (one.asked_at_ms, one.id)))

    def open_erasures(self, name: str) -> list[Erasure]:
        """Those that a destination is to carry out now, oldest first."""
        with self._lock:
            return self._erasures.open_at(name)

    def erased_places(self, group: int) -> Places:
        """The places of rows of a group that were erased; none where it is not kept."""
        return self._erasures.marks.get(GroupNumber(group), ())

    def is_erased(self, seq: int) -> bool:
        """Whether a row was erased, asked by any `seq` that it has in a kept group."""
        return self._erasures.is_marked(seq)

    def held_after(self, name: str) -> int | None:
        """The last group that a destination may be handed until an erasure is done there; None when there is none."""
        with self._lock:
            return min((one.cut for one in self._erasures.all.values() if one.holds(name)), default=None)

    # What became of a row

    def lookup(self, key_hash: bytes) -> list[FoundRow]:
        """All rows of a key that the ledger knows, in the order of settling."""
        found: list[FoundRow] = []
        for generation in self._generations:
            packed = self._store.get(seen_family(generation.number), key_hash)
            if packed is not None:
                seq, _, day = unpack_seen(packed)
                found.append(self._found(seq, Verdict.NEW, day * MS_A_DAY))
            for key, packed in self._store.items(repeats_family(generation.number), key_hash, key_hash):
                seq = Seq(_U64.unpack(key[len(key_hash) :])[0])
                verdict, day = unpack_repeat(packed)
                found.append(self._found(seq, verdict, day * MS_A_DAY))
        return sorted(found, key=lambda row: row.seq)

    def _found(self, seq: Seq, verdict: Verdict, about_ms: int) -> FoundRow:
        group = self.group(group_of(seq))
        if group is None:
            return FoundRow(seq, None, verdict, about_ms)
        return FoundRow(seq, group.position_of(seq % ROWS_A_GROUP_MAX), verdict, group.settled_at_ms)

    def delivery_of(self, name: str, group: int) -> DeliveryRecord | None:
        """The delivery in which a destination got through with a group, or None."""
        return self._destinations.delivery_of(name, group)

    def deliveries(self, name: str) -> Iterable[DeliveryRecord]:
        """All deliveries of a destination that are kept, in order."""
        return self._destinations.deliveries(name, self.carried().of(name).delivered_to + 1)

    def dead_letter(self, name: str, seq: int) -> DeadLetter | None:
        """Why a row is dead at a destination, or None when it is not; asked by its last `seq` there."""
        return self._destinations.dead_letter(name, seq)

    def dead_letters(self, name: str, after: int = -1) -> Iterable[DeadLetter]:
        """The dead letters of a destination with larger seqs than `after`, in the order of their seqs."""
        return self._destinations.dead_letters(name, after)

    def copy_of(self, name: str, first_seq: int) -> RowCopy | None:
        """What is kept of a row that is dead at a destination, or was and is sent again; None when nothing is."""
        return self._destinations.copy(name, first_seq)

    def resendings(self, name: str, first_seq: int, last_seq: int | None = None) -> Iterable[Resending]:
        """How a row was sent to a destination again, in order; or all rows whose first `seq` lies up to `last_seq`."""
        return self._destinations.resendings(name, first_seq, first_seq if last_seq is None else last_seq)

    # The books

    def books(self) -> Books:
        """All counters at one moment."""
        with self._lock:
            return Books(
                sources=tuple(self._sources[name] for name in sorted(self._sources)),
                destinations=tuple(
                    self._destination_counts(name, self._destinations.states[name])
                    for name in self._destinations.names()
                ),
                damaged_frames=len(self._damages),
                last_group=self._last_group,
            )

    def routed(self) -> tuple[RoutedCount, ...]:
        """New rows by source and set of destinations, since the ledger began."""
        with self._lock:
            return tuple(
                RoutedCount(source, names, self._routed[source, names])
                for source, names in sorted(self._routed, key=lambda key: (key[0], key[1] or ()))
            )

    def damages(self) -> Iterable[DamageRecord]:
        """All damages of the queue that were met, in the order of their positions."""
        for key, value in self._store.items(FACTS, DAMAGE, DAMAGE):
            yield unpack_damage(FramePosition.unpack(key[len(DAMAGE) :]), value)

    def _destination_counts(self, name: str, state: DestinationState) -> DestinationCounts:
        return DestinationCounts(
            destination=name,
            start_group=state.start_group,
            cursor=state.cursor,
            routed=self._meant_for(name) - state.base + state.again,
            delivered=state.delivered,
            dead=state.dead,
            skipped=self._kept.carried.of(name).skipped,
            erased=state.erased,
        )

    def _meant_for(self, name: str) -> int:
        return sum(rows for (_, names), rows in self._routed.items() if names is None or name in names)
