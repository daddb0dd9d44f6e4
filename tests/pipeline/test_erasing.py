"""A person's rows are erased: queue, ledger and destinations forget them, the books stand, and all others stay."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

import pytest

from counterfoil import failpoints
from counterfoil.contract.facts import RowFlag
from counterfoil.contract.subject import Subject
from counterfoil.destinations.settings import DeliverySettings
from counterfoil.errors import DestinationDown, DestinationRefused
from counterfoil.files import RealFiles
from counterfoil.ledger import ROWS_A_GROUP_MAX, DestinationCounts, Erasure, ErasureState, Ledger, LedgerReader
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.ledger.store import Store
from counterfoil.pipeline.audit import DifferenceKind, audit
from counterfoil.pipeline.dead import DeadFilter, find_dead, plan_retry
from counterfoil.pipeline.deliver import Deliverer
from counterfoil.pipeline.erasing import AGAIN_SECONDS, BAD_BLOCK_SECONDS, Eraser, Interrupted
from counterfoil.pipeline.orders import Done, Erase, GiveUpErasures, Refused, carry_out
from counterfoil.pipeline.rebuild import Places, put_in_place, rebuild
from counterfoil.pipeline.replay import Replay, ReplayFilter
from counterfoil.pipeline.retention import Retention
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.pipeline.trace import DeliveryState, trace
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.segment import SEGMENT_HEADER_BYTES
from tests.destinations.lake import LEDGER
from tests.destinations.memory import MemoryDestination
from tests.pipeline.frames import Row, made_draft
from tests.queue.lives import Life

SMALL = LedgerSettings(cache_bytes=8 * 1024 * 1024, write_buffer_bytes=4 * 1024 * 1024)
ORDER = UUID(int=5)
PERSON = "person-that-goes"
ALICE = Subject(distinct_id=PERSON)


class Hook(MemoryDestination):
    """A destination that can't be asked, and that notes who it was told of."""

    keeps_cursor = False

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.told: list[Subject] = []
        self.refusal: Exception | None = None

    def seqs_of(self, subject: Subject) -> None:
        return None

    def erase(self, subject: Subject) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.told.append(subject)


class Crash(BaseException):
    """The process ends here."""


def crash_now() -> None:
    raise Crash


