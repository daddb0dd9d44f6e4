"""Columns into rows: by their names, or as a mapping file says.

A mapping file is TOML. Its one table names a field of the row by its path and says where the value comes from:

    [fields]
    event = {constant = "Purchase"}
    distinctId = {template = "order-{order_id}"}
    userId = "customer_id"                                       # a column
    time = {column = "date", format = "%Y-%m-%d", zone = "Europe/Berlin"}
    "eventProperties.amount" = {column = "dollar_value", type = "number"}

    rest = "eventProperties"        # where columns go that no field names; "none": nowhere

`distinctId = {hash = ["customer_id", "date"]}` makes one of the columns' texts, SHA-256 in 32 hex digits. A record
whose columns are all equal to those of an earlier one is a true repeat, not the same event sent twice: from the second
on its number of occurrence is hashed too, so each gets a distinctId of its own, the same whenever the file is read.

A template whose columns are empty, or null, gives nothing: a distinctId made of nothing would be that of many records.

`format` of a time: `ms`, `s` and `us` count from the Unix epoch; `iso` is ISO 8601; `auto` takes `iso` and `ms`;
anything else is for strptime. A time without a zone is in `zone`, UTC when there is none.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from counterfoil.backfill.errors import BackfillError
from counterfoil.contract.text import number_text

Columns = dict[str, Any]
Count = Callable[[bytes], int]
"""How often a digest was met before in this file; it counts."""

_AUTOMATIC = {
    "event": "event",
    "distinctId": "distinctId",
    "distinct_id": "distinctId",
    "userId": "userId",
    "user_id": "userId",
    "externalId": "externalId",
    "external_id": "externalId",
    "email": "email",
    "time": "time",
    "eventProperties": "eventProperties",
    "event_properties": "eventProperties",
    "userProperties": "userProperties",
    "user_properties": "userProperties",
    "defaultProperties": "defaultProperties",
    "default_properties": "defaultProperties",
    "identityContext": "identityContext",
    "identity_context": "identityContext",
}
_OBJECTS = {"eventProperties", "userProperties", "defaultProperties", "identityContext"}
_IDENTIFIERS = {"distinctId", "userId", "externalId"}
"""Often numbers in tables, and texts in the contract."""
_REQUIRED = {"event", "distinctId"}
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_EPOCH_UNITS = {"s": 1000.0, "ms": 1.0, "us": 0.001}
_FORMAT_NAMES = {**_EPOCH_UNITS, "iso": None, "auto": None}
_FORMATS_IN_WORDS = {"iso": "ISO 8601", "auto": "ISO 8601 or in milliseconds since 1970"}


class Value(BaseModel):
    """Where a field's value comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str | None = None
    constant: Any = None
    template: str | None = None
    hash: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    type: Literal["text", "number", "boolean", "json"] | None = None
    format: str | None = None
    zone: str = "UTC"

    @model_validator(mode="after")
    def _one_origin(self) -> Value:
        given = [self.column, self.constant, self.template, self.hash]
        if sum(origin is not None for origin in given) != 1:
            raise ValueError("expected exactly one of column, constant, template and hash")
        if self.column is None and self.model_fields_set & {"type", "format", "zone"}:
            raise ValueError("expected type, format and zone beside a column only")
        if self.template is not None and not self.columns():
            raise ValueError("expected a template with a {column} in it")
        try:
            ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("expected a zone like Europe/Berlin") from None
        if self.format is not None and self.format not in _FORMAT_NAMES:
            _check_pattern(self.format)
        return self

    def columns(self) -> tuple[str, ...]:
        """The columns it is made of."""
        if self.template is not None:
            return tuple(_PLACEHOLDER.findall(self.template))
        return self.hash or ((self.column,) if self.column is not None else ())


class Mapping(BaseModel):
    """How records become rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: Annotated[dict[str, Value], Field(min_length=1)]
    rest: str = "eventProperties"

    @model_validator(mode="after")
    def _paths(self) -> Mapping:
        for path in (*self.fields, self.rest):
            if "" in path.split("."):
                raise ValueError(f'expected paths like "eventProperties.amount", found "{path}"')
        name = self.fields.get("distinctId")
        if name is not None and name.constant is not None:
            raise ValueError("expected distinctId to differ from record to record: a column, a template or a hash")
        return self

    @property
    def counts_repeats(self) -> bool:
        """Whether true repeats must be counted."""
        return any(value.hash is not None for value in self.fields.values())


class MappingFault(Exception):
    """A record that can't be mapped; the message says which field and what was expected, never a value."""


