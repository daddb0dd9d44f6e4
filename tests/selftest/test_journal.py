from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterfoil.selftest.answers import RowAnswer
from counterfoil.selftest.content import Content
from counterfoil.selftest.journal import Journal, JournalUnreadable, header_line, read_journal
from counterfoil.selftest.judging import FoundRow, judge

RUN = Content("canary0ab1", 1_790_000_000_000)
KINDS = st.sampled_from((RowAnswer.TAKEN, RowAnswer.REFUSED, RowAnswer.AGAIN, RowAnswer.SILENCE))


@given(noted=st.lists(st.lists(st.tuples(st.integers(0, 99), KINDS), min_size=1, max_size=30), max_size=10))
def test_what_a_journal_records_is_read_back(noted: list[list[tuple[int, RowAnswer]]]) -> None:
    """A journal that is read from its file says of each row what the journal in memory said."""
    lines = [header_line(RUN)]
    journal = Journal(lines.append)
    journal.take(100)
    for answers in noted:
        journal.note([number for number, _ in answers], [kind for _, kind in answers])
    content, read = read_journal("".join(lines).encode())
    assert content == RUN
    assert len(read) == 100
    for number in range(100):
        assert read.is_taken(number) == journal.is_taken(number)
        assert read.is_refused(number) == journal.is_refused(number)


@pytest.mark.parametrize("tail", [b"a 1", b"\0\0\0\0", b"a 1 -", b"\0\0\n", b"a 99\n", b"x 1\n"])
def test_a_torn_end_counts_as_not_written(tail: bytes) -> None:
    """A last line that was cut, or is no line of a journal, takes nothing else along."""
    _, journal = read_journal(header_line(RUN).encode() + b"t 5\na 0 3\n" + tail)
    assert [number for number in range(5) if journal.is_taken(number)] == [0, 3]


def test_rows_past_the_end_of_a_journal_from_a_file_are_unsure() -> None:
    """A row that was sent after the journal's last whole line is neither lost nor never sent."""
    content, journal = read_journal((header_line(RUN) + "t 1\n").encode())
    sent = {n: v for n, v in content.row(5).items() if n not in ("unknownField", "defaultProperties")}
    extra = {"unknownField": content.row(5)["unknownField"]} if "unknownField" in content.row(5) else None
    defaults = {**content.row(5).get("defaultProperties", {}), "received_at": "now"}
    found = FoundRow(content.distinct_id(5), {**sent, "extra": extra, "defaultProperties": defaults})
    assert judge(content, journal, [found]).is_clean
    assert judge(content, Journal(), [found]).never_sent.count == 1


def test_another_file_is_no_journal() -> None:
    """A file that is no journal is said to be none."""
    with pytest.raises(JournalUnreadable):
        read_journal(b"\x89PNG")


def test_a_journal_takes_no_number_twice() -> None:
    """Numbers are taken once each."""
    journal = Journal()
    assert [*journal.take(3), *journal.take(2)] == [0, 1, 2, 3, 4]


def test_what_was_acknowledged_stays_so() -> None:
    """A row that was acknowledged once stays acknowledged, whatever a repeat of it is answered."""
    journal = Journal()
    journal.take(1)
    for answer in (RowAnswer.TAKEN, RowAnswer.SILENCE, RowAnswer.AGAIN):
        journal.note([0], [answer])
    assert journal.is_taken(0)
    assert not journal.is_refused(0)
