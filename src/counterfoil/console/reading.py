"""Where the console's facts come from: the ledger and the queue, read from beside, and what the supervisor tells.

Nothing here writes, and nothing waits for the pipeline: the ledger is read as another process may read it, so the page
also answers while the pipeline is down, which is when it is wanted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import UUID

import httpx
import msgspec

from counterfoil import __version__
from counterfoil.children import ChildState, ChildStatus
from counterfoil.console.disk import Disk
from counterfoil.console.status import DestinationStatus, SourceStatus, Status, WriterStatus
from counterfoil.errors import CounterfoilError, LedgerUnusable
from counterfoil.ledger import Books, DestinationCounts, GroupNumber, LedgerReader, SourceCounts
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.positions import DirectoryId, FramePosition
from counterfoil.queue import FrameSource
from counterfoil.telemetry.metrics import Ages, metrics_page

KEEP_SECONDS = 0.25
"""How long a state is shown before it is read anew, however many ask."""

PROBE_SECONDS = 2.0

CACHE_BYTES = 8 * 1024 * 1024
"""The console reads counters and positions, no keys."""

NO_BOOKS = Books(sources=(), destinations=(), damaged_frames=0, last_group=GroupNumber(0))


class LedgerFacts(msgspec.Struct, frozen=True):
    """What the console shows of a ledger, of one moment."""

    books: Books
    reading: dict[DirectoryId, FramePosition] = {}
    """Where settle goes on reading."""
    oldest_pending_ms: dict[str, int] = {}
    """For each destination that is still to take rows when the oldest of them was settled."""
    oldest_group: int = 1
    """The oldest group that is kept."""
    oldest_kept_ms: int | None = None
    """When that was settled."""


class LedgerView:
    """The books of a ledger that another process may be writing; opened when there is something to read."""

    def __init__(self, path: Path, settings: LedgerSettings, ledger_id: UUID | None) -> None:
        self._path = path
        self._settings = settings.model_copy(update={"cache_bytes": CACHE_BYTES})
        self._ledger_id = ledger_id
        self._ledger: LedgerReader | None = None

    def read(self) -> LedgerFacts:
        """What it holds at this moment; raises LedgerUnusable."""
        if self._ledger_id is None:
            raise LedgerUnusable("the data directory's id is lost")
        try:
            if self._ledger is None:
                self._ledger = LedgerReader.open(self._path, self._settings, self._ledger_id)
            self._ledger.catch_up()
            return _facts(self._ledger)
        except Exception as problem:
            # What lies there may have been put in the place of what was opened: the next reading opens it anew.
            self.close()
            if isinstance(problem, LedgerUnusable):
                raise
            raise LedgerUnusable(f"{self._path}: can't be read ({type(problem).__name__})") from problem

    def close(self) -> None:
        """Let go of it; harmless when it isn't open."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None


def _facts(ledger: LedgerReader) -> LedgerFacts:
    books = ledger.books()
    pending = {
        each.destination: ledger.oldest_pending_ms(each.destination) for each in books.destinations if each.pending
    }
    return LedgerFacts(
        books=books,
        reading=ledger.reading_positions(),
        oldest_pending_ms={name: at_ms for name, at_ms in pending.items() if at_ms is not None},
        oldest_group=ledger.carried().oldest_group,
        oldest_kept_ms=ledger.oldest_kept_ms(),
    )


class Readiness:
    """Whether a row can be taken now, as the gateway says when it is asked."""

    def __init__(self, url: str | None) -> None:
        """`url` is the gateway's /readyz; None when the gateway runs apart, and then nothing stands in the way."""
        self._url = url
        # It asks its own server on its own machine, by an address that no certificate names.
        self._client = httpx.Client(verify=False, timeout=PROBE_SECONDS, trust_env=False)  # noqa: S501

    def reason_against(self) -> str | None:
        """Why no row can be taken; None when it can."""
        if self._url is None:
            return None
        try:
            status = self._client.get(self._url).status_code
        except httpx.HTTPError:
            return "the gateway gives no answer"
        return None if status == httpx.codes.OK else f"the gateway answers {status}: the queue takes no rows now"

    def close(self) -> None:
        self._client.close()


