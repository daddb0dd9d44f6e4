"""Retention: what every destination has passed and was kept long enough goes, groups first and then segments.

`plan_retention` decides, `Retention` carries it out, a bounded step at a time, on a thread of its own beside settle:

    1. The oldest groups go, in the one batch in which their counts join the balances carried forward.
    2. Segments that no kept group names, and that settle has passed, are removed, each directory's oldest first.

Whatever dies in between: a group that is kept never names a segment that is gone, and segments without groups are
found and removed by the next round, which is the first thing a new life does. A destination that is no longer in the
configuration holds nothing; what it had not taken is counted as skipped, and told when it comes back.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import structlog

from counterfoil.failpoints import reach
from counterfoil.ledger import AgeMark, Ledger, LedgerReader
from counterfoil.pipeline.settle import TEND_SECONDS
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue import SegmentShelf

ROUND_SECONDS = 10.0
"""How often it is looked whether something may go."""

PAUSE_SECONDS = 0.02
"""Between two steps of a round, so that settle is not held up."""

GROUPS_A_STEP = 32
"""Groups that go in one batch at most: some MiB of verdicts are read and counted for it."""

SEGMENTS_A_STEP = 16

AGE_SLACK_MS = 2 * int(TEND_SECONDS) * 1000
"""How far the observed time may lag behind when a group is settled: it is written once in TEND_SECONDS."""

MARKS_A_RETENTION = 100
"""Age is marked so often within the retention: groups stay that much longer, at most."""

MS_A_DAY = 86_400_000

log = structlog.get_logger()


class RetentionFacts(msgspec.Struct, frozen=True):
    """What is kept, and who may still need it."""

    retention_ms: int
    observed_ms: int
    """How long the ledger was observed running."""
    marks: Sequence[AgeMark]
    """How old the kept groups are, oldest first."""
    last_gone: int
    """The last group that is gone already."""
    cursors: Sequence[int]
    """The last group that is delivered, of each destination that is set."""
    reading: Mapping[DirectoryId, FramePosition]
    """Where settle goes on reading."""
    last_group_of: Mapping[tuple[DirectoryId, SegmentNumber], int]
    """For each segment that a group names, the last that does."""
    segments: Mapping[DirectoryId, Sequence[SegmentNumber]]
    """What lies there, oldest first."""


class RetentionPlan(msgspec.Struct, frozen=True):
    """What may go."""

    last_group: int
    """The last group that goes; the last that is gone already when none does."""
    segments: tuple[tuple[DirectoryId, SegmentNumber], ...]
    """Segments that no group names after that, each directory's oldest first."""


def plan_retention(facts: RetentionFacts) -> RetentionPlan:
    """What goes: all that every destination has passed and that is older than the retention."""
    age_ms = facts.retention_ms + min(facts.retention_ms, AGE_SLACK_MS)
    over = [mark.group for mark in facts.marks if facts.observed_ms - mark.observed_ms >= age_ms]
    last_group = max(min([max(over, default=0), *facts.cursors]), facts.last_gone)
    return RetentionPlan(
        last_group,
        tuple(
            (directory, number)
            for directory, numbers in facts.segments.items()
            for number in _free_segments(facts, directory, numbers, last_group)
        ),
    )


def _free_segments(
    facts: RetentionFacts, directory: DirectoryId, numbers: Sequence[SegmentNumber], last_group: int
) -> Iterable[SegmentNumber]:
    reading = facts.reading.get(directory)
    # The newest stays whatever it holds: the next number is counted from it.
    for number in numbers[:-1]:
        is_settled = reading is not None and number < reading.segment
        if not is_settled or facts.last_group_of.get((directory, number), 0) > last_group:
            # Only a directory's oldest may go: a gap further on is how a reader knows that a segment was lost.
            return
        yield number


class Retention:
    """Removes what may go; `run` is its thread's work."""

    name = "retention"

    def __init__(
        self,
        ledger: Ledger,
        shelf: SegmentShelf,
        destinations: Iterable[str],
        retention_days: float,
        gate: threading.Lock | None = None,
    ) -> None:
        """`destinations`: the names of those that are set; each is registered in the ledger.

        Nothing is removed while somebody else holds the `gate`.
        """
        self._ledger = ledger
        self._shelf = shelf
        self._destinations = tuple(destinations)
        self._retention_ms = int(retention_days * MS_A_DAY)
        self._gate = gate or threading.Lock()

    def wake(self) -> None:
        """`run` looks for itself whether it is to stop."""

    def run(self, stop: threading.Event) -> None:
        """Remove what may go until `stop` is set. Raises LedgerWriteFailed, LedgerUnusable."""
        while not stop.is_set():
            is_more = self.step()
            stop.wait(PAUSE_SECONDS if is_more else ROUND_SECONDS)

    def step(self) -> bool:
        """Remove a part of what may go; whether there is more. Raises LedgerWriteFailed, LedgerUnusable."""
        self._ledger.mark_age(self._retention_ms // MARKS_A_RETENTION)
        if not self._gate.acquire(blocking=False):
            return False
        try:
            return self._remove_some()
        finally:
            self._gate.release()

    def _remove_some(self) -> bool:
        facts = self._facts()
        plan = plan_retention(facts)
        last_group = min(plan.last_group, facts.last_gone + GROUPS_A_STEP)
        if last_group > facts.last_gone:
            reach("retention.before_groups")
            self._ledger.remove_groups(last_group)
            reach("retention.after_groups")
        if last_group < plan.last_group:
            return True
        removed = self._remove(plan.segments[:SEGMENTS_A_STEP])
        if removed or last_group > facts.last_gone:
            log.info("retention.removed", last_group=last_group, segment_count=removed)
        return 0 < removed < len(plan.segments)

    def _facts(self) -> RetentionFacts:
        # The queue first: a segment that is begun after this is not among those that may go.
        segments = {directory: self._shelf.segment_numbers(directory) for directory in self._shelf.directories()}
        return RetentionFacts(
            retention_ms=self._retention_ms,
            observed_ms=self._ledger.observed_ms(),
            marks=self._ledger.age_marks(),
            last_gone=self._ledger.carried().last_group,
            cursors=[self._ledger.cursor(name) for name in self._destinations],
            reading=self._ledger.reading_positions(),
            last_group_of=self._ledger.last_group_of(),
            segments=segments,
        )

    def _remove(self, segments: Iterable[tuple[DirectoryId, SegmentNumber]]) -> int:
        """How many could be removed; those after one that could not must wait for it."""
        removed = 0
        failed: set[DirectoryId] = set()
        named = self._ledger.last_group_of()
        for directory, number in segments:
            if (directory, number) in named:
                # A row of it was sent again since the plan was made.
                failed.add(directory)
            if directory in failed:
                continue
            try:
                self._shelf.remove_oldest(directory, number)
            except OSError as problem:
                failed.add(directory)
                log.error(
                    "retention.segment_not_removed", directory=directory.hex(), segment=number,
                    cause=errno.errorcode.get(problem.errno or 0, "OSError"),
                )  # fmt: skip
            else:
                removed += 1
                reach("retention.between_segments")
        return removed


def tell_unset(ledger: LedgerReader, names: Iterable[str]) -> None:
    """Log which destinations hold nothing because they are not set, and which came back after rows of theirs went."""
    is_set = set(names)
    for counts in ledger.books().destinations:
        name = counts.destination
        if name not in is_set and counts.pending:
            log.warning("retention.destination_not_set", destination=name, row_count=counts.pending)
        elif name in is_set and ledger.is_gone(counts.cursor + 1):
            log.error("deliver.rows_skipped", destination=name, row_count=counts.skipped)
