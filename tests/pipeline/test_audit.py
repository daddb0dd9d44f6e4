"""The audit recounts both equations from disk, and says where they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
import pytest

from counterfoil.contract.facts import RowFlag
from counterfoil.destinations.interface import HeldRows
from counterfoil.errors import DestinationDown
from counterfoil.ledger import DamageRecord, DeadRow, Group, Ledger, SourceCounts, seq_of
from counterfoil.ledger.store import FACTS, GROUPS, Store
from counterfoil.pipeline import audit as audit_module
from counterfoil.pipeline.audit import Audit, Difference, DifferenceKind, Held, HeldCount, audit
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.positions import DirectoryId, FramePosition, RowPosition
from tests.pipeline.frames import MemoryQueue, Row

ONE, TWO = DirectoryId(b"writer-1"), DirectoryId(b"writer-2")


@pytest.fixture
def delivered(ledger: Ledger, queue: MemoryQueue) -> list[int]:
    """Three groups, of which `lake` has two with four of its rows; the seqs it holds."""
    ledger.register_destination("lake")
    settler = Settler(queue, ledger, PipelineSettings(), lambda: 1000)
    queue.append(ONE, "web", [Row("a"), Row("a"), Row("b", destinations=("hook",)), Row("c", destinations=("lake",))])
    queue.append(TWO, "app", [Row("a"), Row("t", flags=RowFlag.TEST)])
    settler.step()
    queue.append(ONE, "web", [Row("d"), Row("a", 1), Row("e", flags=RowFlag.BLOCKED)])
    settler.step()
    queue.append(ONE, "web", [Row("f")])
    settler.step()
    ledger.record_delivery("lake", first_group=1, last_group=2, delivered_rows=4, commit="v1", at_ms=5)
    group = ledger.groups(0, 1)[0]
    assert isinstance(group, Group)
    places = {frame.source: first for frame, first in group.parts()}
    return [
        seq_of(1, places["web"]),
        seq_of(1, places["web"] + 3),
        seq_of(1, places["app"]),
        seq_of(2, 0),
    ]


def holds(seqs: Sequence[int], sources: Callable[[int], str] = lambda seq: "web") -> Held:
    def held(first_seq: int, last_seq: int) -> Iterator[HeldRows]:
        for seq in seqs:
            if first_seq <= seq <= last_seq:
                yield HeldRows(sources(seq), [seq], ["x"])

    return held


def differences(found: Audit) -> list[tuple[DifferenceKind, int | None]]:
    return [(each.kind, each.group) for each in found.differences]


def test_books_that_balance_are_told_so(ledger: Ledger, queue: MemoryQueue, delivered: list[int]) -> None:
    """Sources and destinations are recounted to what the counters say, and the destination holds its rows."""
    of_app = delivered[2]
    found = audit(ledger, queue, {"lake": holds(delivered, lambda seq: "app" if seq == of_app else "web")})
    assert found.is_balanced
    assert [line.recounted for line in found.sources] == [
        SourceCounts("app", accepted=2, new=1, test=1),
        SourceCounts("web", accepted=8, new=5, duplicate=1, conflict=1, blocked=1),
    ]
    (lake,) = found.destinations
    assert (lake.routed, lake.delivered, lake.dead, lake.pending) == (5, 4, 0, 1)
    assert lake.held == (HeldCount("app", 1, 1), HeldCount("web", 3, 3))


def test_an_empty_ledger_balances(ledger: Ledger, queue: MemoryQueue) -> None:
    """Nothing received is nothing missing."""
    ledger.register_destination("lake")
    found = audit(ledger, queue, {"lake": holds([])})
    assert found.is_balanced
    assert found.sources == ()


def test_windows_change_nothing(
    ledger: Ledger, queue: MemoryQueue, delivered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A destination that is asked group by group gives the same answer."""
    whole = audit(ledger, queue, {"lake": holds(delivered)})
    monkeypatch.setattr(audit_module, "WINDOW_ROWS", 1)
    assert audit(ledger, queue, {"lake": holds(delivered)}) == whole


def test_a_row_that_a_destination_lost_is_named(ledger: Ledger, queue: MemoryQueue, delivered: list[int]) -> None:
    """A delivered row that the destination does not hold is a difference, with its position."""
    found = audit(ledger, queue, {"lake": holds(delivered[:-1])})
    assert not found.is_balanced
    frame = queue.frames[ONE][1]
    assert found.differences == (Difference(DifferenceKind.ROW_MISSING, 2, RowPosition(frame.position, 0), "lake"),)
    assert (found.destinations[0].missing, found.destinations[0].surplus) == (1, 0)


def test_a_row_that_a_destination_holds_twice_is_named(
    ledger: Ledger, queue: MemoryQueue, delivered: list[int]
) -> None:
    """A row that is there twice, and one that was never handed over, are differences."""
    duplicate = delivered[0] + 1
    found = audit(ledger, queue, {"lake": holds([*delivered, delivered[0], duplicate])})
    assert not found.is_balanced
    assert differences(found) == [(DifferenceKind.ROW_SURPLUS, 1)] * 2
    assert found.destinations[0].surplus == 2


def test_a_destination_that_is_down_is_told(ledger: Ledger, queue: MemoryQueue, delivered: list[int]) -> None:
    """When a destination can't be asked, its line says so and does not balance."""

    def down(first_seq: int, last_seq: int) -> Iterator[HeldRows]:
        raise DestinationDown("unreachable")

    found = audit(ledger, queue, {"lake": down})
    assert not found.is_balanced
    assert found.destinations[0].failure == "unreachable"
    assert audit(ledger, queue, {"lake": lambda first, last: None}).is_balanced


