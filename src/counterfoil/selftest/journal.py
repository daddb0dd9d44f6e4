"""What was answered for each row, a byte a row; and, where it must outlive this process, as lines in a file.

A journal's file is text, appended to:

    counterfoil-selftest 1 <run> <time_base_ms>
    t 120          the next 120 numbers are taken: written before they are sent
    a 17 3 -40     answers: TAKEN for the rows 17, 20 and then 21 to 60 ...

In `a` (TAKEN) and `r` (REFUSED) lines a number is a step from the last one, and a negative one a run of rows after it.
A line that the end of the machine cut short counts as not written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from counterfoil.selftest.answers import RowAnswer
from counterfoil.selftest.content import Content

ROW_COUNT_MAX = 100_000_000
"""A journal takes no more, so that its memory is bounded: a byte a row."""

_TAKEN, _REFUSED, _NEITHER = 1, 2, 4
_BITS = {RowAnswer.TAKEN: _TAKEN, RowAnswer.REFUSED: _REFUSED, RowAnswer.NEITHER: _NEITHER}
_MAGIC = "counterfoil-selftest 1"


class JournalUnreadable(Exception):
    """The file is no journal of a self-test."""


class Journal:
    """Answers by the row's number; any thread may use it.

    `record` gets each line before the call that caused it returns; what it does for durability is its own affair.
    """

    def __init__(self, record: Callable[[str], None] | None = None) -> None:
        self._answers = bytearray()
        self._lock = threading.Lock()
        self._record = record
        self.is_partial = False
        """Whether numbers past the last one may have been taken: the end of the file may be lost."""

    def __len__(self) -> int:
        """How many numbers were taken."""
        return len(self._answers)

    def take(self, count: int) -> range:
        """Numbers that no row has had; they count as sent from now on. Raises OverflowError past `ROW_COUNT_MAX`."""
        with self._lock:
            first = len(self._answers)
            if first + count > ROW_COUNT_MAX:
                raise OverflowError(f"a journal takes {ROW_COUNT_MAX:,} rows at most")
            if self._record is not None:
                self._record(f"t {count}\n")
            self._answers += bytes(count)
        return range(first, first + count)

    def note(self, numbers: Sequence[int], answers: Sequence[RowAnswer]) -> None:
        """Write down the answers to the rows of these numbers. AGAIN and SILENCE leave a row as it was."""
        with self._lock:
            if self._record is not None:
                for mark, kind in (("a", RowAnswer.TAKEN), ("r", RowAnswer.REFUSED)):
                    chosen = sorted({n for n, answer in zip(numbers, answers, strict=True) if answer is kind})
                    if chosen:
                        self._record(f"{mark} {_packed(chosen)}\n")
            for number, answer in zip(numbers, answers, strict=True):
                self._answers[number] |= _BITS.get(answer, 0)

    def is_taken(self, number: int) -> bool:
        """Whether the row was acknowledged."""
        return bool(self._answers[number] & _TAKEN)

    def is_refused(self, number: int) -> bool:
        """Whether the row was refused at least once."""
        return bool(self._answers[number] & _REFUSED)

    def got_neither(self, number: int) -> bool:
        """Whether an answer for the row was neither success nor error."""
        return bool(self._answers[number] & _NEITHER)

    def is_unsure(self, number: int) -> bool:
        """Whether the row was neither acknowledged nor refused."""
        return not self._answers[number] & (_TAKEN | _REFUSED)


def header_line(content: Content) -> str:
    """The first line of a journal's file."""
    return f"{_MAGIC} {content.run} {content.time_base_ms}\n"


def read_journal(data: bytes) -> tuple[Content, Journal]:
    """The run and the journal that the bytes of a file are. Raises JournalUnreadable when they are none."""
    text = data.decode("ascii", errors="replace")
    # The machine may have ended in the middle of a line, or left zeros where one should be.
    whole = text[: text.rfind("\n") + 1].split("\n")
    magic, _, rest = whole[0].partition(f"{_MAGIC} ")
    run, _, base = rest.partition(" ")
    if magic or not run or not base.isdigit():
        raise JournalUnreadable(f"the journal is none: expected a first line `{_MAGIC} <run> <time>`")
    journal = Journal()
    journal.is_partial = True
    for line in whole[1:]:
        if not _replay(journal, line):
            break
    return Content(run, int(base)), journal


def _replay(journal: Journal, line: str) -> bool:
    """Whether the line is one of a journal's, and so its answers are in it now."""
    mark, *words = line.split(" ")
    try:
        steps = [int(word) for word in words]
    except ValueError:
        return False
    if mark == "t" and len(steps) == 1:
        journal.take(steps[0])
        return True
    if mark not in ("a", "r"):
        return False
    numbers = list(_unpacked(steps))
    if not numbers or numbers[-1] >= len(journal):
        return False
    journal.note(numbers, [RowAnswer.TAKEN if mark == "a" else RowAnswer.REFUSED] * len(numbers))
    return True


def _packed(numbers: Sequence[int]) -> str:
    """Ascending numbers as steps, and runs of neighbours as one negative count."""
    steps: list[int] = []
    last = 0
    for place, number in enumerate(numbers):
        if place and number == last + 1:
            if steps[-1] < 0:
                steps[-1] -= 1
            else:
                steps.append(-1)
        else:
            steps.append(number - last)
        last = number
    return " ".join(map(str, steps))


def _unpacked(steps: Sequence[int]) -> Iterator[int]:
    last = 0
    for step in steps:
        if step < 0:
            yield from range(last + 1, last - step + 1)
            last -= step
        else:
            last += step
            yield last
