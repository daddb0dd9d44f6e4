"""Settle: every row gets one verdict, in one order over all writers."""

from __future__ import annotations

from counterfoil.contract.facts import RowFlag, Verdict, key_hash, key_prefix
from counterfoil.ledger import Group, Ledger, RoutedCount, SourceCounts, seq_of
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.positions import DirectoryId, RowPosition
from tests.pipeline.frames import MemoryQueue, Row

ONE, TWO = DirectoryId(b"writer-1"), DirectoryId(b"writer-2")


def settled_groups(ledger: Ledger) -> list[Group]:
    return [group for group in ledger.groups(0, 10) if isinstance(group, Group)]


def settler(queue: MemoryQueue, ledger: Ledger, now_ms: int = 1_000, **settings: int) -> Settler:
    return Settler(queue, ledger, PipelineSettings(**settings), lambda: now_ms)


def test_each_row_gets_the_first_verdict_that_fits(ledger: Ledger, queue: MemoryQueue) -> None:
    """Test, blocked, new, duplicate and conflict, also within one group."""
    queue.append(
        ONE,
        "web",
        [
            Row("a", flags=RowFlag.TEST | RowFlag.BLOCKED),
            Row("a", flags=RowFlag.BLOCKED),
            Row("a", 1),
            Row("a", 1),
            Row("a", 2),
            Row("b", flags=RowFlag.VERSION_FROM_HEADERS),
        ],
    )
    queue.append(ONE, "app", [Row("a", 2)])
    assert settler(queue, ledger).step() == 7
    (group,) = settled_groups(ledger)
    test, blocked, new, duplicate, conflict = Verdict
    assert list(group.verdicts) == [test, blocked, new, duplicate, conflict, new, new]
    assert ledger.books().sources == (
        SourceCounts("app", accepted=1, new=1),
        SourceCounts("web", accepted=6, new=2, duplicate=1, conflict=1, blocked=1, test=1),
    )


def test_a_row_sent_again_later_is_a_duplicate(ledger: Ledger, queue: MemoryQueue) -> None:
    """A repeat is known in a later group, and after the ledger was opened anew by another settler."""
    first = queue.append(ONE, "web", [Row("a", 1)])
    assert settler(queue, ledger).step() == 1
    again = queue.append(TWO, "web", [Row("a", 1), Row("a", 3)])
    assert settler(queue, ledger).step() == 2
    found = ledger.lookup(key_hash(key_prefix("web"), "a"))
    assert [(row.seq, row.position, row.verdict) for row in found] == [
        (seq_of(1, 0), RowPosition(first.position, 0), Verdict.NEW),
        (seq_of(2, 0), RowPosition(again.position, 0), Verdict.DUPLICATE),
        (seq_of(2, 1), RowPosition(again.position, 1), Verdict.CONFLICT),
    ]


def test_nothing_new_settles_nothing(ledger: Ledger, queue: MemoryQueue) -> None:
    """Without new frames a step makes no group."""
    steps = settler(queue, ledger)
    assert steps.step() == 0
    queue.append(ONE, "web", [Row("a")])
    assert [steps.step(), steps.step()] == [1, 0]
    assert ledger.last_group() == 1


def test_a_writer_is_followed_to_its_next_segment(ledger: Ledger, queue: MemoryQueue) -> None:
    """When a writer begins a segment, the reading position follows, also before a row comes."""
    queue.append(ONE, "web", [Row("a")])
    steps = settler(queue, ledger)
    assert steps.step() == 1
    queue.new_segment(ONE)
    assert steps.step() == 0
    assert ledger.reading_positions() == queue.ends
    assert ledger.last_group() == 1


