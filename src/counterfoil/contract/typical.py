"""Typical rows, judged while they are decoded: one decode into a Struct, a few checks, one encode.

What a decoder can say by itself is in the types: what is there, of which kind, how long, that each name is known, that
free-form objects are normal. `fit` does the rest for a row's own fields. The types of the two tables are made from the
tables.

What is left is to trim the strings of the tables, of which a row may have 140 and almost none needs it. So they are
taken as they are, and `with_loose_ends` then finds, in one look at many canonical texts at once, the few where
something stands at an end of a string that might have to go; `is_trimmed` says it of one row for certain.

A row that is anything else raises NotTypical or one of the decoder's errors (`NOT_TYPICAL` are all of them), and is
judged carefully. A row that is typical comes out as `careful` would make it.

Rejected: properties as plain dicts, checked in a loop (a row with ten of each table takes 1.5 times as long), a pattern
in the types (a call of `re` for each string).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Annotated, Any

import msgspec
import numpy as np

from counterfoil.contract import fields as contract
from counterfoil.contract.fields import Field, Table
from counterfoil.contract.freeform import typical
from counterfoil.contract.limits import Limits
from counterfoil.contract.text import trim


class NotTypical(Exception):
    """This row must be judged carefully."""


NOT_TYPICAL = (NotTypical, msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError)


class IdentityContext(msgspec.Struct, rename="camel", forbid_unknown_fields=True, gc=False):
    """The network context of a visitor."""

    ip: str
    user_agent: str


class Row(msgspec.Struct, rename="camel", omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A typical row, its fields in the order of the canonical one."""

    event: str
    distinct_id: str
    user_id: str | None = None
    external_id: str | None = None
    email: str | None = None
    time: int | float | None = None
    event_properties: Any = None
    user_properties: Any = None
    default_properties: Any = None
    identity_context: IdentityContext | None = None
    token: str | None = None
    """No part of the row; taken out."""


class Readers(msgspec.Struct, frozen=True):
    """Decoders that take typical rows only."""

    batch: msgspec.json.Decoder[Row]
    track: msgspec.json.Decoder[Row]
    """A distinctId may be missing; it is None then, against its type."""


@lru_cache(maxsize=8)
def readers(limits: Limits) -> Readers:
    """The decoders of typical rows under these limits."""
    free: Any = typical(limits)
    narrowed: list[tuple[str, Any, Any]] = [
        ("event_properties", free | None, None),
        ("user_properties", _properties("UserProperties", contract.USER_PROPERTIES, free) | None, None),
        ("default_properties", _properties("DefaultProperties", contract.DEFAULT_PROPERTIES, free) | None, None),
    ]
    made: tuple[str, Any, Any] = ("distinct_id", str | None, None)
    return Readers(_reader(narrowed), _reader([made, *narrowed]))


def fit(row: Row, oldest_ms: int, newest_ms: int) -> bool:
    """Trim and check what the decoder did not, but for the strings of the tables; whether the row names a version.

    `str.strip` returns the same string when there is nothing to take off, and knows all of JavaScript's whitespace but
    the byte order mark, which `is_typical` sees; what it would take something off is trimmed by the rule.

    Raises NotTypical.
    """
    row.token = None
    text = row.event
    if text.strip() is not text:
        row.event = text = trim(text)
    if not 0 < len(text) <= _EVENT_LENGTH:
        raise NotTypical
    text = row.distinct_id
    if text.strip() is not text:
        row.distinct_id = text = trim(text)
    if not 0 < len(text) <= _DISTINCT_ID_LENGTH:
        raise NotTypical
    identifier = row.user_id
    if identifier is not None:
        if identifier.strip() is not identifier:
            identifier = trim(identifier)
        if len(identifier) > _USER_ID_LENGTH:
            raise NotTypical
        row.user_id = identifier or None
    identifier = row.external_id
    if identifier is not None:
        if identifier.strip() is not identifier:
            identifier = trim(identifier)
        if len(identifier) > _EXTERNAL_ID_LENGTH:
            raise NotTypical
        row.external_id = identifier or None
    identifier = row.email
    if identifier is not None:
        if identifier.strip() is not identifier:
            identifier = trim(identifier)
        if len(identifier) > _EMAIL_LENGTH:
            raise NotTypical
        row.email = identifier or None
    time = row.time
    if time is not None:
        row.time = time = int(time)
        if not oldest_ms <= time <= newest_ms:
            raise NotTypical
    defaults = row.default_properties
    if defaults is None:
        return False
    defaults.received_at = msgspec.UNSET
    if defaults.version is None:
        defaults.version = msgspec.UNSET
    return defaults.version is not msgspec.UNSET


