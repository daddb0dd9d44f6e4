"""Raw rows -> canonical rows with their facts, or the reason why not; each row alone (contract.md section 4).

There are two ways. A typical row takes one decode into a typed Struct and one encode of it (`typical`). What does not
fit there as it is (an unknown field, a very long string, something wrong) is read as plain values and judged field by
field (`careful`): slower, for whatever it holds, and with the same canonical bytes where both can.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import xxhash

from counterfoil.contract.careful import IDENTIFY_EVENT as IDENTIFY_EVENT
from counterfoil.contract.careful import CanonicalRow, Endpoint, Window, judge_carefully
from counterfoil.contract.faults import Fault, message_of
from counterfoil.contract.limits import Limits
from counterfoil.contract.requests import BatchRequest, IdentifyRequest, TrackRequest
from counterfoil.contract.typical import NOT_TYPICAL, NotTypical, fit, is_trimmed, is_typical, readers, with_loose_ends

YEAR_1_MS = -62_135_596_800_000
YEAR_9999_END_MS = 253_402_300_799_999


class RowRules(msgspec.Struct, frozen=True):
    """What rows are judged by."""

    limits: Limits
    age_ms_max: int | None
    """How far a row's time may lie back; None is without end."""
    ahead_ms_max: int

    def window(self, now_ms: int) -> Window:
        """The oldest and the newest time that a row may name now; never outside the years 1 to 9999."""
        oldest_ms = YEAR_1_MS if self.age_ms_max is None else max(YEAR_1_MS, now_ms - self.age_ms_max)
        return Window(oldest_ms, min(YEAR_9999_END_MS, now_ms + self.ahead_ms_max))


class JudgedRows(msgspec.Struct):
    """What became of the rows of a request: columns over the accepted ones in the order of the request, and the faults
    of the others by their index."""

    row_count: int
    indexes: list[int] = []
    """The row's index in the request."""
    bodies: list[bytes] = []
    """The canonical row."""
    distinct_ids: list[str] = []
    events: list[str] = []
    content_hashes: list[bytes] = []
    """xxh3-64 of the canonical row without what the server made."""
    has_version: list[bool] = []
    """Whether the sender named a `defaultProperties.version`."""
    faults: dict[int, str] = {}
    has_made_distinct_id: bool = False
    """The (one) row got its distinctId from the server: a repeat of the request is another row."""


def judge_batch(
    request: BatchRequest, rules: RowRules, now_ms: int, start: int = 0, end: int | None = None
) -> JudgedRows:
    """Judge the rows of a /batch at this time: every row, or those from `start` to before `end`."""
    limits, window = rules.limits, rules.window(now_ms)
    oldest_ms, newest_ms = window.oldest_ms, window.newest_ms
    rows = request.rows if start == 0 and end is None else request.rows[start:end]
    judged = JudgedRows(len(rows))
    indexes, bodies, distinct_ids = judged.indexes, judged.bodies, judged.distinct_ids
    events, content_hashes, has_version = judged.events, judged.content_hashes, judged.has_version
    read, write, digest = readers(limits).batch.decode, _write, xxhash.xxh3_64_digest
    row_bytes_max, object_units_max = limits.row_bytes_max, limits.object_units_max
    is_any_too_large = request.body_bytes > row_bytes_max
    untrimmed: list[int] = []
    for row_index, raw in enumerate(rows, start):
        try:
            if is_any_too_large and memoryview(raw).nbytes > row_bytes_max:
                raise NotTypical
            row = read(raw)
            is_version_named = fit(row, oldest_ms, newest_ms)
            body = write(row)
            if len(body) >= object_units_max or (b"\xef" in body and not is_typical(body, limits)):
                raise NotTypical
            distinct_id, event = row.distinct_id, row.event
            if row.user_properties is not None or row.default_properties is not None:
                untrimmed.append(len(bodies))
        except NOT_TYPICAL:
            verdict = judge_carefully(bytes(raw), limits, window, Endpoint.BATCH)
            if isinstance(verdict, list):
                judged.faults[row_index] = message_of(verdict, f"events[{row_index}]")
                continue
            body, distinct_id, event = verdict.body, verdict.distinct_id, verdict.event
            is_version_named = verdict.has_version
        indexes.append(row_index)
        bodies.append(body)
        distinct_ids.append(distinct_id)
        events.append(event)
        content_hashes.append(digest(body))
        has_version.append(is_version_named)
    if untrimmed:
        _trim_properties(judged, untrimmed, request, limits, window)
    return judged


def _trim_properties(
    judged: JudgedRows, untrimmed: Sequence[int], request: BatchRequest, limits: Limits, window: Window
) -> None:
    """Judge anew the rows, by their places among the accepted ones, whose properties have to be trimmed.

    Trimming a property can't make a row invalid.
    """
    bodies = judged.bodies
    loose = with_loose_ends([bodies[place] for place in untrimmed])
    for place in (untrimmed[index] for index in loose):
        raw = request.rows[judged.indexes[place]]
        if is_trimmed(readers(limits).batch.decode(raw)):
            continue
        verdict = judge_carefully(bytes(raw), limits, window, Endpoint.BATCH)
        assert isinstance(verdict, CanonicalRow)
        bodies[place] = verdict.body
        judged.content_hashes[place] = xxhash.xxh3_64_digest(verdict.body)


def judge_track(request: TrackRequest, rules: RowRules, now_ms: int, made_distinct_id: str) -> JudgedRows:
    """Judge the row of a /track; `made_distinct_id` becomes its distinctId when it has none."""
    limits, window = rules.limits, rules.window(now_ms)
    try:
        verdict = _judge_typical_track(request.row, limits, window, made_distinct_id)
    except NOT_TYPICAL:
        return _judged(judge_carefully(request.row, limits, window, Endpoint.TRACK, made_distinct_id))
    return _judged(verdict)


def judge_identify(request: IdentifyRequest, rules: RowRules, now_ms: int, made_distinct_id: str) -> JudgedRows:
    """Judge an /identify, which is one row of the event `$identify`."""
    window = rules.window(now_ms)
    return _judged(judge_carefully(request.row, rules.limits, window, Endpoint.IDENTIFY, made_distinct_id))


_write = msgspec.json.Encoder().encode


def _judge_typical_track(text: bytes, limits: Limits, window: Window, made_distinct_id: str) -> CanonicalRow:
    if len(text) > limits.row_bytes_max:
        raise NotTypical
    row = readers(limits).track.decode(text)
    is_made = row.distinct_id is None
    if is_made:
        row.distinct_id = made_distinct_id
    has_version = fit(row, window.oldest_ms, window.newest_ms)
    body = content = _write(row)
    if not (is_typical(body, limits) and is_trimmed(row)):
        raise NotTypical
    if is_made:
        row.distinct_id = None  # type: ignore[assignment]
        content = _write(row)
    return CanonicalRow(
        body, content, row.event, made_distinct_id if is_made else row.distinct_id, has_version, is_made
    )


def _judged(verdict: CanonicalRow | list[Fault]) -> JudgedRows:
    if isinstance(verdict, list):
        return JudgedRows(1, faults={0: message_of(verdict, "")})
    return JudgedRows(
        row_count=1,
        indexes=[0],
        bodies=[verdict.body],
        distinct_ids=[verdict.distinct_id],
        events=[verdict.event],
        content_hashes=[xxhash.xxh3_64_digest(verdict.content)],
        has_version=[verdict.has_version],
        has_made_distinct_id=verdict.has_made_distinct_id,
    )
