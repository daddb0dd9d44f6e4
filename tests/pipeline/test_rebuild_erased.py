"""A ledger that is made anew from a queue in which rows were erased: it counts them, and hands them to nobody."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from counterfoil.contract.facts import RowFlag, Verdict
from counterfoil.contract.subject import Subject
from counterfoil.ledger import Group, LedgerReader, SourceCounts
from counterfoil.positions import FramePosition
from tests.destinations.lake import LEDGER
from tests.destinations.memory import MemoryDestination
from tests.pipeline.frames import Row
from tests.pipeline.house import SETTINGS, TWO, House
from tests.pipeline.test_rebuild import AskedNothing


def verdicts_of(house: House) -> dict[tuple[FramePosition, int], Verdict]:
    """What the ledger says of each row that was settled."""
    ledger = LedgerReader.open(house.places.ledger, SETTINGS, LEDGER)
    try:
        return {
            (frame.position, index): Verdict(group.verdicts[first + index])
            for group in ledger.groups(0, 10_000)
            if isinstance(group, Group)
            for frame, first in group.parts()
            for index in range(frame.row_count)
        }
    finally:
        ledger.close()


def erase(house: House, distinct_id: str) -> int:
    """A person's rows go from the queue and from what destinations hold."""
    known = verdicts_of(house)
    for destination in house.destinations:
        destination.shelf.rows = [row for row in destination.shelf.rows if row.distinct_id != distinct_id]
    return house.queue.erase(Subject(distinct_id=distinct_id), lambda position, index: known.get((position, index)))


def erased_at(house: House) -> list[int]:
    """How many rows count as erased at each destination."""
    ledger = LedgerReader.open(house.places.ledger, SETTINGS, LEDGER)
    try:
        return [counts.erased for counts in ledger.books().destinations]
    finally:
        ledger.close()


def test_an_erased_row_is_counted_and_not_sent(tmp_path: Path) -> None:
    """As what it was, for whom it was meant, whether it had been delivered or not; sent again it is new."""
    house = House(tmp_path)
    house.receive("r1", "p", Row("p", content=3), Row("only-b", destinations=("b",)))
    house.receive("p", Row("p", flags=RowFlag.BLOCKED), writer=TWO)
    house.run()
    house.receive("r2", Row("q"))
    house.run(delivering=["a"])
    assert (erase(house, "p"), erase(house, "q"), erase(house, "only-b")) == (4, 1, 1)
    house.lose_ledger()
    house.rebuild()
    house.run()
    assert house.ids() == [["r1", "r2"]] * 2
    assert house.source() == SourceCounts("web", accepted=8, new=5, duplicate=1, conflict=1, blocked=1, erased=6)
    assert erased_at(house) == [2, 3]
    house.receive("p", "r1")
    house.run()
    assert house.ids() == [["p", "r1", "r2"]] * 2
    assert house.source() == SourceCounts("web", accepted=10, new=6, duplicate=2, conflict=1, blocked=1, erased=6)


@pytest.mark.parametrize("assume_delivered", [True, False])
def test_one_that_can_not_be_asked_is_not_sent_them(tmp_path: Path, assume_delivered: bool) -> None:
    """Believed to hold everything, or sent everything: what was erased counts as erased there and nothing else."""
    house = House(tmp_path, MemoryDestination("a"), AskedNothing("b"))
    house.receive("r1", "p", "r2")
    house.run()
    erase(house, "p")
    house.lose_ledger()
    house.rebuild(assume_delivered=assume_delivered)
    house.run()
    again = [] if assume_delivered else ["r1", "r2"]
    assert house.ids() == [["r1", "r2"], sorted(["r1", "r2", *again])]
    assert house.source() == SourceCounts("web", accepted=3, new=3, erased=1)
    assert erased_at(house) == [1, 1]


def test_rows_of_groups_that_are_gone(tmp_path: Path) -> None:
    """Where nobody knew the verdict any more a row counts as new, or as what its own flags say."""
    house = House(tmp_path)
    house.receive("p", Row("p", flags=RowFlag.TEST), Row("p", flags=RowFlag.BLOCKED), "r1")
    assert house.queue.erase(Subject(distinct_id="p"), lambda position, index: None) == 3
    house.rebuild()
    house.run()
    assert house.ids() == [["r1"]] * 2
    assert house.source() == SourceCounts("web", accepted=4, new=2, test=1, blocked=1, erased=3)


@pytest.mark.parametrize("seed", range(5))
def test_books_balance_whatever_was_erased(tmp_path: Path, seed: int) -> None:
    """Rows of few persons, some delivered here and there, erased at any time, rebuilt: every book balances."""
    chance = random.Random(seed)
    house = House(tmp_path)
    for _ in range(8):
        house.receive(
            *(
                Row(
                    chance.choice("pqrs"),
                    content=chance.randrange(3),
                    flags=chance.choice([RowFlag(0)] * 6 + [RowFlag.TEST, RowFlag.BLOCKED]),
                    destinations=chance.choice([None, None, ("a",), ("b",), ("a", "b")]),
                )
                for _ in range(chance.randrange(1, 5))
            )
        )
        if chance.random() < 0.6:
            house.run(delivering=chance.sample(["a", "b"], chance.randrange(3)))
    house.run(delivering=[])
    gone = chance.sample("pqrs", 2)
    count = sum(erase(house, each) for each in gone)
    house.lose_ledger()
    house.rebuild()
    house.run()
    assert house.source().erased == count
    assert not set(gone) & {each for ids in house.ids() for each in ids}
    house.receive(*gone)
    house.run()
    assert house.source().erased == count
    assert all(set(gone) <= set(ids) for ids in house.ids())
