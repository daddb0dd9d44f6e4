"""A row judged field by field: whatever it holds, what becomes of it or everything that is wrong with it.

`typical` judges common rows while they are decoded; every other row comes here, and what is decided here is what
holds.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from counterfoil.contract import fields as contract
from counterfoil.contract.faults import Fault, kind_of
from counterfoil.contract.fields import Field, Table
from counterfoil.contract.freeform import normalize
from counterfoil.contract.limits import Limits
from counterfoil.contract.reading import OUT_OF_RANGE, Fields, Json, Unreadable, read_row
from counterfoil.contract.text import number_text, trim, utf16_units

IDENTIFY_EVENT = "$identify"

SECONDS_MAX = 100_000_000_000
"""A time below this looks like seconds: as milliseconds it lies before March 1973, as seconds before the year 5139."""


class Endpoint(Enum):
    """Where a row came in."""

    BATCH = "batch"
    TRACK = "track"
    IDENTIFY = "identify"


class Window(msgspec.Struct, frozen=True):
    """The oldest and the newest time that a row may name, in ms."""

    oldest_ms: int
    newest_ms: int


class CanonicalRow(msgspec.Struct, frozen=True):
    """What a valid row becomes."""

    body: bytes
    content: bytes
    """What the content hash is made of: the body, without a distinctId that the server made."""
    event: str
    distinct_id: str
    has_version: bool
    has_made_distinct_id: bool


def judge_carefully(
    text: bytes, limits: Limits, window: Window, endpoint: Endpoint, made_distinct_id: str = ""
) -> CanonicalRow | list[Fault]:
    """What a row becomes, or all its faults in the order of the contract's fields."""
    fields = read_row(text, limits)
    if isinstance(fields, Fault):
        return [fields]
    if not isinstance(fields, dict):
        return [Fault("", "an object", kind_of(fields))]
    fields.pop("token", None)
    judging = _Judging(limits, window, len(text))
    row: Fields = {}
    if endpoint is Endpoint.IDENTIFY:
        row["event"] = IDENTIFY_EVENT
    for name, field in _TABLES[endpoint].items():
        if name in fields:
            value = judging.field(name, field, fields.pop(name))
            if value is not None:
                row[name] = value
        elif field.is_required:
            judging.missing(name, field)
    judging.unknown(fields)
    if fields:
        row["extra"] = fields
    return judging.faults or _canonical(row, made_distinct_id)


_TABLES = {
    Endpoint.BATCH: contract.BATCH_ROW,
    Endpoint.TRACK: contract.TRACK_ROW,
    Endpoint.IDENTIFY: contract.IDENTIFY_ROW,
}


def _canonical(row: Fields, made_distinct_id: str) -> CanonicalRow:
    defaults = row.get("defaultProperties", {})
    defaults.pop("received_at", None)
    has_version = defaults.get("version") is not None
    if not has_version:
        # The server may have to name one; two of the same name would be delivered.
        defaults.pop("version", None)
    body = content = _write(row)
    has_made_distinct_id = "distinctId" not in row
    if has_made_distinct_id:
        row = {"event": row["event"], "distinctId": made_distinct_id} | row
        body = _write(row)
    return CanonicalRow(
        body=body,
        content=content,
        event=row["event"],
        distinct_id=row["distinctId"],
        has_version=has_version,
        has_made_distinct_id=has_made_distinct_id,
    )


_write = msgspec.json.Encoder().encode


