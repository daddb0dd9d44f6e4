"""The ledger keeps what it is told, whole, for its own queue alone."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from counterfoil.contract.facts import Verdict
from counterfoil.errors import LedgerUnusable
from counterfoil.ledger import (
    DeadRow,
    Group,
    GroupFrame,
    GroupNumber,
    Ledger,
    LedgerReader,
    RoutedCount,
    Seq,
    Settled,
    SourceCounts,
    pack_seen,
    seq_of,
)
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.positions import DirectoryId, FramePosition, RowPosition, SegmentNumber

LEDGER_ID = UUID(int=7)
SETTINGS = LedgerSettings()
DIRECTORY = DirectoryId(b"writer-1")
DAY_MS = 86_400_000


def position(offset: int) -> FramePosition:
    return FramePosition(DIRECTORY, SegmentNumber(1), offset)


def opened(path: Path, ledger_id: UUID = LEDGER_ID) -> Ledger:
    return Ledger.open(path / "ledger", SETTINGS, ledger_id)


def one_row(number: int, key: bytes, *, destinations: tuple[str, ...] | None = None, at_ms: int = 1000) -> Settled:
    """A group of one frame of one new row."""
    frame = GroupFrame(position(number * 64), "web", 1, 64)
    group = Group(
        GroupNumber(number), (frame,), bytes([Verdict.NEW]), (RoutedCount("web", destinations, 1),), at_ms * number
    )
    return Settled(
        group=group,
        reading_positions=(position(number * 64 + 64),),
        source_counts=(SourceCounts("web", accepted=1, new=1),),
        new_keys=[key],
        seen=[pack_seen(seq_of(number, 0), 99, 3)],
    )


def test_a_new_ledger_is_empty(tmp_path: Path) -> None:
    """A ledger that was just made knows nothing."""
    ledger = opened(tmp_path)
    assert ledger.last_group() == 0
    assert ledger.reading_positions() == {}
    assert ledger.groups(0, 10) == []
    assert ledger.books().sources == ()
    ledger.close()


def test_what_was_recorded_is_there_when_opened_anew(tmp_path: Path) -> None:
    """L1: a group, its counters, its keys and the reading position outlive the process."""
    ledger = opened(tmp_path)
    ledger.register_destination("lake")
    settled = one_row(1, b"k" * 16)
    ledger.record(settled)
    ledger.record_delivery("lake", first_group=1, last_group=1, delivered_rows=1, commit="7", at_ms=5)
    ledger.close()

    ledger = opened(tmp_path)
    assert ledger.last_group() == 1
    assert ledger.groups(0, 10) == [settled.group]
    assert ledger.reading_positions() == {DIRECTORY: position(128)}
    assert ledger.seen([b"j" * 16, b"k" * 16]) == [None, settled.seen[0]]
    assert ledger.cursor("lake") == 1
    books = ledger.books()
    assert books.sources == (SourceCounts("web", accepted=1, new=1),)
    (lake,) = books.destinations
    assert (lake.routed, lake.delivered, lake.dead, lake.pending) == (1, 1, 0, 0)
    record = ledger.delivery_of("lake", 1)
    assert record is not None
    assert record.commit == "7"
    assert [(row.position, row.verdict) for row in ledger.lookup(b"k" * 16)] == [
        (RowPosition(position(64), 0), Verdict.NEW)
    ]
    ledger.close()


def test_another_queues_ledger_is_refused(tmp_path: Path) -> None:
    """L6: a ledger with another id is not touched."""
    opened(tmp_path).close()
    with pytest.raises(LedgerUnusable, match="expected"):
        opened(tmp_path, UUID(int=8))


def test_a_later_destination_starts_with_what_comes_after_it(tmp_path: Path) -> None:
    """Rows that were settled before a destination was registered are not routed to it, unless it asks for them."""
    ledger = opened(tmp_path)
    ledger.record(one_row(1, b"a" * 16))
    ledger.register_destination("late")
    ledger.register_destination("all", from_oldest=True)
    ledger.record(one_row(2, b"b" * 16))
    ledger.record(one_row(3, b"c" * 16, destinations=("late",)))
    late, every = sorted(ledger.books().destinations, key=lambda counts: counts.start_group, reverse=True)
    assert (late.destination, late.start_group, late.routed, late.pending) == ("late", 1, 2, 2)
    assert (every.destination, every.start_group, every.routed, every.pending) == ("all", 0, 2, 2)
    ledger.close()


def test_dead_rows_are_kept_with_their_reason(tmp_path: Path) -> None:
    """A dead row counts as dead, and says why."""
    ledger = opened(tmp_path)
    ledger.register_destination("lake")
    ledger.record(one_row(1, b"a" * 16))
    dead = DeadRow(seq_of(1, 0), "damaged")
    ledger.record_delivery("lake", first_group=1, last_group=1, delivered_rows=0, dead=[dead], commit="", at_ms=9)
    (lake,) = ledger.books().destinations
    assert (lake.delivered, lake.dead, lake.pending) == (0, 1, 0)
    letter = ledger.dead_letter("lake", dead.seq)
    assert letter is not None
    assert letter.reason == "damaged"
    assert ledger.dead_letter("lake", Seq(1)) is None
    assert [each.seq for each in ledger.dead_letters("lake")] == [dead.seq]
    ledger.close()


def test_a_reader_sees_one_moment_until_it_catches_up(tmp_path: Path) -> None:
    """L7: what is recorded after a reader was opened shows when it catches up, also in a new generation."""
    ledger = opened(tmp_path)
    ledger.record(one_row(1, b"a" * 16))
    reader = LedgerReader.open(tmp_path / "ledger", SETTINGS, LEDGER_ID)
    ledger.tend(now_ms=16 * DAY_MS, running_ms=16 * DAY_MS)
    ledger.record(one_row(2, b"b" * 16, at_ms=16 * DAY_MS))
    assert reader.last_group() == 1
    assert reader.lookup(b"b" * 16) == []
    reader.catch_up()
    assert reader.last_group() == 2
    assert [row.verdict for row in reader.lookup(b"b" * 16)] == [Verdict.NEW]
    assert [row.verdict for row in reader.lookup(b"a" * 16)] == [Verdict.NEW]
    reader.close()
    ledger.close()