class House:
    """A queue on disk, a ledger, a table and a receiver; everything but the process outlives a crash."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lake, self.hook = MemoryDestination("lake"), Hook("hook")
        self.now_ms = 1_000
        self.seconds = 0.0
        self.life = Life(root, RealFiles())
        self.start()

    def start(self) -> None:
        """A life of the pipeline begins."""
        self.ledger = Ledger.open(self.root / "ledger", SMALL, LEDGER)
        self.queue = QueueReader(self.root / "queue", RealFiles(), self.root / "quarantine")
        for each in (self.lake, self.hook):
            self.ledger.register_destination(each.name)
        self.settler = Settler(self.queue, self.ledger, PipelineSettings(group_rows=2), self.clock_ms)
        self.deliverers = {each.name: self.deliverer(each) for each in (self.lake, self.hook)}
        self.gate = threading.Lock()
        self.waits = 0
        self.eraser = Eraser(
            self.ledger, self.queue, self.gate, settle=self.settle_while_waited_for, monotonic=lambda: self.seconds
        )

    def deliverer(self, destination: MemoryDestination) -> Deliverer:
        settings = DeliverySettings(name=destination.name, batch_seconds=0)
        return Deliverer(destination, self.ledger, self.queue, settings, clock_ms=self.clock_ms)

    def clock_ms(self) -> int:
        self.now_ms += 1
        return self.now_ms

    def crash(self) -> None:
        """The pipeline's process ends and begins again; the writer goes on."""
        self.ledger.close()
        self.start()

    def receive(self, *rows: Row | str, source: str = "web") -> None:
        """Let rows be flushed, in one frame."""
        made = [Row(row) if isinstance(row, str) else row for row in rows]
        self.life.tail.write([made_draft(source, made, received_at_ms=self.clock_ms())])

    def settle(self) -> None:
        while self.settler.step():
            pass

    def settle_while_waited_for(self) -> int:
        self.waits += 1
        assert self.waits < 20, "it waits for what nobody does"
        return self.settler.step()

    def deliver(self, *names: str) -> None:
        """Hand over all there is, and carry out what is to be erased there."""
        for name in names or ("lake", "hook"):
            deliverer = self.deliverers[name]
            deliverer.open()
            for _ in range(30):
                deliverer.wake()
                deliverer.step()

    def order(self, subject: Subject = ALICE, order_id: UUID = ORDER) -> None:
        answer = carry_out(self.ledger, Erase(order_id, subject), self.clock_ms(), ["lake", "hook"])
        assert isinstance(answer, Done)

    def roll_and_erase(self) -> None:
        """What the thread of the eraser does, after what was put off is over; the writer rolls as it is asked to."""
        self.seconds += AGAIN_SECONDS
        if self.queue.live_segments():
            self.life.roll()
        while self.eraser.step():
            pass

    def receive_and_deliver(self, *rows: Row | str, source: str = "web") -> None:
        """Let rows be delivered everywhere."""
        self.receive(*rows, source=source)
        self.settle()
        self.deliver()

    def deliver_and_close(self, *rows: Row | str, source: str = "web") -> None:
        """Let rows be delivered everywhere, and their segment be closed."""
        self.receive_and_deliver(*rows, source=source)
        self.life.roll()

    def erase_and_deliver(self) -> None:
        self.roll_and_erase()
        self.deliver()

    def erasure(self) -> Erasure:
        return self.ledger.erasures()[-1]

    def counts(self, name: str) -> DestinationCounts:
        return next(each for each in self.ledger.books().destinations if each.destination == name)

    def shown(self, name: str) -> tuple[int, int, int, int, int]:
        """Routed, delivered, dead, erased and pending rows."""
        counts = self.counts(name)
        return counts.routed, counts.delivered, counts.dead, counts.erased, counts.pending

    def assert_balanced(self) -> None:
        found = audit(self.ledger, self.queue, {"lake": self.lake.held})
        assert found.is_balanced, (found.differences, found.destinations, found.sources)

    def files_with(self, text: str) -> list[str]:
        """The files of the data directory in which a text stands."""
        paths = [path for path in self.root.rglob("*") if path.is_file()]
        return [str(path.relative_to(self.root)) for path in paths if text.encode() in path.read_bytes()]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    one = House(tmp_path)
    yield one
    one.life.end()
    one.ledger.close()


def fill(house: House) -> None:
    """The person's rows everywhere: delivered, dead, dead for good, sent again, refused, not meant and pending."""
    house.lake.refuses = {PERSON: "nul", "other": "nul"}
    house.receive(PERSON, "other", "b")
    house.settle()
    house.deliver("lake")
    house.lake.refuses = {}
    house.receive(Row(PERSON), Row(PERSON, 1), "c", Row("t", flags=RowFlag.TEST))
    house.receive(PERSON, "d", source="app")
    house.receive(Row(PERSON, destinations=("hook",)), "e", source="shop")
    house.life.roll()
    house.settle()
    house.deliver("lake")
    house.receive(Row(PERSON, flags=RowFlag.BLOCKED), Row("f"), source="late")
    house.receive(PERSON, "g", source="later")
    house.settle()


