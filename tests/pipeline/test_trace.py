"""The trace says of every row of a distinctId what became of it."""

from __future__ import annotations

import pytest

import counterfoil.pipeline.trace as trace_module
from counterfoil.contract.facts import RowFlag, Verdict
from counterfoil.ledger import DeadRow, Ledger, seq_of
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.pipeline.trace import DeliveryState, TracedDelivery, trace
from counterfoil.positions import DirectoryId, RowPosition
from tests.pipeline.frames import MemoryQueue, Row

ONE = DirectoryId(b"writer-1")


def settle(queue: MemoryQueue, ledger: Ledger, now_ms: int = 1000) -> None:
    settler = Settler(queue, ledger, PipelineSettings(), lambda: now_ms)
    while settler.step():
        pass


def test_an_unknown_id_has_no_rows(ledger: Ledger, queue: MemoryQueue) -> None:
    """Of what was never sent nothing is told."""
    queue.append(ONE, "web", [Row("a")])
    settle(queue, ledger)
    found = trace(ledger, queue, ["web", "app"], "b")
    assert (found.rows, found.is_whole) == ((), True)
    assert trace(ledger, queue, ["app"], "a").rows == ()


def test_a_row_and_its_repeats_are_told_in_order(ledger: Ledger, queue: MemoryQueue) -> None:
    """Received when, by which request, with which verdict: the first row and everything that came after it."""
    queue.append(ONE, "web", [Row("a", flags=RowFlag.BLOCKED)], received_at_ms=10, request_id=b"r" * 16)
    first = queue.append(ONE, "web", [Row("b"), Row("a", 1)], received_at_ms=20)
    settle(queue, ledger, now_ms=100)
    queue.append(ONE, "web", [Row("a", 1), Row("a", 2)], received_at_ms=30)
    settle(queue, ledger, now_ms=200)
    rows = trace(ledger, queue, ["web"], "a").rows
    assert [row.verdict for row in rows] == [Verdict.BLOCKED, Verdict.NEW, Verdict.DUPLICATE, Verdict.CONFLICT]
    assert [row.received_at_ms for row in rows] == [10, 20, 30, 30]
    assert [row.settled_at_ms for row in rows] == [100, 100, 200, 200]
    assert rows[0].request_id == b"r" * 16
    assert (rows[1].position, rows[1].seq) == (RowPosition(first.position, 1), seq_of(1, 2))


def test_a_row_that_waits_for_settle_is_found(ledger: Ledger, queue: MemoryQueue) -> None:
    """What is durable and not settled yet is told as waiting, beside what is settled."""
    queue.append(ONE, "web", [Row("a")])
    settle(queue, ledger)
    waiting = queue.append(ONE, "web", [Row("b"), Row("a", flags=RowFlag.TEST)], received_at_ms=7)
    settled, found = trace(ledger, queue, ["web", "app"], "a").rows
    assert settled.verdict is Verdict.NEW
    assert (found.verdict, found.is_test, found.received_at_ms) == (None, True, 7)
    assert found.position == RowPosition(waiting.position, 1)


def test_each_destination_is_told(ledger: Ledger, queue: MemoryQueue) -> None:
    """Delivered in which commit, pending behind how many, dead and why, not meant for it, or too early for it."""
    for name in ("lake", "hook", "table", "other"):
        ledger.register_destination(name)
    queue.append(ONE, "web", [Row("x"), Row("a", destinations=("hook", "lake", "late", "table"))])
    settle(queue, ledger)
    ledger.register_destination("late")
    ledger.record_delivery("lake", first_group=1, last_group=1, delivered_rows=2, commit="v4", at_ms=55)
    dead = DeadRow(seq_of(1, 1), "damaged")
    ledger.record_delivery("table", first_group=1, last_group=1, delivered_rows=1, dead=[dead], commit="", at_ms=66)
    (row,) = trace(ledger, queue, ["web"], "a").rows
    assert {each.destination: each for each in row.deliveries} == {
        "lake": TracedDelivery("lake", DeliveryState.DELIVERED, commit="v4", at_ms=55),
        "hook": TracedDelivery("hook", DeliveryState.PENDING, behind_rows=1),
        "table": TracedDelivery("table", DeliveryState.DEAD, at_ms=66, reason="damaged"),
        "other": TracedDelivery("other", DeliveryState.NOT_MEANT),
        "late": TracedDelivery("late", DeliveryState.TOO_EARLY),
    }


def test_a_row_is_pending_behind_the_groups_before_it(ledger: Ledger, queue: MemoryQueue) -> None:
    """The rows of undelivered groups before its own count, for this destination alone."""
    ledger.register_destination("lake")
    queue.append(ONE, "web", [Row("x"), Row("y", destinations=("hook",)), Row("z")])
    settle(queue, ledger)
    queue.append(ONE, "web", [Row("v"), Row("a")])
    settle(queue, ledger)
    (row,) = trace(ledger, queue, ["web"], "a").rows
    assert row.deliveries == (TracedDelivery("lake", DeliveryState.PENDING, behind_rows=3),)


def test_a_row_whose_frame_is_damaged_is_still_known(ledger: Ledger, queue: MemoryQueue) -> None:
    """Verdict and deliveries come from the ledger; what only the frame knew is told as unknown."""
    ledger.register_destination("lake")
    frame = queue.append(ONE, "web", [Row("a")])
    settle(queue, ledger)
    ledger.record_delivery("lake", first_group=1, last_group=1, delivered_rows=1, commit="v1", at_ms=5)
    queue.damaged.add(frame.position)
    (row,) = trace(ledger, queue, ["web"], "a").rows
    assert (row.verdict, row.received_at_ms, row.request_id) == (Verdict.NEW, None, None)
    assert row.deliveries == (TracedDelivery("lake", DeliveryState.DELIVERED, commit="v1", at_ms=5),)


def test_what_is_before_a_row_is_not_counted_over_very_many_groups(
    ledger: Ledger, queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row that is pending behind very many groups all that is pending is told, at once; near ones are counted."""
    monkeypatch.setattr(trace_module, "COUNTED_GROUPS_MAX", 2)
    ledger.register_destination("lake")
    settler = Settler(queue, ledger, PipelineSettings(), lambda: 1_000)
    for name in ("a", "b", "c", "d"):
        queue.append(ONE, "web", [Row(name), Row(f"{name}2")])
        assert settler.step() == 2
    behind = [trace(ledger, queue, ["web"], name).rows[0].deliveries[0].behind_rows for name in ("a2", "b", "c", "d")]
    assert behind == [1, 2, 7, 7]
