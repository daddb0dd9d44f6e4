"""The ledger as its one writer has it.

Counters are kept in memory and written whole: there is one writer, and RocksDB's merge is not at hand.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from uuid import UUID

import msgspec

from counterfoil.errors import LedgerDamaged, LedgerWriteFailed
from counterfoil.files import RealFiles
from counterfoil.ledger.carried import carry_destinations, carry_sources
from counterfoil.ledger.erasures import ERASURE, Erasure, ErasureState, Leaving, MarkedRows, SubjectRow
from counterfoil.ledger.format import (
    CLOCK,
    DAMAGE,
    FORMAT,
    GENERATIONS,
    GROUP,
    READING,
    ROUTED,
    SOURCE,
    begin,
    check,
    made_id,
    upgrade,
)
from counterfoil.ledger.generations import (
    LedgerClock,
    pack_clock,
    pack_generations,
    plan_generations,
)
from counterfoil.ledger.kept import (
    RoutedKey,
    Segment,
    pack_routed_key,
    put_mark,
)
from counterfoil.ledger.reader import LedgerReader
from counterfoil.ledger.records import (
    CONTENT_UNKNOWN,
    MS_A_DAY,
    ROWS_A_GROUP_MAX,
    DamageRecord,
    DeadRow,
    DeliveryRecord,
    DestinationState,
    GroupNumber,
    RoutedCount,
    Seq,
    Settled,
    SourceCounts,
    pack_counts,
    pack_damage,
    pack_group,
    pack_seen,
    seq_of,
)
from counterfoil.ledger.resent import (
    Cause,
    ResentGroup,
    ResentRow,
    pack_resent,
)
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.ledger.store import (
    COPIES,
    FACTS,
    GROUPS,
    Batch,
    Family,
    Store,
    repeats_family,
    seen_family,
)

LEAVING_KEYS_MAX = 10_000
"""Keys of erased rows after which files are rewritten: where keys are hashes, that is all of the seen index."""

_U64 = struct.Struct(">Q")


class Ledger(LedgerReader):
    """The ledger as its one writer has it, who sees what it wrote. Made by `open`; its threads may share it."""

    def __init__(self, store: Store, horizon_ms: int) -> None:
        super().__init__(store)
        self._horizon_ms = horizon_ms
        self._folding = threading.Lock()
        """Held while groups are counted that go: nobody marks a row of them meanwhile."""
        self._failure: str | None = None
        self._leaving: dict[Family, list[bytes]] = {}
        """Keys of marked rows, by family, whose values may still lie in files."""

    @classmethod
    def open(cls, path: Path, settings: LedgerSettings, ledger_id: UUID) -> Ledger:
        """The ledger at `path`, made when it is not there.

        Raises LedgerUnusable as a reader does, and when another writer has it.

        A ledger is made once: where one was made and is gone there would be another beginning with group 1, and
        destinations would take its groups for those they hold.
        """
        made = path.with_name(f"{path.name}.made")
        if made.exists() and not (path / "CURRENT").exists():
            raise LedgerDamaged(f"{path}: the ledger that was made here is gone")
        store = Store(path, settings, is_writer=True)
        try:
            if store.get(FACTS, FORMAT) is None:
                if made.exists():
                    raise LedgerDamaged(f"{path}: what the ledger held is gone")
                begin(store, ledger_id)
            check(store, path, ledger_id, is_writer=True)
            upgrade(store)
            if made_id(made) != ledger_id:
                RealFiles().write_whole(made, f"{ledger_id}\n".encode())
            return cls(store, settings.horizon_days * MS_A_DAY)
        except BaseException:
            store.close()
            raise

    @classmethod
    def begin_after(cls, path: Path, settings: LedgerSettings, ledger_id: UUID, last_group: GroupNumber) -> Ledger:
        """A new ledger at `path`, where none is, whose first group is the one after `last_group`."""
        store = Store(path, settings, is_writer=True)
        try:
            begin(store, ledger_id, last_group)
            return cls(store, settings.horizon_days * MS_A_DAY)
        except BaseException:
            store.close()
            raise

    # What settle writes

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

    # What retention writes

    def mark_age(self, every_ms: int) -> None:
        """Mark that every group of now was settled by now, when the last mark was set `every_ms` ago or earlier."""
        with self._lock:
            mark = self._kept.next_mark(self._last_group, self._clock.observed_ms, every_ms)
            if mark is not None:
                batch = self._batch()
                put_mark(batch, mark)
                self._write(batch)
                self._kept.marks.append(mark)

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

    # What deliver writes

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

    # Writing

    def _batch(self) -> Batch:
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

    def _added_routed(self, added: tuple[RoutedCount, ...]) -> dict[RoutedKey, int]:
        return {
            (count.source, count.destinations): self._routed.get((count.source, count.destinations), 0)
            + count.row_count
            for count in added
        }


def _put_damages(batch: Batch, damages: Iterable[DamageRecord]) -> None:
    # By position: settle and each destination may meet the same damage, and it counts once.
    for damage in damages:
        batch.put(FACTS, DAMAGE + damage.position.pack(), pack_damage(damage))