class _Judging:
    """The fields of one row are judged; what is wrong with them gathers in `faults`."""

    def __init__(self, limits: Limits, window: Window, text_bytes: int) -> None:
        self.faults: list[Fault] = []
        self._limits = limits
        self._window = window
        self._text_bytes = text_bytes

    def field(self, path: str, field: Field, value: Json) -> Json:
        """What a field of the row becomes; None is absent."""
        if value is None:
            if field.is_required:
                self._fault(path, field.expected, "null")
            return None
        kind = type(value)
        if kind is Unreadable:
            self._fault(path, value.expected, value.found)
            return None
        if field.type == "string":
            return self._string(path, field, value)
        if field.type == "object" or field.type == "map":
            if kind is not dict:
                self._fault(path, field.expected, kind_of(value))
                return None
            return self._map(path, value) if field.type == "map" else self._object(path, contract.OBJECTS[path], value)
        if field.type == "time":
            return self._time(path, field, value)
        if field.type == "boolean":
            if kind is not bool:
                self._fault(path, field.expected, kind_of(value))
        elif field.type == "number":
            self._number(path, field, value)
        return value

    def missing(self, path: str, field: Field) -> None:
        """A required field is not there."""
        self._fault(path, field.expected, "none")

    def unknown(self, fields: Fields, path: str = "") -> None:
        """Fields that the contract does not know are kept; they must be readable."""
        for value in fields.values():
            if type(value) is Unreadable:
                self._fault(path, value.expected, f"{value.found} in an unknown field")

    def _fault(self, path: str, expected: str, found: str) -> None:
        self.faults.append(Fault(path, expected, found))

    def _string(self, path: str, field: Field, value: Json) -> str | None:
        if type(value) is not str:
            text = _scalar_text(value) if field.to_text else None
            if text is None:
                self._fault(path, field.expected, kind_of(value))
                return None
            if type(text) is Unreadable:
                self._fault(path, text.expected, text.found)
                return None
            value = text
        if field.trim:
            value = trim(value)
        if len(value) < field.min_length:
            self._fault(path, field.expected, "an empty string")
        elif field.max_length is not None and 2 * len(value) > field.max_length < (units := utf16_units(value)):
            self._fault(path, field.expected, f"{units} characters")
        return value or (None if path in contract.IDENTIFIERS else value)

    def _number(self, path: str, field: Field, value: Json) -> bool:
        """Whether it is a number within a double's range."""
        if kind_of(value) != "a number":
            self._fault(path, field.expected, kind_of(value))
            return False
        if not _is_double(value):
            self._fault(path, OUT_OF_RANGE.expected, OUT_OF_RANGE.found)
            return False
        return True

    def _time(self, path: str, field: Field, value: Json) -> int | None:
        if not self._number(path, field, value):
            return None
        time = int(value)
        oldest_ms, newest_ms = self._window.oldest_ms, self._window.newest_ms
        if not oldest_ms <= time <= newest_ms:
            if time > newest_ms:
                found = "a later one"
            else:
                found = "one that looks like seconds" if 0 < time < SECONDS_MAX else "an older one"
            self._fault(path, "milliseconds since 1970 within the time window", found)
        return time

    def _map(self, path: str, value: Fields) -> Fields:
        passed = normalize(value, self._limits, self._text_bytes)
        if passed is not None:
            self._fault(path, *passed)
        return value

    def _object(self, path: str, table: Table, value: Fields) -> Fields:
        """An object with its known properties in the contract's order, the others after them."""
        known: Fields = {}
        for name in sorted(filter(table.__contains__, value)):
            known[name] = self.field(f"{path}.{name}", table[name], value.pop(name))
        for name, field in _REQUIRED[path]:
            if name not in known:
                self.missing(f"{path}.{name}", field)
        self.unknown(value, path)
        return known | value


_REQUIRED = {
    path: [(name, field) for name, field in table.items() if field.is_required]
    for path, table in contract.OBJECTS.items()
}


def _scalar_text(value: Json) -> str | Unreadable | None:
    """A number or a boolean as text; None for what is neither."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if kind_of(value) != "a number":
        return None
    return number_text(value) if _is_double(value) else OUT_OF_RANGE


def _is_double(number: Json) -> bool:
    """Whether a number is within a double's range; a `msgspec.Raw` is an integer of thousands of digits."""
    if type(number) is msgspec.Raw:
        return False
    try:
        float(number)
    except OverflowError:
        return False
    return True
