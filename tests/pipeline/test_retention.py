"""Retention: what may go, and what a removal that was cut off leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from rocksdict import Options, Rdict

from counterfoil.contract.facts import RowFlag
from counterfoil.errors import LedgerUnusable
from counterfoil.failpoints import VARIABLE
from counterfoil.files import RealFiles
from counterfoil.ledger import AgeMark, DeadRow, GroupNumber, Ledger, LedgerReader, SourceCounts, seq_of
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.ledger.store import AGAIN, COPIES, DEAD, DELIVERIES, FAMILIES, Batch, Store
from counterfoil.ledger.store import FACTS as DEFAULT
from counterfoil.pipeline.audit import audit
from counterfoil.pipeline.retention import AGE_SLACK_MS, Retention, RetentionFacts, RetentionPlan, plan_retention
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.pipeline.trace import DeliveryState, trace
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue.reader import QueueReader
from tests.faults.disk import RecordingFiles, nothing
from tests.pipeline.frames import MemoryQueue, Row
from tests.queue.lives import NOW_MS, life

LEDGER_ID = UUID(int=7)
WRITER = DirectoryId(b"writer-1")
OTHER = DirectoryId(b"writer-2")
DAY_MS = 86_400_000
SECONDS_A_DAY = 86_400


def segments(*numbers: int) -> list[SegmentNumber]:
    return [SegmentNumber(number) for number in numbers]


def mark(group: int, observed_ms: int) -> AgeMark:
    return AgeMark(GroupNumber(group), observed_ms)


FACTS = RetentionFacts(
    retention_ms=7 * DAY_MS,
    observed_ms=20 * DAY_MS,
    marks=[mark(10, 5 * DAY_MS), mark(20, 12 * DAY_MS), mark(30, 14 * DAY_MS)],
    last_gone=3,
    cursors=[25, 40],
    reading={WRITER: FramePosition(WRITER, SegmentNumber(4), 64)},
    last_group_of={(WRITER, SegmentNumber(2)): 20, (WRITER, SegmentNumber(3)): 21},
    segments={WRITER: segments(1, 2, 3, 4, 5), OTHER: segments(1, 2)},
)
"""Groups up to 20 are old enough; segment 1 is named by none, 2 by them alone, 3 by a later one; the other writer's
directory was never read."""


class TestPlan:
    """What may go, given the facts."""

    def test_what_is_old_and_delivered_goes(self) -> None:
        """Groups whose retention is over go, and the segments that no other group names."""
        assert plan_retention(FACTS) == RetentionPlan(20, ((WRITER, SegmentNumber(1)), (WRITER, SegmentNumber(2))))

    @pytest.mark.parametrize(("cursor", "last_group"), [(19, 19), (7, 7), (2, 3)])
    def test_a_destination_holds_what_it_has_not_passed(self, cursor: int, last_group: int) -> None:
        """Nothing goes that a destination of the configuration does not hold yet, and what is gone stays gone."""
        plan = plan_retention(msgspec.structs.replace(FACTS, cursors=[cursor, 40]))
        assert plan == RetentionPlan(last_group, ((WRITER, SegmentNumber(1)),))

    def test_without_destinations_age_alone_decides(self) -> None:
        """Where no destination is set, nobody holds anything."""
        assert plan_retention(msgspec.structs.replace(FACTS, cursors=[])).last_group == 20

    def test_nothing_is_over_before_it_was_observed(self) -> None:
        """Age is the time observed running since a group was marked, and nothing else."""
        over_ms = 12 * DAY_MS + AGE_SLACK_MS
        assert plan_retention(msgspec.structs.replace(FACTS, observed_ms=over_ms - 1)).last_group == 3
        assert plan_retention(msgspec.structs.replace(FACTS, observed_ms=over_ms)).last_group == 10

    def test_settle_must_have_passed_a_segment(self) -> None:
        """A segment that settle still reads in stays, whatever names it."""
        reading = {WRITER: FramePosition(WRITER, SegmentNumber(1), 4096)}
        assert plan_retention(msgspec.structs.replace(FACTS, reading=reading)).segments == ()

    def test_the_newest_segment_stays(self) -> None:
        """A writer's newest segment is never removed, even when settle is said to be past it."""
        alone = {WRITER: segments(3)}
        facts = msgspec.structs.replace(FACTS, segments=alone, last_group_of={})
        assert plan_retention(facts).segments == ()

    def test_a_segment_waits_for_those_before_it(self) -> None:
        """Segments go in their order: one that must stay keeps those after it, or a gap would look like a loss."""
        held = {(WRITER, SegmentNumber(1)): 30}
        assert plan_retention(msgspec.structs.replace(FACTS, last_group_of=held)).segments == ()


