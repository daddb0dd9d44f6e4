"""A ledger that was lost and made anew: nothing is delivered twice, nothing is left out, and the books balance."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from counterfoil.destinations.interface import Delivery
from counterfoil.errors import DestinationDown, LedgerDamaged
from counterfoil.files import RealFiles
from counterfoil.ledger import Cause, Ledger, ResentRow, SourceCounts, seq_of
from counterfoil.pipeline.rebuild import EPOCH_GROUPS, is_half_in_place, put_in_place, rebuild
from counterfoil.pipeline.replay import Replay, ReplayFilter
from tests.destinations.lake import LEDGER
from tests.destinations.memory import MemoryDestination
from tests.pipeline.frames import MemoryQueue, Row
from tests.pipeline.house import ONE, PIPELINE, SETTINGS, TWO, House


class AskedNothing(MemoryDestination):
    """One that can't be asked what it holds, as a webhook."""

    keeps_cursor = False


def test_every_row_is_everywhere_once(tmp_path: Path) -> None:
    """What one destination holds and another lacks is sent to that one alone, whatever came since."""
    house = House(tmp_path)
    house.receive("r1", "r2")
    house.receive("r3", writer=TWO)
    house.run()
    house.receive("r4", "r5")
    house.run(delivering=["a"])
    house.receive("r6")
    house.lose_ledger()
    rebuilt = house.rebuild()
    assert [(each.held, each.delivered) for each in rebuilt.destinations] == [(5, 5), (3, 3)]
    house.receive("r1", Row("r2", content=7), "r7")
    house.run()
    assert house.ids() == [["r1", "r2", "r3", "r4", "r5", "r6", "r7"]] * 2
    assert house.source() == SourceCounts("web", accepted=9, new=7, duplicate=1, conflict=1)


def test_no_number_names_other_rows(tmp_path: Path) -> None:
    """The groups of a rebuilt ledger lie after every number that a destination may know, at the second time too."""
    house = House(tmp_path)
    house.receive("r1")
    house.run()
    for epoch in (1, 2):
        house.lose_ledger()
        rebuilt = house.rebuild()
        assert rebuilt.first_group == epoch * EPOCH_GROUPS + 1
        house.receive(f"later-{epoch}")
        house.run()
    seqs = [row.seq for row in house.destinations[0].shelf.rows]
    assert len(set(seqs)) == 3
    assert house.ids() == [["later-1", "later-2", "r1"]] * 2


def test_keys_whose_rows_are_gone_are_known(tmp_path: Path) -> None:
    """A row that only a destination still holds is not delivered again when it is sent again, whatever it says."""
    house = House(tmp_path)
    house.receive("r1")
    house.run()
    house.queue = MemoryQueue()
    house.receive("r2")
    house.lose_ledger()
    assert house.rebuild().keys_without_frames == 1
    house.receive("r1", Row("r1", content=3))
    house.run()
    assert house.ids() == [["r1", "r2"]] * 2
    assert house.source() == SourceCounts("web", accepted=3, new=1, duplicate=2)


def test_the_first_row_that_was_received_is_the_first_again(tmp_path: Path) -> None:
    """Rows are settled in the order of receipt over all writers, so another content stays the conflict."""
    house = House(tmp_path)
    house.receive("r1", writer=TWO)
    house.receive(Row("r1", content=9), writer=ONE)
    house.run()
    house.lose_ledger()
    house.rebuild()
    house.receive("r1")
    house.run()
    assert house.source() == SourceCounts("web", accepted=3, new=1, duplicate=1, conflict=1)


@pytest.mark.parametrize("assume_delivered", [True, False])
def test_what_cannot_be_asked_is_believed_or_sent_again(tmp_path: Path, assume_delivered: bool) -> None:
    """Of a destination that can't be asked all rows of the queue count as delivered, or all are sent."""
    house = House(tmp_path, MemoryDestination("a"), AskedNothing("b"))
    house.receive("r1", "r2")
    house.run()
    house.receive("r3")
    house.lose_ledger()
    house.rebuild(assume_delivered=assume_delivered)
    house.run()
    again = [] if assume_delivered else ["r1", "r2", "r3"]
    assert house.ids() == [["r1", "r2", "r3"], sorted(["r1", "r2", *again])]
    house.source()


def test_damaged_frames_are_passed_over_and_counted(tmp_path: Path) -> None:
    """What can't be read of the queue is damage in the new ledger as well; the rest is settled."""
    house = House(tmp_path)
    house.receive("r1")
    house.receive("r2")
    house.queue.damaged.add(house.queue.frames[ONE][0].position)
    assert house.rebuild().damaged_frames == 1
    house.run()
    assert house.ids() == [["r2"]] * 2
    house.source()


