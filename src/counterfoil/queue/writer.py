"""The writer: frames from the event loop, durable by a thread that flushes for many requests at once.

How a frame passes from the loop to the thread and back, without a lock:

    append      puts (draft, future) on the list of this turn of the loop, and has the list handed over at its end
    hand over   swaps the list for an empty one and puts it into a queue.SimpleQueue; only the loop's thread touches
                the list, and once it is handed over only the flush thread does
    thread      takes every list that lies in the SimpleQueue (those that came while it flushed are many: that is the
                group commit), writes and flushes them in bites of at most FLUSH_BYTES, publishes, and gives the
                outcome of each bite back with one call_soon_threadsafe
    release     on the loop: every future of the bite gets its position or its error

Rejected: handing over only when the thread is idle (the disk then waits for the loop after every flush: the loop may
be in the middle of a large request); a lock around one list (the loop would wait for it while the thread holds the
GIL's queue); a call_soon_threadsafe a frame (a write to the loop's pipe each, 5 to 10 µs).

After a failure a fresh segment is begun at once; when that fails, or when the first flush of a fresh segment fails
too, the writer refuses, naming the first cause, and tries again after a delay that doubles up to RETRY_SECONDS_MAX.
"""

from __future__ import annotations

import asyncio
import errno
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import structlog

from counterfoil.errors import CounterfoilError, DiskReserveReached, FlushFailed, QueueRefused
from counterfoil.files import Files
from counterfoil.positions import DirectoryId, FramePosition
from counterfoil.queue.directory import WriterDirectory, take_directory
from counterfoil.queue.frame import FrameDraft, sealed_bytes
from counterfoil.queue.quarantine import Quarantine, wall_clock_ms
from counterfoil.queue.recovery import close_leftovers
from counterfoil.queue.rolling import has_request, remove_request
from counterfoil.queue.segment import SEGMENT_HEADER_BYTES
from counterfoil.queue.settings import QueueSettings
from counterfoil.queue.tail import SegmentTail

log = structlog.get_logger()

FLUSH_BYTES = 8 * 1024 * 1024
"""Bytes of frames after which a flush is closed: it bounds the copy that is written, and how long the first waits."""
LOOK_SECONDS = 1.0
"""How often the disk is looked at while nothing is written."""
LOOK_SECONDS_MIN = 0.05
"""How often at most while something is, or while the queue refuses."""
RETRY_SECONDS_MIN = 0.05
RETRY_SECONDS_MAX = 5.0

Future = asyncio.Future[FramePosition]
Entry = tuple[FrameDraft, Future]


class FlushFacts(msgspec.Struct, frozen=True):
    """What one flush did, for metrics."""

    frame_count: int
    row_count: int
    flushed_bytes: int
    seconds: float
    is_failed: bool


def _ignore(facts: FlushFacts) -> None:
    pass


