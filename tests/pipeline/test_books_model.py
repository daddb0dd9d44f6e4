"""Ledger, settle and retention against a toy: random frames, repeats, crashes, deliveries, removals, same answers."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from counterfoil import failpoints
from counterfoil.contract.facts import RowFlag, Verdict, key_hash, key_prefix
from counterfoil.destinations.interface import HeldRows
from counterfoil.errors import FrameDamaged, LedgerWriteFailed
from counterfoil.ledger import Ledger, Seq, SourceCounts, group_of, seq_of
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
            for name in DESTINATIONS:
                if row.destinations is None or name in row.destinations:
                    self.routed_by_group[name][group] += 1
                    self.meant[name].add(seq_of(group, place))
        return verdict


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
        self.delivered: Counter[str] = Counter()
        self.now_ms = 1_700_000_000_000
        self.running_s = 0.0
        self.damages = 0
        self.start()

    def start(self) -> None:
        self.ledger = Ledger.open(self.path, SMALL, LEDGER_ID, mode="write")
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

    @rule(name=st.sampled_from(DESTINATIONS), count=st.integers(1, 3))
    def deliver(self, name: str, count: int) -> None:
        if name not in self.ledger.destinations():
            return
        cursor = self.ledger.cursor(name)
        groups = self.ledger.groups(cursor, count)
        if groups:
            rows = sum(self.toy.routed_by_group[name][group.number] for group in groups)
            self.ledger.record_delivery(
                name,
                first_group=cursor + 1,
                last_group=groups[-1].number,
                delivered_rows=rows,
                commit=f"c{groups[-1].number}",
                at_ms=self.now_ms,
            )
            self.delivered[name] += rows

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
        self.toy.gone = gone

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
            )
            for source, counts in self.toy.counts.items()
        }
        assert {counts.source: counts for counts in books.sources} == expected
        for counts in books.destinations:
            routed = self.toy.routed_by_group[counts.destination]
            assert counts.routed == sum(n for group, n in routed.items() if group > counts.start_group)
            assert counts.delivered == self.delivered[counts.destination]
            assert counts.skipped == self.toy.skipped[counts.destination]
            first_pending = max(counts.cursor, self.toy.gone) + 1
            assert counts.pending == sum(n for group, n in routed.items() if group >= first_pending)
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
            for frame in group.frames:
                if frame.position not in self.queue.damaged:
                    with contextlib.suppress(FrameDamaged):
                        assert self.queue.fetch(frame.position).position == frame.position
                        continue
                    raise AssertionError(f"{frame.position} is gone")

    def started_at(self, name: str) -> int:
        return next(each.start_group for each in self.ledger.books().destinations if each.destination == name)

    @rule()
    def settle_all(self) -> None:
        """When settle has nothing left to do, every frame that is whole was settled, and every damage counted."""
        for _ in range(len(self.rows_of) + self.damages + 1):
            self.step()
        assert set(self.settled) == set(self.rows_of)
        assert self.ledger.books().damaged_frames == self.damages
        found = audit(self.ledger, self.queue, {name: self.held_by(name) for name in self.ledger.destinations()})
        assert found.is_balanced, found.differences

    def held_by(self, name: str) -> Held:
        """A destination that holds what the toy says was delivered to it."""

        def held(first_seq: int, last_seq: int) -> list[HeldRows]:
            return [
                HeldRows(source, [seq], [distinct_id])
                for (source, distinct_id), history in self.toy.history.items()
                for seq, _, verdict in history
                if verdict is Verdict.NEW and seq in self.toy.meant[name] and first_seq <= seq <= last_seq
            ]

        return held


TestBooks = Books.TestCase
TestBooks.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