def assert_gone(house: House) -> None:
    """Nothing is left of the person, everybody else is everywhere once, and the books stand."""
    house.deliver()
    house.assert_balanced()
    erasure = house.erasure()
    assert erasure.is_done
    assert erasure.subject is None
    assert sorted(house.lake.ids()) == ["b", "c", "d", "e", "f", "g"]
    assert sorted(house.hook.ids()) == ["b", "c", "d", "e", "f", "g", "other"]
    assert house.hook.told[0] == ALICE
    assert house.files_with(PERSON) == []
    assert house.shown("lake") == (10, 6, 1, 3, 0)
    assert house.shown("hook") == (11, 7, 0, 4, 0)
    assert sum(each.erased for each in house.ledger.books().sources) == 7
    names = ["web", "app", "shop", "late", "later"]
    assert trace(house.ledger, house.queue, names, PERSON).rows == ()
    assert [each.letter.first_seq for each in find_dead(house.ledger, house.queue, DeadFilter())] == [65_537]
    replay = Replay(house.ledger, house.queue, house.counts("lake"), house.lake.held, ReplayFilter())
    assert list(replay.orders()) == []
    assert replay.unreadable == 0


def test_a_person_goes_from_everywhere(house: House) -> None:
    """Delivered, dead and pending rows count as erased; no file holds the id; all other rows are as they were."""
    fill(house)
    house.order()
    house.roll_and_erase()
    erasure = house.erasure()
    assert (erasure.row_count, erasure.dead_count, erasure.blanked_rows) == (7, 1, 7)
    assert erasure.destinations["lake"].state is ErasureState.WAITING
    assert_gone(house)


def test_a_row_sent_again_after_that_is_new(house: House) -> None:
    """What is erased is forgotten: the same row counts and is delivered like any other."""
    fill(house)
    house.order()
    house.erase_and_deliver()
    house.receive_and_deliver(PERSON)
    assert house.lake.ids().count(PERSON) == 1
    (row,) = trace(house.ledger, house.queue, ["web"], PERSON).rows
    assert [each.state for each in row.deliveries] == [DeliveryState.DELIVERED] * 2
    house.assert_balanced()


POINTS = [
    "erase.before_cut",
    "erase.after_cut",
    "erase.after_marks",
    "erase.between_segments",
    "erase.between_segments=2",
    "erase.before_destination",
    "erase.after_destination",
]


@pytest.mark.parametrize("point", POINTS)
def test_cut_off_anywhere_it_goes_on(house: House, point: str) -> None:
    """The process ends at any point: the next life finds the order, and comes to the same end."""
    fill(house)
    house.order()
    failpoints.arm(point, crash_now)
    try:
        with pytest.raises(Crash):
            house.erase_and_deliver()
    finally:
        failpoints.arm("")
    house.crash()
    house.assert_balanced()
    house.roll_and_erase()
    assert_gone(house)


def test_a_delivery_that_is_under_way(house: House) -> None:
    """Rows that a destination takes while they are marked count as erased, and are removed before its next delivery."""
    house.receive(PERSON, "a")
    house.receive("b")
    house.settle()

    def erase_meanwhile(_: object) -> None:
        house.lake.after = lambda _: None
        house.order()
        house.roll_and_erase()

    house.lake.after = erase_meanwhile
    house.deliver()
    assert house.lake.ids() == ["a", "b"]
    assert house.shown("lake") == (3, 2, 0, 1, 0)
    house.assert_balanced()
    assert house.erasure().is_done


def test_what_it_took_before_a_crash_and_nobody_noted(house: House) -> None:
    """The table holds a delivery that the ledger never heard of, the person in it: it catches up, then erases."""
    house.receive(PERSON, "a")
    house.settle()
    failpoints.arm("deliver.before_cursor", crash_now)
    try:
        with pytest.raises(Crash):
            house.deliver("lake")
    finally:
        failpoints.arm("")
    house.crash()
    house.order()
    house.roll_and_erase()
    assert house.lake.ids() == [PERSON, "a"]
    house.deliver()
    assert house.lake.ids() == ["a"]
    assert house.shown("lake") == (2, 1, 0, 1, 0)
    house.assert_balanced()