class House:
    """A ledger, a queue in memory and two destinations; time is in the test's hands."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.queue = MemoryQueue()
        self.now_ms = 1_700_000_000_000
        self.running_s = 0.0
        self.settler = Settler(
            self.queue, ledger, PipelineSettings(), clock=lambda: self.now_ms, monotonic=lambda: self.running_s
        )
        self.settler.step()

    def settle(self, *rows: Row, segment: bool = False) -> None:
        """One group of these rows; with `segment` in a segment of its own."""
        if segment:
            self.queue.new_segment(WRITER)
        self.queue.append(WRITER, "web", rows)
        assert self.settler.step() == len(rows)

    def deliver(self, name: str) -> None:
        """Everything that waits, in one delivery."""
        cursor, last = self.ledger.cursor(name), self.ledger.last_group()
        rows = sum(group.routed_to(name) for group in self.ledger.groups(cursor, 1000))
        self.ledger.record_delivery(
            name, first_group=cursor + 1, last_group=last, delivered_rows=rows, commit=f"c{last}", at_ms=self.now_ms
        )

    def live(self, days: float, jump_days: float = 0) -> None:
        """Let time pass, and the wall clock jump besides."""
        for _ in range(2):  # What is settled at the end of the first half is marked as of then.
            self.running_s += days * SECONDS_A_DAY / 2
            self.now_ms = int(self.now_ms + (days + jump_days) * DAY_MS / 2)
            self.settler.step()

    def retain(self, *names: str, days: float = 7) -> int:
        """What retention leaves as the oldest group when these destinations are set."""
        retention = Retention(self.ledger, self.queue, names, days)
        while retention.step():
            pass
        assert audit(self.ledger, self.queue).is_balanced
        return self.ledger.carried().oldest_group

    def state(self, distinct_id: str, name: str) -> DeliveryState:
        """How the first row of a distinctId stands with a destination."""
        (row, *_) = trace(self.ledger, self.queue, ["web"], distinct_id).rows
        return next(each.state for each in row.deliveries if each.destination == name)


@pytest.fixture
def house(ledger: Ledger) -> House:
    """A house with the destinations `lake` and `hook`."""
    ledger.register_destination("lake")
    ledger.register_destination("hook")
    return House(ledger)


def test_the_books_stand_when_groups_are_gone(house: House) -> None:
    """Counts of all verdicts and of each destination are carried forward: the books say the same as before."""
    house.settle(Row("a"), Row("b"), Row("a"), Row("b", 1), Row("t", 0, RowFlag.TEST), Row("x", 0, RowFlag.BLOCKED))
    house.settle(Row("c", 0, RowFlag(0), ("lake",)), Row("d"), segment=True)
    house.deliver("lake")
    house.deliver("hook")
    before = house.ledger.books()
    assert house.retain("lake", "hook", days=0) == 3
    assert house.ledger.books() == before
    assert house.ledger.carried().sources == {"web": SourceCounts("web", 8, 4, 1, 1, 1, 1)}
    assert house.queue.segment_numbers(WRITER) == [2]


def test_a_delivery_that_reaches_into_kept_groups_is_kept_whole(house: House) -> None:
    """Where a delivery holds gone and kept groups, its rows count once, before and after it goes."""
    for number in range(4):
        house.settle(Row(f"r{number}"), segment=number > 0)
    house.deliver("lake")
    for last in (1, 2, 3, 4):
        house.ledger.record_delivery(
            "hook", first_group=last, last_group=last, delivered_rows=1, commit=f"h{last}", at_ms=house.now_ms
        )
        assert house.retain("lake", "hook", days=0) == last + 1
        assert house.ledger.carried().of("lake").open_rows == (last if last < 4 else 0)
        record = house.ledger.delivery_of("lake", 1)
        assert (record is None) == (last == 4)


def test_a_row_that_is_gone_is_still_told(house: House) -> None:
    """A trace names verdict and day of a row whose group is gone, and that it was delivered before it went."""
    house.settle(Row("a"), Row("b", 0, RowFlag(0), ("lake",)))
    house.deliver("lake")
    house.deliver("hook")
    house.retain("lake", "hook", days=0)
    (row,) = trace(house.ledger, house.queue, ["web"], "a").rows
    assert (row.position, row.settled_at_ms) == (None, house.now_ms // DAY_MS * DAY_MS)
    assert [(each.state, each.before_ms) for each in row.deliveries] == [
        # Some rows of this source were for the lake alone; which, the frames knew.
        (DeliveryState.DELIVERED_IF_MEANT, house.now_ms),
        (DeliveryState.DELIVERED, house.now_ms),
    ]


def test_a_destination_that_is_not_set_holds_nothing(house: House) -> None:
    """What it had not taken is skipped in its books; when it comes back it goes on with what is kept, and says so."""
    house.settle(Row("a"))
    house.deliver("hook")
    house.settle(Row("b"), Row("c"), segment=True)
    house.settle(Row("d"), segment=True)
    house.deliver("lake")
    assert house.retain("lake", "hook", days=0) == 2
    assert house.retain("lake", days=0) == 4
    (hook, _) = house.ledger.books().destinations
    assert (hook.routed, hook.delivered, hook.skipped, hook.pending) == (4, 1, 3, 0)
    house.settle(Row("e"))
    house.deliver("hook")
    house.deliver("lake")
    assert house.retain("lake", "hook", days=7) == 4
    (hook, _) = house.ledger.books().destinations
    assert (hook.routed, hook.delivered, hook.skipped, hook.pending) == (5, 2, 3, 0)
    states = [house.state(each, "hook") for each in "abe"]
    assert states == [DeliveryState.DELIVERED, DeliveryState.SKIPPED, DeliveryState.DELIVERED]
    assert house.retain("lake", "hook", days=0) == 5


def test_a_new_destination_starts_from_the_oldest_group_that_is_kept(house: House) -> None:
    """Rows that are gone are not routed to a destination that starts from the oldest."""
    house.settle(Row("a"), Row("b"))
    house.deliver("lake")
    house.deliver("hook")
    house.retain("lake", "hook", days=0)
    house.settle(Row("c"))
    house.ledger.register_destination("late", from_oldest=True)
    late = next(each for each in house.ledger.books().destinations if each.destination == "late")
    assert (late.start_group, late.routed, late.pending) == (1, 1, 1)
    assert house.retain("lake", "hook", "late", days=0) == 2


@pytest.mark.parametrize("jump_days", [0, -400, 400])
def test_a_clock_that_jumps_removes_nothing_early(house: House, jump_days: float) -> None:
    """A group goes when its retention was lived through, and not before, wherever the wall clock jumps."""
    house.settle(Row("a"))
    house.deliver("lake")
    house.deliver("hook")
    assert house.retain("lake", "hook") == 1
    house.live(6.9, jump_days)
    assert house.retain("lake", "hook") == 1
    house.live(0.3)
    assert house.retain("lake", "hook") == 2


def test_a_clock_that_was_a_year_ahead_keeps_nothing_for_a_year(house: House) -> None:
    """When the clock was put right again groups go as if it had never jumped."""
    house.live(1, jump_days=365)
    house.settle(Row("a"))
    house.deliver("lake")
    house.deliver("hook")
    house.now_ms -= 365 * DAY_MS
    house.retain("lake", "hook")
    house.live(7.2)
    assert house.retain("lake", "hook") == 2


def test_a_ledger_of_the_first_format_is_read(tmp_path: Path) -> None:
    """Segments that groups of an older ledger name are known as named, and its dead letters and counts are kept."""
    ledger = Ledger.open(tmp_path / "ledger", LedgerSettings(), LEDGER_ID)
    ledger.register_destination("lake")
    house = House(ledger)
    house.settle(Row("a"))
    house.settle(Row("b"), segment=True)
    house.settle(Row("c"), segment=True)
    dead = DeadRow(seq_of(1, 0), "sqlstate_22001")
    ledger.record_delivery("lake", first_group=1, last_group=1, delivered_rows=0, dead=[dead], commit="", at_ms=5)
    (letter,), books = ledger.dead_letters("lake"), ledger.books()
    named = ledger.last_group_of()
    batch = ledger._store.batch()
    for key, packed in list(ledger._store.items(DEFAULT, b"destination/", b"destination/")):
        batch.put(DEFAULT, key, packed[:-16])
    put_unerased(ledger._store, batch)
    batch.put(DEAD, b"lake\0" + letter.seq.to_bytes(8, "big"), (5).to_bytes(8, "big") + b"sqlstate_22001")
    for directory, number in named:
        batch.delete(DEFAULT, b"segment/" + directory + number.to_bytes(4, "big"))
    batch.put(DEFAULT, b"format", (1).to_bytes(2, "big"))
    ledger._store.write(batch)
    ledger.close()
    raw = Rdict(str(tmp_path / "ledger"), Options(raw_mode=True), dict.fromkeys(FAMILIES, Options(raw_mode=True)))
    for family in (AGAIN, COPIES):
        raw.drop_column_family(family)
    raw.close()
    with pytest.raises(LedgerUnusable, match="format version 1; start the server once"):
        LedgerReader.open(tmp_path / "ledger", LedgerSettings(), LEDGER_ID)
    for _ in range(2):
        ledger = Ledger.open(tmp_path / "ledger", LedgerSettings(), LEDGER_ID)
        assert (list(ledger.dead_letters("lake")), ledger.books()) == ([letter], books)
        assert ledger.last_group_of() == named == {(WRITER, SegmentNumber(n)): n for n in (1, 2, 3)}
        ledger.close()


def put_unerased(store: Store, batch: Batch) -> None:
    """What formats before 4 did not hold goes from sources, balances and deliveries."""
    for prefix in (b"source/", b"gone/source/"):
        for key, packed in list(store.items(DEFAULT, prefix, prefix)):
            batch.put(DEFAULT, key, packed[:48])
    for key, packed in list(store.items(DEFAULT, b"gone/destination/", b"gone/destination/")):
        batch.put(DEFAULT, key, packed[:40] + packed[48:])
    for key, packed in list(store.items(DELIVERIES, b"")):
        batch.put(DELIVERIES, key, packed[:24] + packed[32:])


def test_a_ledger_of_the_third_format_is_read(tmp_path: Path) -> None:
    """It knew of no row that was erased: books, balances and deliveries are read as they were."""
    ledger = Ledger.open(tmp_path / "ledger", LedgerSettings(), LEDGER_ID)
    ledger.register_destination("lake")
    ledger.register_destination("hook")
    house = House(ledger)
    for name in "abcd":
        house.settle(Row(name), segment=name != "a")
    for last in (1, 2, 3):
        ledger.record_delivery("lake", first_group=last, last_group=last, delivered_rows=1, commit=f"c{last}", at_ms=5)
    ledger.remove_groups(2)
    before = ledger.books(), ledger.carried(), list(ledger.deliveries("lake"))
    assert before[1].of("hook").skipped_groups == ((1, 2),)
    batch = ledger._store.batch()
    for key, packed in list(ledger._store.items(DEFAULT, b"destination/", b"destination/")):
        batch.put(DEFAULT, key, packed[:-8])
    put_unerased(ledger._store, batch)
    batch.put(DEFAULT, b"format", (3).to_bytes(2, "big"))
    ledger._store.write(batch)
    ledger.close()
    for _ in range(2):
        ledger = Ledger.open(tmp_path / "ledger", LedgerSettings(), LEDGER_ID)
        assert (ledger.books(), ledger.carried(), list(ledger.deliveries("lake"))) == before
        ledger.close()


# On a disk


def queue_of(root: Path, frames: int) -> None:
    """Frames of a row each, a segment each."""
    with life(root) as one:
        for number in range(frames):
            if number:
                one.roll()
            one.write(f"{number}")


def settled(root: Path, queue: QueueReader) -> Ledger:
    ledger = Ledger.open(root / "ledger", LedgerSettings(), LEDGER_ID)
    ledger.register_destination("lake")
    settler = Settler(queue, ledger, PipelineSettings(group_rows=1), lambda: NOW_MS)
    while settler.step():
        pass
    return ledger


def delivered(ledger: Ledger, last_group: int) -> None:
    ledger.record_delivery(
        "lake", first_group=ledger.cursor("lake") + 1, last_group=last_group,
        delivered_rows=last_group - ledger.cursor("lake"), commit="1", at_ms=NOW_MS,
    )  # fmt: skip


def is_whole(root: Path, ledger: Ledger, queue: QueueReader) -> bool:
    """Whether the books balance, every kept group's frames are there, and every row is known."""
    for group in ledger.groups(0, 1000):
        for position in group.frame_positions():
            queue.fetch(position)
    return audit(ledger, queue).is_balanced


