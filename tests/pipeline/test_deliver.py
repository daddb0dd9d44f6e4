from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterfoil.contract.facts import RowFlag, key_hash, key_prefix
from counterfoil.destinations.interface import Delivery, Receipt, RefusedRow
from counterfoil.destinations.settings import MIB, DeliverySettings
from counterfoil.errors import DestinationDown, DestinationRefused, LedgerWriteFailed
from counterfoil.ledger import Cause, DestinationCounts, Ledger, ResentRow, group_of, seq_of
from counterfoil.pipeline.audit import audit
from counterfoil.pipeline.deliver import (
    BACKOFF_SECONDS_MAX,
    BACKOFF_SECONDS_MIN,
    EMPTY_SECONDS,
    CursorCheck,
    Deliverer,
    DeliveryStatus,
    backoff_seconds,
    compare_cursors,
)
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.positions import DirectoryId, RowPosition
from tests.destinations.making import delivered
from tests.destinations.memory import MemoryDestination, Shelf
from tests.pipeline.frames import MemoryQueue, Row

WRITER = DirectoryId(b"writer-1")
PATIENCE_SECONDS = 30.0


class House:
    """A queue, a ledger and one destination, with the time in the test's hands; it is its deliverer's observer."""

    def __init__(self, ledger: Ledger, queue: MemoryQueue, destination: MemoryDestination, **settings: Any) -> None:
        self.ledger, self.queue, self.destination = ledger, queue, destination
        self.now = 100.0
        self.refusals: list[bool] = []
        self.signal = threading.Event()
        ledger.register_destination(destination.name)
        self.settler = Settler(queue, ledger, PipelineSettings(), lambda: 1_000)
        self.deliverer = Deliverer(
            destination,
            ledger,
            queue,
            DeliverySettings(name=destination.name, **{"batch_seconds": 0, **settings}),
            clock_ms=lambda: 5_000,
            monotonic=lambda: self.now,
            jitter=lambda: 0.0,
            observer=self,
        )

    def committed(self, destination: str, seconds: float) -> None:
        self.signal.set()

    def not_committed(self, destination: str, *, is_refused: bool) -> None:
        self.refusals.append(is_refused)
        self.signal.set()

    def settle(self, *rows: Row | str, source: str = "web") -> None:
        """One frame, settled as a group of its own."""
        self.queue.append(WRITER, source, [Row(row) if isinstance(row, str) else row for row in rows])
        assert self.settler.step()

    def status(self) -> DeliveryStatus:
        """How it goes."""
        return self.deliverer.state.status

    def step(self) -> None:
        """A step that does not wait for a group that nobody will make."""
        self.deliverer.wake()
        self.deliverer.step()

    def counts(self) -> DestinationCounts:
        """This destination's side of the books."""
        (counts,) = [each for each in self.ledger.books().destinations if each.destination == self.destination.name]
        return counts

    @contextmanager
    def running(self) -> Iterator[threading.Event]:
        """The deliverer in its own thread, as the pipeline runs it."""
        stop = threading.Event()
        thread = threading.Thread(target=self.deliverer.run, args=(stop,))
        thread.start()
        try:
            yield stop
        finally:
            stop.set()
            self.deliverer.wake()
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()

    def await_signal(self) -> None:
        """Wait for the next delivery or failure."""
        assert self.signal.wait(PATIENCE_SECONDS)
        self.signal.clear()


@pytest.fixture
def house(ledger: Ledger, queue: MemoryQueue) -> House:
    """A house whose deliveries are due at once."""
    return House(ledger, queue, MemoryDestination())


def failing(times: int, error: Exception) -> Callable[[Delivery], None]:
    """Raises the error so many times, then nothing."""
    left = [error] * times

    def fail(_: Delivery) -> None:
        if left:
            raise left.pop()

    return fail