def test_later_rows_wait_until_it_is_done_there(house: House) -> None:
    """What a table removes are all rows of the person's: those that come later are handed to it after that."""
    house.receive_and_deliver(PERSON, "a")
    house.order()
    house.life.roll()
    assert house.eraser.step()
    house.receive(PERSON, "b")
    house.settle()
    assert house.shown("lake") == (4, 1, 0, 1, 2)
    house.deliver()
    assert house.lake.ids() == ["a", PERSON, "b"]
    house.assert_balanced()


def test_a_destination_that_is_down_does_it_when_it_is_back(house: House) -> None:
    """The order stays and says why; queue and ledger are done without it."""
    fill(house)
    house.order()
    house.roll_and_erase()

    def is_down() -> None:
        raise DestinationDown("lake: nobody listens there")

    with patch.object(house.lake, "open", is_down):
        house.deliverers["lake"].erase_once()
    there = house.erasure().destinations["lake"]
    assert (there.state, there.reason) == (ErasureState.WAITING, "lake: nobody listens there")
    house.crash()
    assert_gone(house)


def test_a_receiver_that_refuses_the_message_goes_on(house: House) -> None:
    """It gets later rows all the same, and is told again later; until then the order is open."""
    house.receive_and_deliver(PERSON, "a")
    house.hook.refusal = DestinationRefused("hook: it answered 400")
    house.order()
    house.roll_and_erase()
    house.receive_and_deliver("b")
    assert house.hook.ids() == [PERSON, "a", "b"]
    there = house.erasure().destinations["hook"]
    assert (there.state, there.reason) == (ErasureState.REFUSED, "hook: it answered 400")
    assert house.erasure().subject == ALICE
    house.hook.refusal = None
    house.crash()
    house.deliver()
    assert house.erasure().is_done
    assert house.hook.told == [ALICE]


def test_dead_letters_of_groups_that_are_gone(house: House) -> None:
    """Their copies go, too, and rows that wait to be sent again from them are handed to nobody."""
    house.lake.refuses = {PERSON: "nul", "a": "nul"}
    house.receive(Row(PERSON, user_id="u7"), "a")
    house.deliver_and_close(Row("another-id", user_id="u7"), source="app")
    house.receive("b")
    house.settle()
    Retention(house.ledger, house.queue, ["lake", "hook"], 0).step()
    assert house.ledger.carried().last_group == 2
    for retry in plan_retry(find_dead(house.ledger, house.queue, DeadFilter())):
        carry_out(house.ledger, retry, house.clock_ms())
    house.lake.refuses = {}
    house.order(Subject(user_id="u7"))
    house.roll_and_erase()
    house.deliver()
    assert sorted(house.lake.ids()) == ["a", "b"]
    assert house.files_with(PERSON) == []
    assert house.erasure().is_done
    assert house.shown("lake") == (4, 2, 0, 2, 0)
    house.assert_balanced()


def test_a_rebuilt_ledger_knows_what_was_erased(house: House) -> None:
    """The frames say which rows were erased and what they were: the new books count them, and send none of them."""
    fill(house)
    house.order()
    house.erase_and_deliver()
    before = house.ledger.books()
    house.ledger.close()
    places = Places(house.root / "ledger", house.root / "quarantine")
    rebuild(
        places, LEDGER, house.queue, (house.lake, house.hook), SMALL, PipelineSettings(group_rows=2), RealFiles(),
        assume_delivered=True, clock_ms=house.clock_ms,
    )  # fmt: skip
    put_in_place(places, LEDGER, RealFiles(), house.now_ms)
    house.start()
    house.deliver()
    assert house.ledger.books().sources == before.sources
    assert sorted(house.lake.ids()) == ["b", "c", "d", "e", "f", "g", "other"]
    assert house.shown("lake") == (10, 7, 0, 3, 0)
    house.assert_balanced()


def remove_all(house: House) -> None:
    """Retention goes on until nothing more goes."""
    retention = Retention(house.ledger, house.queue, ["lake", "hook"], 0)
    while retention.step():
        pass


