"""Raw rows -> canonical rows with their facts, or the reason why not; each row alone (contract.md section 4).

A typical row takes one decode into a typed Struct and one encode of it. What does not fit the Struct as it is (an
unknown field, a token, a long string, something wrong) is read as plain values and judged field by field: that way is
slower, decides everything, and gives the same canonical bytes where both can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import xxhash

from counterfoil.contract.faults import Fault, kind_of, message_of
from counterfoil.contract.limits import Limits
from counterfoil.contract.outline import depth_of
from counterfoil.contract.requests import BatchRequest, IdentifyRequest, TrackRequest
from counterfoil.contract.text import WHITESPACE, trim, utf16_units

IDENTIFY_EVENT = "$identify"

EVENT_UNITS_MAX = 1000
DISTINCT_ID_UNITS_MAX = 400
USER_ID_UNITS_MAX = 400
EXTERNAL_ID_UNITS_MAX = 400
EMAIL_UNITS_MAX = 1000

YEAR_1_MS = -62_135_596_800_000
YEAR_9999_END_MS = 253_402_300_799_999
SECONDS_MAX = 100_000_000_000
"""A time below this looks like seconds: as milliseconds it lies before March 1973, as seconds before the year 5139."""

Json = Any
"""A decoded JSON value."""


class RowRules(msgspec.Struct, frozen=True):
    """What rows are judged by."""

    limits: Limits
    age_ms_max: int | None
    """How far a row's time may lie back; None is without end."""
    ahead_ms_max: int

    def window(self, now_ms: int) -> tuple[int, int]:
        """The oldest and the newest time that a row may name."""
        oldest = YEAR_1_MS if self.age_ms_max is None else max(YEAR_1_MS, now_ms - self.age_ms_max)
        return oldest, min(YEAR_9999_END_MS, now_ms + self.ahead_ms_max)


class JudgedRows(msgspec.Struct):
    """What became of the rows of a request: columns over the accepted ones in the order of the request, and the faults
    of the others by their index."""

    row_count: int
    indexes: list[int]
    """The row's index in the request."""
    bodies: list[bytes]
    """The canonical row."""
    distinct_ids: list[str]
    events: list[str]
    content_hashes: list[bytes]
    """xxh3-64 of the canonical row without what the server made."""
    has_version: list[bool]
    """Whether the sender named a `defaultProperties.version`."""
    faults: dict[int, str]
    has_made_distinct_id: bool = False
    """The (one) row got its distinctId from the server: a repeat of the request is another row."""


def judge_batch(
    request: BatchRequest, rules: RowRules, now_ms: int, start: int = 0, end: int | None = None
) -> JudgedRows:
    """Judge the rows of a /batch at this time: every row, or those from `start` to before `end`."""
    oldest_ms, newest_ms = rules.window(now_ms)
    rows = request.rows if start == 0 and end is None else request.rows[start:end]
    judged = _nothing_yet(len(rows))
    indexes, bodies, distinct_ids = judged.indexes, judged.bodies, judged.distinct_ids
    events, content_hashes, has_version = judged.events, judged.content_hashes, judged.has_version
    read, write, digest, spaces = _read_row, _write, xxhash.xxh3_64_digest, WHITESPACE
    row_bytes_max = rules.limits.row_bytes_max
    is_any_too_large = request.body_bytes > row_bytes_max
    for row_index, raw in enumerate(rows, start):
        try:
            if is_any_too_large and memoryview(raw).nbytes > row_bytes_max:
                raise _NotTypical
            row = read(raw)
            row.event = event = row.event.strip(spaces)
            row.distinct_id = distinct_id = row.distinct_id.strip(spaces)
            if not (0 < len(event) <= _EVENT_TYPICAL and 0 < len(distinct_id) <= _DISTINCT_ID_TYPICAL):
                raise _NotTypical
            if row.user_id is not None:
                row.user_id = identifier = row.user_id.strip(spaces)
                if not 0 < len(identifier) <= _USER_ID_TYPICAL:
                    raise _NotTypical
            if row.external_id is not None:
                row.external_id = identifier = row.external_id.strip(spaces)
                if not 0 < len(identifier) <= _EXTERNAL_ID_TYPICAL:
                    raise _NotTypical
            if row.email is not None:
                row.email = identifier = row.email.strip(spaces)
                if not 0 < len(identifier) <= _EMAIL_TYPICAL:
                    raise _NotTypical
            if row.time is not None:
                row.time = time = int(row.time)
                if not oldest_ms <= time <= newest_ms:
                    raise _NotTypical
            defaults = row.default_properties
            if defaults is None:
                has_version.append(False)
            else:
                defaults.pop("received_at", None)
                has_version.append(defaults.get("version") is not None)
        except _NOT_TYPICAL:
            verdict = _judge_carefully(bytes(raw), rules, oldest_ms, newest_ms, None)
            if isinstance(verdict, list):
                judged.faults[row_index] = message_of(verdict, f"events[{row_index}]")
                continue
            body, distinct_id, event, is_version_named = verdict
            has_version.append(is_version_named)
        else:
            body = write(row)
        indexes.append(row_index)
        bodies.append(body)
        distinct_ids.append(distinct_id)
        events.append(event)
        content_hashes.append(digest(body))
    return judged