class TestRows:
    """What is delivered."""

    def test_new_rows_are_delivered_once_in_order_and_the_books_balance(self, house: House) -> None:
        """Duplicates, conflicts, blocked and test rows stay; new ones come with their seq; nothing is pending."""
        house.settle("a", Row("b", flags=RowFlag.TEST), Row("c", flags=RowFlag.BLOCKED), "d")
        house.settle("a", Row("d", content=9), "e")
        house.deliverer.open()
        house.step()
        assert house.destination.ids() == ["a", "d", "e"]
        assert [(group_of(row.seq), row.seq % 65_536) for row in house.destination.shelf.rows] == [  # type: ignore[arg-type]
            (1, 0),
            (1, 3),
            (2, 2),
        ]
        counts = house.counts()
        assert (counts.routed, counts.delivered, counts.dead, counts.pending, counts.cursor) == (3, 3, 0, 0, 2)

    def test_only_rows_that_are_meant_for_it(self, house: House) -> None:
        """A row with a set of destinations goes to those alone; one without goes everywhere."""
        house.settle(
            Row("both", destinations=("other", "shelf")),
            Row("other", destinations=("other",)),
            Row("none", destinations=()),
            Row("every"),
        )
        house.deliverer.open()
        house.step()
        assert house.destination.ids() == ["both", "every"]
        assert house.counts().pending == 0

    def test_a_new_destination_begins_where_it_was_registered(self, ledger: Ledger, queue: MemoryQueue) -> None:
        """Rows that were settled before it was there are not for it, and its missing cursor is no fault."""
        first = House(ledger, queue, MemoryDestination("first"))
        first.settle("a")
        second = House(ledger, queue, MemoryDestination("second"))
        second.settle("b")
        second.deliverer.open()
        second.step()
        assert second.destination.ids() == ["b"]

    def test_rows_of_a_damaged_frame_are_dead_and_the_rest_goes_on(self, house: House) -> None:
        """Each row of it that was meant for this destination is dead as damaged; the books balance."""
        house.settle("a")
        house.settle("b", Row("c", destinations=("other",)), "d")
        house.settle("e")
        house.queue.damaged.add(house.queue.frames[WRITER][1].position)
        house.deliverer.open()
        house.step()
        assert house.destination.ids() == ["a", "e"]
        dead = list(house.ledger.dead_letters("shelf"))
        assert [(group_of(letter.seq), letter.reason) for letter in dead] == [(2, "damaged"), (2, "damaged")]
        counts = house.counts()
        assert (counts.delivered, counts.dead, counts.pending) == (2, 2, 0)

    def test_rows_that_the_destination_refuses_are_dead_letters(self, house: House) -> None:
        """What a receipt calls dead is recorded with its reason, the rest as delivered."""
        house.settle("a", "b", "c")
        take = house.destination.deliver

        def refuse_b(delivery: Delivery) -> Receipt:
            kept = [row for row in delivery.rows if row.distinct_id != "b"]
            receipt = take(Delivery(delivery.first_group, delivery.last_group, kept))
            return Receipt(1, 1, receipt.row_count, receipt.commit, (RefusedRow(65_537, "sqlstate_22001 email"),))

        house.destination.deliver = refuse_b  # type: ignore[method-assign]
        house.deliverer.open()
        house.step()
        (letter,) = house.ledger.dead_letters("shelf")
        assert (letter.seq, letter.reason) == (65_537, "sqlstate_22001 email")
        assert (house.counts().delivered, house.counts().pending) == (2, 0)