def test_groups_hold_whole_frames_and_all_writers_take_part(ledger: Ledger, queue: MemoryQueue) -> None:
    """A group is closed at its rows; what was read and not taken is the next group's; no writer waits for another."""
    for number in range(4):
        queue.append(ONE, "web", [Row(f"one-{number}-{row}") for row in range(3)])
        queue.append(TWO, "web", [Row(f"two-{number}-{row}") for row in range(3)])
    steps = settler(queue, ledger, group_rows=5)
    assert [steps.step() for _ in range(5)] == [6, 6, 6, 6, 0]
    groups = settled_groups(ledger)
    assert [group.number for group in groups] == [1, 2, 3, 4]
    assert {frame.position.directory for frame in (*groups[0].frames, *groups[1].frames)} == {ONE, TWO}
    assert ledger.reading_positions() == queue.ends


def test_a_group_never_has_more_rows_than_its_sequence(ledger: Ledger, queue: MemoryQueue) -> None:
    """A frame that would be past the 65,536th row waits for the next group."""
    queue.append(ONE, "web", [Row(f"a{row}") for row in range(2)])
    queue.append(ONE, "web", [Row(f"b{row}") for row in range(65_535)])
    queue.append(ONE, "web", [Row("c")])
    steps = settler(queue, ledger, group_rows=65_536, group_bytes=64 * 1024 * 1024)
    assert [steps.step() for _ in range(3)] == [2, 65_536, 0]
    assert ledger.books().sources == (SourceCounts("web", accepted=65_538, new=65_538),)
    (last,) = ledger.lookup(key_hash(key_prefix("web"), "c"))
    assert last.seq == seq_of(2, 65_535)


def test_rows_are_routed_by_their_destinations(ledger: Ledger, queue: MemoryQueue) -> None:
    """New rows alone are routed, to the destinations that their frame names."""
    queue.append(ONE, "web", [Row("a"), Row("a"), Row("b", destinations=("lake",)), Row("c", destinations=())])
    queue.append(ONE, "app", [Row("d", destinations=("hook", "lake")), Row("e", flags=RowFlag.TEST)])
    ledger.register_destination("lake")
    ledger.register_destination("hook")
    settler(queue, ledger).step()
    assert set(settled_groups(ledger)[0].routed) == {
        RoutedCount("web", None, 1),
        RoutedCount("web", ("lake",), 1),
        RoutedCount("web", (), 1),
        RoutedCount("app", ("hook", "lake"), 1),
    }
    assert {each.destination: each.routed for each in ledger.books().destinations} == {"hook": 2, "lake": 3}


def test_damage_is_counted_once_and_the_rest_goes_on(ledger: Ledger, queue: MemoryQueue) -> None:
    """A damaged frame is passed over, counted with the frames after it, and not counted again by a later settler."""
    queue.append(ONE, "web", [Row("a")])
    damaged = queue.append(ONE, "web", [Row("b")])
    queue.append(ONE, "web", [Row("c")])
    queue.damaged.add(damaged.position)
    steps = settler(queue, ledger, group_rows=1)
    assert [steps.step(), ledger.books().damaged_frames] == [1, 1]
    assert [steps.step(), steps.step(), ledger.books().damaged_frames] == [1, 0, 1]
    assert settler(queue, ledger).step() == 0
    assert [each.position for each in ledger.damages()] == [damaged.position]


def test_damage_at_the_end_is_counted_without_a_group(ledger: Ledger, queue: MemoryQueue) -> None:
    """Damage that no frame follows yet is recorded too, and takes no group's number."""
    damaged = queue.append(ONE, "web", [Row("a")])
    queue.damaged.add(damaged.position)
    steps = settler(queue, ledger)
    assert [steps.step(), steps.step()] == [0, 0]
    assert (ledger.books().damaged_frames, ledger.last_group()) == (1, 0)


def test_the_time_of_a_group_never_goes_back(ledger: Ledger, queue: MemoryQueue) -> None:
    """L5: when the clock jumps back, groups keep the latest time there was."""
    queue.append(ONE, "web", [Row("a")])
    settler(queue, ledger, now_ms=5_000).step()
    queue.append(ONE, "web", [Row("b")])
    settler(queue, ledger, now_ms=3_000).step()
    assert [group.settled_at_ms for group in ledger.groups(0, 10)] == [5_000, 5_000]
