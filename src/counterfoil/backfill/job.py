"""A backfill from its first record to its report."""

from __future__ import annotations

import asyncio
import hashlib
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from counterfoil.backfill.batches import Batch, Batcher
from counterfoil.backfill.connections import Connections, without_credentials
from counterfoil.backfill.errors import BackfillError
from counterfoil.backfill.journal import (
    JOURNAL_VERSION,
    Confirmed,
    JobFacts,
    Journal,
    facts_of,
    read_journal,
)
from counterfoil.backfill.mapping import Mapping
from counterfoil.backfill.reading import (
    STANDARD_INPUT,
    Format,
    Input,
    Records,
    compression_of,
    find_inputs,
    read_records,
)
from counterfoil.backfill.rejected import RejectedFile, Rejection, rejected_paths
from counterfoil.backfill.rows import RowMaker, is_self_describing, row_maker
from counterfoil.backfill.sending import BatchSender, Window, fetch_limits
from counterfoil.contract.limits import Limits
from counterfoil.files import Files, RealFiles

BATCH_ROWS = 1000
BATCH_BYTES_MAX = 4 * 1024 * 1024
"""Smaller than a body may be: what is in flight lies in memory."""
IN_FLIGHT_MAX = 8
FLUSH_SECONDS = 0.2
PATIENCE_SECONDS = 900.0
JOURNAL_SUFFIX = ".backfill"


class Report(msgspec.Struct, frozen=True):
    """What a run did: read = accepted + rejected + skipped, and unanswered where it stopped before its end."""

    read: int
    accepted: int
    rejected: int
    skipped: int
    """Records that an earlier run of this job had confirmed."""
    repeated: int
    """Rows that were sent more than once."""
    retries: int
    seconds: float
    rejected_files: tuple[str, ...]
    is_complete: bool
    unanswered: int = 0
    """Records that were read and are not confirmed; the job goes on with them."""

    @property
    def balances(self) -> bool:
        """Whether every record that was read is accounted for."""
        return self.read == self.accepted + self.rejected + self.skipped


class Status(msgspec.Struct, frozen=True):
    """How far a job is, by its journal."""

    to: str
    files: tuple[str, ...]
    read: int
    accepted: int
    repeated: int
    rejected: int
    remaining: int | None
    """About how many records are left; None where the file does not tell."""
    rows_per_second: float | None
    is_complete: bool