def test_interrupted_anywhere_it_is_begun_again(tmp_path: Path) -> None:
    """Before the old ledger is gone a rebuild changes nothing that a second one minds; after it the rest is quick."""
    house = House(tmp_path)
    house.receive("r1", "r2")
    house.run(delivering=["a"])

    class Died(Exception):
        pass

    def die(_: Delivery) -> None:
        raise Died

    house.destinations[1].shelf.rows.append(house.destinations[0].shelf.rows[0])
    house.destinations[1].after = die
    with pytest.raises(Died):
        house.rebuild()
    house.destinations[1].after = lambda _: None
    arguments = (house.places, LEDGER, house.queue, house.destinations, SETTINGS, PIPELINE, RealFiles())
    rebuild(*arguments, assume_delivered=False, clock_ms=house.clock_ms)

    class DyingFiles(RealFiles):
        def rename(self, source: Path, target: Path) -> None:
            if target == house.places.ledger:
                raise Died
            super().rename(source, target)

    with pytest.raises(Died):
        put_in_place(house.places, LEDGER, DyingFiles(), 1)
    with pytest.raises(LedgerDamaged):
        house.run()
    assert is_half_in_place(house.places)
    put_in_place(house.places, LEDGER, RealFiles(), 2)
    assert not is_half_in_place(house.places)
    assert (house.places.quarantine / "ledger-1" / "CURRENT").exists()
    house.run()
    assert house.ids() == [["r1", "r2"]] * 2
    house.source()


def test_a_destination_that_is_down_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """What a destination holds must be known: until it answers the old ledger stays."""
    house = House(tmp_path)
    house.receive("r1")
    house.run()

    class Down(MemoryDestination):
        def open(self) -> None:
            raise DestinationDown("not reached")

    house.destinations = (house.destinations[0], Down("b"))
    with pytest.raises(DestinationDown):
        house.rebuild()
    assert (house.places.ledger / "CURRENT").exists()


@pytest.mark.parametrize("seed", range(5))
def test_any_loss_at_any_time(tmp_path: Path, seed: int) -> None:
    """Whatever was delivered where when the ledger was lost, and whatever a table lost of it: each row once at each."""
    chance = random.Random(seed)
    house = House(tmp_path)
    meant: dict[str, tuple[str, ...]] = {}
    for _ in range(4):
        for _ in range(chance.randrange(1, 5)):
            rows = []
            for _ in range(chance.randrange(1, 6)):
                name = str(chance.randrange(40))
                sets = meant.setdefault(name, chance.choice([("a",), ("b",), ("a", "b")]))
                rows.append(Row(name, destinations=sets))
            house.receive(*rows, writer=chance.choice([ONE, TWO]))
        house.run(delivering=chance.sample(["a", "b"], chance.randrange(3)))
        if chance.random() < 0.7:
            lost = chance.choice(house.destinations)
            lost.shelf.rows = [row for row in lost.shelf.rows if chance.random() < 0.8]
            house.lose_ledger()
            house.rebuild()
    house.lose_ledger()
    house.rebuild()
    house.run()
    for destination in house.destinations:
        expected = {name for name, names in meant.items() if destination.name in names}
        assert Counter(destination.ids()) == Counter(expected)
    house.source()


def test_what_was_found_there_is_not_sent_again_by_number(tmp_path: Path) -> None:
    """A replay goes by numbers; what a destination held at the rebuild lies there under others, and is left alone."""
    house = House(tmp_path)
    house.receive("r1")
    house.run()
    house.lose_ledger()
    house.rebuild()
    house.receive("r2")
    house.run()
    ledger = Ledger.open(house.places.ledger, SETTINGS, LEDGER)
    try:
        rows = [
            ResentRow(seq_of(group.number, 0), seq_of(group.number, 0), group.position_of(0), "web")
            for group in ledger.groups(0, 10)
        ]
        counts = next(each for each in ledger.books().destinations if each.destination == "a")
        replay = Replay(ledger, house.queue, counts, house.destinations[0].held, ReplayFilter())
        assert list(replay.orders()) == []
        assert replay.compared == 1
        sent = ledger.send_again("a", Cause.REPLAY, rows, at_ms=1)
    finally:
        ledger.close()
    assert sent is not None
    assert [row.first_seq for row in sent.rows] == [rows[1].first_seq]