class TestSendingAgain:
    """Groups that send rows once more."""

    def named(self, house: House, distinct_id: str) -> ResentRow:
        """A dead row, named as a retry names it."""
        row = key_hash(key_prefix("web"), distinct_id)
        (found,) = house.ledger.lookup(row)
        chain = list(house.ledger.resendings("shelf", found.seq))
        return ResentRow(found.seq, chain[-1].seq if chain else found.seq, None, "web")

    def test_a_retried_row_is_delivered_from_its_copy(self, house: House) -> None:
        """It needs no frame any more, comes under its new seq, and its copy goes when it is there."""
        house.settle("a", "b", "c")
        house.destination.refuses["b"] = "sqlstate_22001"
        house.deliverer.open()
        house.step()
        house.queue.damaged.add(house.queue.frames[WRITER][0].position)
        house.destination.refuses.clear()
        row = self.named(house, "b")
        group = house.ledger.send_again("shelf", Cause.RETRY, [row], at_ms=7)
        assert group is not None
        assert (house.counts().dead, house.counts().pending) == (0, 1)
        house.step()
        assert house.destination.ids() == ["a", "c", "b"]
        again = house.destination.shelf.rows[-1]
        assert (again.seq, again.first_seq, again.received_at_ms) == (group.seq_at(0), row.first_seq, 1)
        assert (house.counts().delivered, house.counts().dead, house.counts().pending) == (3, 0, 0)
        assert house.ledger.copy_of("shelf", row.first_seq) is None

    def test_a_retried_row_that_dies_again_may_be_retried_again(self, house: House) -> None:
        """It is a dead letter under its new seq, and its copy stays."""
        house.settle("a")
        house.destination.refuses["a"] = "nul:email"
        house.deliverer.open()
        house.step()
        for _ in range(2):
            assert house.ledger.send_again("shelf", Cause.RETRY, [self.named(house, "a")], at_ms=7) is not None
            house.step()
        (letter,) = house.ledger.dead_letters("shelf")
        assert (letter.first_seq, letter.seq, letter.reason) == (seq_of(1, 0), seq_of(3, 0), "nul:email")
        assert house.counts().dead == 1
        house.destination.refuses.clear()
        assert house.ledger.send_again("shelf", Cause.RETRY, [self.named(house, "a")], at_ms=7) is not None
        house.step()
        assert house.destination.ids() == ["a"]
        assert [each.reason for each in house.ledger.resendings("shelf", seq_of(1, 0))] == ["nul:email"] * 3

    def test_a_replayed_row_is_read_from_the_queue(self, house: House) -> None:
        """By its position; where its frame is damaged it is dead as such, and has no copy."""
        house.settle("a", "b")
        house.settle("c")
        house.deliverer.open()
        house.step()
        house.destination.shelf.rows.clear()
        positions = [RowPosition(house.queue.frames[WRITER][n].position, index) for n, index in [(0, 1), (1, 0)]]
        rows = [
            ResentRow(seq, seq, position, "web")
            for seq, position in zip([seq_of(1, 1), seq_of(2, 0)], positions, strict=True)
        ]
        group = house.ledger.send_again("shelf", Cause.REPLAY, rows, at_ms=7)
        assert group is not None
        assert set(house.ledger.last_group_of().values()) == {group.number}
        house.queue.damaged.add(positions[1].frame)
        house.step()
        assert house.destination.ids() == ["b"]
        (letter,) = house.ledger.dead_letters("shelf")
        assert (letter.first_seq, letter.reason) == (seq_of(2, 0), "damaged")
        assert house.ledger.copy_of("shelf", letter.first_seq) is None
        assert (house.counts().delivered, house.counts().dead, house.counts().pending) == (2, 1, 0)

    def test_another_destination_passes_over_it(self, ledger: Ledger, queue: MemoryQueue) -> None:
        """A group is for the destination that it names, and moves every other's cursor."""
        first, second = House(ledger, queue, MemoryDestination()), House(ledger, queue, MemoryDestination("second"))
        first.settle("a")
        first.destination.refuses["a"] = "no"
        for house in (first, second):
            house.deliverer.open()
            house.step()
        assert ledger.send_again("shelf", Cause.RETRY, [self.named(first, "a")], at_ms=7) is not None
        second.step()
        second.now += EMPTY_SECONDS
        second.step()
        assert second.destination.ids() == ["a"]
        assert (second.counts().cursor, second.counts().pending) == (2, 0)

    def test_what_the_ledger_missed_of_it_is_recorded(self, house: House) -> None:
        """A crash between commit and cursor: the row was delivered, and its copy goes."""
        house.settle("a")
        house.destination.refuses["a"] = "no"
        house.deliverer.open()
        house.step()
        house.destination.refuses.clear()
        assert house.ledger.send_again("shelf", Cause.RETRY, [self.named(house, "a")], at_ms=7) is not None
        house.destination.after = failing(1, DestinationDown("lost"))
        with pytest.raises(DestinationDown):
            house.step()
        house.deliverer.open()
        assert house.destination.ids() == ["a"]
        assert (house.counts().delivered, house.counts().dead, house.counts().pending) == (1, 0, 0)
        assert house.ledger.copy_of("shelf", seq_of(1, 0)) is None