POINTS = [
    "retention.before_groups",
    "retention.after_groups",
    "retention.between_segments",
    "retention.between_segments=3",
]

RETAIN = """
import sys
from pathlib import Path
from counterfoil.files import RealFiles
from counterfoil.queue.reader import QueueReader
from counterfoil.pipeline.retention import Retention
from tests.pipeline.test_retention import settled

root = Path(sys.argv[1])
queue = QueueReader(root / "queue", RealFiles(), None)
ledger = settled(root, queue)
retention = Retention(ledger, queue, ["lake"], 0)
while retention.step():
    pass
ledger.close()
"""


@pytest.mark.parametrize("point", POINTS)
def test_killed_in_a_removal_it_goes_on(tmp_path: Path, point: str) -> None:
    """SIGKILL between groups and segments, or among segments: the books stand, and the next life removes the rest."""
    queue_of(tmp_path, 8)
    queue = QueueReader(tmp_path / "queue", RealFiles(), None)
    ledger = settled(tmp_path, queue)
    delivered(ledger, 5)
    ledger.close()
    environment = os.environ | {VARIABLE: point}
    done = subprocess.run([sys.executable, "-c", RETAIN, str(tmp_path)], env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    ledger = settled(tmp_path, queue)
    assert is_whole(tmp_path, ledger, queue)
    retention = Retention(ledger, queue, ["lake"], 0)
    while retention.step():
        pass
    (directory,) = queue.directories()
    assert ledger.carried().last_group == 5
    assert queue.segment_numbers(directory) == [6, 7, 8]
    assert is_whole(tmp_path, ledger, queue)
    assert ledger.books().sources[0].new == 8
    ledger.close()


def test_no_group_names_a_segment_that_is_removed(tmp_path: Path) -> None:
    """At each operation on a file, and after a power cut there, what kept groups name is on the disk."""
    queue_of(tmp_path, 6)
    files = RecordingFiles(tmp_path, "flushed")
    queue = QueueReader(tmp_path / "queue", files, None)
    ledger = settled(tmp_path, queue)
    delivered(ledger, 4)
    kept_at: list[int] = []
    removed = files.remove

    def remove(path: Path) -> None:
        # The groups' batch is flushed by now, whatever the disk keeps of this removal.
        kept_at.append(next(ledger.groups(0, 1)[0].frame_positions()).segment)
        removed(path)

    files.remove = remove  # type: ignore[method-assign]
    retention = Retention(ledger, queue, ["lake"], 0)
    while retention.step():
        pass
    assert kept_at == [5, 5, 5, 5]
    for count in range(len(files.record) + 1):
        names = sorted(path.name for path in files.cut(count, nothing).files if path.suffix == ".seg")
        numbers = [int(name.split(".")[0]) for name in names]
        assert numbers == list(range(numbers[0], 7)), "a gap would look like a loss"
        assert numbers[0] <= 5
    ledger.close()


def test_a_segment_that_cannot_be_removed_keeps_those_after_it(tmp_path: Path) -> None:
    """A disk that refuses a removal is tried again, and no gap appears meanwhile."""
    queue_of(tmp_path, 4)
    files = RecordingFiles(tmp_path, "flushed")
    queue = QueueReader(tmp_path / "queue", files, None)
    ledger = settled(tmp_path, queue)
    delivered(ledger, 3)
    files.break_down("remove")
    retention = Retention(ledger, queue, ["lake"], 0)
    retention.step()
    (directory,) = queue.directories()
    assert queue.segment_numbers(directory) == [1, 2, 3, 4]
    assert is_whole(tmp_path, ledger, queue)
    while retention.step():
        pass
    assert queue.segment_numbers(directory) == [4]
    ledger.close()
