"""What a backfill would send and what would be refused, by the code that judges at the gateway; nothing is sent."""

from __future__ import annotations

import re
import time
from typing import Any

import msgspec

from counterfoil.backfill.connections import Connections
from counterfoil.backfill.mapping import Mapping
from counterfoil.backfill.reading import Format, Records, find_inputs, read_records
from counterfoil.backfill.rows import RowMaker, row_maker
from counterfoil.backfill.sending import fetch_limits
from counterfoil.contract.limits import Limits
from counterfoil.contract.rejections import RequestRejected
from counterfoil.contract.requests import BatchRequest
from counterfoil.contract.rows import RowRules, judge_batch

SAMPLE_RECORDS = 1000
SHOWN_ROWS = 5
LINES_SHOWN = 3
MS_A_DAY = 24 * 60 * 60 * 1000
_CHUNK_RECORDS = 500
_PLACE = re.compile(r"^events\[\d+\]")
_COUNTED = re.compile(r"found \d+ ")


class Fault(msgspec.Struct):
    """A kind of error: the message without its place, and where it was met first."""

    message: str
    count: int = 0
    places: list[tuple[str, int]] = []
    """File and line (or row) of the first few."""


class DryRun(msgspec.Struct):
    """What a dry run found."""

    read: int = 0
    good: int = 0
    faults: list[Fault] = []
    """The most frequent first."""
    rows: list[dict[str, Any]] = []
    """The first rows as they would be sent."""
    older_than_window: int = 0
    """Rows whose time lies further back than `age_days`."""
    oldest_days: float = 0.0
    age_days: int = 7
    """The window that a source has by default; 0 is without end."""
    is_whole: bool = True
    """Every record was read, not only a sample."""

    def window_reminder(self) -> str | None:
        """What to set for the rows that are too old for the window; None when there are none."""
        if not self.older_than_window:
            return None
        return (
            f"{self.older_than_window} rows are older than the {self.age_days} days that a source takes by default "
            f"(the oldest: {self.oldest_days:.0f} days). Set max_age_days = 0 for the source of this token."
        )


def dry_run(
    paths: list[str],
    *,
    mapping: Mapping | None = None,
    format_name: Format | None = None,
    records_max: int | None = SAMPLE_RECORDS,
    limits: Limits | None = None,
    now_ms: int | None = None,
) -> DryRun:
    """Judge the first `records_max` records of files (None: all). Raises BackfillError when a file can't be read."""
    limits = limits or Limits()
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    # Judged without a window, so that old rows are told once, with the setting that would allow them.
    rules = RowRules(limits=limits, age_ms_max=None, ahead_ms_max=limits.ahead_seconds_max * 1000)
    found = DryRun(faults=[], rows=[], age_days=limits.age_days_max)
    kinds: dict[str, Fault] = {}
    for source in find_inputs(paths, format_name):
        with row_maker(source, mapping) as make:
            for run in read_records(source):
                left = len(run) if records_max is None else records_max - found.read
                if left < len(run):
                    found.is_whole = False
                records = run.part(0, left)
                found.read += len(records)
                for start in range(0, len(records), _CHUNK_RECORDS):
                    _judge(records.part(start, start + _CHUNK_RECORDS), make, rules, now, found, kinds, source.path)
                if not found.is_whole:
                    break
    found.faults = sorted(kinds.values(), key=lambda fault: -fault.count)
    return found


async def server_limits(to: str) -> Limits:
    """The limits of the server at a base URL; the contract's defaults where it does not answer."""
    async with Connections(to, 1) as connections:
        return await fetch_limits(connections)


def _judge(
    records: Records,
    make: RowMaker,
    rules: RowRules,
    now_ms: int,
    found: DryRun,
    kinds: dict[str, Fault],
    path: str,
) -> None:
    made = make(records.originals)
    for place, message in made.faults.items():
        _note(kinds, message, path, records.numbers[place])
    numbers = [number for number, body in zip(records.numbers, made.bodies, strict=True) if body]
    bodies = [body for body in made.bodies if body]
    try:
        judged = judge_batch(BatchRequest("", bodies, sum(map(len, bodies))), rules, now_ms)
    except RequestRejected as rejected:
        for number in numbers:
            _note(kinds, rejected.message, path, number)
        return
    for index, message in judged.faults.items():
        # Strings that are too long are one kind, however long each is.
        kind = _COUNTED.sub("found another number of ", _PLACE.sub("row", message))
        _note(kinds, kind, path, numbers[index])
    found.good += len(judged.bodies)
    for index in judged.indexes[: max(0, SHOWN_ROWS - len(found.rows))]:
        found.rows.append(msgspec.json.decode(bodies[index]))
    if not found.age_days:
        return
    for body in judged.bodies:
        sent = msgspec.json.decode(body, type=_Timed).time
        if sent is not None and now_ms - sent > found.age_days * MS_A_DAY:
            found.older_than_window += 1
            found.oldest_days = max(found.oldest_days, (now_ms - sent) / MS_A_DAY)


class _Timed(msgspec.Struct):
    time: int | None = None


def _note(kinds: dict[str, Fault], message: str, path: str, number: int) -> None:
    fault = kinds.setdefault(message, Fault(message, places=[]))
    fault.count += 1
    if len(fault.places) < LINES_SHOWN:
        fault.places.append((path, number))