class Stopped(BackfillError):
    """The backfill stopped before its end; the same command goes on with it."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class Tally(msgspec.Struct):
    """Counts of a run while it runs."""

    read: int = 0
    accepted: int = 0
    rejected: int = 0
    skipped: int = 0
    repeated: int = 0
    retries: int = 0
    read_bytes: int = 0
    """Bytes of the originals that were read."""


async def backfill(
    paths: list[str],
    *,
    to: str,
    token: str,
    mapping: Mapping | None = None,
    job: Path | None = None,
    format_name: Format | None = None,
    batch_rows: int = BATCH_ROWS,
    in_flight_max: int = IN_FLIGHT_MAX,
    patience_seconds: float = PATIENCE_SECONDS,
    observe: Callable[[Tally], None] = lambda _: None,
    files: Files | None = None,
) -> Report:
    """Send the records of files to the server at the base URL `to`, or go on with that.

    `job` is the journal; None is beside the first file. `observe` is called regularly, with the counts so far.
    Raises BackfillError before anything was sent, Stopped later on; the journal knows what is confirmed.
    """
    inputs = find_inputs(paths, format_name)
    run = _Run(inputs, to, token, mapping, job or default_job(inputs), files or RealFiles(), observe)
    return await run.run(batch_rows, in_flight_max, patience_seconds)


def default_job(inputs: list[Input]) -> Path:
    """The journal of a job that has no name: beside its first file."""
    path = inputs[0].path
    if path == STANDARD_INPUT:
        return Path(f"stdin-{time.time_ns()}{JOURNAL_SUFFIX}")
    return Path(Path(path).name + JOURNAL_SUFFIX) if "://" in path else Path(path + JOURNAL_SUFFIX)


def job_status(job: Path) -> Status:
    """How far a job is, also while it runs. Raises BackfillError when there is none."""
    facts, progress = read_journal(job)
    confirmed = sum(progress.accepted) + sum(progress.rejected)
    return Status(
        to=facts.to,
        files=tuple(one.path for one in facts.inputs),
        read=confirmed,
        accepted=sum(progress.accepted),
        repeated=sum(progress.repeated),
        rejected=sum(progress.rejected),
        remaining=0 if progress.is_complete else _remaining(facts, confirmed, sum(progress.bytes)),
        rows_per_second=progress.rows_per_second(),
        is_complete=progress.is_complete,
    )


def _remaining(facts: JobFacts, confirmed: int, confirmed_bytes: int) -> int | None:
    """By the mean length of a record; only lines of JSON that are not compressed are as long as their file."""
    plain = all(one.format == "ndjson" and one.size_bytes and compression_of(one.path) is None for one in facts.inputs)
    if not plain or not confirmed_bytes:
        return None
    left = sum(one.size_bytes for one in facts.inputs) - confirmed_bytes - confirmed
    return max(0, round(left * confirmed / (confirmed_bytes + confirmed)))


class _Run:
    def __init__(
        self,
        inputs: list[Input],
        to: str,
        token: str,
        mapping: Mapping | None,
        job: Path,
        files: Files,
        observe: Callable[[Tally], None],
    ) -> None:
        self._inputs = inputs
        self._to = to
        self._token = token
        self._mapping = mapping
        self._job = job
        self._files = files
        self._observe = observe
        self._tally = Tally()
        self._waiting: list[tuple[Confirmed, list[Rejection]]] = []
        self._can_flush = True

    async def run(self, batch_rows: int, in_flight_max: int, patience_seconds: float) -> Report:
        began = time.monotonic()
        mapping_hash = hashlib.sha256(
            self._mapping.model_dump_json().encode() if self._mapping is not None else b""
        ).hexdigest()
        shown = without_credentials(self._to)
        facts = JobFacts(JOURNAL_VERSION, shown, mapping_hash, tuple(facts_of(one) for one in self._inputs))
        connections = Connections(self._to, in_flight_max)
        with ExitStack() as stack:
            self._journal = Journal.open(self._job, facts, self._files)
            stack.callback(self._journal.close)
            self._rejected = self._open_rejected()
            for rejected in self._rejected:
                stack.callback(rejected.close)
            async with connections:
                limits = await fetch_limits(connections)
                if len(self._token.strip()) > limits.token_chars_max:
                    raise BackfillError(f"the token is longer than the {limits.token_chars_max} characters it may have")
                self._sender = BatchSender(connections, shown, self._token, Window(in_flight_max), patience_seconds)
                try:
                    await self._send_all(limits, min(batch_rows, limits.rows_max), in_flight_max)
                except BackfillError as error:
                    raise Stopped(str(error), self._report(began)) from None
            return self._report(began)

    async def _send_all(self, limits: Limits, batch_rows: int, in_flight_max: int) -> None:
        bytes_max = min(BATCH_BYTES_MAX, limits.body_bytes_max // 2)
        places = asyncio.Semaphore(in_flight_max)
        unreadable: BackfillError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                flusher = group.create_task(self._flush_regularly())
                try:
                    for batch in self._batches(batch_rows, bytes_max):
                        await places.acquire()
                        group.create_task(self._send(batch, places))
                except BackfillError as error:
                    # What could be read is sent all the same.
                    unreadable = error
                for _ in range(in_flight_max):
                    await places.acquire()
                flusher.cancel()
        except BaseExceptionGroup as several:
            raise _first(several) from None
        finally:
            self._flush()
            self._observe(self._tally)
        if unreadable is not None:
            raise unreadable
        for index, read in enumerate(self._read_counts):
            self._journal.append(Confirmed(index, read=read))
        self._journal.flush()

    def _open_rejected(self) -> list[RejectedFile]:
        progress = self._journal.progress
        opened = []
        for index, path in enumerate(rejected_paths(self._inputs, self._job)):
            kept_bytes = progress.rejected_bytes[index]
            if progress.is_complete and path.exists():
                # It is whole, and may be mended meanwhile: nothing is to be cut.
                kept_bytes = path.stat().st_size
            are_columns = self._mapping is None and not is_self_describing(self._inputs[index])
            opened.append(
                RejectedFile(path, self._files, kept_bytes, is_new=self._journal.is_new, are_columns=are_columns)
            )
        return opened

    async def _send(self, batch: Batch, places: asyncio.Semaphore) -> None:
        try:
            sent = await self._sender.send(batch.rows)
        finally:
            places.release()
        rejections = sorted(batch.faults + sent.rejections, key=lambda one: one.number)
        entry = Confirmed(
            input=batch.input_index,
            first=batch.first,
            last=batch.last,
            accepted=sent.accepted,
            rejected=len(rejections),
            repeated=sent.repeated,
            bytes=batch.original_bytes,
            at_ms=time.time_ns() // 1_000_000,
        )
        self._waiting.append((entry, rejections))

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self._flush()
            self._observe(self._tally)

    def _flush(self) -> None:
        """Confirm the batches that are answered: their rejections first, then the journal, in the same order."""
        self._tally.retries = self._sender.retries
        waiting, self._waiting = self._waiting, []
        if not waiting or not self._can_flush:
            return
        # After a failure nothing is written behind what may stand there in part: the next run cuts it first.
        self._can_flush = False
        for index, rejected in enumerate(self._rejected):
            batches = [(entry, found) for entry, found in waiting if entry.input == index]
            sizes = rejected.write([found for _, found in batches])
            # Of each batch its own: a crash may leave the first lines of this flush and not the last.
            for (entry, _), size_bytes in zip(batches, sizes, strict=True):
                self._journal.append(msgspec.structs.replace(entry, rejected_bytes=size_bytes))
        self._journal.flush()
        for entry, _ in waiting:
            self._tally.accepted += entry.accepted
            self._tally.rejected += entry.rejected
            self._tally.repeated += entry.repeated
        self._can_flush = True

    def _batches(self, batch_rows: int, bytes_max: int) -> Iterator[Batch]:
        self._read_counts = [0] * len(self._inputs)
        for index, source in enumerate(self._inputs):
            with row_maker(source, self._mapping) as make:
                yield from self._batches_of(index, source, make, Batcher(index, make, batch_rows, bytes_max))

    def _batches_of(self, index: int, source: Input, make: RowMaker, batcher: Batcher) -> Iterator[Batch]:
        # True repeats are counted from the file's beginning, so records that are confirmed must be made, too.
        makes_confirmed = self._mapping is not None and self._mapping.counts_repeats
        try:
            for run in read_records(source):
                for records, is_confirmed in self._by_confirmation(index, run):
                    self._tally.read += len(records)
                    self._read_counts[index] += len(records)
                    self._tally.read_bytes += sum(map(len, records.originals)) + len(records)
                    if not is_confirmed:
                        yield from batcher.add(records)
                        continue
                    self._tally.skipped += len(records)
                    # A batch is one run of records: what is confirmed may not lie within it.
                    yield from batcher.rest()
                    if makes_confirmed:
                        make(records.originals)
        except BackfillError:
            yield from batcher.rest()
            raise
        yield from batcher.rest()

    def _by_confirmation(self, index: int, records: Records) -> Iterator[tuple[Records, bool]]:
        """Records in parts that an earlier run of this job has confirmed, or has not."""
        start = 0
        while start < len(records):
            first, last = self._journal.progress.next_confirmed(index, records.numbers[start])
            is_confirmed = first <= records.numbers[start]
            end = bisect_right(records.numbers, last) if is_confirmed else bisect_left(records.numbers, first)
            yield records.part(start, end), is_confirmed
            start = end

    def _report(self, began: float) -> Report:
        tally = self._tally
        return Report(
            read=tally.read,
            accepted=tally.accepted,
            rejected=tally.rejected,
            skipped=tally.skipped,
            repeated=tally.repeated,
            retries=self._sender.retries,
            seconds=time.monotonic() - began,
            rejected_files=tuple(str(one.path) for one in self._rejected if one.path.exists() and one.size_bytes),
            is_complete=self._journal.progress.is_complete,
            unanswered=tally.read - tally.accepted - tally.rejected - tally.skipped,
        )


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error that tells why a job stopped."""
    for error in several.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    return several