def damage_the_person(house: House) -> None:
    """The first frame in which the person stands can't be read any more; another life begins."""
    path = min(path for path in (house.root / "queue").rglob("*.seg") if PERSON.encode() in path.read_bytes())
    data = bytearray(path.read_bytes())
    data[data.find(PERSON.encode())] ^= 1
    path.write_bytes(data)
    house.crash()


def test_delivered_rows_of_groups_that_are_gone(house: House) -> None:
    """A row whose group is gone is erased where a destination says that it holds it: once, and nobody else's."""
    house.deliver_and_close(PERSON, "a", Row("z", destinations=("hook",)))
    house.receive("b")
    house.settle()
    remove_all(house)
    assert house.ledger.carried().last_group == 1
    house.order()
    house.erase_and_deliver()
    assert house.lake.ids() == ["a", "b"]
    assert (house.shown("lake"), house.shown("hook")) == ((3, 2, 0, 1, 0), (4, 4, 0, 0, 0))
    house.assert_balanced()


def test_a_row_that_is_found_twice_is_erased_once(house: House) -> None:
    """A dead letter of a gone group is found by its key and by its copy, and counts once."""
    house.lake.refuses = {PERSON: "nul", "a": "nul"}
    house.receive(PERSON, "a")
    house.deliver_and_close("c")
    house.receive("b")
    house.settle()
    remove_all(house)
    house.order()
    house.erase_and_deliver()
    assert (house.erasure().key_count, house.erasure().dead_count) == (1, 1)
    assert house.shown("lake") == (4, 2, 1, 1, 0)
    house.assert_balanced()


def test_retention_goes_on_before_a_destination_is_back(house: House) -> None:
    """What was marked stays known until each destination has done its part, also when its group is gone by then."""
    house.deliver_and_close(PERSON, "a")
    house.receive("b")
    house.settle()
    house.order()
    house.roll_and_erase()
    remove_all(house)
    assert house.ledger.carried().last_group == 1
    house.crash()
    house.deliver()
    assert house.shown("lake") == (3, 2, 0, 1, 0)
    house.assert_balanced()
    assert house.ledger.erased_places(1) == ()


def test_a_destination_that_fails_after_it_said_what_it_holds(house: House) -> None:
    """What it holds of groups that are gone is booked once, however often it has to be asked."""
    house.deliver_and_close(PERSON, "a", "c", "d")
    house.receive("b")
    house.settle()
    remove_all(house)
    house.order()
    house.roll_and_erase()

    def is_busy(_: Subject) -> None:
        raise DestinationDown("lake: busy")

    with patch.object(house.lake, "erase", is_busy):
        for _ in range(3):
            house.deliverers["lake"].erase_once()
            house.crash()
    assert house.erasure().destinations["lake"].row_count == 1
    house.deliver()
    assert house.shown("lake") == (5, 4, 0, 1, 0)
    house.assert_balanced()


def test_a_row_whose_frame_is_damaged(house: House) -> None:
    """The search can't read it; the table says that it holds it, and both sides of the books count it as erased."""
    house.deliver_and_close(PERSON, "a")
    house.receive_and_deliver("b")
    damage_the_person(house)
    house.order()
    house.erase_and_deliver()
    assert house.lake.ids() == ["a", "b"]
    assert house.erasure().damaged_frames == 1
    assert house.shown("lake") == (3, 2, 0, 1, 0)
    found = audit(house.ledger, house.queue, {"lake": house.lake.held})
    assert all(source.is_balanced for source in found.sources)
    assert all(destination.is_balanced for destination in found.destinations)
    house.receive_and_deliver(PERSON)
    assert (house.lake.ids().count(PERSON), house.hook.ids().count(PERSON)) == (1, 2)