class TestBatches:
    """When a delivery is closed."""

    def test_by_rows(self, ledger: Ledger, queue: MemoryQueue) -> None:
        """A delivery holds whole groups and never more rows than it may, unless one group alone has more."""
        house = House(ledger, queue, MemoryDestination(), batch_rows=5, batch_seconds=3600)
        sizes = [2, 2, 2, 7, 1, 4, 1]
        for group, size in enumerate(sizes):
            house.settle(*(f"{group}-{row}" for row in range(size)))
        house.deliverer.open()
        for _ in range(9):
            house.step()
        taken = [(each.first_group, each.last_group, len(each.rows)) for each in house.destination.deliveries]
        assert taken == [(1, 2, 4), (3, 3, 2), (4, 4, 7), (5, 6, 5)]
        house.now += 3600
        house.step()
        assert house.destination.deliveries[-1].last_group == 7

    def test_by_bytes(self, ledger: Ledger, queue: MemoryQueue) -> None:
        """Bytes of frames close a delivery, whatever the number of rows."""
        house = House(ledger, queue, MemoryDestination(), batch_bytes=MIB, batch_seconds=3600)
        for group in range(5):
            house.settle(f"{group}-" + "x" * 400_000)
        house.deliverer.open()
        for _ in range(3):
            house.step()
        assert [len(each.rows) for each in house.destination.deliveries] == [2, 2]

    def test_by_seconds_from_the_first_row(self, ledger: Ledger, queue: MemoryQueue) -> None:
        """The first row waits no longer than it is told, and later ones ride along."""
        house = House(ledger, queue, MemoryDestination(), batch_seconds=1.0)
        house.deliverer.open()
        house.settle("a")
        house.step()
        house.now += 0.9
        house.settle("b")
        house.step()
        assert house.destination.ids() == []
        house.now += 0.11
        house.step()
        assert house.destination.ids() == ["a", "b"]

    def test_by_default_a_row_waits_a_second(self) -> None:
        """With the defaults a row is handed over one second after it was settled: it may be there within two."""
        assert DeliverySettings(name="lake").batch_seconds == 1.0

    def test_a_backlog_is_worked_off_in_full_batches(self, ledger: Ledger, queue: MemoryQueue) -> None:
        """However many groups wait, a delivery is as large as it may be, and no larger."""
        house = House(ledger, queue, MemoryDestination(), batch_rows=100, batch_seconds=3600)
        for group in range(250):
            house.settle(*(f"{group}-{row}" for row in range(2)))
        house.deliverer.open()
        while house.counts().cursor < 250:
            house.step()
        assert [len(each.rows) for each in house.destination.deliveries] == [100] * 5

    def test_groups_without_rows_move_the_cursor_seldom(self, house: House) -> None:
        """Groups that hold nothing for it cost one delivery for many of them, after a while."""
        house.settle("a")
        house.deliverer.open()
        house.step()
        for _ in range(40):
            house.settle("a")
        house.deliverer.wake()
        for _ in range(4):
            house.step()
        assert len(house.destination.deliveries) == 1
        house.now += EMPTY_SECONDS
        house.step()
        assert house.destination.deliveries[1:] == [Delivery(2, 41, [])]
        assert house.counts().cursor == 41

    def test_very_many_groups_without_rows_do_not_wait(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """After so many of them the cursor moves without waiting for the time."""
        monkeypatch.setattr("counterfoil.pipeline.deliver.EMPTY_GROUPS_MAX", 40)
        for _ in range(45):
            house.settle(Row("t", flags=RowFlag.TEST))
        house.deliverer.open()
        while house.counts().cursor < 40:
            house.step()
        assert house.destination.deliveries == [Delivery(1, 40, [])]

    def test_upkeep_goes_on_between_deliveries_and_when_idle(self, house: House) -> None:
        """A backlog leaves some steps to upkeep after each delivery; when nothing waits it is done to the end."""
        house.destination.tending = 100
        house.settle("a")
        house.deliverer.open()
        house.step()
        assert 90 < house.destination.tending < 100
        while house.destination.tending:
            house.step()


class TestFailures:
    """A destination that fails."""

    def test_nothing_is_recorded_before_the_commit_and_all_after_it(self, house: House) -> None:
        """Down before the commit: the cursor stays and the rows come again."""
        house.destination.before = failing(1, DestinationDown("away"))
        house.settle("a")
        house.deliverer.open()
        with pytest.raises(DestinationDown):
            house.step()
        assert (house.counts().cursor, house.counts().pending) == (0, 1)
        house.deliverer.open()
        house.step()
        assert house.destination.ids() == ["a"]
        assert house.counts().cursor == 1

    def test_after_a_failure_one_group_goes_first(self, ledger: Ledger, queue: MemoryQueue) -> None:
        """A destination that comes back is handed the smallest delivery there is, and full ones once it took that."""
        house = House(ledger, queue, MemoryDestination(), batch_rows=100, batch_seconds=3600)
        house.destination.before = failing(2, DestinationDown("away"))
        house.settle(Row("t", flags=RowFlag.TEST))
        for group in range(60):
            house.settle(*(f"{group}-{row}" for row in range(2)))
        with house.running():
            while house.counts().cursor < 51:
                house.await_signal()
        taken = [(each.first_group, each.last_group, len(each.rows)) for each in house.destination.deliveries]
        assert taken[:2] == [(1, 2, 2), (3, 52, 100)]

    def test_a_commit_whose_answer_was_lost_is_not_repeated(self, house: House) -> None:
        """Down after the commit: when it is opened anew its own cursor says so, and the books are made up."""
        house.destination.after = failing(1, DestinationDown("cut"))
        house.settle("a", "b")
        house.settle("a", "c")
        house.deliverer.open()
        with pytest.raises(DestinationDown):
            house.step()
        assert house.counts().delivered == 0
        house.deliverer.open()
        counts = house.counts()
        assert (counts.cursor, counts.delivered, counts.pending) == (2, 3, 0)
        record = house.ledger.delivery_of("shelf", 1)
        assert record is not None
        assert (record.first_group, record.last_group, record.commit) == (1, 2, "1")
        house.settle("d")
        house.step()
        assert house.destination.ids() == ["a", "b", "c", "d"]

    def test_dead_rows_of_a_lost_answer_are_made_up_too(self, house: House) -> None:
        """A damaged frame in a delivery whose answer was lost is recorded as it would have been."""
        house.destination.after = failing(1, DestinationDown("cut"))
        house.settle("a", "b")
        house.settle("c")
        house.queue.damaged.add(house.queue.frames[WRITER][0].position)
        house.deliverer.open()
        with pytest.raises(DestinationDown):
            house.step()
        house.deliverer.open()
        assert (house.counts().delivered, house.counts().dead, house.counts().pending) == (1, 2, 0)

    def test_a_frame_damaged_after_its_delivery_is_delivered_all_the_same(self, house: House) -> None:
        """What the destination says it took counts, even if the frame can't be read any more."""
        house.destination.after = failing(1, DestinationDown("cut"))
        house.settle("a", "b")
        house.deliverer.open()
        with pytest.raises(DestinationDown):
            house.step()
        house.queue.damaged.add(house.queue.frames[WRITER][0].position)
        house.deliverer.open()
        assert (house.counts().delivered, house.counts().dead, house.counts().pending) == (2, 0, 0)

    def test_a_destination_that_lost_what_it_held_is_refused(self, house: House) -> None:
        """When less is there than was delivered, the message says how much and what to do; nothing is delivered."""
        house.settle("a")
        house.deliverer.open()
        house.step()
        house.destination.shelf.receipts.clear()
        house.settle("b")
        with pytest.raises(DestinationRefused, match=r"group 1 was delivered: .* bring back what was there"):
            house.deliverer.open()
        assert house.destination.ids() == ["a"]

    def test_a_destination_that_is_newer_than_the_ledger_is_refused(self, house: House) -> None:
        """When it holds groups that were never settled, the ledger is an old copy, and that is said."""
        house.destination.shelf.receipts.append(Receipt(5, 9, 1, "7"))
        house.settle("a")
        with pytest.raises(DestinationRefused, match="the data directory is older"):
            house.deliverer.open()

    def test_other_rows_under_the_same_numbers_are_refused_for_good(self, house: House) -> None:
        """An older ledger that has settled as many groups since takes nothing for delivered that never was."""
        for number, old in ((1, "a"), (2, "b"), (3, "c")):
            house.destination.shelf.rows.append(delivered(seq_of(number, 0), distinct_id=old))
            house.destination.shelf.receipts.append(Receipt(number, number, 1, str(number)))
        house.settle("a")
        with pytest.raises(DestinationRefused, match="3, but 1 is the last"):
            house.deliverer.open()
        for new in ("b", "x", "y"):
            house.settle(new)
        with pytest.raises(DestinationRefused, match=r"other rows of group 3 than were settled: .*rebuild --anyway"):
            house.deliverer.open()
        assert house.counts().delivered == 0

    def test_rows_that_are_not_there_are_not_taken_for_delivered(self, house: House) -> None:
        """A cursor that was moved on without rows does not cover rows that got those numbers later."""
        house.destination.shelf.receipts.append(Receipt(1, 3, 0, "1"))
        for new in ("a", "b", "c"):
            house.settle(new)
        with pytest.raises(DestinationRefused, match="other rows of group 1 than were settled"):
            house.deliverer.open()

    def test_the_same_rows_under_the_same_numbers_are_there(self, house: House) -> None:
        """What a sender repeats to an older ledger, and the destination holds in the same places, is delivered."""
        for number, old in ((1, "a"), (2, "b")):
            house.destination.shelf.rows.append(delivered(seq_of(number, 0), distinct_id=old))
            house.destination.shelf.receipts.append(Receipt(number, number, 1, str(number)))
        house.settle("a")
        house.settle("b")
        house.deliverer.open()
        assert (house.counts().delivered, house.counts().pending) == (2, 0)

    def test_a_ledger_that_fails_ends_the_thread(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """What goes wrong in the ledger is nobody's to repeat here: it is raised out of `run`."""

        def fail(*_: object, **__: object) -> None:
            raise LedgerWriteFailed

        monkeypatch.setattr(house.ledger, "record_delivery", fail)
        house.settle("a")
        with pytest.raises(LedgerWriteFailed):
            house.deliverer.run(threading.Event())
        assert house.destination.closed == 1


class TestThread:
    """The life of a deliverer."""

    def test_it_wakes_delivers_and_stops(self, house: House) -> None:
        """A group that is settled while it waits is delivered, and a stop ends the wait at once."""
        with house.running():
            house.settle("a")
            house.deliverer.wake()
            house.await_signal()
            assert house.destination.ids() == ["a"]
            assert house.status() is DeliveryStatus.RUNNING
        assert house.status() is DeliveryStatus.STOPPED
        assert house.destination.closed == 1

    def test_after_failures_it_goes_on(self, house: House) -> None:
        """A destination that comes back takes everything once; meanwhile the state tells why not, and it was closed."""
        house.destination.before = failing(3, DestinationDown("sqlstate_57P03"))
        house.settle("a")
        with house.running():
            house.await_signal()
            assert house.deliverer.state.reason == "sqlstate_57P03"
            while not house.destination.ids():
                house.await_signal()
        assert house.destination.ids() == ["a"]
        assert house.refusals == [False] * 3
        assert house.destination.opened == house.destination.closed == 4
        assert house.deliverer.state.failure_count == 0

    def test_one_that_takes_a_part_each_time_is_not_waited_for_longer(self, house: House) -> None:
        """A destination that fails now and then, between what it takes, is tried again as after a first failure."""
        counts: list[int] = []

        def fail(_: Delivery) -> None:
            counts.append(house.deliverer.state.failure_count)
            if len(counts) < 6:
                down = DestinationDown("http_503")
                down.has_progressed = len(counts) > 2
                raise down

        house.destination.before = fail
        house.settle("a")
        with house.running():
            while not house.destination.ids():
                house.await_signal()
        assert counts == [0, 1, 2, 1, 1, 1]

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (DestinationDown("busy", retry_after_s=3600), DeliveryStatus.DOWN),
            (DestinationRefused("drop the column"), DeliveryStatus.REFUSED),
        ],
    )
    def test_a_long_pause_ends_with_the_stop(self, house: House, error: Exception, status: DeliveryStatus) -> None:
        """While it waits an hour before the next attempt, a stop is followed at once."""
        house.destination.before = failing(99, error)
        house.settle("a")
        with house.running():
            house.await_signal()
            assert house.deliverer.state.status is status
            assert house.deliverer.state.reason == str(error)

    def test_one_that_fails_delays_only_itself(self, ledger: Ledger, queue: MemoryQueue) -> None:
        """Beside a destination that never comes up, and one that hangs, another takes every row."""
        down, stuck, good = (
            House(ledger, queue, MemoryDestination(name, Shelf())) for name in ("down", "stuck", "good")
        )
        released = threading.Event()

        def hang(_: Delivery) -> None:
            released.wait(PATIENCE_SECONDS)

        down.destination.before = failing(10_000, DestinationDown("away"))
        stuck.destination.before = hang
        with down.running(), stuck.running(), good.running():
            try:
                for number in range(20):
                    good.settle(f"row-{number}")
                    good.deliverer.wake()
                    good.await_signal()
            finally:
                released.set()
        assert good.destination.ids() == [f"row-{number}" for number in range(20)]
        assert down.counts().pending == 20


