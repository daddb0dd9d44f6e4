"""What every destination must do, and what one must that keeps a cursor: suites that are run on each of them.

A subclass names a fixture `make`, a function that gives a destination of the same name on the same storage each time
it is called, as a new life of the server would have it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from counterfoil.contract.subject import Subject
from counterfoil.destinations.interface import DeliveredRow, Delivery, Destination
from tests.destinations.making import ROWS_A_GROUP, delivered, delivery

Make = Callable[[], Destination]


def held_seqs(destination: Destination, first_seq: int = 0, last_seq: int | None = None) -> list[int]:
    """The `seq` of each row that a destination says it holds, sorted."""
    held = destination.held(first_seq, last_seq)
    assert held is not None
    return sorted(seq for rows in held for seq in rows.seqs)


def rows_of_some(group: int = 1, suffix: str = "") -> list[DeliveredRow]:
    """Rows of a group that differ in whose they are, in places as listed; `suffix` tells their distinctIds apart."""
    people = [
        ("web", "a", "u"),
        ("shop", "a", "v"),
        ("web", "b", "u"),
        ("shop", "c", None),
        ("web", "A", "U"),
        ("shop", "u", "a"),
        ("web", "a ", "u "),
    ]
    return [
        delivered(group * ROWS_A_GROUP + place, source=source, distinct_id=distinct_id + suffix, user_id=user_id)
        for place, (source, distinct_id, user_id) in enumerate(people)
    ]


SUBJECTS = [
    (Subject(distinct_id="a"), [0, 1]),
    (Subject(distinct_id="a", source="shop"), [1]),
    (Subject(user_id="u"), [0, 2]),
    (Subject(user_id="a", source="web"), []),
]
"""With the places of their rows."""

AWKWARD_IDS = ["o'hara", "a''b", '"; DROP', "\\", "%", "_", "line\nend", "naïve ☃ 𝄞", "NULL", "a" * 400]


class AnyDestination:
    """The suite for all."""

    @pytest.fixture
    def make(self) -> Make:
        """Another life of the same destination."""
        raise NotImplementedError

    def test_it_goes_on_after_an_erasure(self, make: Make) -> None:
        """A subject may be erased before the first delivery, between two, and twice; each row is delivered."""
        destination = make()
        destination.open()
        can_be_asked = destination.counts() is not None
        for group in (1, 2):
            for _ in range(group):
                erased = destination.erase(Subject(distinct_id="nobody"))
                assert erased == (0 if can_be_asked else None)
            receipt = destination.deliver(delivery(group))
            assert (receipt.last_group, receipt.row_count) == (group, 3)
        found = destination.seqs_of(Subject(distinct_id=f"row-{ROWS_A_GROUP}"))
        assert found is None if not can_be_asked else list(found or []) == [ROWS_A_GROUP]
        destination.close()


class CursorKeepingDestination(AnyDestination):
    """The suite for those that keep a cursor."""

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

    @pytest.mark.parametrize(("subject", "places"), SUBJECTS)
    def test_a_subjects_rows_are_erased_and_no_others(self, make: Make, subject: Subject, places: list[int]) -> None:
        """Those of its id, and of its source where it names one, go; every other row and the cursor stay."""
        destination = make()
        destination.open()
        rows = rows_of_some()
        destination.deliver(Delivery(1, 1, rows))
        destination.deliver(delivery(2))
        meant = [rows[place].seq for place in places]
        others = [seq for seq in held_seqs(destination) if seq not in meant]
        assert list(make().seqs_of(subject) or []) == meant
        assert destination.erase(subject) == len(meant)
        assert held_seqs(destination) == others
        assert list(destination.seqs_of(subject) or []) == []
        assert destination.erase(subject) == 0
        destination.close()
        again = make()
        held = again.open()
        assert held is not None
        assert held.last_group == 2
        again.deliver(delivery(3))
        assert held_seqs(again) == [*others, *(3 * ROWS_A_GROUP + place for place in range(3))]
        again.close()

    def test_an_id_may_hold_any_character(self, make: Make) -> None:
        """What means something to a query language is a character of an id like others."""
        destination = make()
        destination.open()
        rows = [
            delivered(ROWS_A_GROUP + place, distinct_id=f"{place}", user_id=user_id)
            for place, user_id in enumerate(AWKWARD_IDS)
        ]
        destination.deliver(Delivery(1, 1, rows))
        for row in rows:
            assert list(destination.seqs_of(Subject(user_id=row.user_id)) or []) == [row.seq]
        assert destination.erase(Subject(user_id=AWKWARD_IDS[0])) == 1
        assert held_seqs(destination) == [row.seq for row in rows[1:]]
        assert destination.erase(Subject(user_id="a\0b")) == 0
        destination.close()

    def test_an_erasure_comes_between_steps_of_upkeep(self, make: Make) -> None:
        """Whatever upkeep has begun, an erased row does not come back by it, and no other is lost."""
        destination = make()
        destination.open()
        last = 0
        for steps in (0, 1, 2, 4):
            for group in range(last + 1, last + 4):
                destination.deliver(Delivery(group, group, rows_of_some(group, f"-{group}")))
            last += 3
            for _ in range(steps):
                destination.tend()
            assert destination.erase(Subject(user_id="u")) == 6
            while destination.tend():
                pass
        kept = [group * ROWS_A_GROUP + place for group in range(1, last + 1) for place in (1, 3, 4, 5, 6)]
        assert held_seqs(destination) == kept
        destination.close()

    def test_a_row_that_comes_after_the_erasure_stays(self, make: Make) -> None:
        """An erasure means what is there; a row that is delivered later is another."""
        destination = make()
        destination.open()
        destination.deliver(Delivery(1, 1, rows_of_some()))
        destination.erase(Subject(distinct_id="a"))
        later = rows_of_some(2)[0]
        destination.deliver(Delivery(2, 2, [later]))
        assert list(destination.seqs_of(Subject(distinct_id="a")) or []) == [later.seq]
        destination.close()