def test_a_copy_of_a_row_whose_frame_is_damaged(house: House) -> None:
    """What the ledger keeps of a dead row is searched even where its group is kept."""
    house.lake.refuses = {PERSON: "nul"}
    house.deliver_and_close(PERSON, "a")
    damage_the_person(house)
    house.order()
    house.erase_and_deliver()
    assert list(house.ledger.dead_letters("lake")) == []
    assert house.files_with(PERSON) == []
    assert (house.shown("lake"), house.shown("hook")) == ((2, 1, 0, 1, 0), (2, 1, 0, 1, 0))
    house.receive_and_deliver(PERSON)
    assert house.hook.ids().count(PERSON) == 2


def test_cut_off_where_a_row_is_sent_twice(house: House) -> None:
    """A row that was sent once more from a group that is gone is found by each life, and counts once."""
    house.deliver_and_close(PERSON, "a")
    house.receive_and_deliver("b")
    for again in Replay(house.ledger, house.queue, house.counts("hook"), None, ReplayFilter()).orders():
        carry_out(house.ledger, again, house.clock_ms())
    house.deliver()
    house.ledger.remove_groups(1)
    house.order()
    failpoints.arm("erase.after_cut", crash_now)
    try:
        with pytest.raises(Crash):
            house.roll_and_erase()
    finally:
        failpoints.arm("")
    house.crash()
    house.roll_and_erase()
    house.deliver()
    assert house.shown("hook") == (6, 5, 0, 1, 0)
    house.assert_balanced()


def test_rows_that_never_stop_coming(house: House) -> None:
    """After some rounds what came in is erased and counted everywhere, and what comes in still is a row like others."""

    def settle() -> int:
        if house.queue.live_segments():
            house.life.roll()
        return house.settler.step()

    def receive() -> None:
        house.receive(PERSON, f"other-{house.now_ms}")
        house.settle()

    def receive_and_cut(erasure_id: UUID) -> Erasure:
        receive()
        return cut(erasure_id)

    house.receive_and_deliver(PERSON, "a")
    house.order()
    cut = house.ledger.cut_erasure
    house.eraser = Eraser(house.ledger, house.queue, house.gate, settle=settle)
    with (
        patch.object(house.ledger, "cut_erasure", receive_and_cut),
        patch("counterfoil.pipeline.erasing.reach", lambda point: receive() if point == "erase.after_cut" else None),
    ):
        house.roll_and_erase()
    house.deliver()
    erasure = house.erasure()
    assert erasure.is_done
    assert erasure.blanked_rows == erasure.row_count == sum(each.erased for each in house.ledger.books().sources)
    assert house.lake.ids().count(PERSON) == house.hook.ids().count(PERSON) - 1
    house.assert_balanced()


def test_a_destination_that_is_new_while_it_goes_on(house: House) -> None:
    """One that takes all that is kept before the rows are marked does its part as the others do."""
    house.receive_and_deliver(PERSON, "a")
    house.order()
    late = MemoryDestination("late")
    house.ledger.register_destination("late", from_oldest=True)
    house.deliverers["late"] = house.deliverer(late)
    house.deliver("late")
    assert late.ids() == [PERSON, "a"]
    house.roll_and_erase()
    house.deliver("lake", "hook")
    assert not house.erasure().is_done
    house.deliver("late")
    assert late.ids() == ["a"]
    assert house.erasure().is_done
    assert house.shown("late") == (2, 1, 0, 1, 0)


def test_a_destination_that_comes_back_while_it_goes_on(house: House) -> None:
    """One that was not in the configuration does its part, as long as another has not done its own."""
    house.receive_and_deliver(PERSON, "a")
    carry_out(house.ledger, Erase(ORDER, ALICE), house.clock_ms(), ["hook"])
    house.roll_and_erase()
    assert house.erasure().destinations["lake"].state is ErasureState.NOT_SET
    house.crash()
    house.deliver()
    assert house.erasure().is_done
    assert house.lake.ids() == ["a"]
    house.assert_balanced()