def load_mapping(path: Path) -> Mapping:
    """The mapping in a TOML file. Raises BackfillError that names the place and what was expected."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise BackfillError(f"{path}: can't be read ({type(error).__name__})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BackfillError(f"{path}: not TOML: {error}") from None
    fields = table.get("fields")
    if isinstance(fields, dict):
        # `userId = "customer_id"` is short for a column.
        table["fields"] = {
            name: {"column": value} if isinstance(value, str) else value for name, value in fields.items()
        }
    try:
        return Mapping.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "fields"
        raise BackfillError(f"{path}: {place}: {_in_words(first)}") from None


def _in_words(error: ErrorDetails) -> str:
    """What was expected at the place of an error."""
    kind, place = error["type"], error["loc"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "missing":
        return "expected a table [fields]"
    if kind == "too_short":
        return "expected at least one column" if place[-1] == "hash" else "expected at least one field"
    if kind == "extra_forbidden":
        known = Mapping.model_fields if len(place) == 1 else Value.model_fields
        return f"expected one of {', '.join(known)}"
    if kind == "tuple_type":
        return "expected an array of columns"
    if kind == "dict_type":
        return "expected a table [fields]"
    if kind == "model_type":
        return 'expected the name of a column, or a table like {column = "name"}'
    return error["msg"].replace("Input should be", "expected")


def _check_pattern(pattern: str) -> None:
    """Raises ValueError for what strptime could read no time with."""
    try:
        if not pattern:
            raise ValueError
        datetime.strptime(datetime(2000, 1, 2, tzinfo=UTC).strftime(pattern), pattern)
    except (ValueError, re.error):
        names = ", ".join(_FORMAT_NAMES)
        raise ValueError(f"expected one of {names}, or a pattern of strptime like %Y-%m-%d %H:%M:%S") from None


def automatic_mapping(columns: Iterable[str]) -> Mapping:
    """A mapping by names: the contract's, also in snake_case, and paths like eventProperties.amount."""
    fields = {}
    for column in columns:
        top, dot, rest = column.partition(".")
        known = _AUTOMATIC.get(top)
        if known is None or (dot and known not in _OBJECTS):
            continue
        path = f"{known}.{rest}" if dot else known
        if known == "time":
            fields[path] = Value(column=column, format="auto")
        else:
            fields[path] = Value(column=column, type=_automatic_type(known) if not dot else None)
    # A mapping without a field can't be made; a file without any is judged, and every record told what it lacks.
    return Mapping.model_construct(fields=fields, rest="eventProperties")


def _automatic_type(field: str) -> Literal["text", "json"] | None:
    if field in _OBJECTS:
        return "json"
    return "text" if field in _IDENTIFIERS else None


class Mapper:
    """Maps the records of one file, in order."""

    def __init__(self, mapping: Mapping, count: Count) -> None:
        self._fields = [(name.split("."), value) for name, value in mapping.fields.items()]
        self._used = {column for value in mapping.fields.values() for column in value.columns()}
        self._rest = [] if mapping.rest == "none" else mapping.rest.split(".")
        self._count = count

    def row(self, columns: Columns) -> dict[str, Any]:
        """The row of a record. Raises MappingFault."""
        row: dict[str, Any] = {}
        for path, value in self._fields:
            found = self._value(".".join(path), value, columns)
            if found is not None:
                _put(row, path, found)
        if self._rest:
            for name, found in columns.items():
                if name not in self._used and found is not None and found != "":
                    _put(row, [*self._rest, name], found)
        return row

    def _value(self, field: str, value: Value, columns: Columns) -> Any:
        if value.constant is not None:
            # A copy for each row: columns may be put into it.
            return deepcopy(value.constant)
        for column in value.columns():
            if column not in columns and value.column is None:
                raise MappingFault(f"{field}: the record has no column {column}")
        if value.template is not None:
            return _filled(field, value, columns)
        if value.hash is not None:
            return self._hashed([columns[column] for column in value.hash])
        found = columns.get(str(value.column))
        if found is None or found == "":
            return None
        if value.format is not None:
            return _milliseconds(field, found, value)
        return found if value.type is None else _typed(field, found, value.type)

    def _hashed(self, values: list[Any]) -> str:
        digest = hashlib.sha256(json.dumps([_text(value) for value in values]).encode())
        occurrence = self._count(digest.digest()[:16]) + 1
        if occurrence > 1:
            digest.update(f"#{occurrence}".encode())
        return digest.hexdigest()[:32]


def _filled(field: str, value: Value, columns: Columns) -> str | None:
    for column in value.columns():
        if columns[column] is None or columns[column] == "":
            if field in _REQUIRED:
                raise MappingFault(f"{field}: column {column} is empty")
            return None
    return _PLACEHOLDER.sub(lambda match: _text(columns[match[1]]), str(value.template))


def _put(row: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = row.setdefault(name, {})
        if not isinstance(inner, dict):
            raise MappingFault(f"{name}: expected an object to put columns into")
        row = inner
    row[path[-1]] = value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _typed(field: str, value: Any, kind: str) -> Any:
    if not isinstance(value, str):
        return value if kind != "text" else _scalar_text(value)
    try:
        if kind == "number":
            return _number(value)
        if kind == "boolean":
            return {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}[value.strip().lower()]
        if kind == "json":
            return msgspec.json.decode(value.encode())
    except (ValueError, KeyError):
        expected = "JSON" if kind == "json" else f"a {kind}"
        raise MappingFault(f"{field}: expected {expected}, found a text that is none") from None
    return value


def _scalar_text(value: Any) -> Any:
    """A number or a boolean as text: integers by their digits, others as the contract prints them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return number_text(value) if isinstance(value, float) else value


def _number(text: str) -> int | float:
    decoded = msgspec.json.decode(text.strip().encode())
    if isinstance(decoded, bool) or not isinstance(decoded, int | float):
        raise ValueError
    return decoded


def _milliseconds(field: str, value: Any, origin: Value) -> int:
    """ms since the Unix epoch of a time in the given format. `auto` takes ISO 8601 texts and epoch milliseconds."""
    try:
        if origin.format in _EPOCH_UNITS:
            return round(float(value) * _EPOCH_UNITS[origin.format])
        if origin.format == "auto" and not isinstance(value, str):
            return int(value)
        text = str(value).strip()
        if origin.format == "auto" and re.fullmatch(r"-?\d+(\.\d+)?", text):
            return int(float(text))
        if origin.format in ("iso", "auto"):
            moment = datetime.fromisoformat(text)
        else:
            moment = datetime.strptime(text, str(origin.format))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=ZoneInfo(origin.zone))
        return round(moment.timestamp() * 1000)
    except (ValueError, OverflowError, TypeError):
        words = _FORMATS_IN_WORDS.get(str(origin.format), f"in the format {origin.format}")
        raise MappingFault(f"{field}: expected a time {words}") from None
