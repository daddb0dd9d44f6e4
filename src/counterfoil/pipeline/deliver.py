"""Deliver: hands the new rows of settled groups to one destination, at its own pace.

One thread a destination, so that one that fails delays itself alone. Round and round:

    1. Groups after the cursor are gathered, with the rows that are for this destination, until there are enough rows
       or bytes or the first row has waited long enough. Nothing else is in memory, whatever the backlog.
    2. The destination takes it as one delivery.
    3. Only then the ledger's copy of the cursor moves, with what became of the rows.

Whatever dies between 2 and 3: the destination's own cursor is the truth (design, section 4). When it is opened it says
what it holds; what the ledger missed is recorded, and a destination that holds less than the ledger knows, more than
was ever settled, or other rows, is another one than it was, and is left alone until somebody acts.

After a failure what was gathered is let go, the destination is closed, and after a pause opened anew: nothing is held
in memory through an outage, and what really happened is asked, not remembered. The first delivery after it is the
smallest there is, one group with rows: a destination that is only half up is not handed a full batch again and again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec
import structlog

from counterfoil.destinations.interface import DeliveredRow, Delivery, Destination, Receipt, RefusedRow
from counterfoil.destinations.settings import DeliverySettings
from counterfoil.errors import DestinationDown, DestinationRefused
from counterfoil.failpoints import reach
from counterfoil.ledger import ErasedThere, Erasure, ErasureState, Ledger
from counterfoil.pipeline.handover import Handed, Handover
from counterfoil.pipeline.resemblance import strange_group
from counterfoil.queue import FrameSource

GROUPS_AT_ONCE = 16
EMPTY_GROUPS_MAX = 1000
EMPTY_SECONDS = 30.0
"""Groups that hold nothing for a destination move its cursor when they are so many, or after this time."""

IDLE_SECONDS = 1.0
"""How often groups are looked for when nobody wakes us."""

TEND_STEPS = 2
"""Steps of upkeep after each delivery, while others wait: enough to keep up, short enough not to be felt."""

BACKOFF_SECONDS_MIN = 0.2
BACKOFF_SECONDS_MAX = 60.0
REFUSED_SECONDS = 60.0

_OR_REBUILD = "or stop the server and call `counterfoil rebuild --anyway`"
_OLDER_THAN_IT = f"the data directory is older than it: bring back the newer one, {_OR_REBUILD}"

log = structlog.get_logger()


class DeliveryStatus(StrEnum):
    """How it goes with a destination."""

    STARTING = "starting"
    RUNNING = "running"
    DOWN = "down"
    """It can't be reached or is busy, and is tried again."""
    REFUSED = "refused"
    """Somebody must act; it is tried again at leisure."""
    STOPPED = "stopped"


class DeliveryState(msgspec.Struct, frozen=True):
    """How it goes with a destination, for whoever shows it."""

    status: DeliveryStatus
    reason: str = ""
    """Of being down or refused, in our own words."""
    since_ms: int = 0
    failure_count: int = 0
    """Failures since the last delivery."""


class DeliveryObserver(Protocol):
    """Who counts deliveries."""

    def committed(self, destination: str, seconds: float) -> None:
        """A destination took a delivery."""
        ...

    def not_committed(self, destination: str, *, is_refused: bool) -> None:
        """A destination was down, or refused."""
        ...