def judge_track(request: TrackRequest, rules: RowRules, now_ms: int, made_distinct_id: str) -> JudgedRows:
    """Judge the row of a /track; `made_distinct_id` becomes its distinctId when it has none."""
    return _judge_one(request.row, rules, now_ms, made_distinct_id, _track_fields)


def judge_identify(request: IdentifyRequest, rules: RowRules, now_ms: int, made_distinct_id: str) -> JudgedRows:
    """Judge an /identify, which is one row of the event `$identify`."""
    return _judge_one(request.row, rules, now_ms, made_distinct_id, _identify_fields)


class _NotTypical(Exception):
    """This row must be judged carefully."""


_NOT_TYPICAL = (_NotTypical, msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError)

# A string of n characters has at most 2n UTF-16 units; longer ones are counted on the careful way.
_EVENT_TYPICAL = EVENT_UNITS_MAX // 2
_DISTINCT_ID_TYPICAL = DISTINCT_ID_UNITS_MAX // 2
_USER_ID_TYPICAL = USER_ID_UNITS_MAX // 2
_EXTERNAL_ID_TYPICAL = EXTERNAL_ID_UNITS_MAX // 2
_EMAIL_TYPICAL = EMAIL_UNITS_MAX // 2


class _Row(msgspec.Struct, rename="camel", omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A typical row, in the order of the canonical one."""

    event: str
    distinct_id: str
    user_id: str | None = None
    external_id: str | None = None
    email: str | None = None
    time: int | float | None = None
    event_properties: dict[str, Json] | None = None
    user_properties: dict[str, Json] | None = None
    default_properties: dict[str, Json] | None = None
    identity_context: dict[str, Json] | None = None


_read_row = msgspec.json.Decoder(_Row).decode
_read_value = msgspec.json.Decoder().decode
_write = msgspec.json.Encoder().encode

_Fields = dict[str, Json]
_Judged = tuple[bytes, str, str, bool]
"""Canonical row, distinctId, event, whether a version was named."""


def _nothing_yet(row_count: int) -> JudgedRows:
    return JudgedRows(row_count, [], [], [], [], [], [], {})


def _judge_one(
    raw: bytes, rules: RowRules, now_ms: int, made_distinct_id: str, prepare: Callable[[_Fields, str], bool]
) -> JudgedRows:
    judged = _nothing_yet(1)
    made: list[bool] = []

    def prepared(fields: _Fields) -> None:
        made.append(prepare(fields, made_distinct_id))

    verdict = _judge_carefully(raw, rules, *rules.window(now_ms), prepared)
    if isinstance(verdict, list):
        judged.faults[0] = message_of(verdict, "")
        return judged
    body, distinct_id, event, is_version_named = verdict
    judged.indexes.append(0)
    judged.bodies.append(body)
    judged.distinct_ids.append(distinct_id)
    judged.events.append(event)
    judged.has_version.append(is_version_named)
    judged.has_made_distinct_id = made[0]
    judged.content_hashes.append(xxhash.xxh3_64_digest(_without_distinct_id(body) if made[0] else body))
    return judged


def _without_distinct_id(body: bytes) -> bytes:
    fields = _read_value(body)
    del fields["distinctId"]
    return _write(fields)


def _track_fields(fields: _Fields, made_distinct_id: str) -> bool:
    """Give the row of a /track a distinctId when it has none; whether it had none."""
    if fields.get("distinctId") is not None:
        return False
    fields["distinctId"] = made_distinct_id
    return True


def _identify_fields(fields: _Fields, made_distinct_id: str) -> bool:
    """Make the row of an /identify: what is a field of other rows only is an unknown field here."""
    foreign = {name: fields.pop(name) for name in ("event", "time", "distinctId", "eventProperties") if name in fields}
    fields[_FOREIGN] = foreign
    fields["event"] = IDENTIFY_EVENT
    fields["distinctId"] = made_distinct_id
    return True


_FOREIGN = "\0foreign"


def _judge_carefully(
    raw: bytes, rules: RowRules, oldest_ms: int, newest_ms: int, prepare: Callable[[_Fields], None] | None
) -> _Judged | list[Fault]:
    """A row judged field by field: what it becomes, or all its faults in the order of the contract's fields."""
    limits = rules.limits
    if len(raw) > limits.row_bytes_max:
        return [Fault("", f"at most {limits.row_bytes_max} bytes of JSON", "more")]
    try:
        fields = _read_value(raw)
    except UnicodeDecodeError:
        return [Fault("", "UTF-8", "other bytes")]
    except RecursionError:
        return [Fault("", f"at most {limits.row_depth_max} levels of nesting", "more")]
    except msgspec.ValidationError:
        return [Fault("", "numbers within a double's range", "a larger one")]
    except msgspec.DecodeError:
        return [Fault("", "strings of whole characters", "a lone surrogate")]
    if raw.count(b"[") + raw.count(b"{") > limits.row_depth_max and depth_of(raw) > limits.row_depth_max:
        return [Fault("", f"at most {limits.row_depth_max} levels of nesting", "more")]
    if not isinstance(fields, dict):
        return [Fault("", "an object", kind_of(fields))]
    fields.pop("token", None)
    if prepare is not None:
        prepare(fields)
    return _canonical(fields, oldest_ms, newest_ms)


def _canonical(fields: _Fields, oldest_ms: int, newest_ms: int) -> _Judged | list[Fault]:
    faults: list[Fault] = []
    canonical: _Fields = {}
    event = _required_text("event", fields.pop("event", None), EVENT_UNITS_MAX, faults)
    distinct_id = _required_text("distinctId", fields.pop("distinctId", None), DISTINCT_ID_UNITS_MAX, faults)
    canonical["event"] = event
    canonical["distinctId"] = distinct_id
    for name, units_max in _IDENTIFIERS:
        identifier = _identifier(name, fields.pop(name, None), units_max, faults)
        if identifier:
            canonical[name] = identifier
    time = fields.pop("time", None)
    if time is not None:
        canonical["time"] = _time(time, oldest_ms, newest_ms, faults)
    for name in _OBJECTS:
        value = fields.pop(name, None)
        if isinstance(value, dict):
            canonical[name] = value
        elif value is not None:
            faults.append(Fault(name, "an object", kind_of(value)))
    extra = fields.pop(_FOREIGN, {}) | fields
    if extra:
        canonical["extra"] = extra
    if faults:
        return faults
    defaults = canonical.get("defaultProperties", {})
    defaults.pop("received_at", None)
    return _write(canonical), distinct_id, event, defaults.get("version") is not None


_IDENTIFIERS = (("userId", USER_ID_UNITS_MAX), ("externalId", EXTERNAL_ID_UNITS_MAX), ("email", EMAIL_UNITS_MAX))
_OBJECTS = ("eventProperties", "userProperties", "defaultProperties", "identityContext")


def _required_text(name: str, value: Json, units_max: int, faults: list[Fault]) -> str:
    text = _text(name, value, units_max, faults, f"a string of 1 to {units_max} characters")
    if value is None or text == "":
        found = "none" if value is None else "an empty string"
        faults.append(Fault(name, f"a string of 1 to {units_max} characters", found))
    return text or ""


def _identifier(name: str, value: Json, units_max: int, faults: list[Fault]) -> str | None:
    return _text(name, value, units_max, faults, f"a string of at most {units_max} characters")


def _text(name: str, value: Json, units_max: int, faults: list[Fault], expected: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        faults.append(Fault(name, expected, kind_of(value)))
        return None
    text = trim(value)
    if utf16_units(text) > units_max:
        faults.append(Fault(name, expected, f"{utf16_units(text)} characters"))
        return None
    return text


def _time(value: Json, oldest_ms: int, newest_ms: int, faults: list[Fault]) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        faults.append(Fault("time", "a number of milliseconds since 1970", kind_of(value)))
        return None
    time = int(value)
    if time < oldest_ms:
        found = "one that looks like seconds" if 0 < time < SECONDS_MAX else "an older one"
        faults.append(Fault("time", "milliseconds since 1970 within the source's time window", found))
    elif time > newest_ms:
        faults.append(Fault("time", "milliseconds since 1970 within the source's time window", "a later one"))
    return time