def test_a_settled_frame_that_is_gone_is_named(ledger: Ledger, queue: MemoryQueue, delivered: list[int]) -> None:
    """A frame that a group names and nobody can read is a difference, until it is known as damaged."""
    frame = queue.frames[ONE][0]
    queue.damaged.add(frame.position)
    found = audit(ledger, queue, {"lake": holds(delivered)})
    assert found.differences == (Difference(DifferenceKind.FRAME_UNREADABLE, 1, frame.position),)
    assert all(line.is_balanced for line in found.sources)
    ledger.record_delivery(
        "lake", first_group=3, last_group=3, delivered_rows=1, damages=[DamageRecord(frame.position, 8, "bad_bytes")],
        commit="v2", at_ms=6,
    )  # fmt: skip
    found = audit(ledger, queue, {"lake": holds([*delivered, seq_of(3, 0)])})
    assert (found.is_balanced, found.damaged_frames) == (True, 1)


def test_damage_before_settling_stands_beside_the_equations(ledger: Ledger, queue: MemoryQueue) -> None:
    """What settle passed over is counted as damaged, and the books balance."""
    queue.append(ONE, "web", [Row("a")])
    queue.damaged.add(queue.append(ONE, "web", [Row("b")]).position)
    queue.append(ONE, "web", [Row("c")])
    Settler(queue, ledger, PipelineSettings(), lambda: 1000).step()
    found = audit(ledger, queue)
    assert (found.is_balanced, found.damaged_frames) == (True, 1)


def test_a_frame_that_settle_passed_over_is_named(ledger: Ledger, queue: MemoryQueue, delivered: list[int]) -> None:
    """A durable frame before the reading position that is in no group is a difference, wherever it lies."""
    first = queue.frames[ONE][0].position
    earlier = FramePosition(first.directory, first.segment, first.offset - 8)
    queue.frames[ONE].insert(0, msgspec.structs.replace(queue.frames[ONE][0], position=earlier))
    last = queue.frames[TWO][0]
    later = FramePosition(TWO, last.position.segment, last.position.offset + 8)
    queue.frames[TWO].append(msgspec.structs.replace(last, position=later))
    found = audit(ledger, queue, {"lake": holds(delivered)})
    assert {(each.kind, each.position) for each in found.differences} == {
        (DifferenceKind.FRAME_UNSETTLED, earlier),
        (DifferenceKind.FRAME_UNSETTLED, later),
    }
    assert not any(line.is_balanced for line in found.sources)


def test_what_waits_for_settle_is_no_difference(ledger: Ledger, queue: MemoryQueue, delivered: list[int]) -> None:
    """Frames after the reading position are not part of the books yet."""
    queue.append(TWO, "app", [Row("z")])
    assert audit(ledger, queue, {"lake": holds(delivered)}).is_balanced


def tamper(ledger: Ledger, family: str, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
    """Change a record behind the ledger's back."""
    store = ledger._store
    assert isinstance(store, Store)
    batch = store.batch()
    name = GROUPS if family == "groups" else FACTS
    changed = change(store.get(name, key) or b"")
    if changed is None:
        batch.delete(name, key)
    else:
        batch.put(name, key, changed)
    store.write(batch)
    ledger._load()


def test_a_counter_that_is_wrong_is_found(ledger: Ledger, queue: MemoryQueue, delivered: list[int]) -> None:
    """The recount does not come from the counters: one that was changed shows."""
    tamper(ledger, "facts", b"source/web", lambda packed: packed[:7] + b"\x09" + packed[8:])
    found = audit(ledger, queue, {"lake": holds(delivered)})
    assert not found.is_balanced
    assert [line.is_balanced for line in found.sources] == [True, False]


def test_a_verdict_that_is_wrong_is_found(ledger: Ledger, queue: MemoryQueue, delivered: list[int]) -> None:
    """A group whose verdicts were changed is named, and its source does not balance."""
    tamper(ledger, "groups", (2).to_bytes(8, "big"), lambda packed: packed[:-3] + b"\x04" + packed[-2:])
    found = audit(ledger, queue, {"lake": holds(delivered)})
    assert (DifferenceKind.ROUTED_DIFFERS, 2) in differences(found)
    assert [line.is_balanced for line in found.sources] == [True, False]


def test_a_group_that_is_missing_is_named(ledger: Ledger, queue: MemoryQueue, delivered: list[int]) -> None:
    """A hole in the sequence is a difference, and so are the frames that nobody names then."""
    tamper(ledger, "groups", (2).to_bytes(8, "big"), lambda packed: None)
    found = audit(ledger, queue, {"lake": holds(delivered)})
    assert {(DifferenceKind.GROUP_MISSING, 2), (DifferenceKind.FRAME_UNSETTLED, None)} <= set(differences(found))


def test_a_delivery_of_too_few_rows_is_named(ledger: Ledger, queue: MemoryQueue, delivered: list[int]) -> None:
    """A delivery whose rows are not those of its groups is a difference."""
    ledger.record_delivery("lake", first_group=3, last_group=3, delivered_rows=0, commit="v2", at_ms=6)
    found = audit(ledger, queue)
    assert found.differences == (Difference(DifferenceKind.DELIVERY_DIFFERS, 3, None, "lake"),)
    assert not found.destinations[0].is_balanced


def test_dead_rows_are_not_expected_at_the_destination(
    ledger: Ledger, queue: MemoryQueue, delivered: list[int]
) -> None:
    """A dead row counts as dead, and the destination does not have to hold it."""
    dead = DeadRow(seq_of(3, 0), "damaged")
    ledger.record_delivery("lake", first_group=3, last_group=3, delivered_rows=0, dead=[dead], commit="", at_ms=6)
    found = audit(ledger, queue, {"lake": holds(delivered)})
    assert found.is_balanced
    assert (found.destinations[0].dead, found.destinations[0].pending) == (1, 0)