class TestDecisions:
    """Pure rules."""

    @given(count=st.integers(1, 1000), jitter=st.floats(0, 1))
    def test_the_pause_doubles_within_bounds(self, count: int, jitter: float) -> None:
        """From half of the shortest to the longest, never shrinking below half of the pause before."""
        seconds = backoff_seconds(count, jitter)
        assert BACKOFF_SECONDS_MIN / 2 <= seconds <= BACKOFF_SECONDS_MAX
        assert backoff_seconds(count + 1, jitter) >= seconds
        assert backoff_seconds(count, 0) * 2 == pytest.approx(backoff_seconds(count, 1))

    def test_what_a_destination_asks_for_is_waited(self) -> None:
        """`Retry-After` counts when it is longer than our own pause."""
        assert backoff_seconds(1, 1.0, retry_after_s=17.0) == 17.0
        assert backoff_seconds(20, 1.0, retry_after_s=1.0) == BACKOFF_SECONDS_MAX

    @pytest.mark.parametrize(
        ("held", "copy", "start", "last", "check"),
        [
            (None, 0, 0, 0, CursorCheck.SAME),
            (None, 0, 0, 9, CursorCheck.SAME),
            (None, 5, 5, 9, CursorCheck.SAME),
            (7, 7, 5, 9, CursorCheck.SAME),
            (8, 7, 5, 9, CursorCheck.AHEAD),
            (8, 5, 5, 9, CursorCheck.AHEAD),
            (9, 0, 0, 9, CursorCheck.AHEAD),
            (6, 7, 5, 9, CursorCheck.BEHIND),
            (None, 7, 5, 9, CursorCheck.BEHIND),
            (10, 7, 5, 9, CursorCheck.UNKNOWN),
            (10, 9, 0, 9, CursorCheck.UNKNOWN),
        ],
    )
    def test_two_cursors(self, held: int | None, copy: int, start: int, last: int, check: CursorCheck) -> None:
        """The destination's is the truth, as far as this ledger can have made it."""
        assert compare_cursors(held, copy, start, last) is check


