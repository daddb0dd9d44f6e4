"""The ledger: one writer, readers in other processes.

The keys of its facts stand in `format.py`. Counters are kept in memory by the writer and written whole: it is the only
one, and RocksDB's merge is not at hand.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec

from counterfoil.contract.facts import Verdict
from counterfoil.errors import LedgerDamaged, LedgerUnusable, LedgerWriteFailed
from counterfoil.files import RealFiles
from counterfoil.ledger.carried import Carried, carry_destinations, carry_sources
from counterfoil.ledger.destinations import Destinations
from counterfoil.ledger.erasures import ERASURE, Erasure, Erasures, ErasureState, Leaving, MarkedRows, SubjectRow
from counterfoil.ledger.format import (
    CLOCK,
    DAMAGE,
    FORMAT,
    GENERATIONS,
    GROUP,
    ID,
    READING,
    ROUTED,
    SOURCE,
    begin,
    check,
    made_id,
    stored,
    upgrade,
)
from counterfoil.ledger.generations import (
    LedgerClock,
    pack_clock,
    pack_generations,
    plan_generations,
    unpack_clock,
    unpack_generations,
)
from counterfoil.ledger.kept import (
    AgeMark,
    Kept,
    Segment,
    pack_routed_key,
    put_mark,
    unpack_routed_key,
)
from counterfoil.ledger.records import (
    CONTENT_UNKNOWN,
    MS_A_DAY,
    ROWS_A_GROUP_MAX,
    Books,
    DamageRecord,
    DeadLetter,
    DeadRow,
    DeliveryRecord,
    DestinationCounts,
    DestinationState,
    FoundRow,
    GroupNumber,
    Places,
    RoutedCount,
    RowCopy,
    Seq,
    Settled,
    SourceCounts,
    group_of,
    pack_counts,
    pack_damage,
    pack_group,
    pack_seen,
    seq_of,
    settled_at_ms,
    unpack_counts,
    unpack_damage,
    unpack_repeat,
    unpack_seen,
)
from counterfoil.ledger.resent import (
    AnyGroup,
    Cause,
    Resending,
    ResentGroup,
    ResentRow,
    pack_resent,
    rows_routed,
    unpack_any,
)
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.ledger.store import (
    COPIES,
    FACTS,
    FAMILIES,
    GROUPS,
    Batch,
    Family,
    Store,
    repeats_family,
    seen_family,
)
from counterfoil.positions import DirectoryId, FramePosition

Mode = Literal["write", "read"]

LEAVING_KEYS_MAX = 10_000
"""Keys of erased rows after which files are rewritten: where keys are hashes, that is all of the seen index."""

_U64 = struct.Struct(">Q")

_Routed = tuple[str, tuple[str, ...] | None]


class Ledger:
    """What became of each row. Made by `open`; the threads of one process may share it."""

    def __init__(self, store: Store, horizon_ms: int, *, is_writer: bool) -> None:
        self._store = store
        self._horizon_ms = horizon_ms
        self._is_writer = is_writer
        self._lock = threading.Lock()
        self._folding = threading.Lock()
        """Held while groups are counted that go: nobody marks a row of them meanwhile."""
        self._failure: str | None = None
        self._leaving: dict[Family, list[bytes]] = {}
        """Keys of marked rows, by family, whose values may still lie in files."""
        self._load()

    # Opening

    @classmethod
    def open(cls, path: Path, settings: LedgerSettings, ledger_id: UUID, *, mode: Mode) -> Ledger:
        """The ledger at `path`: made when it is not there and `mode` is "write".

        "read" sees the moment of opening (see `catch_up`), also while another process writes. Raises LedgerUnusable
        with one line when it is another queue's, of a newer format, damaged, in use by another writer or not there.

        A ledger is made once: where one was made and is gone there would be another beginning with group 1, and
        destinations would take its groups for those they hold.
        """
        made = path.with_name(f"{path.name}.made")
        if mode == "write" and made.exists() and not (path / "CURRENT").exists():
            raise LedgerDamaged(f"{path}: the ledger that was made here is gone")
        store = Store(path, settings, is_writer=mode == "write")
        try:
            if mode == "write" and store.get(FACTS, FORMAT) is None:
                if made.exists():
                    raise LedgerDamaged(f"{path}: what the ledger held is gone")
                begin(store, ledger_id)
            check(store, path, ledger_id, is_writer=mode == "write")
            if mode == "write":
                upgrade(store)
            if mode == "write" and made_id(made) != ledger_id:
                RealFiles().write_whole(made, f"{ledger_id}\n".encode())
            return cls(store, settings.horizon_days * MS_A_DAY, is_writer=mode == "write")
        except BaseException:
            store.close()
            raise

    @classmethod
    def begin_after(cls, path: Path, settings: LedgerSettings, ledger_id: UUID, last_group: GroupNumber) -> Ledger:
        """A new ledger at `path`, where none is, whose first group is the one after `last_group`."""
        store = Store(path, settings, is_writer=True)
        try:
            begin(store, ledger_id, last_group)
            return cls(store, settings.horizon_days * MS_A_DAY, is_writer=True)
        except BaseException:
            store.close()
            raise

    @classmethod
    def is_whole(cls, path: Path, settings: LedgerSettings, ledger_id: UUID) -> bool:
        """Whether everything of the ledger at `path` can be read; reads all of it."""
        try:
            ledger = cls.open(path, settings, ledger_id, mode="read")
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
        """Let a reader see the present moment."""
        assert not self._is_writer
        with self._lock:
            self._store.catch_up()
            self._load()

    def _load(self) -> None:
        facts = dict(self._store.items(FACTS, b""))
        self._last_group = GroupNumber(_U64.unpack(facts[GROUP])[0])
        self._clock = unpack_clock(facts[CLOCK])
        self._generations = unpack_generations(facts[GENERATIONS])
        self._sources: dict[str, SourceCounts] = {}
        self._routed: dict[_Routed, int] = {}
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

    # What settle reads and writes

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

    def record(self, settled: Settled) -> None:
        """Record what settle found: one batch, flushed when this returns.

        Raises LedgerWriteFailed: nothing of it counts, and this ledger takes nothing more until it is opened anew.
        """
        with self._lock:
            batch = self._batch()
            last_group, clock = self._last_group, self._clock
            named: dict[Segment, GroupNumber] = {}
            if settled.group is not None:
                group = settled.group
                assert group.number == self._last_group + 1
                assert 0 < group.row_count <= ROWS_A_GROUP_MAX
                assert group.settled_at_ms >= clock.time_ms
                last_group = group.number
                clock = LedgerClock(group.settled_at_ms, clock.observed_ms)
                self._put_group(batch, group.number, pack_group(group), clock)
                named = self._kept.put_named(batch, group.frame_positions(), group.number)
            marks = self._erasures.put_marks(batch, (seq_of(self._last_group + 1, place) for place in settled.erased))
            generation = self._generations[-1].number
            batch.put_all(seen_family(generation), settled.new_keys, settled.seen)
            batch.put_all(repeats_family(generation), settled.repeats, settled.repeat_verdicts)
            sources = self._added_sources(settled.source_counts)
            for counts in sources:
                batch.put(FACTS, SOURCE + counts.source.encode(), pack_counts(counts))
            routed = self._added_routed(settled.group.routed if settled.group else ())
            for key, row_count in routed.items():
                batch.put(FACTS, ROUTED + pack_routed_key(*key), _U64.pack(row_count))
            for position in settled.reading_positions:
                batch.put(FACTS, READING + position.directory, position.pack())
            _put_damages(batch, settled.damages)
            self._write(batch)
            self._last_group, self._clock = last_group, clock
            self._kept.last_group_of.update(named)
            self._erasures.marks.update(marks)
            self._sources.update((counts.source, counts) for counts in sources)
            self._routed.update(routed)
            self._reading.update((position.directory, position) for position in settled.reading_positions)
            self._damages.update(damage.position for damage in settled.damages)

    def tend(self, now_ms: int, running_ms: int) -> None:
        """Let time pass: `running_ms` more were observed; generations begin and go when their time is over."""
        with self._lock:
            clock = self._clock.advanced(now_ms, running_ms)
            plan = plan_generations(self._generations, clock, self._horizon_ms)
            batch = self._batch()
            for generation in plan.gone:
                batch.erase(seen_family(generation.number))
                batch.erase(repeats_family(generation.number))
            batch.put(FACTS, CLOCK, pack_clock(clock))
            batch.put(FACTS, GENERATIONS, pack_generations(plan.kept))
            self._write(batch)
            self._clock, self._generations = clock, plan.kept
            self._store.shorten_log()

    # What retention reads and writes

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

    def mark_age(self, every_ms: int) -> None:
        """Mark that every group of now was settled by now, when the last mark was set `every_ms` ago or earlier."""
        with self._lock:
            mark = self._kept.next_mark(self._last_group, self._clock.observed_ms, every_ms)
            if mark is not None:
                batch = self._batch()
                put_mark(batch, mark)
                self._write(batch)
                self._kept.marks.append(mark)

    def last_group_of(self) -> dict[Segment, GroupNumber]:
        """For each segment that a kept group names the last group that does."""
        with self._lock:
            return dict(self._kept.last_group_of)

    def remove_groups(self, last: int) -> None:
        """Remove the groups up to `last`, their counts carried forward, and the deliveries that end in them; flushed.

        What of them a destination had not passed is skipped by it. The segments they name are nobody's after this, as
        far as no later group names them. Reads all these groups at once. Raises LedgerWriteFailed as `record` does.
        """
        with self._folding:
            before = self._kept.carried
            groups = self.groups(before.last_group, last - before.last_group)
            assert groups[-1].number == last
            # What counts rows is done before the lock is taken: nobody else changes these balances, and settle goes on.
            carried = carry_sources(before, groups, self._erasures.marks)
            with self._lock:
                ended = self._destinations.deliveries_within(before, last)
                states = self._destinations.states
                carried = carry_destinations(carried, groups, states, ended, self._clock.time_ms)
                batch = self._batch()
                unnamed = self._kept.put_carried(batch, carried)
                self._destinations.put_gone(batch, {each.destination for each in ended}, last)
                self._erasures.put_gone(batch, last)
                self._write(batch)
                self._kept.forget(carried, unnamed)
                self._destinations.forget(last)
                self._erasures.forget(last)

    # What deliver reads and writes

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

    def register_destination(self, name: str, *, from_oldest: bool = False) -> None:
        """Let a destination take part; one that is known already stays as it is.

        A new one takes the rows that are settled from now on, or with `from_oldest` all that are kept. Erasures that
        are open reach it from now on, where it may hold rows that they mean.
        """
        with self._lock:
            state = self._destinations.states.get(name)
            reaching = self._erasures.reaching(name)
            if state is not None and not reaching:
                return
            batch = self._batch()
            if state is None:
                carried = self._kept.carried
                start = carried.last_group if from_oldest else self._last_group
                earlier = carried.routed_to(name) if from_oldest else self._meant_for(name)
                state = DestinationState(start, start, earlier, 0, 0)
                self._destinations.put_state(batch, name, state)
            forgotten = [self._erasures.put(batch, erasure) for erasure in reaching]
            self._write(batch)
            self._destinations.remember(name, state)
            for erasure, gone in zip(reaching, forgotten, strict=True):
                self._erasures.remember(erasure, gone)

    def cursor(self, name: str) -> GroupNumber:
        """The last group that a destination is through with, by the ledger's copy; 0 is none."""
        with self._lock:
            return self._destinations.states[name].cursor

    def record_delivery(
        self,
        name: str,
        *,
        first_group: int,
        last_group: int,
        delivered_rows: int,
        dead: Iterable[DeadRow] = (),
        damages: Iterable[DamageRecord] = (),
        commit: str,
        at_ms: int,
        erased_rows: int = 0,
        handed: Iterable[int] = (),
    ) -> None:
        """Move the copy of a destination's cursor to `last_group`, with what became of the rows up to there; flushed.

        `commit` is what the destination calls what it took; `damages` are settled frames that could not be read any
        more, their rows among the dead. `erased_rows` were passed over because they were erased; of the rows `handed`
        over, by seq, those that were erased since count as erased as well, whether they were delivered or are dead.
        Raises LedgerWriteFailed as `record` does.
        """
        named_dead, damaged_frames = tuple(dead), tuple(damages)
        with self._lock:
            assert first_group == self._destinations.states[name].cursor + 1
            assert first_group <= last_group <= self._last_group
            marked_dead = self._erasures.marked_among((row.seq for row in named_dead), first_group, last_group)
            late = self._erasures.marked_among(handed, first_group, last_group) - {row.seq for row in named_dead}
            dead_rows = tuple(row for row in named_dead if row.seq not in marked_dead)
            record = DeliveryRecord(
                name,
                GroupNumber(first_group),
                GroupNumber(last_group),
                delivered_rows - len(late),
                len(dead_rows),
                commit,
                at_ms,
                erased_rows + len(marked_dead) + len(late),
            )
            batch = self._batch()
            moved = self._destinations.put_delivery(batch, record, dead_rows)
            _put_damages(batch, damaged_frames)
            self._write(batch)
            self._destinations.remember(name, moved)
            self._damages.update(damage.position for damage in damaged_frames)
            self._damaged_deaths += bool(damaged_frames)

    def damaged_deaths(self) -> int:
        """A number that changes whenever rows die because their frame can't be read; it begins anew with each life."""
        return self._damaged_deaths

    # Sending again

    def send_again(
        self, name: str, cause: Cause, rows: Iterable[ResentRow], *, frame_bytes: int = 0, at_ms: int
    ) -> ResentGroup | None:
        """Make a group that sends these rows to a destination again; flushed. None when none of them may be.

        Left out are rows that meanwhile are not what their cause says: a retry or a replacement takes dead letters
        that were not dropped, everything else takes rows that count as delivered under their last `seq`; so are rows
        whose segment nothing holds any more. At most ROWS_A_GROUP_MAX rows, of `frame_bytes` at about, which bounds
        what is delivered at once. The group takes the next number, so this is called where `record` is called, and in
        turn with it. Raises LedgerWriteFailed as `record` does.
        """
        with self._lock:
            held = (row for row in rows if row.position is None or self._kept.is_named(row.position.frame))
            unmarked = (row for row in held if not self._is_erased(row))
            named = tuple(self._destinations.fitting(name, cause, unmarked))
            if not named:
                return None
            assert len(named) <= ROWS_A_GROUP_MAX
            clock = LedgerClock(max(at_ms, self._clock.time_ms), self._clock.observed_ms)
            group = ResentGroup(GroupNumber(self._last_group + 1), name, cause, named, clock.time_ms, frame_bytes)
            batch = self._batch()
            self._put_group(batch, group.number, pack_resent(group), clock)
            moved = self._destinations.put_resent(batch, group)
            segments = self._kept.put_named(batch, group.frame_positions(), group.number)
            self._write(batch)
            self._last_group, self._clock = group.number, clock
            self._kept.last_group_of.update(segments)
            self._destinations.remember(name, moved, group)
            return group

    def drop_dead(self, name: str, seqs: Iterable[int]) -> int:
        """Let dead letters be dead for good, and forget the copies of their rows; how many were not so before."""
        with self._lock:
            batch = self._batch()
            count = self._destinations.put_dropped(batch, name, seqs)
            if count:
                self._write(batch)
            return count

    def _is_erased(self, row: ResentRow) -> bool:
        return self._erasures.is_marked(row.first_seq) or self._erasures.is_marked(row.last_seq)

    # Erasing

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

    def order_erasure(self, erasure: Erasure) -> None:
        """Write down that a person's rows are to go; flushed. Harmless twice. Raises LedgerWriteFailed."""
        with self._lock:
            if erasure.id not in self._erasures.all:
                self._put_erasure(self._batch(), erasure)

    def change_erasure(self, erasure_id: UUID, change: Callable[[Erasure], Erasure]) -> Erasure:
        """Write down how far an erasure is; flushed. Its subject goes with the change that makes it done.

        Raises LedgerWriteFailed as `record` does.
        """
        with self._lock:
            changed = change(self._erasures.all[erasure_id])
            if changed.is_done:
                changed = msgspec.structs.replace(changed, subject=None)
            self._put_erasure(self._batch(), changed)
        if changed.is_done:
            self.let_subjects_go()
        return changed

    def give_up_erasures(self, name: str) -> int:
        """Let no erasure wait for a destination any more: what it holds stays there. How many did; flushed."""
        waiting = [one.id for one in self.erasures() if one.is_open_at(name)]
        for each in waiting:
            self.change_erasure(
                each,
                lambda one: one.at(
                    name, msgspec.structs.replace(one.destinations[name], state=ErasureState.GIVEN_UP, reason="")
                ),
            )
        return len(waiting)

    def let_subjects_go(self) -> None:
        """Rewrite the files in which subjects of erasures that are done still stand; flushed.

        Each that becomes done does it: this is for the life after one that ended there.
        """
        with self._lock:
            done = [one for one in self._erasures.all.values() if one.is_done and not one.is_let_go]
        self._store.let_go(FACTS, [ERASURE + one.id.bytes for one in done])
        with self._lock:
            for one in done:
                if one.id in self._erasures.all:
                    self._put_erasure(self._batch(), msgspec.structs.replace(one, is_let_go=True))

    def cut_erasure(self, erasure_id: UUID) -> Erasure:
        """Let an erasure be of the rows up to the last group there is now; flushed."""
        return self.change_erasure(erasure_id, lambda one: msgspec.structs.replace(one, cut=self._last_group))

    def mark_erased(self, rows: Iterable[SubjectRow]) -> MarkedRows:
        """Let rows be erased: they leave what they were, at each destination, and nobody knows their keys; flushed.

        Rows that were marked before are left out. A row that a destination is handed right now counts as erased when
        the delivery is recorded. The keys are asked for by `key_hash`, and forgotten where they are these rows' own;
        what is left of them in files goes with `let_rows_go`. Raises LedgerWriteFailed as `record` does.
        """
        with self._folding, self._lock:
            batch = self._batch()
            left = self._erasures.put_erased(batch, rows, [generation.number for generation in self._generations])
            self._write_leaving(batch, left)
        for family, keys in left.keys.items():
            self._leaving.setdefault(family, []).extend(keys)
        if sum(map(len, self._leaving.values())) >= LEAVING_KEYS_MAX:
            self.let_rows_go()
        return left.counted

    def let_rows_go(self, *, of_earlier_lives: bool = False) -> None:
        """Rewrite the files in which keys and copies of marked rows still stand. Raises LedgerWriteFailed.

        `of_earlier_lives`: whatever that may be; it rewrites the seen index.
        """
        leaving, self._leaving = self._leaving, {}
        if not of_earlier_lives:
            for family, keys in leaving.items():
                self._store.let_go(family, keys)
        else:
            numbers = [generation.number for generation in self._generations]
            for family in (COPIES, *map(seen_family, numbers), *map(repeats_family, numbers)):
                self._store.let_all_go(family)

    def book_held(self, erasure_id: UUID, name: str, seqs: Sequence[int]) -> None:
        """Let the rows of a person's that a destination said it holds be erased there, if they are not yet; flushed.

        Their number is noted with that, and when it is, nothing is done: an erasure that failed there is tried again.
        These are rows that nobody else found: of groups that are gone, of damaged frames, or sent again without a
        frame. Raises LedgerWriteFailed as `record` does.
        """
        with self._folding, self._lock:
            erasure = self._erasures.all[erasure_id]
            there = erasure.destinations[name]
            if there.row_count is not None:
                return
            batch = self._batch()
            left = self._erasures.put_held(batch, name, seqs)
            noted = erasure.at(name, msgspec.structs.replace(there, row_count=len(seqs)))
            forgotten = self._erasures.put(batch, noted)
            self._write_leaving(batch, left)
            self._erasures.remember(noted, forgotten)

    def _write_leaving(self, batch: Batch, left: Leaving) -> None:
        sources = self._added_sources(left.sources)
        for counts in sources:
            batch.put(FACTS, SOURCE + counts.source.encode(), pack_counts(counts))
        self._write(batch)
        self._sources.update((counts.source, counts) for counts in sources)
        self._erasures.remember_erased(left)

    def _put_erasure(self, batch: Batch, erasure: Erasure) -> None:
        forgotten = self._erasures.put(batch, erasure)
        self._write(batch)
        self._erasures.remember(erasure, forgotten)

    # What a rebuild writes

    def rebuilt_to(self, name: str) -> GroupNumber:
        """Up to this group a destination holds rows under the numbers of a ledger that was lost; 0 when none was."""
        return self._destinations.rebuilt_to(name)

    def note_rebuilt(self, name: str, last_group: GroupNumber) -> None:
        """Note that the rows up to this group were found at a destination, not delivered to it."""
        with self._lock:
            batch = self._batch()
            self._destinations.put_rebuilt(batch, name, last_group)
            self._write(batch)
            self._destinations.remember_rebuilt(name, last_group)

    def add_known_keys(self, key_hashes: list[bytes], seqs: list[int], now_ms: int) -> None:
        """Let keys be known whose first rows nobody has any more; `seqs` are their numbers in the lost ledger."""
        day = min(now_ms // MS_A_DAY, 65_535)
        with self._lock:
            batch = self._batch()
            values = [pack_seen(Seq(seq), CONTENT_UNKNOWN, day) for seq in seqs]
            batch.put_all(seen_family(self._generations[-1].number), key_hashes, values)
            self._write(batch)

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

    # Writing

    def _batch(self) -> Batch:
        assert self._is_writer
        if self._failure is not None:
            raise LedgerWriteFailed(self._failure)
        return self._store.batch()

    def _write(self, batch: Batch) -> None:
        try:
            self._store.write(batch)
        except (LedgerWriteFailed, LedgerDamaged) as error:
            # What lies in the write-ahead log is known only when it is read again: until then nothing more goes in.
            self._failure = str(error)
            raise

    def _put_group(self, batch: Batch, number: GroupNumber, packed: bytes, clock: LedgerClock) -> None:
        batch.put(GROUPS, _U64.pack(number), packed)
        batch.put(FACTS, GROUP, _U64.pack(number))
        batch.put(FACTS, CLOCK, pack_clock(clock))

    def _added_sources(self, added: tuple[SourceCounts, ...]) -> list[SourceCounts]:
        assert all(counts.is_balanced for counts in added)
        return [self._sources.get(counts.source, SourceCounts(counts.source)).plus(counts) for counts in added]

    def _added_routed(self, added: tuple[RoutedCount, ...]) -> dict[_Routed, int]:
        return {
            (count.source, count.destinations): self._routed.get((count.source, count.destinations), 0)
            + count.row_count
            for count in added
        }


def _put_damages(batch: Batch, damages: Iterable[DamageRecord]) -> None:
    # By position: settle and each destination may meet the same damage, and it counts once.
    for damage in damages:
        batch.put(FACTS, DAMAGE + damage.position.pack(), pack_damage(damage))