def test_an_order_that_is_given_twice(house: House) -> None:
    """The second does nothing: who gave the first may not know that it was heard."""
    house.receive(PERSON, "a")
    house.settle()
    house.order()
    house.erase_and_deliver()
    house.order()
    assert house.erasure().is_done


def test_cut_off_before_files_are_rewritten(house: House) -> None:
    """Copies and the person's id leave the files of the ledger also when a life ends right after it noted that."""
    house.lake.refuses = {PERSON: "nul"}
    house.receive_and_deliver(PERSON, "a")
    house.crash()
    house.order()

    def is_cut(*_: object) -> None:
        raise Crash

    with patch.object(Store, "let_go", is_cut), pytest.raises(Crash):
        house.roll_and_erase()
    house.crash()
    house.roll_and_erase()
    with patch.object(Store, "let_go", is_cut), pytest.raises(Crash):
        house.deliver()
    house.crash()
    house.ledger.let_subjects_go()
    assert house.erasure().is_done
    assert house.files_with(PERSON) == []


def test_a_disk_that_is_full_after_the_cut(house: House) -> None:
    """Deliveries go on meanwhile: they are what may make room."""

    def receive_and_cut(erasure_id: UUID) -> Erasure:
        house.receive(PERSON, "b")
        house.settle()
        full.start()
        return cut(erasure_id)

    house.receive(PERSON, "a")
    house.settle()
    house.order()
    house.life.roll()
    cut, full = house.ledger.cut_erasure, patch.object(house.queue, "roll", side_effect=OSError(28, "No space"))
    with patch.object(house.ledger, "cut_erasure", receive_and_cut), pytest.raises(OSError, match="No space"):
        house.eraser.step()
    house.receive_and_deliver("c")
    assert house.lake.ids() == ["a", "b", "c"]
    full.stop()
    house.roll_and_erase()
    house.deliver()
    assert house.erasure().is_done
    house.assert_balanced()