class SegmentWriter:
    """A `FrameSink` of segment files. `open` starts it; `close` stops it."""

    def __init__(
        self,
        directory: WriterDirectory,
        tail: SegmentTail,
        files: Files,
        settings: QueueSettings,
        observe: Callable[[FlushFacts], None],
    ) -> None:
        self._directory = directory
        self._tail = tail
        self._files = files
        self._settings = settings
        self._observe = observe
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn: list[Entry] = []
        self._waiting_bytes = 0
        self._handed: queue.SimpleQueue[list[Entry] | None] = queue.SimpleQueue()
        self._is_closed = False
        self._stopped: asyncio.Future[None] | None = None
        # Written by the flush thread, read by the loop; one reference each, so neither sees half of it.
        self._disk: QueueRefused | None = None
        self._broken: QueueRefused | None = None
        self._retry_at = 0.0
        self._looked_at = 0.0
        self._retry_seconds = 0.0
        self._is_roll_wanted = False
        self._is_stopping = False
        self._at_hand: list[Entry] = []
        self._thread = threading.Thread(target=self._run, name="queue-flush", daemon=True)

    @classmethod
    def open(
        cls,
        root: Path,
        files: Files,
        settings: QueueSettings,
        *,
        quarantine: Path,
        clock_ms: Callable[[], int] = wall_clock_ms,
        observe: Callable[[FlushFacts], None] = _ignore,
    ) -> SegmentWriter:
        """Take the first free directory under `root`, close what an earlier life left there, begin a fresh segment.

        Where no segment can be begun it refuses until one can. `observe` is called from the flush thread, once a
        flush. Raises OSError, StartRefused.
        """
        directory = take_directory(root, files, quarantine=quarantine)
        try:
            left = close_leftovers(directory, files, Quarantine(quarantine, files, clock_ms))
        except BaseException:
            directory.release()
            raise
        writer = cls(directory, SegmentTail(directory, files, left, clock_ms), files, settings, observe)
        writer._begin_anew(None)
        writer._look_at_disk()
        writer._thread.start()
        return writer

    @property
    def directory_id(self) -> DirectoryId:
        return self._directory.id

    @property
    def number(self) -> int:
        """The writer's number: the name of its directory."""
        return self._directory.number

    @property
    def waiting_bytes(self) -> int:
        """Bytes of frames that are not durable yet, without their headers."""
        return self._waiting_bytes

    def append(self, drafts: Sequence[FrameDraft]) -> list[Future]:
        """`FrameSink.append`."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in drafts]
        body_bytes = 0
        for draft in drafts:
            body_bytes += len(draft.body)
        refusal = self._refusal(body_bytes)
        if refusal is not None:
            _fail(futures, refusal)
            return futures
        if not self._turn:
            loop.call_soon(self._hand_over)
        self._turn += zip(drafts, futures, strict=True)
        self._waiting_bytes += body_bytes
        return futures

    def refusal(self) -> QueueRefused | None:
        """`FrameSink.refusal`."""
        return self._refusal(1)

    def roll(self) -> None:
        """Have the flush thread begin a fresh segment at once, if the one it writes to holds any frame.

        What was acknowledged before this call lies before the fresh segment. From any thread.
        """
        self._is_roll_wanted = True
        self._handed.put([])

    async def close(self) -> None:
        """`FrameSink.close`."""
        loop = asyncio.get_running_loop()
        if self._stopped is None:
            self._loop = loop
            self._is_closed = True
            self._stopped = loop.create_future()
            self._hand_over()
            self._handed.put(None)
        await asyncio.shield(self._stopped)

    # On the event loop's thread.

    def _refusal(self, body_bytes: int) -> QueueRefused | None:
        if self._is_closed:
            return QueueRefused("the queue is closed")
        refusal = self._broken or self._disk
        if refusal is not None:
            return refusal
        if self._waiting_bytes and self._waiting_bytes + body_bytes > self._settings.waiting_bytes_max:
            return QueueRefused("too many bytes wait for the disk")
        return None

    def _hand_over(self) -> None:
        if self._turn:
            self._handed.put(self._turn)
            self._turn = []

    def _release(self, bite: list[Entry], positions: list[FramePosition]) -> None:
        freed_bytes = 0
        for (draft, future), position in zip(bite, positions, strict=True):
            freed_bytes += len(draft.body)
            if not future.done():  # Cancelled: the request went away.
                future.set_result(position)
        self._waiting_bytes -= freed_bytes

    def _release_failed(self, bite: list[Entry], error: CounterfoilError) -> None:
        self._waiting_bytes -= sum(len(draft.body) for draft, _ in bite)
        _fail([future for _, future in bite if not future.done()], error)

    def _has_stopped(self) -> None:
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_result(None)

    # On the flush thread.

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as cause:  # The edge of the thread: without it every request would wait for ever.
            log.error("queue.flush_thread_ended", writer=self.number, cause=_cause(cause))
            self._refuse_for_good(QueueRefused(f"the flush thread ended ({_cause(cause)})"))
        self._tail.close()
        self._directory.release()
        self._call_loop(self._has_stopped)

    def _serve(self) -> None:
        while not self._is_stopping:
            self._flush_at_hand()
            if self._is_roll_wanted:
                self._is_roll_wanted = False
                self._roll()
            now = time.monotonic()
            if self._broken is not None and now >= self._retry_at:
                self._begin_anew(self._broken)
            if now - self._looked_at >= LOOK_SECONDS_MIN:
                self._look_at_disk()
                self._look_for_request()

    def _flush_at_hand(self) -> None:
        # Apart from the thread's loop: a variable there would hold the last bite until the next one comes.
        self._at_hand = self._take()
        for bite in _bites(self._at_hand):
            self._flush(bite)
        self._at_hand = []

    def _refuse_for_good(self, refusal: QueueRefused) -> None:
        self._broken = refusal
        self._call_loop(self._release_failed, self._at_hand, FlushFailed(str(refusal)))
        while not self._is_stopping:
            self._call_loop(self._release_failed, self._take(), refusal)

    def _take(self) -> list[Entry]:
        """Everything that was handed over; empty after a while without any."""
        is_refusing = self._broken is not None or self._disk is not None
        entries: list[Entry] = []
        try:
            handed = self._handed.get(timeout=LOOK_SECONDS_MIN if is_refusing else LOOK_SECONDS)
            while handed is not None:
                entries += handed
                handed = self._handed.get_nowait()
            self._is_stopping = True
        except queue.Empty:
            pass
        return entries

    def _flush(self, bite: list[Entry]) -> None:
        if self._tail.is_open and self._tail.flushed >= self._settings.segment_bytes:
            self._begin_anew(None)
        refusal = self._broken
        if refusal is not None:
            self._call_loop(self._release_failed, bite, refusal)
            return
        began = time.perf_counter()
        before = self._tail.flushed
        error: FlushFailed | None = None
        try:
            positions = self._tail.write([draft for draft, _ in bite])
        except Exception as cause:  # The edge of the thread: whatever failed, these frames are not durable.
            error = FlushFailed(f"the flush failed ({_cause(cause)})")
            log.error("queue.flush_failed", writer=self.number, segment=self._tail.number, cause=_cause(cause))
            self._call_loop(self._release_failed, bite, error)
        else:
            self._call_loop(self._release, bite, positions)
        facts = FlushFacts(
            frame_count=len(bite),
            row_count=sum(draft.row_count for draft, _ in bite),
            flushed_bytes=self._tail.flushed - before if error is None else 0,
            seconds=time.perf_counter() - began,
            is_failed=error is not None,
        )
        self._after_flush(error)
        try:
            self._observe(facts)
        except Exception as cause:  # Nothing that matters hangs on telemetry.
            log.error("queue.observer_failed", cause=_cause(cause))

    def _after_flush(self, error: FlushFailed | None) -> None:
        if error is None:
            self._retry_seconds = 0.0
        elif self._retry_seconds == 0.0:
            self._retry_seconds = RETRY_SECONDS_MIN
            self._begin_anew(QueueRefused(str(error)))
        else:
            # A disk that takes headers and no frames would be filled with empty segments, one a flush.
            self._refuse_for_a_while(QueueRefused(str(error)))

    def _begin_anew(self, first_cause: QueueRefused | None) -> None:
        """Begin a fresh segment, or refuse until that is possible, with the first cause of it."""
        try:
            self._tail.begin()
        except Exception as cause:  # The edge of the thread: without a segment nothing can be taken.
            log.error("queue.segment_not_begun", writer=self.number, cause=_cause(cause))
            self._refuse_for_a_while(first_cause or QueueRefused(f"no segment can be begun ({_cause(cause)})"))
        else:
            self._broken = None

    def _refuse_for_a_while(self, refusal: QueueRefused) -> None:
        self._broken = refusal
        self._retry_at = time.monotonic() + self._retry_seconds
        self._retry_seconds = min(max(2 * self._retry_seconds, RETRY_SECONDS_MIN), RETRY_SECONDS_MAX)

    def _look_at_disk(self) -> None:
        self._looked_at = time.monotonic()
        try:
            free = self._files.free_bytes(self._directory.path)
            total = self._files.disk_bytes(self._directory.path)
        except OSError as cause:
            self._disk = QueueRefused(f"the disk can't be looked at ({_cause(cause)})")
            return
        reserve = self._settings.reserve_of(total)
        if free >= reserve:
            self._disk = None
        elif self._disk is None:
            log.error("queue.reserve_reached", writer=self.number, free_bytes=free, reserve_bytes=reserve)
            self._disk = DiskReserveReached()

    def _roll(self) -> None:
        if self._tail.is_open and self._tail.flushed > SEGMENT_HEADER_BYTES:
            self._begin_anew(None)

    def _look_for_request(self) -> None:
        try:
            if has_request(self._directory.path):
                self._roll()
                if self._tail.is_open:
                    remove_request(self._directory.path, self._files)
        except OSError as cause:
            log.error("queue.roll_request_failed", writer=self.number, cause=_cause(cause))

    def _call_loop(self, function: Callable[..., None], *arguments: object) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(function, *arguments)
            except RuntimeError:  # It was closed just now: nobody is left to be told.
                return


def _bites(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """The entries in order, in lists of at most FLUSH_BYTES, or of one frame that is larger."""
    bite: list[Entry] = []
    size = 0
    for entry in entries:
        frame_bytes = sealed_bytes(entry[0])
        if bite and size + frame_bytes > FLUSH_BYTES:
            yield bite
            bite, size = [], 0
        bite.append(entry)
        size += frame_bytes
    if bite:
        yield bite


def _fail(futures: Iterable[Future], error: CounterfoilError) -> None:
    # An error of its own for each: an exception that is raised twice keeps the traceback of both.
    for future in futures:
        future.set_exception(type(error)(str(error)))


def _cause(error: BaseException) -> str:
    """A failure in our own words: the system's name of it, never a text that could quote anything."""
    if isinstance(error, OSError) and error.errno is not None:
        return errno.errorcode.get(error.errno, str(error.errno))
    return type(error).__name__
