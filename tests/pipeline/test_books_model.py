"""Ledger, settle and retention against a toy: random frames, repeats, crashes, deliveries, removals, same answers."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch
from uuid import UUID, uuid4

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from counterfoil import failpoints
from counterfoil.contract.facts import RowFlag, Verdict, key_hash, key_prefix
from counterfoil.contract.subject import Subject
from counterfoil.destinations.interface import HeldRows
from counterfoil.errors import FrameDamaged, LedgerWriteFailed
from counterfoil.ledger import (
    ROWS_A_GROUP_MAX,
    Cause,
    DeadRow,
    ErasedThere,
    Erasure,
    ErasureState,
    Group,
    Ledger,
    ResentGroup,
    ResentRow,
    RowCopy,
    Seq,
    SourceCounts,
    SubjectRow,
    group_of,
    seq_of,
)
from counterfoil.ledger.settings import MIB, LedgerSettings
from counterfoil.ledger.store import Batch, Store
from counterfoil.pipeline.audit import Held, audit
from counterfoil.pipeline.retention import Retention
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.positions import DirectoryId, FramePosition, RowPosition
from tests.pipeline.frames import MemoryQueue, Row

LEDGER_ID = UUID(int=7)
DAY_MS = 86_400_000
MEMORY = next((path for path in ["/dev/shm"] if Path(path).is_dir()), None)
"""Where a flush costs nothing: what is tested here is what is written, not how fast."""
SMALL = LedgerSettings(cache_bytes=8 * MIB, write_buffer_bytes=4 * MIB)
DIRECTORIES = [DirectoryId(b"writer-1"), DirectoryId(b"writer-2"), DirectoryId(b"writer-3")]
DESTINATIONS = ["lake", "hook"]

row_sets = st.sampled_from([None, None, (), ("lake",), ("hook", "lake")])
some_rows = st.lists(
    st.builds(
        Row,
        st.sampled_from("abcdefgh"),
        st.integers(0, 1),
        st.sampled_from([RowFlag(0), RowFlag(0), RowFlag(0), RowFlag.TEST, RowFlag.BLOCKED]),
        row_sets,
    ),
    min_size=1,
    max_size=6,
)


class Standing(msgspec.Struct):
    """A row at a destination, as the toy thinks of it."""

    last_seq: Seq
    state: str
    """pending, delivered, dead, dropped, skipped, erased; or lost: delivered, its group gone, and erased since."""
    earlier: tuple[Seq, ...] = ()
    """Its seqs before it was sent twice on purpose."""


class Toy:
    """What a ledger would be if memory never ended and nothing ever crashed."""

    def __init__(self) -> None:
        self.first_content: dict[tuple[str, str], int] = {}
        self.history: dict[tuple[str, str], list[tuple[int, RowPosition, Verdict]]] = {}
        self.counts: dict[str, Counter[Verdict]] = {}
        self.settled_at_s: list[float] = []
        self.gone = 0
        self.skipped: Counter[str] = Counter()
        self.meant: dict[str, set[int]] = {name: set() for name in DESTINATIONS}
        self.routed_by_group: dict[str, Counter[int]] = {name: Counter() for name in DESTINATIONS}
        self.place_of: dict[int, tuple[str, RowPosition]] = {}
        self.standing: dict[str, dict[Seq, Standing]] = {name: {} for name in DESTINATIONS}
        """By first seq; of rows that a destination is through with."""
        self.delivered: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        self.held: dict[str, set[Seq]] = {name: set() for name in DESTINATIONS}
        self.marked: set[int] = set()
        """First seqs of rows that were erased."""
        self.erased: Counter[str] = Counter()
        """Rows, by destination."""
        self.erased_of: Counter[str] = Counter()
        """Rows, by source."""

    def settle(self, group: int, place: int, position: RowPosition, source: str, row: Row) -> Verdict:
        key = (source, row.distinct_id)
        if RowFlag.TEST in row.flags:
            verdict = Verdict.TEST
        elif RowFlag.BLOCKED in row.flags:
            verdict = Verdict.BLOCKED
        elif key not in self.first_content:
            verdict = Verdict.NEW
            self.first_content[key] = row.content
        else:
            verdict = Verdict.DUPLICATE if self.first_content[key] == row.content else Verdict.CONFLICT
        self.history.setdefault(key, []).append((seq_of(group, place), position, verdict))
        self.counts.setdefault(source, Counter())[verdict] += 1
        if verdict is Verdict.NEW:
            self.place_of[seq_of(group, place)] = source, position
            for name in DESTINATIONS:
                if row.destinations is None or name in row.destinations:
                    self.routed_by_group[name][group] += 1
                    self.meant[name].add(seq_of(group, place))
        return verdict

    def rows_of(self, group: Group | ResentGroup, name: str) -> list[tuple[Seq, Seq]]:
        """First and new seq of each row that a group has for a destination."""
        if isinstance(group, ResentGroup):
            rows = group.rows if group.destination == name else ()
            return [(row.first_seq, group.seq_at(place)) for place, row in enumerate(rows)]
        return [(Seq(seq), Seq(seq)) for seq in sorted(self.meant[name]) if group_of(Seq(seq)) == group.number]

    def resent(self, name: str, *states: str) -> list[ResentRow]:
        """All rows in these states, as a group would name them: dead ones by their copies."""
        return [
            ResentRow(first, one.last_seq, None if one.state == "dead" else self.place_of[first][1], self.source(first))
            for first, one in sorted(self.standing[name].items())
            if one.state in states
        ]

    def source(self, first_seq: int) -> str:
        return self.place_of[first_seq][0]

    def copy(self, seq: int) -> RowCopy:
        source, position = self.place_of[seq]
        return RowCopy(source, position, 1, bytes(16), RowFlag(0), None, None, b"{}")


class Crash(BaseException):
    """The process ends here."""


def crash_now() -> None:
    raise Crash


class Books(RuleBasedStateMachine):
    """Frames come in, settle steps, the process dies, destinations deliver, time passes, what is old goes."""

    frames = Bundle("frames")

    @initialize()
    def begin(self) -> None:
        self.scratch = tempfile.TemporaryDirectory(prefix="counterfoil-books-", dir=MEMORY)
        self.path = Path(self.scratch.name) / "ledger"
        self.queue = MemoryQueue()
        self.rows_of: dict[FramePosition, tuple[str, list[Row]]] = {}
        self.toy = Toy()
        self.settled: list[FramePosition] = []
        self.now_ms = 1_700_000_000_000
        self.running_s = 0.0
        self.damages = 0
        self.start()

    def start(self) -> None:
        self.ledger = Ledger.open(self.path, SMALL, LEDGER_ID)
        self.settler = self.new_settler()

    def new_settler(self) -> Settler:
        return Settler(
            self.queue,
            self.ledger,
            PipelineSettings(group_rows=8),
            clock=lambda: self.now_ms,
            monotonic=lambda: self.running_s,
        )

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.scratch.cleanup()

    @rule(target=frames, directory=st.sampled_from(DIRECTORIES), source=st.sampled_from(["web", "app"]), rows=some_rows)
    def receive(self, directory: DirectoryId, source: str, rows: list[Row]) -> tuple[str, list[Row]]:
        self.append(directory, source, rows)
        return source, rows

    @rule(frame=frames, directory=st.sampled_from(DIRECTORIES))
    def send_again(self, frame: tuple[str, list[Row]], directory: DirectoryId) -> None:
        self.append(directory, *frame)

    def append(self, directory: DirectoryId, source: str, rows: list[Row]) -> None:
        frame = self.queue.append(directory, source, rows)
        self.rows_of[frame.position] = (source, rows)

    @rule(directory=st.sampled_from(DIRECTORIES))
    def begin_a_segment(self, directory: DirectoryId) -> None:
        if directory in self.queue.ends:
            self.queue.new_segment(directory)

    @rule(directory=st.sampled_from(DIRECTORIES))
    def lose_a_frame_that_waits(self, directory: DirectoryId) -> None:
        """Damage of a frame that settle has not read yet; what it read already it still holds."""
        start = self.ledger.reading_positions().get(directory)
        for frame in self.queue.frames.get(directory, [])[-1:]:
            waits = start is None or frame.position >= start
            if waits and frame.position not in self.queue.damaged and frame.position in self.rows_of:
                self.queue.damaged.add(frame.position)
                del self.rows_of[frame.position]
                self.damages += 1
                self.settler = self.new_settler()

    @rule()
    def step(self) -> None:
        before = self.ledger.last_group()
        count = self.settler.step()
        groups = self.ledger.groups(before, 10)
        assert sum(group.row_count for group in groups) == count
        for group in groups:
            assert group.number == before + 1
            assert isinstance(group, Group)
            self.toy.settled_at_s.append(self.running_s)
            for frame, first in group.parts():
                self.settled.append(frame.position)
                source, rows = self.rows_of[frame.position]
                assert (source, len(rows)) == (frame.source, frame.row_count)
                for index, row in enumerate(rows):
                    position = RowPosition(frame.position, index)
                    verdict = self.toy.settle(group.number, first + index, position, source, row)
                    assert group.verdicts[first + index] == verdict
            for name in DESTINATIONS:
                assert group.routed_to(name) == self.toy.routed_by_group[name][group.number]

    @rule()
    def crash(self) -> None:
        """The process ends between two steps."""
        self.ledger.close()
        self.start()

    @rule()
    def crash_in_the_write(self) -> None:
        """A write that fails leaves nothing, and the ledger takes nothing more until it is opened anew."""

        def fails(store: Store, batch: Batch) -> None:
            raise LedgerWriteFailed("no space")

        before = self.ledger.books()
        with patch.object(Store, "write", fails):
            try:
                did_settle = self.settler.step() > 0
            except LedgerWriteFailed:
                did_settle = False
        assert not did_settle
        assert self.ledger.books() == before
        self.crash()

    @rule(name=st.sampled_from(DESTINATIONS), from_oldest=st.booleans())
    def register(self, name: str, from_oldest: bool) -> None:
        is_new = name not in self.ledger.destinations()
        self.ledger.register_destination(name, from_oldest=from_oldest)
        if is_new:
            assert self.started_at(name) == (self.toy.gone if from_oldest else self.ledger.last_group())

    @rule(
        name=st.sampled_from(DESTINATIONS),
        count=st.integers(1, 3),
        refused=st.sets(st.integers(0, 5)),
        meanwhile=st.sampled_from([None, None, None, "a", "b", "c"]),
    )
    def deliver(self, name: str, count: int, refused: set[int], meanwhile: str | None) -> None:
        """Some groups are delivered; rows at these places among them are refused, and somebody may be erased beside."""
        if name not in self.ledger.destinations():
            return
        cursor = self.ledger.cursor(name)
        groups = self.ledger.groups(cursor, count)
        if not groups:
            return
        meant = [(first, seq, group) for group in groups for first, seq in self.toy.rows_of(group, name)]
        assert {seq for _, seq, _ in meant if self.is_marked(seq)} == {
            seq for first, seq, _ in meant if first in self.toy.marked
        }
        rows = [each for each in meant if each[0] not in self.toy.marked]
        dead = []
        for place, (first, seq, group) in enumerate(rows):
            if place in refused:
                # As deliver does it: a row that was sent from its copy has one already.
                has_copy = isinstance(group, ResentGroup) and group.rows[seq % ROWS_A_GROUP_MAX].position is None
                dead.append(DeadRow(seq, "refused", None if has_copy else self.toy.copy(first)))
        if meanwhile is not None:
            self.erase(meanwhile)
        self.ledger.record_delivery(
            name,
            first_group=cursor + 1,
            last_group=groups[-1].number,
            delivered_rows=len(rows) - len(dead),
            dead=dead,
            commit=f"c{groups[-1].number}",
            at_ms=self.now_ms,
            erased_rows=len(meant) - len(rows),
            handed=[seq for _, seq, _ in rows],
        )
        dead_seqs = {each.seq for each in dead}
        for first, seq, _ in meant:
            state = "erased" if first in self.toy.marked else "dead" if seq in dead_seqs else "delivered"
            before = self.toy.standing[name].get(first)
            self.toy.standing[name][first] = Standing(seq, state, before.earlier if before else ())
            self.toy.erased[name] += state == "erased"
            self.toy.delivered[name] += state == "delivered"
            if state == "delivered":
                self.toy.held[name].add(seq)

    def is_marked(self, seq: int) -> bool:
        return seq % ROWS_A_GROUP_MAX in self.ledger.erased_places(group_of(Seq(seq)))

    @rule(distinct_id=st.sampled_from("abcdefgh"))
    def erase(self, distinct_id: str) -> None:
        """All that was settled of a person is erased; what the lake holds goes there, and the ledger hears of it."""
        keys = [(source, distinct_id) for source in ("web", "app") if self.toy.history.get((source, distinct_id))]
        rows: list[SubjectRow] = []
        for source, _ in keys:
            hashed = key_hash(key_prefix(source), distinct_id)
            for found in self.ledger.lookup(hashed):
                position = found.position
                names = self.rows_of[position.frame][1][position.row_index].destinations if position else None
                rows.append(SubjectRow(found.seq, source, found.verdict is Verdict.NEW, names, hashed))
        order = self.order_erasure(distinct_id)
        counted = self.ledger.mark_erased(rows)
        kept = [row for row in rows if group_of(row.first_seq) > self.toy.gone]
        assert (counted.row_count, counted.key_count) == (len(kept), len(rows))
        again = self.ledger.mark_erased(rows)
        assert again.row_count == again.key_count == again.dead_count == 0
        self.toy.marked |= {row.first_seq for row in rows}
        for row in kept:
            self.toy.erased_of[row.source] += 1
        for key in keys:
            self.toy.history[key] = []
            self.toy.first_content.pop(key, None)
        for name in self.ledger.destinations():
            for row in rows:
                one = self.toy.standing[name].get(row.first_seq)
                if one is not None:
                    self.erase_at(name, one)
        if "lake" in self.ledger.destinations():
            held = self.held_of("lake", rows)
            gone = [seq for seq in held if group_of(seq) <= self.toy.gone]
            for _ in range(2):
                self.ledger.book_held(order.id, "lake", held)
            self.toy.held["lake"] -= set(held)
            self.toy.delivered["lake"] -= len(gone)
            self.toy.erased["lake"] += len(gone)
        self.ledger.change_erasure(order.id, self.done)
        assert not [number for number in range(self.toy.gone + 1) if self.ledger.erased_places(number)]

    def order_erasure(self, distinct_id: str) -> Erasure:
        states = {name: ErasedThere(ErasureState.WAITING) for name in self.ledger.destinations()}
        order = Erasure(uuid4(), self.now_ms, Subject(distinct_id=distinct_id), states)
        self.ledger.order_erasure(order)
        return order

    def done(self, one: Erasure) -> Erasure:
        everywhere = {name: ErasedThere(ErasureState.DONE) for name in one.destinations}
        return msgspec.structs.replace(one, is_blanked=True, destinations=everywhere)

    def erase_at(self, name: str, one: Standing) -> None:
        for seq in (*one.earlier, one.last_seq):
            is_last = seq == one.last_seq
            is_delivered = not is_last or one.state == "delivered"
            is_kept = group_of(seq) > self.toy.gone
            if is_delivered and is_kept:
                self.toy.delivered[name] -= 1
            elif not is_last or one.state not in ("dead", "dropped"):
                continue
            self.toy.erased[name] += 1
        if one.state in ("dead", "dropped"):
            one.state = "erased"
        elif one.state == "delivered":
            one.state = "erased" if group_of(one.last_seq) > self.toy.gone else "lost"
        one.earlier = ()

    def held_of(self, name: str, rows: list[SubjectRow]) -> list[Seq]:
        standing = self.toy.standing[name]
        seqs = {standing[row.first_seq].last_seq for row in rows if row.first_seq in standing}
        return sorted(self.toy.held[name] & seqs)

    @rule(name=st.sampled_from(DESTINATIONS))
    def retry(self, name: str) -> None:
        """All dead letters are sent again, from their copies; what is no dead letter is left out."""
        self.resend(
            name, Cause.RETRY, self.toy.resent(name, "dead"), "delivered", "dropped", "pending", "skipped", "erased"
        )

    @rule(remainder=st.integers(0, 3))
    def replay(self, remainder: int) -> None:
        """The lake loses some rows and gets exactly those back whose segment is kept; others are left out."""
        rows = [row for row in self.toy.resent("lake", "delivered") if row.first_seq % 4 == remainder]
        rows = [row for row in rows if self.is_kept(row)]
        self.toy.held["lake"] -= {row.last_seq for row in rows}
        self.resend("lake", Cause.REPLAY, rows, "dead", "dropped", "pending", "skipped", "erased")
        self.toy.delivered["lake"] -= len(rows)

    @rule()
    def twice_on_purpose(self) -> None:
        """The hook gets rows once more that it took; they count as routed once more."""
        rows = [row for row in self.toy.resent("hook", "delivered") if self.is_kept(row)]
        self.resend("hook", Cause.AGAIN, rows, "dead", "dropped", "pending", "skipped", "erased")
        self.toy.again["hook"] += len(rows)

    def is_kept(self, row: ResentRow) -> bool:
        assert row.position is not None
        return (row.position.frame.directory, row.position.frame.segment) in self.ledger.last_group_of()

    def resend(self, name: str, cause: Cause, rows: list[ResentRow], *others: str) -> None:
        if name not in self.ledger.destinations():
            return
        before = self.ledger.last_group()
        named = [*rows, *rows, *self.toy.resent(name, *others)]
        group = self.ledger.send_again(name, cause, named, at_ms=self.now_ms)
        if not rows:
            assert group is None
            assert self.ledger.last_group() == before
            return
        assert group is not None
        assert (group.number, list(group.rows)) == (before + 1, rows)
        self.toy.settled_at_s.append(self.running_s)
        for place, row in enumerate(rows):
            stood = self.toy.standing[name][row.first_seq]
            earlier = (*stood.earlier, stood.last_seq) if cause is Cause.AGAIN else stood.earlier
            self.toy.standing[name][row.first_seq] = Standing(group.seq_at(place), "pending", earlier)

    @rule(name=st.sampled_from(DESTINATIONS), count=st.integers(1, 3))
    def drop(self, name: str, count: int) -> None:
        """Some dead letters are given up: they stay dead, and their copies go."""
        if name not in self.ledger.destinations():
            return
        dead = [one for one in self.toy.standing[name].values() if one.state == "dead"][:count]
        assert self.ledger.drop_dead(name, [one.last_seq for one in dead]) == len(dead)
        assert self.ledger.drop_dead(name, [one.last_seq for one in dead]) == 0
        for one in dead:
            one.state = "dropped"

    @rule(unset=st.sets(st.sampled_from(DESTINATIONS), max_size=1), days=st.sampled_from([0, 0, 3]))
    def remove_what_is_over(self, unset: set[str], days: int) -> None:
        """Retention of the destinations that are set now, until nothing more goes."""
        before = self.toy.gone
        retention = self.new_retention(unset, days)
        while retention.step():
            pass
        self.see_what_is_gone(unset, days)
        if not days:
            cursors = [self.ledger.cursor(name) for name in self.set_ones(unset)]
            assert self.toy.gone == max(before, min([self.ledger.last_group(), *cursors]))
        for directory, position in self.ledger.reading_positions().items():
            named = {number for of, number in self.ledger.last_group_of() if of == directory}
            numbers = self.queue.segment_numbers(directory)
            assert numbers[0] in named or numbers[0] == numbers[-1] or numbers[0] >= position.segment

    @rule(
        unset=st.sets(st.sampled_from(DESTINATIONS), max_size=1),
        point=st.sampled_from(["before_groups", "after_groups", "between_segments", "between_segments=2"]),
    )
    def crash_in_a_removal(self, unset: set[str], point: str) -> None:
        """What a removal that was cut off leaves is whole, and the next one goes on."""
        failpoints.arm(f"retention.{point}", crash_now)
        try:
            with contextlib.suppress(Crash):
                self.new_retention(unset, 0).step()
        finally:
            failpoints.arm("")
        self.see_what_is_gone(unset, 0)
        self.crash()

    def new_retention(self, unset: set[str], days: int) -> Retention:
        return Retention(self.ledger, self.queue, self.set_ones(unset), days)

    def set_ones(self, unset: set[str]) -> list[str]:
        return [name for name in self.ledger.destinations() if name not in unset]

    def see_what_is_gone(self, unset: set[str], days: int) -> None:
        gone = self.ledger.carried().last_group
        for number in range(self.toy.gone + 1, gone + 1):
            assert self.running_s - self.toy.settled_at_s[number - 1] >= days * 86_400
            for name in self.ledger.destinations():
                is_passed = number <= max(self.ledger.cursor(name), self.started_at(name))
                assert is_passed or name in unset
                if not is_passed:
                    self.toy.skipped[name] += self.toy.routed_by_group[name][number]
                    self.skip_resent(name, number)
        self.toy.gone = gone

    def skip_resent(self, name: str, number: int) -> None:
        for one in self.toy.standing[name].values():
            if one.state == "pending" and group_of(one.last_seq) == number:
                one.state = "skipped"
                self.toy.skipped[name] += 1

    @rule(days=st.integers(-400, 400))
    def move_the_clock(self, days: int) -> None:
        """The wall clock jumps; nobody observed that much time."""
        self.now_ms = max(0, self.now_ms + days * DAY_MS)

    @rule(days=st.integers(0, 14))
    def run_for(self, days: int) -> None:
        """Time passes, less than the horizon in all: nothing may be forgotten."""
        if self.running_s + days * 86_400 < 29 * 86_400:
            self.running_s += days * 86_400
            self.now_ms += days * DAY_MS

    @precondition(lambda self: hasattr(self, "ledger"))
    @invariant()
    def books_are_the_toys(self) -> None:
        books = self.ledger.books()
        expected = {
            source: SourceCounts(
                source,
                accepted=counts.total(),
                new=counts[Verdict.NEW],
                duplicate=counts[Verdict.DUPLICATE],
                conflict=counts[Verdict.CONFLICT],
                blocked=counts[Verdict.BLOCKED],
                test=counts[Verdict.TEST],
                erased=self.toy.erased_of[source],
            )
            for source, counts in self.toy.counts.items()
        }
        assert {counts.source: counts for counts in books.sources} == expected
        for counts in books.destinations:
            name = counts.destination
            routed = self.toy.routed_by_group[name]
            states = Counter(one.state for one in self.toy.standing[name].values())
            meant = sum(n for group, n in routed.items() if group > counts.start_group)
            assert counts.routed == meant + self.toy.again[name]
            assert counts.delivered == self.toy.delivered[name]
            assert counts.dead == states["dead"] + states["dropped"]
            assert counts.skipped == self.toy.skipped[name]
            assert counts.erased == self.toy.erased[name]
            first_pending = max(counts.cursor, self.toy.gone) + 1
            waits = sum(n for group, n in routed.items() if group >= first_pending)
            assert counts.pending == waits + states["pending"]
        assert len(self.settled) == len(set(self.settled))

    @precondition(lambda self: hasattr(self, "ledger"))
    @invariant()
    def every_row_is_found(self) -> None:
        for (source, distinct_id), history in self.toy.history.items():
            found = self.ledger.lookup(key_hash(key_prefix(source), distinct_id))
            assert [(row.seq, row.position, row.verdict) for row in found] == [
                (seq, None if group_of(Seq(seq)) <= self.toy.gone else position, verdict)
                for seq, position, verdict in history
            ]
            for name in self.ledger.destinations():
                for row in found:
                    record = self.ledger.delivery_of(name, group_of(row.seq))
                    start, cursor = self.started_at(name), self.ledger.cursor(name)
                    if group_of(row.seq) <= self.toy.gone:
                        continue
                    assert (record is not None) == (start < group_of(row.seq) <= cursor)

    @precondition(lambda self: hasattr(self, "ledger"))
    @invariant()
    def no_kept_group_names_a_segment_that_is_gone(self) -> None:
        for group in self.ledger.groups(0, 1_000_000):
            for position in group.frame_positions():
                if position not in self.queue.damaged:
                    with contextlib.suppress(FrameDamaged):
                        assert self.queue.fetch(position).position == position
                        continue
                    raise AssertionError(f"{position} is gone")

    @precondition(lambda self: hasattr(self, "ledger"))
    @invariant()
    def every_dead_letter_has_its_copy(self) -> None:
        """A dead letter for each dead row under its last seq; a copy as long as the row may be sent from it."""
        for name in self.ledger.destinations():
            standing = self.toy.standing[name]
            letters = {letter.seq: letter.first_seq for letter in self.ledger.dead_letters(name)}
            assert letters == {
                one.last_seq: first for first, one in standing.items() if one.state in ("dead", "dropped")
            }
            for first, one in standing.items():
                chain = list(self.ledger.resendings(name, first))
                assert (chain[-1].seq if chain else first) == one.last_seq
                is_kept = one.state == "dead" or (
                    one.state == "pending" and chain[-1].cause is Cause.RETRY and first not in self.toy.marked
                )
                assert self.ledger.copy_of(name, first) == (self.toy.copy(first) if is_kept else None)

    def started_at(self, name: str) -> int:
        return next(each.start_group for each in self.ledger.books().destinations if each.destination == name)

    @rule()
    def settle_all(self) -> None:
        """When settle has nothing left to do, every frame that is whole was settled, and every damage counted."""
        for _ in range(len(self.rows_of) + self.damages + 1):
            self.step()
        assert set(self.settled) == set(self.rows_of)
        assert self.ledger.books().damaged_frames == self.damages
        # The hook can't be asked what it holds.
        held = {name: self.held_by(name) for name in self.ledger.destinations() if name == "lake"}
        found = audit(self.ledger, self.queue, held)
        assert found.is_balanced, found.differences

    def held_by(self, name: str) -> Held:
        """A destination that holds what the toy says was delivered to it."""

        def held(first_seq: int, last_seq: int) -> list[HeldRows]:
            first_of = {one.last_seq: first for first, one in self.toy.standing[name].items()}
            return [
                HeldRows(self.toy.source(first_of[seq]), [seq], ["some"])
                for seq in self.toy.held[name]
                if first_seq <= seq <= last_seq
            ]

        return held


TestBooks = Books.TestCase
TestBooks.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