def test_a_block_that_never_can_be_read(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """All else of every erasure is done meanwhile, and after BAD_BLOCK_SECONDS the block counts as damage."""
    house.receive("b", *(Row(f"filling-{number}") for number in range(100)))
    house.receive(PERSON, "a")
    house.settle()
    house.deliver()
    house.life.roll()
    house.receive_and_deliver("other", "c")
    pread, segment = os.pread, house.root / "queue" / "1" / "0000000001.seg"

    def unreadable(descriptor: int, size: int, offset: int) -> bytes:
        # The block in which the first frame begins; the person's row lies in a later one.
        if offset < 4096 and size > SEGMENT_HEADER_BYTES and os.path.samestat(os.fstat(descriptor), segment.stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", unreadable)
    house.order()
    house.order(Subject(distinct_id="other"), UUID(int=6))
    began = house.seconds + AGAIN_SECONDS
    while house.seconds < began + BAD_BLOCK_SECONDS - AGAIN_SECONDS:
        for roll_and_erase in (house.roll_and_erase, house.eraser.step):
            with pytest.raises(OSError, match="error"):
                roll_and_erase()
        assert not house.eraser.step()
        assert not any(one.is_blanked for one in house.ledger.erasures())
    house.deliver()
    assert {PERSON, "other"}.isdisjoint(house.lake.ids())
    assert house.hook.told == [ALICE, Subject(distinct_id="other")]
    assert house.files_with('"distinctId":"other"') == []
    assert PERSON.encode() in segment.read_bytes()
    house.roll_and_erase()
    assert [(one.is_done, one.damaged_frames) for one in house.ledger.erasures()] == [(True, 1), (True, 1)]
    assert house.files_with(PERSON) == []
    found = audit(house.ledger, house.queue, {"lake": house.lake.held})
    assert [each.kind for each in found.differences] == [DifferenceKind.FRAME_UNREADABLE]


def test_a_destination_that_is_given_up(house: House) -> None:
    """Orders wait for it no more, keep no person's id, and it may go on or never come back; others do their part."""
    house.receive_and_deliver(PERSON, "a")
    house.order()
    house.roll_and_erase()
    house.deliver("hook")
    assert house.erasure().subject == ALICE
    assert carry_out(house.ledger, GiveUpErasures("lake"), house.clock_ms()) == Done(1)
    assert house.erasure().is_done
    assert house.erasure().destinations["lake"].state is ErasureState.GIVEN_UP
    assert house.files_with(PERSON) == []
    assert carry_out(house.ledger, GiveUpErasures("lake"), house.clock_ms()) == Done(0)
    assert isinstance(carry_out(house.ledger, GiveUpErasures("nobody"), house.clock_ms()), Refused)
    house.crash()
    house.receive_and_deliver("b")
    assert sorted(house.lake.ids()) == ["a", "b", PERSON]
    assert house.erasure().destinations["lake"].state is ErasureState.GIVEN_UP
    assert house.shown("lake") == (3, 2, 0, 1, 0)
    found = audit(house.ledger, house.queue, {"lake": house.lake.held})
    assert [each.kind for each in found.differences] == [DifferenceKind.ROW_SURPLUS]
    # It came back after all, and what the audit tells is mended by a second order.
    house.order(ALICE, UUID(int=6))
    house.erase_and_deliver()
    assert sorted(house.lake.ids()) == ["a", "b"]
    assert house.shown("lake") == (3, 2, 0, 1, 0)
    house.assert_balanced()


def test_a_destination_that_is_given_up_while_it_is_asked(house: House) -> None:
    """What it has done is done, and that it was refused or down does not open the order again."""
    house.receive_and_deliver(PERSON, "a")
    house.order()
    house.roll_and_erase()
    give_up = GiveUpErasures("hook")

    def refused(_: Subject) -> None:
        carry_out(house.ledger, give_up, house.clock_ms())
        raise DestinationRefused("hook: it answered 400")

    with patch.object(house.hook, "erase", refused):
        house.deliver("hook")
    assert house.erasure().destinations["hook"].state is ErasureState.GIVEN_UP
    house.deliver("lake")
    assert house.erasure().is_done


def test_a_writer_that_does_not_close_its_segment(house: House) -> None:
    """Where it is waited for no longer, the order stays, and nobody's deliveries wait for it."""
    house.receive(PERSON, "a")
    house.settle()
    house.order()
    eraser = Eraser(house.ledger, house.queue, house.gate, settle=house.settler.step, patience_seconds=0.0)
    with pytest.raises(Interrupted):
        eraser.step()
    house.deliver()
    assert sorted(house.lake.ids()) == ["a", PERSON]
    assert not house.erasure().is_marked
    house.roll_and_erase()
    house.deliver()
    assert house.lake.ids() == ["a"]
    assert house.erasure().is_done
    house.assert_balanced()


def test_an_audit_of_a_moment_before_it(house: House) -> None:
    """What was erased after the moment that is audited is missed by nobody; a row that is just gone is."""
    house.receive_and_deliver(PERSON, "a")
    reader = LedgerReader.open(house.root / "ledger", SMALL, LEDGER)
    try:
        house.order()
        house.roll_and_erase()
        house.deliver()
        assert not audit(reader, house.queue, {"lake": house.lake.held}).is_balanced

        def erased_now(seqs: list[int]) -> set[int]:
            return {
                seq for seq in seqs if seq % ROWS_A_GROUP_MAX in house.ledger.erased_places(seq // ROWS_A_GROUP_MAX)
            }

        assert audit(reader, house.queue, {"lake": house.lake.held}, erased_now=erased_now).is_balanced
        house.lake.shelf.rows.clear()
        found = audit(reader, house.queue, {"lake": house.lake.held}, erased_now=erased_now)
        assert (found.is_balanced, found.difference_count) == (False, 1)
    finally:
        reader.close()
