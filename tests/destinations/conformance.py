"""What every destination must do that keeps a cursor: one suite, run on each of them.

A subclass names a fixture `make`, a function that gives a destination of the same name on the same storage each time
it is called, as a new life of the server would have it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from counterfoil.destinations.interface import Delivery, Destination
from tests.destinations.making import ROWS_A_GROUP, delivered, delivery

Make = Callable[[], Destination]


def held_seqs(destination: Destination, first_seq: int = 0, last_seq: int | None = None) -> list[int]:
    """The `seq` of each row that a destination says it holds, sorted."""
    held = destination.held(first_seq, last_seq)
    assert held is not None
    return sorted(seq for rows in held for seq in rows.seqs)


class CursorKeepingDestination:
    """The suite."""

    @pytest.fixture
    def make(self) -> Make:
        """Another life of the same destination."""
        raise NotImplementedError

    def test_a_new_one_holds_nothing(self, make: Make) -> None:
        """Opened for the first time it has no cursor and no rows; opened again neither."""
        for _ in range(2):
            destination = make()
            assert destination.open() is None
            assert destination.counts() == {}
            assert held_seqs(destination) == []
            destination.close()

    def test_rows_and_cursor_are_there_in_the_next_life(self, make: Make) -> None:
        """What was delivered is held, and `open` names the last delivery."""
        destination = make()
        destination.open()
        destination.deliver(delivery(1, 2))
        receipt = destination.deliver(delivery(3, 5))
        assert (receipt.first_group, receipt.last_group, receipt.row_count, receipt.dead) == (3, 5, 9, ())
        destination.close()
        again = make()
        assert again.open() == receipt
        assert held_seqs(again) == [group * ROWS_A_GROUP + place for group in range(1, 6) for place in range(3)]
        again.close()

    def test_a_delivery_without_rows_moves_the_cursor(self, make: Make) -> None:
        """Groups that held nothing for it are passed all the same."""
        destination = make()
        destination.open()
        destination.deliver(delivery(1))
        destination.deliver(Delivery(2, 40, []))
        destination.close()
        again = make()
        held = again.open()
        assert held is not None
        assert (held.last_group, held.row_count) == (40, 0)
        assert held_seqs(again) == held_seqs(again, ROWS_A_GROUP, 2 * ROWS_A_GROUP - 1)
        again.close()

    def test_counts_are_by_source(self, make: Make) -> None:
        """Each source's rows are counted apart."""
        destination = make()
        destination.open()
        rows = [delivered(ROWS_A_GROUP + place, source=source) for place, source in enumerate(["a", "b", "a", "c-1"])]
        destination.deliver(Delivery(1, 1, rows))
        assert destination.counts() == {"a": 2, "b": 1, "c-1": 1}
        destination.close()

    def test_held_rows_can_be_asked_by_range(self, make: Make) -> None:
        """A range of `seq` includes both its ends; each row comes with its source and identity."""
        destination = make()
        destination.open()
        destination.deliver(delivery(1, 3, row_count=4))
        first, last = ROWS_A_GROUP + 3, 3 * ROWS_A_GROUP
        held = destination.held(first, last)
        assert held is not None
        rows = sorted(
            (seq, source) for each in held for seq, source in zip(each.seqs, [each.source] * 99, strict=False)
        )
        assert rows[0] == (first, "web")
        assert rows[-1] == (last, "web")
        assert len(rows) == 6
        destination.close()

    def test_what_was_never_opened_can_be_asked_and_closed(self, make: Make) -> None:
        """`check`, `counts`, `held` and `close` work beside the life that delivers, and before the first."""
        make().close()
        assert make().check() == []
        destination = make()
        destination.open()
        destination.deliver(delivery(1))
        beside = make()
        assert beside.check() == []
        assert beside.counts() == {"web": 3}
        assert len(held_seqs(beside)) == 3
        beside.close()
        destination.close()
        destination.close()

    def test_upkeep_changes_no_row(self, make: Make) -> None:
        """Whatever `tend` does, the same rows are held after it."""
        destination = make()
        destination.open()
        for group in range(1, 8):
            destination.deliver(delivery(group))
            while destination.tend():
                pass
        assert held_seqs(destination) == [group * ROWS_A_GROUP + place for group in range(1, 8) for place in range(3)]
        destination.close()