def is_typical(body: bytes, limits: Limits) -> bool:
    """Whether the canonical text of a row shows nothing that `fit` can't have judged.

    A text has at least as many bytes as UTF-16 units, and a free-form object's is shorter than its row's.
    """
    return len(body) < limits.object_units_max and not (b"\xef" in body and _BYTE_ORDER_MARK in body)


def is_trimmed(row: Row) -> bool:
    """Whether no string of the row's tables has to be trimmed."""
    for properties, trimmed in (
        (row.user_properties, _TRIMMED_USER_PROPERTIES),
        (row.default_properties, _TRIMMED_DEFAULT_PROPERTIES),
    ):
        if properties is not None:
            for name, value in msgspec.to_builtins(properties).items():
                if type(value) is str and name in trimmed and trim(value) is not value:
                    return False
    return True


def with_loose_ends(bodies: Sequence[bytes]) -> list[int]:
    """The indexes of the canonical texts in which some string may begin or end with whitespace.

    In them whitespace stands inside strings alone, so what stands beside a quotation mark tells: a space, a byte of a
    longer character, or a backslash, which may be an escaped one.
    """
    found: list[int] = []
    text = memoryview(b"\n".join(bodies))
    ends = np.fromiter(accumulate(len(body) + 1 for body in bodies), np.int64, len(bodies))
    # In pieces that stay in the processor's cache, each beginning with the last byte of the one before.
    for start in range(0, len(text), _PIECE_BYTES):
        piece = np.frombuffer(text[max(start - 1, 0) : start + _PIECE_BYTES], np.uint8)
        is_quote = piece == _QUOTE
        # Printable ASCII is 0x21 to 0x7e; below 0x21 the subtraction wraps around.
        is_loose = (piece - _PRINTABLE_MIN > _PRINTABLE_RANGE) | (piece == _BACKSLASH)
        is_hit = (is_quote[1:] & is_loose[:-1]) | (is_quote[:-1] & is_loose[1:])
        if is_hit.any():
            places = np.flatnonzero(is_hit) + max(start - 1, 0)
            found += np.searchsorted(ends, places, side="right").tolist()
    return sorted(set(found))


_PIECE_BYTES = 32 * 1024
_QUOTE = np.uint8(ord('"'))
_BACKSLASH = np.uint8(ord("\\"))
_PRINTABLE_MIN = np.uint8(0x21)
_PRINTABLE_RANGE = np.uint8(0x7E - 0x21)

_BYTE_ORDER_MARK = "\ufeff".encode()

_TRIMMED_USER_PROPERTIES = frozenset(field.name for field in contract.USER_PROPERTIES.values() if field.trim)
_TRIMMED_DEFAULT_PROPERTIES = frozenset(field.name for field in contract.DEFAULT_PROPERTIES.values() if field.trim)


def _typical_length(field: Field) -> int:
    """Strings up to this length are within the field's bound whatever they hold: a character has at most 2 units."""
    assert field.max_length is not None
    return field.max_length // 2


_EVENT_LENGTH = _typical_length(contract.EVENT)
_DISTINCT_ID_LENGTH = _typical_length(contract.DISTINCT_ID)
_USER_ID_LENGTH = _typical_length(contract.USER_ID)
_EXTERNAL_ID_LENGTH = _typical_length(contract.EXTERNAL_ID)
_EMAIL_LENGTH = _typical_length(contract.EMAIL)

# Larger integers may be beyond a double's range.
_Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


def _reader(narrowed: list[tuple[str, Any, Any]]) -> msgspec.json.Decoder[Row]:
    """A decoder of rows with some fields' types in other words."""
    row = msgspec.defstruct(
        "TypicalRow",
        narrowed,
        bases=(Row,),
        rename="camel",
        omit_defaults=True,
        forbid_unknown_fields=True,
        gc=False,
    )
    return msgspec.json.Decoder(row)


def _properties(name: str, table: Table, free: Any) -> Any:
    """The type of a table's properties: in its order, absent and null told apart."""
    return msgspec.defstruct(
        name,
        [(field.name, _type(field, free) | msgspec.UnsetType | None, msgspec.UNSET) for field in table.values()],
        forbid_unknown_fields=True,
        gc=False,
    )


def _type(field: Field, free: Any) -> Any:
    if field.type == "string":
        return str if field.max_length is None else Annotated[str, msgspec.Meta(max_length=_typical_length(field))]
    return {"number": _Integer | float, "boolean": bool, "map": free, "any": str | int | float | bool}[field.type]
