"""A row that was erased in the queue is handed to nobody: whatever reads rows passes over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterfoil.contract.facts import RowFlag, Verdict
from counterfoil.contract.subject import Subject
from counterfoil.destinations.interface import Delivery
from counterfoil.ledger import Ledger, seq_of
from counterfoil.pipeline.dead import DeadFilter, find_dead, plan_retry
from counterfoil.pipeline.orders import carry_out
from counterfoil.pipeline.replay import Replay, ReplayFilter
from counterfoil.pipeline.settle import settle_group
from counterfoil.pipeline.trace import trace
from counterfoil.pipeline.unblock import Unblocking
from counterfoil.positions import FramePosition
from counterfoil.sources import EVERYWHERE
from tests.destinations.memory import MemoryDestination
from tests.pipeline.frames import MemoryQueue, Row
from tests.pipeline.house import House as HouseOfLives
from tests.pipeline.test_deliver import WRITER, House


@pytest.fixture
def house(ledger: Ledger, queue: MemoryQueue) -> House:
    return House(ledger, queue, MemoryDestination())


def new(position: FramePosition, row_index: int) -> Verdict:
    return Verdict.NEW


def erase(queue: MemoryQueue, distinct_id: str) -> None:
    assert queue.erase(Subject(distinct_id=distinct_id), new) == 1


def test_it_is_not_delivered(house: House) -> None:
    """Rows that share its frame are; of a damaged frame only its own rows are dead."""
    house.settle("a", Row("b"), Row("other", destinations=("other",)), "c")
    house.settle("d", "e")
    erase(house.queue, "b")
    house.queue.damaged.add(house.queue.frames[WRITER][1].position)
    house.deliverer.open()
    house.step()
    house.step()
    assert house.destination.ids() == ["a", "c"]
    assert [(letter.seq, letter.reason) for letter in house.ledger.dead_letters("shelf")] == [
        (seq_of(2, 0), "damaged"),
        (seq_of(2, 1), "damaged"),
    ]


def test_it_is_not_sent_again(house: House) -> None:
    """Neither by an order that was given before it was erased, nor by a comparison that comes after."""
    house.settle("a", "b", "c")
    house.deliverer.open()
    house.step()
    orders = list(Replay(house.ledger, house.queue, house.counts(), None, ReplayFilter()).orders())
    for order in orders:
        carry_out(house.ledger, order, 9)
    erase(house.queue, "b")
    house.destination.shelf.rows.clear()
    house.step()
    assert house.destination.ids() == ["a", "c"]
    house.destination.shelf.rows.clear()
    found = Replay(house.ledger, house.queue, house.counts(), house.destination.held, ReplayFilter())
    assert [row.first_seq for order in found.orders() for row in order.rows] == [seq_of(1, 0), seq_of(1, 2)]
    assert (found.missing, found.unreadable) == ({"web": 2}, 0)


def test_no_copy_is_kept_of_it(house: House) -> None:
    """A row that is erased while its destination refuses it leaves nothing behind, and can't be sent again."""
    house.settle("a", "b")
    house.destination.refuses = {"a": "nul", "b": "nul"}

    def erase_meanwhile(_: Delivery) -> None:
        erase(house.queue, "b")

    house.destination.after = erase_meanwhile
    house.deliverer.open()
    house.step()
    assert house.ledger.copy_of("shelf", seq_of(1, 0)) is not None
    assert house.ledger.copy_of("shelf", seq_of(1, 1)) is None
    found = list(find_dead(house.ledger, house.queue, DeadFilter()))
    assert [(each.has_copy, each.row is None) for each in found] == [(True, False), (False, True)]
    assert [len(order.rows) for order in plan_retry(found)] == [1]


def test_it_is_not_traced(ledger: Ledger, queue: MemoryQueue) -> None:
    """Its id is as one that was never sent, also while the ledger still knows its key."""
    house = House(ledger, queue, MemoryDestination())
    house.settle("a", "b")
    assert len(trace(ledger, queue, ["web"], "b").rows) == 1
    erase(queue, "b")
    assert trace(ledger, queue, ["web"], "b").rows == ()
    assert len(trace(ledger, queue, ["web"], "a").rows) == 1


def test_it_is_not_unblocked(ledger: Ledger, queue: MemoryQueue) -> None:
    """A blocked row that was erased does not come in once more."""
    house = House(ledger, queue, MemoryDestination())
    house.settle(Row("a", flags=RowFlag.BLOCKED), Row("b", flags=RowFlag.BLOCKED))
    erase(queue, "b")
    search = Unblocking(ledger, queue, "shelf", lambda source, event: EVERYWHERE, ReplayFilter())
    (draft,) = search.drafts()
    assert b'"a"' in draft.body
    assert b'"b"' not in draft.body
    assert (draft.row_count, search.blocked, search.unreadable) == (1, 1, 0)


def test_it_takes_no_damaged_rows_place(tmp_path: Path) -> None:
    """A repeat that was erased is not delivered in the place of a damaged row."""
    house = HouseOfLives(tmp_path)
    house.receive("r1", "r2")
    house.receive("r1", "r3")
    house.run(delivering=[])
    first, repeat = house.queue.frames[WRITER]
    house.queue.frames[WRITER].remove(first)
    erase(house.queue, "r1")
    house.queue.frames[WRITER].insert(0, first)
    house.queue.damaged.add(first.position)
    house.run()
    assert house.ids() == [["r3"], ["r3"]]
    assert repeat.position not in house.queue.damaged


def test_settled_again_it_is_what_it_was(queue: MemoryQueue) -> None:
    """Its verdict and whom it was meant for are those that its frame kept; it has no key that another could repeat."""
    rows = [Row("a", 1), Row("a", 2), Row("a", 1), Row("t", flags=RowFlag.TEST), Row("k", destinations=("lake",))]
    queue.append(WRITER, "web", rows)
    known = {0: Verdict.NEW, 1: Verdict.CONFLICT, 2: Verdict.DUPLICATE}
    assert queue.erase(Subject(distinct_id="a"), lambda _, index: known[index]) == 3
    for distinct_id in ("t", "k"):
        assert queue.erase(Subject(distinct_id=distinct_id), lambda _, index: None) == 1
    queue.append(WRITER, "web", [Row("a", 7)])
    settled = settle_group(1, queue.frames[WRITER], lambda keys: [None] * len(keys), 1_000)
    assert settled.group is not None
    assert [Verdict(verdict) for verdict in settled.group.verdicts] == [
        Verdict.NEW,
        Verdict.CONFLICT,
        Verdict.DUPLICATE,
        Verdict.TEST,
        Verdict.NEW,
        Verdict.NEW,
    ]
    assert (len(settled.new_keys), len(settled.repeats)) == (1, 0)
    assert {(count.destinations, count.row_count) for count in settled.group.routed} == {(None, 2), (("lake",), 1)}