class Deliverer:
    """Delivers to one destination; `run` is its thread's work, everything else may be called from any thread."""

    def __init__(
        self,
        destination: Destination,
        ledger: Ledger,
        source: FrameSource,
        settings: DeliverySettings,
        *,
        clock_ms: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        observer: DeliveryObserver | None = None,
        on_state: Callable[[DeliveryState], None] = lambda _: None,
        look_for_room: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_state` is called from the thread of `run`, whenever it goes otherwise than before.

        `look_for_room` raises DestinationDown when there is no room for a delivery.
        """
        self.name = destination.name
        self.state = DeliveryState(DeliveryStatus.STARTING, since_ms=clock_ms())
        self._destination = destination
        self._ledger = ledger
        self._source = source
        self._settings = settings
        self._clock_ms = clock_ms
        self._monotonic = monotonic
        self._jitter = jitter
        self._observer = observer
        self._on_state = on_state
        self._look_for_room = look_for_room
        self._woken = threading.Event()
        self._failure_count = 0
        self._erase_again_at = 0.0
        self._handover = Handover(destination.name, ledger, source)
        self._gathered = _Gathered()

    def wake(self) -> None:
        """Say that there is a new group, or that `run` is to stop."""
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set and `wake` called; a delivery that is under way is finished.

        Raises LedgerWriteFailed and LedgerUnusable; of what the destination can cause, nothing.
        """
        while not stop.is_set():
            try:
                self.open()
                while not self._is_stopped(stop):
                    self.step()
            except (DestinationDown, DestinationRefused) as error:
                self._pause(error, stop)
            finally:
                self._destination.close()
        self._show(DeliveryStatus.STOPPED)

    def _is_stopped(self, stop: threading.Event) -> bool:
        # Cleared before anything is looked at: what happens after that is seen, or ends the next wait at once.
        self._woken.clear()
        return stop.is_set()

    def open(self) -> None:
        """Open the destination and bring the ledger's copy of its cursor up to it.

        Raises DestinationDown, or DestinationRefused also when its cursor is none of this ledger's making.
        """
        self._gathered = _Gathered()
        receipt = self._destination.open()
        if self._destination.keeps_cursor:
            self._reconcile(receipt)
        self._gathered.last_group = self._ledger.cursor(self.name)
        self._show(DeliveryStatus.RUNNING)

    def step(self) -> None:
        """Gather, deliver when it is time, tend, or wait for what comes first. Raises as `Destination.deliver` does.

        Where a person's rows are to be erased, that comes first.
        """
        if self._erase():
            return
        is_full, is_all = self._gather()
        now = self._monotonic()
        if is_full or self._gathered.is_due(now, self._settings.batch_seconds):
            self._deliver()
            for _ in range(TEND_STEPS):
                if not self._destination.tend():
                    break
        elif is_all and not self._destination.tend():
            self._woken.wait(self._gathered.seconds_left(now, self._settings.batch_seconds))

    # Gathering

    def _gather(self) -> tuple[bool, bool]:
        """Gather up to GROUPS_AT_ONCE more groups: whether there is no more room, and whether these were all.

        After a failure there is room for one group with rows. Where an erasure waits for this destination, later rows
        wait for it too.
        """
        gathered, settings = self._gathered, self._settings
        is_probing = self._failure_count > 0
        groups = self._ledger.groups(gathered.last_group, GROUPS_AT_ONCE)
        # After the groups: one that is settled after a cut is never read without it.
        cut = self._ledger.held_after(self.name)
        for group in groups:
            row_count = group.routed_to(self.name)
            frame_bytes = group.frame_bytes if row_count else 0
            if cut is not None and group.number > cut:
                return False, True
            if gathered.first_group and (
                len(gathered.rows) + row_count > settings.batch_rows
                or gathered.frame_bytes + frame_bytes > settings.batch_bytes
                or gathered.group_count >= EMPTY_GROUPS_MAX
            ):
                return True, False
            handed = self._handover.rows_of(group) if row_count else Handed()
            gathered.add(group.number, handed, frame_bytes, self._monotonic())
            if is_probing and row_count:
                return True, False
        is_full = len(gathered.rows) >= settings.batch_rows or gathered.frame_bytes >= settings.batch_bytes
        return is_full, len(groups) < GROUPS_AT_ONCE

    # Delivering

    def _deliver(self) -> None:
        gathered, self._gathered = self._gathered, _Gathered()
        self._look_for_room()
        reach("deliver.before")
        began = self._monotonic()
        receipt = self._destination.deliver(Delivery(gathered.first_group, gathered.last_group, gathered.rows))
        took_seconds = self._monotonic() - began
        reach("deliver.before_cursor")
        self._record(
            gathered.first_group, receipt, [*gathered.dead, *receipt.dead], gathered.erased_rows, gathered.rows
        )
        reach("deliver.after_cursor")
        self._gathered.last_group = receipt.last_group
        self._failure_count = 0
        if self._observer is not None:
            self._observer.committed(self.name, took_seconds)
        log.debug(
            "deliver.committed", destination=self.name, commit=receipt.commit, last_group=receipt.last_group,
            row_count=receipt.row_count, dead_count=len(gathered.dead) + len(receipt.dead), seconds=took_seconds,
        )  # fmt: skip

    def _record(
        self,
        first_group: int,
        receipt: Receipt,
        dead: Sequence[RefusedRow],
        erased_rows: int,
        handed: Sequence[DeliveredRow],
    ) -> None:
        self._ledger.record_delivery(
            self.name,
            first_group=first_group,
            last_group=receipt.last_group,
            delivered_rows=receipt.row_count,
            dead=self._handover.dead_rows(dead),
            damages=self._handover.damages_of(dead),
            commit=receipt.commit,
            at_ms=self._clock_ms(),
            erased_rows=erased_rows,
            handed=(row.seq for row in handed),
        )

    # Erasing

    def _erase(self) -> bool:
        """Have the destination remove the rows of whoever is to be erased; whether there was anybody.

        Raises DestinationDown, and DestinationRefused where later rows may not go before: see `Erasure.holds`.
        """
        waiting = [one for one in self._ledger.open_erasures(self.name) if self._may_try(one)]
        for erasure in waiting:
            # What was gathered may hold rows of theirs.
            self._gathered = _Gathered()
            self._gathered.last_group = self._ledger.cursor(self.name)
            assert erasure.subject is not None
            try:
                held = self._destination.seqs_of(erasure.subject)
                if held is not None:
                    self._ledger.book_held(erasure.id, self.name, held)
                reach("erase.before_destination")
                self._destination.erase(erasure.subject)
            except DestinationRefused as refused:
                if self._destination.keeps_cursor:
                    raise
                # A receiver that does not know the message goes on being delivered to: it is told later, perhaps.
                self._erase_again_at = self._monotonic() + REFUSED_SECONDS
                self._note(erasure, ErasureState.REFUSED, None, str(refused))
                log.error("erase.refused", destination=self.name, erasure=str(erasure.id), reason=str(refused))
                continue
            reach("erase.after_destination")
            row_count = None if held is None else max(len(held), erasure.rows_at(self.name))
            self._note(erasure, ErasureState.DONE, row_count)
            log.info("erase.done", destination=self.name, erasure=str(erasure.id), row_count=row_count)
        return bool(waiting)

    def erase_once(self) -> None:
        """Open the destination, have it remove what is to be erased, and close it; what stops it is noted."""
        try:
            self.open()
            self._erase()
        except (DestinationDown, DestinationRefused) as error:
            self._note_waiting(str(error))
        finally:
            self._destination.close()

    def _may_try(self, erasure: Erasure) -> bool:
        is_refused = erasure.destinations[self.name].state is ErasureState.REFUSED
        return not is_refused or self._monotonic() >= self._erase_again_at

    def _note(self, erasure: Erasure, state: ErasureState, row_count: int | None, reason: str = "") -> None:
        there = ErasedThere(state, row_count, reason)

        def change(one: Erasure) -> Erasure:
            # It may be given up since: what was done counts all the same, what was not is nobody's business any more.
            return one.at(self.name, there) if state is ErasureState.DONE or one.is_open_at(self.name) else one

        if erasure.destinations[self.name] != there:
            self._ledger.change_erasure(erasure.id, change)

    def _note_waiting(self, reason: str) -> None:
        for erasure in self._ledger.open_erasures(self.name):
            there = erasure.destinations[self.name]
            self._note(erasure, there.state, there.row_count, reason)

    # After a crash

    def _reconcile(self, receipt: Receipt | None) -> None:
        copy = self._ledger.cursor(self.name)
        match compare_cursors(
            held=receipt.last_group if receipt else None,
            copy=copy,
            start=self._start_group(),
            last_settled=self._ledger.last_group(),
        ):
            case CursorCheck.BEHIND:
                held = receipt.last_group if receipt else 0
                raise DestinationRefused(
                    f"{self.name}: it holds group {held} and before, but group {copy} was delivered: something else or "
                    f"older stands there: bring back what was there, {_OR_REBUILD}, or begin anew under another name"
                )
            case CursorCheck.UNKNOWN:
                assert receipt is not None
                raise DestinationRefused(
                    f"{self.name}: it holds group {receipt.last_group}, but {self._ledger.last_group()} is the last "
                    f"that was settled: {_OLDER_THAN_IT}"
                )
            case CursorCheck.AHEAD:
                assert receipt is not None
                self._refuse_strange_rows(copy + 1, receipt)
                self._catch_up(copy + 1, receipt)

    def _refuse_strange_rows(self, first_group: int, receipt: Receipt) -> None:
        strange = strange_group(
            self._destination,
            self._ledger,
            self._handover,
            first_group=first_group,
            last_group=receipt.last_group,
            dead={row.seq for row in receipt.dead},
        )
        if strange is not None:
            raise DestinationRefused(
                f"{self.name}: it holds other rows of group {strange} than were settled: {_OLDER_THAN_IT}"
            )

    def _start_group(self) -> int:
        return next(each.start_group for each in self._ledger.books().destinations if each.destination == self.name)

    def _catch_up(self, first_group: int, receipt: Receipt) -> None:
        """Record what the destination holds and the ledger does not know: a crash came between commit and cursor."""
        routed = erased_rows = 0
        rows: list[DeliveredRow] = []
        dead = [row for row in receipt.dead if not self._ledger.is_erased(row.seq)]
        refused_count = len(dead)
        # What is gone since then, while it was not set, is counted as skipped already, though it holds it.
        number = max(first_group - 1, self._ledger.carried().last_group)
        is_whole = number == first_group - 1
        while number < receipt.last_group:
            for group in self._ledger.groups(number, min(GROUPS_AT_ONCE, receipt.last_group - number)):
                number = group.number
                if row_count := group.routed_to(self.name):
                    routed += row_count
                    handed = self._handover.rows_of(group)
                    erased_rows += handed.erased_rows
                    rows += handed.rows
                    dead += handed.dead
        # A frame may have been damaged since: its rows were delivered all the same.
        if receipt.first_group == first_group and is_whole:
            # Of those that were erased since, it may hold some and count them.
            dead_count = max(refused_count, routed - erased_rows - receipt.row_count)
        else:
            dead_count = routed - erased_rows
        dead = dead[:dead_count]
        whole = msgspec.structs.replace(receipt, row_count=routed - erased_rows - len(dead))
        self._record(first_group, whole, dead, erased_rows, rows)
        log.info("deliver.caught_up", destination=self.name, last_group=receipt.last_group, row_count=whole.row_count)

    # Failing

    def _pause(self, error: DestinationDown | DestinationRefused, stop: threading.Event) -> None:
        is_refused = isinstance(error, DestinationRefused)
        self._failure_count += 1
        if isinstance(error, DestinationDown):
            if error.has_progressed:
                # It fails now and then, between what it takes: that is not to be waited for longer and longer.
                self._failure_count = 1
            seconds = backoff_seconds(self._failure_count, self._jitter(), error.retry_after_s)
        else:
            seconds = REFUSED_SECONDS
        self._show(DeliveryStatus.REFUSED if is_refused else DeliveryStatus.DOWN, str(error))
        if self._observer is not None:
            self._observer.not_committed(self.name, is_refused=is_refused)
        self._note_waiting(str(error))
        tell = log.error if is_refused else log.warning
        tell(
            "deliver.refused" if is_refused else "deliver.down",
            destination=self.name, reason=str(error), failure_count=self._failure_count, wait_seconds=seconds,
        )  # fmt: skip
        stop.wait(seconds)

    def _show(self, status: DeliveryStatus, reason: str = "") -> None:
        self.state = DeliveryState(status, reason, self._clock_ms(), self._failure_count)
        self._on_state(self.state)


class _Gathered:
    """What is gathered for the next delivery; `last_group` also says where to gather on."""

    def __init__(self) -> None:
        self.first_group = 0
        self.last_group = 0
        self.group_count = 0
        self.rows: list[DeliveredRow] = []
        self.dead: list[RefusedRow] = []
        self.erased_rows = 0
        self.frame_bytes = 0
        self._began = 0.0
        self._first_row_at: float | None = None

    def add(self, group: int, handed: Handed, frame_bytes: int, now: float) -> None:
        """Take a group."""
        if not self.first_group:
            # Not the group's own number: those between may be gone, while this destination was not set.
            self.first_group, self._began = self.last_group + 1, now
        if self._first_row_at is None and (handed.rows or handed.dead or handed.erased_rows):
            self._first_row_at = now
        self.last_group = group
        self.group_count += 1
        self.rows += handed.rows
        self.dead += handed.dead
        self.erased_rows += handed.erased_rows
        self.frame_bytes += frame_bytes

    def is_due(self, now: float, batch_seconds: float) -> bool:
        """Whether it has waited long enough."""
        return self.first_group > 0 and now >= self._due_at(batch_seconds)

    def seconds_left(self, now: float, batch_seconds: float) -> float:
        """Seconds until it is due, or until groups are looked for again."""
        if not self.first_group:
            return IDLE_SECONDS
        return min(max(self._due_at(batch_seconds) - now, 0.0), IDLE_SECONDS)

    def _due_at(self, batch_seconds: float) -> float:
        return self._began + EMPTY_SECONDS if self._first_row_at is None else self._first_row_at + batch_seconds


class CursorCheck(StrEnum):
    """How a destination's own cursor stands to the ledger's copy."""

    SAME = "same"
    AHEAD = "ahead"
    """A crash came between the commit and its record."""
    BEHIND = "behind"
    """It held more once."""
    UNKNOWN = "unknown"
    """It holds groups that this ledger never settled."""


def compare_cursors(held: int | None, copy: int, start: int, last_settled: int) -> CursorCheck:
    """How the cursor `held` stands to the ledger's copy, which began at `start` before anything was delivered."""
    if held is not None and held > last_settled:
        return CursorCheck.UNKNOWN
    if held is not None and held > copy:
        return CursorCheck.AHEAD
    if (held is None or held < copy) and copy != start:
        return CursorCheck.BEHIND
    return CursorCheck.SAME


def backoff_seconds(failure_count: int, jitter: float, retry_after_s: float | None = None) -> float:
    """How long to wait after so many failures in a row: doubling, and at random between half and whole of it.

    `jitter` lies between 0 and 1. What a destination asks for is waited, and not less.
    """
    doubled = BACKOFF_SECONDS_MIN * 2.0 ** min(failure_count - 1, 30)
    seconds = min(BACKOFF_SECONDS_MAX, doubled) * (0.5 + jitter / 2)
    return seconds if retry_after_s is None else max(retry_after_s, seconds)
