"""Clients at work: each a thread that sends new rows, repeats what failed, and repeats on purpose what did not.

A row that was answered with AGAIN, SILENCE or NEITHER goes into a pool, out of which any client takes rows for its next
batches, mixed with new ones: a repeat need not come from the same client, nor in the same company. When the pool is
full, clients send nothing new until it has shrunk.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from counterfoil.selftest.answers import Answer, RowAnswer
from counterfoil.selftest.content import Content
from counterfoil.selftest.journal import Journal
from counterfoil.selftest.sending import Sender

POOL_ROWS_MAX = 20_000
RECENT_ROWS_MAX = 5_000
BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 1.0

_REPEATED = frozenset({RowAnswer.AGAIN, RowAnswer.SILENCE, RowAnswer.NEITHER})


class LoadCounts(msgspec.Struct):
    """What clients have done so far."""

    requests: int = 0
    silent_requests: int = 0
    """Without an answer."""
    repeated_rows: int = 0
    """Sent again because the contract says so."""
    doubled_rows: int = 0
    """Sent again on purpose, though they were acknowledged."""


class Load:
    """Clients that send the rows of `content` until they are stopped, each through a sender of its own."""

    def __init__(
        self,
        content: Content,
        journal: Journal,
        open_sender: Callable[[], Sender],
        *,
        clients: int = 4,
        batch_rows_max: int = 120,
        doubled: float = 0.1,
        rows_per_second_max: float | None = None,
        wait_seconds_max: float = 2.0,
        seed: int = 0,
    ) -> None:
        """`doubled`: how often a batch has acknowledged rows in it. `Retry-After` counts up to `wait_seconds_max`."""
        self.counts = LoadCounts()
        self._content = content
        self._journal = journal
        self._open_sender = open_sender
        self._batch_rows_max = batch_rows_max
        self._doubled = doubled
        self._wait_seconds_max = wait_seconds_max
        self._chance = random.Random(seed)  # noqa: S311
        self._lock = threading.Lock()
        self._pool: deque[int] = deque()
        self._recent: deque[int] = deque(maxlen=RECENT_ROWS_MAX)
        self._stop = threading.Event()
        self._client_count = clients
        self._rows_per_second_max = rows_per_second_max
        self._rows_wanted: int | None = None
        self._failure: Exception | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the clients; after a stop, start them again."""
        self._stop.clear()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._client_count)]
        for thread in self._threads:
            thread.start()

    def run_until(self, row_count: int) -> None:
        """Start the clients and stop them when so many numbers are taken."""
        self._rows_wanted = row_count
        self.start()
        for thread in self._threads:
            thread.join()
        self.stop()
        self._rows_wanted = None

    def stop(self) -> None:
        """Return when no client sends any more. What has no answer stays in the pool.

        Raises what has ended a client before its time.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads = []
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    @property
    def is_working(self) -> bool:
        """Whether every client still sends; one ends by itself when its answers can't be written down."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def finish(self, seconds: float) -> int:
        """Repeat what is in the pool until each row is answered; how many were not in that time."""
        deadline = time.monotonic() + seconds
        sender = self._open_sender()
        try:
            failures = 0
            while self._pool and time.monotonic() < deadline:
                with self._lock:
                    numbers = self._from_pool(self._batch_rows_max)
                answer = self._send(sender, numbers)
                failures = failures + 1 if _failed(answer) else 0
                if failures:
                    time.sleep(min(self._wait_seconds(answer, failures), max(deadline - time.monotonic(), 0)))
        finally:
            sender.close()
        return len(self._pool)

    def _work(self) -> None:
        try:
            self._send_on()
        except Exception as failure:
            # A client that ended unseen would leave a campaign that tries less than it says.
            self._failure = failure

    def _send_on(self) -> None:
        sender = self._open_sender()
        try:
            failures = 0
            while not self._stop.is_set() and (self._rows_wanted is None or len(self._journal) < self._rows_wanted):
                began = time.monotonic()
                answer = self._send(sender, self._next_batch())
                failures = failures + 1 if _failed(answer) else 0
                wait = self._wait_seconds(answer, failures) if failures else 0.0
                if self._rows_per_second_max is not None:
                    pace = len(answer.rows) * self._client_count / self._rows_per_second_max
                    wait = max(wait, pace - (time.monotonic() - began))
                if wait > 0:
                    self._stop.wait(wait)
        finally:
            sender.close()

    def _next_batch(self) -> list[int]:
        """New rows, or rows of the pool, or both; and sometimes rows that were acknowledged."""
        with self._lock:
            chance = self._chance
            count = chance.choice((1, chance.randrange(2, self._batch_rows_max)))
            takes_again = chance.random() < 0.5 or len(self._pool) > POOL_ROWS_MAX
            numbers = self._from_pool(count) if takes_again else []
            if len(numbers) < count:
                numbers += self._journal.take(count - len(numbers))
            if self._recent and chance.random() < self._doubled:
                doubled = [chance.choice(self._recent) for _ in range(chance.randrange(1, 20))]
                self.counts.doubled_rows += len(doubled)
                numbers += doubled
                chance.shuffle(numbers)
        return numbers

    def _from_pool(self, count: int) -> list[int]:
        numbers = [self._pool.popleft() for _ in range(min(count, len(self._pool)))]
        self.counts.repeated_rows += len(numbers)
        return numbers

    def _send(self, sender: Sender, numbers: Sequence[int]) -> Answer:
        rows = self._content.rows(numbers)
        answer = sender.send(rows, by_track=len(rows) == 1 and numbers[0] % 2 == 0)
        self._journal.note(numbers, answer.rows)
        with self._lock:
            self.counts.requests += 1
            self.counts.silent_requests += answer.status == 0
            for number, of_row in zip(numbers, answer.rows, strict=True):
                if of_row is RowAnswer.TAKEN:
                    self._recent.append(number)
                elif of_row in _REPEATED and not self._journal.is_taken(number):
                    self._pool.append(number)
        return answer

    def _wait_seconds(self, answer: Answer, failures: int) -> float:
        if answer.wait_seconds is not None:
            return min(answer.wait_seconds, self._wait_seconds_max)
        return min(BACKOFF_SECONDS_MIN * 2.0 ** min(failures, 10), BACKOFF_SECONDS_MAX)


def _failed(answer: Answer) -> bool:
    return not _REPEATED.isdisjoint(answer.rows)