def test_without_room_nothing_is_handed_over(ledger: Ledger, queue: MemoryQueue) -> None:
    """A destination for which there is no room is down, keeps what waits, and goes on when there is room."""
    house = House(ledger, queue, MemoryDestination())
    is_full = True

    def look() -> None:
        if is_full:
            raise DestinationDown("make room")

    house.deliverer._look_for_room = look
    house.settle("a", "b")
    with house.running():
        house.await_signal()
        assert (house.status(), house.counts().pending) == (DeliveryStatus.DOWN, 2)
        is_full = False
        while not house.counts().delivered:
            house.await_signal()
    assert house.counts().delivered == 2


def test_one_that_comes_back_goes_on_with_what_is_kept(house: House) -> None:
    """Rows that went while a destination was not set are skipped; its next delivery reaches over them."""
    house.deliverer.open()
    house.settle("a")
    house.step()
    house.settle("b")
    house.settle("c")
    house.ledger.remove_groups(2)
    assert (house.counts().skipped, house.counts().pending) == (1, 1)
    for _ in range(2):
        # The second time it says what it holds, and the ledger knows it.
        house.deliverer.open()
        house.step()
    assert house.destination.ids() == ["a", "c"]
    assert [(each.first_group, each.last_group) for each in house.destination.deliveries] == [(1, 1), (2, 3)]
    counts = house.counts()
    assert (counts.routed, counts.delivered, counts.skipped, counts.pending) == (3, 2, 1, 0)
    assert audit(house.ledger, house.queue, {"shelf": house.destination.held}).is_balanced


def test_what_was_held_unknown_to_the_ledger_and_went_stays_skipped(house: House) -> None:
    """A commit before the cursor's copy, then not set until its rows went: it goes on, and the books balance."""

    def die(_: Delivery) -> None:
        raise ConnectionResetError

    house.deliverer.open()
    house.settle("a")
    house.destination.after = die
    with pytest.raises(ConnectionResetError):
        house.step()
    house.destination.after = lambda _: None
    house.ledger.remove_groups(1)
    house.settle("b")
    house.deliverer.open()
    house.step()
    counts = house.counts()
    assert house.destination.ids() == ["a", "b"]
    assert (counts.routed, counts.delivered, counts.skipped, counts.pending) == (2, 1, 1, 0)
    assert audit(house.ledger, house.queue, {"shelf": house.destination.held}).is_balanced