class StateReader:
    """Reads the state of the whole server; safe to use from several threads."""

    def __init__(
        self,
        *,
        ledger: LedgerView,
        queue: FrameSource,
        quarantine: Path,
        readiness: Readiness,
        disk: Disk,
        source_names: Sequence[str],
        destination_names: Sequence[str],
        clock: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """The names are those of the settings: they are shown before their first row."""
        self._ledger = ledger
        self._queue = queue
        self._quarantine = quarantine
        self._readiness = readiness
        self._disk = disk
        self._source_names = source_names
        self._destination_names = destination_names
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._processes: tuple[ChildStatus, ...] = ()
        self._kept: tuple[float, Status] | None = None

    def hear(self, news: bytes) -> None:
        """Take what the supervisor tells of the processes."""
        self._processes = msgspec.json.decode(news, type=tuple[ChildStatus, ...])

    def not_ready(self) -> str | None:
        """Why no row can be taken now; None when it can."""
        return self._readiness.reason_against()

    def metrics(self, directory: Path) -> bytes:
        """What the processes counted in `directory`, and what is booked, in Prometheus's text format."""
        with self._lock:
            try:
                facts = self._ledger.read()
            except CounterfoilError:
                facts = None
        starts = {process.name: process.start_count for process in self._processes}
        quarantined = sum(1 for _ in self._quarantine.glob("*.bytes"))
        ages = None if facts is None else ages_of(facts, self._clock(), self._destination_names)
        return metrics_page(
            directory, None if facts is None else facts.books, starts, quarantined, ages, self._disk.read()
        )

    def close(self) -> None:
        """Let go of everything it reads from; harmless twice."""
        with self._lock:
            self._ledger.close()
            self._readiness.close()

    def read(self) -> Status:
        """The state now, or one that is at most KEEP_SECONDS old."""
        with self._lock:
            now = self._monotonic()
            if self._kept is None or now - self._kept[0] > KEEP_SECONDS:
                self._kept = (now, self._read())
            return self._kept[1]

    def _read(self) -> Status:
        problem = None
        try:
            facts = self._ledger.read()
        except CounterfoilError as error:
            facts, problem = LedgerFacts(NO_BOOKS), str(error)
        books, now_ms = facts.books, self._clock()
        return Status(
            version=__version__,
            at_ms=now_ms,
            not_ready=self.not_ready(),
            last_group=books.last_group,
            damaged_frames=books.damaged_frames,
            processes=self._processes,
            sources=sources_of(books, self._source_names),
            destinations=destinations_of(
                books,
                self._destination_names,
                conditions_of(self._processes),
                ages_of(facts, now_ms, self._destination_names).oldest_pending_seconds,
            ),
            writers=writers_of(self._queue, facts.reading),
            ledger=problem,
            disk=self._disk.read(),
            oldest_group=facts.oldest_group,
            oldest_kept_ms=facts.oldest_kept_ms,
        )


def ages_of(facts: LedgerFacts, now_ms: int, set_names: Sequence[str]) -> Ages:
    """How long the oldest rows wait and are kept; 0 where the clock stands before them."""

    def seconds(at_ms: int) -> float:
        return max(0, now_ms - at_ms) / 1000

    return Ages(
        # A destination that waits for nothing has an age as well, so that an alert on it ends; and for one that was
        # taken out of the configuration nobody is to be woken.
        oldest_pending_seconds={each.destination: 0.0 for each in facts.books.destinations}
        | {name: seconds(at_ms) for name, at_ms in facts.oldest_pending_ms.items() if name in set_names},
        oldest_kept_seconds=0.0 if facts.oldest_kept_ms is None else seconds(facts.oldest_kept_ms),
        oldest_group=facts.oldest_group,
    )


def sources_of(books: Books, names: Sequence[str]) -> tuple[SourceStatus, ...]:
    """Each source that is set or has sent something, by name."""
    counts = {name: SourceCounts(name) for name in names} | {each.source: each for each in books.sources}
    return tuple(
        SourceStatus(name, each.accepted, each.new, each.duplicate, each.conflict, each.blocked, each.test)
        for name, each in sorted(counts.items())
    )


def destinations_of(
    books: Books, names: Sequence[str], conditions: dict[str, str], oldest_pending_seconds: Mapping[str, float]
) -> tuple[DestinationStatus, ...]:
    """Each destination that is set or ever took something, by name."""
    nothing = GroupNumber(0)
    counts = {name: DestinationCounts(name, nothing, nothing, 0, 0, 0) for name in names} | {
        each.destination: each for each in books.destinations
    }
    return tuple(
        DestinationStatus(
            name=name,
            routed=each.routed,
            delivered=each.delivered,
            dead=each.dead,
            pending=each.pending,
            oldest_pending_seconds=oldest_pending_seconds.get(name, 0.0),
            skipped=each.skipped,
            erased=each.erased,
            cursor=each.cursor,
            state=conditions.get(name, "unknown") if name in names else "not set any more",
        )
        for name, each in sorted(counts.items())
    )


def conditions_of(processes: Sequence[ChildStatus]) -> dict[str, str]:
    """How each destination is, as the process that delivers to it says; nothing of a process that doesn't run."""
    return {
        part: state
        for process in processes
        if process.state is ChildState.READY
        for part, state in process.conditions.items()
    }


def writers_of(queue: FrameSource, reading: dict[DirectoryId, FramePosition]) -> tuple[WriterStatus, ...]:
    """Each writer's directory, by number."""
    return tuple(
        WriterStatus(
            number=number,
            directory=directory.hex(),
            written=_written(queue, directory),
            settled=_place(reading[directory]) if directory in reading else None,
        )
        for directory, number in sorted(queue.directories().items(), key=lambda entry: entry[1])
    )


def _written(queue: FrameSource, directory: DirectoryId) -> str:
    try:
        return _place(queue.durable_end(directory))
    except OSError as problem:
        return f"can't be read: {problem.strerror}"
    except CounterfoilError as problem:
        return f"can't be read: {problem}"


def _place(position: FramePosition) -> str:
    return f"{position.segment}@{position.offset}"
