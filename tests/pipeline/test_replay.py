"""Replay: what should be there and is not, window by window; and what an order still may do when it comes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from counterfoil.contract.facts import RowFlag
from counterfoil.destinations.interface import HeldRows
from counterfoil.ledger import Cause, Ledger
from counterfoil.pipeline.dead import DeadFilter, find_dead, plan_drop, plan_retry
from counterfoil.pipeline.orders import Done, Order, Refused, SendAgain, carry_out
from counterfoil.pipeline.replay import Replay, ReplayFilter
from tests.destinations.memory import MemoryDestination
from tests.pipeline.frames import MemoryQueue, Row
from tests.pipeline.test_deliver import WRITER, House


@pytest.fixture
def house(ledger: Ledger, queue: MemoryQueue) -> House:
    """Three groups of two sources, delivered; some rows are none of this destination's."""
    made = House(ledger, queue, MemoryDestination())
    made.settle("a", Row("other", destinations=("other",)), Row("t", flags=RowFlag.TEST), "b")
    made.settle("a", "c", Row("both", destinations=("other", "shelf")), source="app")
    made.settle("b", "d", "e")
    made.deliverer.open()
    made.step()
    assert made.destination.ids() == ["a", "b", "a", "c", "both", "d", "e"]
    return made


def replay(house: House, wanted: ReplayFilter | None = None, **settings: int) -> tuple[Replay, list[SendAgain]]:
    found = Replay(
        house.ledger, house.queue, house.counts(), house.destination.held, wanted or ReplayFilter(), **settings
    )
    return found, list(found.orders())


def lose(house: House, *distinct_ids: str) -> None:
    shelf = house.destination.shelf
    shelf.rows = [row for row in shelf.rows if row.distinct_id not in distinct_ids]


def carry(house: House, orders: Iterable[Order]) -> int:
    answers = [carry_out(house.ledger, order, 9) for order in orders]
    return sum(answer.row_count for answer in answers if isinstance(answer, Done))


@pytest.mark.parametrize("window_rows", [1, 3, 1000])
def test_exactly_what_is_missing_is_sent(house: House, window_rows: int) -> None:
    """Whatever the windows; the order given twice does nothing the second time, and nothing is missing after."""
    assert replay(house, window_rows=window_rows)[1] == []
    lose(house, "b", "both", "e")
    found, orders = replay(house, window_rows=window_rows)
    assert (found.compared, dict(found.missing), found.unreadable) == (7, {"web": 2, "app": 1}, 0)
    assert (carry(house, orders), carry(house, orders)) == (3, 0)
    assert replay(house)[1] == []
    assert (house.counts().delivered, house.counts().pending) == (4, 3)
    house.step()
    assert house.destination.ids() == ["a", "a", "c", "d", "b", "both", "e"]
    lose(house, "both", "d")
    assert carry(house, replay(house, window_rows=window_rows)[1]) == 2
    house.step()
    assert sorted(house.destination.ids()) == ["a", "a", "b", "both", "c", "d", "e"]


def test_only_what_is_wanted_is_compared(house: House) -> None:
    """By source and by time of receipt; rows that died or wait are none that are missing."""
    lose(house, "a", "b", "c", "d")
    assert replay(house, ReplayFilter(source="app"))[0].missing == {"app": 2}
    assert replay(house, ReplayFilter(from_ms=2))[0].missing == {}
    assert replay(house, ReplayFilter(from_ms=1, to_ms=2))[0].missing == {"web": 3, "app": 2}
    assert replay(house, ReplayFilter(to_ms=1))[0].compared == 0


def test_what_can_not_be_read_is_counted(house: House) -> None:
    """A row whose frame is damaged can't be sent; the others are."""
    lose(house, "a", "d")
    house.queue.damaged.add(house.queue.frames[WRITER][0].position)
    found, orders = replay(house)
    # Which rows of the damaged frame were meant for this destination can not be read any more.
    assert (dict(found.missing), found.unreadable) == ({"app": 1, "web": 1}, 3)
    assert carry(house, orders) == 2


def test_everything_once_more_on_purpose(house: House) -> None:
    """For one that can't be asked: each row counts as routed once more, by its new seq."""
    found = Replay(house.ledger, house.queue, house.counts(), None, ReplayFilter())
    assert carry(house, list(found.orders())) == 7
    house.step()
    assert (house.counts().routed, house.counts().delivered, house.counts().pending) == (14, 14, 0)
    assert [each.cause for each in house.ledger.resendings("shelf", 0, 1 << 60)] == [Cause.AGAIN] * 7


def test_a_destination_that_holds_nothing_gets_it_all_in_bounded_orders(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders have so many rows at most, and name each row once."""
    monkeypatch.setattr("counterfoil.pipeline.replay.ROWS_AN_ORDER_MAX", 2)
    house.destination.shelf.rows.clear()
    _, orders = replay(house)
    assert [len(order.rows) for order in orders] == [2, 2, 2, 1]
    assert carry(house, orders) == 7


def test_dead_letters_by_reason_source_and_time(ledger: Ledger, queue: MemoryQueue) -> None:
    """A filter takes what begins with the reason, is of the source and died in time; a plan takes what can be sent."""
    house = House(ledger, queue, MemoryDestination())
    house.settle("a", "b")
    house.settle("c", source="app")
    house.settle("d")
    house.destination.refuses = {"a": "sqlstate_22001:email", "c": "sqlstate_23514", "b": "nul:email"}
    house.queue.damaged.add(house.queue.frames[WRITER][2].position)
    house.deliverer.open()
    house.step()

    def reasons(**wanted: object) -> list[str]:
        found = find_dead(ledger, queue, DeadFilter(**wanted))  # type: ignore[arg-type]
        return [each.letter.reason for each in found]

    assert reasons() == ["sqlstate_22001:email", "nul:email", "sqlstate_23514", "damaged"]
    assert reasons(reason="sqlstate_2") == ["sqlstate_22001:email", "sqlstate_23514"]
    assert reasons(source="app") == ["sqlstate_23514"]
    assert reasons(from_ms=5_000, to_ms=5_001) == reasons()
    assert reasons(to_ms=5_000) == reasons(destination="other") == []
    [order] = plan_retry(find_dead(ledger, queue, DeadFilter()))
    assert len(order.rows) == 3
    [dropped] = plan_drop(find_dead(ledger, queue, DeadFilter(reason="nul")))
    assert (carry(house, [dropped]), carry(house, [dropped]), carry(house, [order])) == (1, 0, 2)
    assert reasons() == ["nul:email", "damaged"]
    assert carry_out(ledger, SendAgain("nowhere", Cause.RETRY, ()), 9) == Refused(
        "nowhere: the ledger knows no destination of this name"
    )


def test_a_destination_is_asked_for_the_whole_stretch(house: House) -> None:
    """Each stretch of the sequence is asked for once, without a gap, up to the cursor."""
    asked: list[tuple[int, int]] = []

    def held(first: int, last: int) -> Iterable[HeldRows]:
        asked.append((first, last))
        return house.destination.held(first, last)

    list(Replay(house.ledger, house.queue, house.counts(), held, ReplayFilter(), window_rows=3).orders())
    assert [first // 65_536 for first, _ in asked] == [1, 3]
    assert [last // 65_536 for _, last in asked] == [2, 3]
