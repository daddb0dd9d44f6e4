"""The fields that the contract knows: the row's own, and the two tables of fields.json.

This is the one place: the checks, the OpenAPI document and the page docs/reference/fields.md are made from it. A
property is added by a line in fields.json.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Literal

import msgspec

FieldType = Literal["string", "number", "boolean", "map", "any", "time", "object"]
"""`map` is a free-form object (contract.md section 5), `any` every JSON value, `object` one with a table of its own."""


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a field may hold; null is the same as absent in a row, and a value of its own in the tables."""

    name: str
    type: FieldType
    trim: bool = False
    """Whitespace at either end is taken off before the check."""
    to_text: bool = False
    """Numbers and booleans become text before the check."""
    min_length: int = 0
    max_length: int | None = None
    """UTF-16 code units, after trimming."""
    is_required: bool = False
    """Must be there, and not null."""

    @property
    def expected(self) -> str:
        """What a message says was expected."""
        if self.type != "string":
            return _EXPECTED[self.type]
        if self.max_length is None:
            return "a string"
        return f"a string of {f'{self.min_length} to' if self.min_length else 'at most'} {self.max_length} characters"


_EXPECTED = {
    "number": "a number",
    "boolean": "a boolean",
    "map": "an object",
    "any": "any value",
    "time": "a number of milliseconds since 1970",
    "object": "an object",
}

Table = dict[str, Field]
"""Fields by name, in the contract's order: of properties, that of their names."""


def _table(fields: Iterable[Field]) -> Table:
    return {field.name: field for field in fields}


class _Tables(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    default_properties: list[Field]
    user_properties: list[Field]


_TABLES = msgspec.json.decode((files(__package__) / "fields.json").read_bytes(), type=_Tables)

USER_PROPERTIES = _table(_TABLES.user_properties)
DEFAULT_PROPERTIES = _table(_TABLES.default_properties)
IDENTITY_CONTEXT = _table(
    (Field("ip", "string", is_required=True), Field("userAgent", "string", is_required=True)),
)

OBJECTS = {
    "userProperties": USER_PROPERTIES,
    "defaultProperties": DEFAULT_PROPERTIES,
    "identityContext": IDENTITY_CONTEXT,
}
"""The table of each field of the type `object`."""

EVENT = Field("event", "string", trim=True, min_length=1, max_length=1000, is_required=True)
DISTINCT_ID = Field("distinctId", "string", trim=True, min_length=1, max_length=400, is_required=True)
USER_ID = Field("userId", "string", trim=True, max_length=400)
EXTERNAL_ID = Field("externalId", "string", trim=True, to_text=True, max_length=400)
EMAIL = Field("email", "string", trim=True, max_length=1000)
IDENTIFIERS = (USER_ID.name, EXTERNAL_ID.name, EMAIL.name)
"""An identifier that is empty after trimming counts as absent."""

_OPTIONAL = (
    USER_ID,
    EXTERNAL_ID,
    EMAIL,
    Field("time", "time"),
    Field("eventProperties", "map"),
    Field("userProperties", "object"),
    Field("defaultProperties", "object"),
    Field("identityContext", "object"),
)

BATCH_ROW = _table((EVENT, DISTINCT_ID, *_OPTIONAL))
TRACK_ROW = _table((EVENT, msgspec.structs.replace(DISTINCT_ID, to_text=True, is_required=False), *_OPTIONAL))
IDENTIFY_ROW = _table(
    (
        USER_ID,
        EXTERNAL_ID,
        EMAIL,
        Field("userProperties", "object", is_required=True),
        Field("defaultProperties", "object"),
        Field("identityContext", "object"),
    )
)
