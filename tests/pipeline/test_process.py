from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from counterfoil.errors import LedgerWriteFailed
from counterfoil.pipeline import process
from counterfoil.pipeline.process import Pipeline

WAIT_SECONDS = 120


class Deliverer:
    """A destination that does what a test asks each time it is run."""

    def __init__(self, name: str, run: Callable[[threading.Event], None]) -> None:
        self.name = name
        self.runs = 0
        self.woken = 0
        self.run_again = threading.Event()
        self._run = run

    def run(self, stop: threading.Event) -> None:
        self.runs += 1
        if self.runs > 1:
            self.run_again.set()
        self._run(stop)

    def wake(self) -> None:
        self.woken += 1


def wait_for_stop(stop: threading.Event) -> None:
    stop.wait(WAIT_SECONDS)


def fail(_: threading.Event) -> None:
    raise ValueError("text that quotes a row")


def test_settle_wakes_the_destinations_after_each_group() -> None:
    """Each group that was settled wakes the destinations, and a step without one waits."""
    rows = iter([3, 5, 0])
    lake = Deliverer("lake", wait_for_stop)
    pipeline = Pipeline(lambda: next(rows, None) or finish(), (lake,), poll_seconds=0.001)

    def finish() -> int:
        pipeline.stop()
        return 0

    assert pipeline.run()
    # Twice by groups, and at the stop, so that nobody sleeps through it.
    assert lake.woken >= 3


def test_stop_before_the_start_is_harmless() -> None:
    """A pipeline that is stopped before it runs ends at once, with its destinations."""
    pipeline = Pipeline(lambda: 0, (Deliverer("lake", wait_for_stop),), poll_seconds=3600)
    pipeline.stop()
    pipeline.stop()
    assert pipeline.run()


def test_a_failing_destination_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody understood ends one destination's attempt, which is made again; the others go on."""
    monkeypatch.setattr(process, "AGAIN_SECONDS", 0.0)
    failing, good = Deliverer("failing", fail), Deliverer("good", wait_for_stop)

    def settle_until_it_was_tried_again() -> int:
        failing.run_again.wait(WAIT_SECONDS)
        pipeline.stop()
        return 0

    pipeline = Pipeline(settle_until_it_was_tried_again, (failing, good), poll_seconds=0.001)
    assert pipeline.run()
    assert failing.runs > 1
    assert good.runs == 1


def test_an_error_of_settle_ends_the_process() -> None:
    """What settle raises is raised, after the destinations have come to their end."""

    def settle() -> int:
        raise LedgerWriteFailed

    pipeline = Pipeline(settle, (Deliverer("lake", wait_for_stop),), poll_seconds=0.001)
    with pytest.raises(LedgerWriteFailed):
        pipeline.run()


def test_a_failed_ledger_write_of_a_destination_ends_the_process() -> None:
    """A ledger that failed one destination is opened anew, because it takes nothing more from anybody."""

    def write(_: threading.Event) -> None:
        raise LedgerWriteFailed

    pipeline = Pipeline(lambda: 0, (Deliverer("lake", write),), poll_seconds=0.001)
    with pytest.raises(LedgerWriteFailed):
        pipeline.run()


def test_a_destination_that_does_not_stop_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A destination that is stuck in its step holds the stop up for a while, not for good."""
    monkeypatch.setattr(process, "STOP_SECONDS", 0.01)
    begun, release = threading.Event(), threading.Event()

    def hold(_: threading.Event) -> None:
        begun.set()
        release.wait(WAIT_SECONDS)

    def settle_until_it_is_stuck() -> int:
        begun.wait(WAIT_SECONDS)
        pipeline.stop()
        return 0

    pipeline = Pipeline(settle_until_it_is_stuck, (Deliverer("stuck", hold),), poll_seconds=0.001)
    assert not pipeline.run()
    release.set()
