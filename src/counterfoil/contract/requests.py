"""Bytes of a body -> token and raw rows, or what is wrong with the request as a whole (contract.md section 3).

Rows are cut, not read: a row's values are checked when it is judged, after the token was looked up. What must hold of
a body is JSON's grammar, UTF-8 outside the rows, and the shape. A row may hold what the grammar allows and nothing can
read (a lone surrogate, thousands of levels, bytes that are not UTF-8, 1e400): that is the row's own fault, not the
request's.

The common body is skimmed by msgspec in one go. When it refuses, or when the body could hold so many rows that the
skim's objects would take too much memory, `outline` finds the rows from strings and brackets alone.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import msgspec
import numpy as np

from counterfoil.contract import outline, rejections
from counterfoil.contract.limits import MIB, Limits
from counterfoil.contract.surrogates import without_lone_surrogates
from counterfoil.contract.text import trim, utf16_units

RawRow = msgspec.Raw | bytes
"""The JSON text of one row."""

SKIM_ROWS_MAX = 1_000_000
"""The skim makes 56 bytes a row; a body that could hold more rows than this is cut by `outline`, which stops early."""

_WHITESPACE = b" \t\n\r"


class BatchRequest(msgspec.Struct, frozen=True):
    """A /batch whose shape is right: its trimmed token, and its rows in order, none of them read yet."""

    token: str
    rows: Sequence[RawRow]
    body_bytes: int


class RowRequest(msgspec.Struct, frozen=True):
    """A /track or /identify whose shape is right: its trimmed token, and the body, which is the row."""

    token: str
    row: bytes


TrackRequest = RowRequest
IdentifyRequest = RowRequest


def read_batch(body: bytes, limits: Limits) -> BatchRequest:
    """The token and the raw rows of a /batch. Raises RequestRejected (400, or 413 for too many rows)."""
    if _rows_max(body) <= SKIM_ROWS_MAX:
        try:
            batch = _skim_batch(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        else:
            return _checked_batch(batch.token, batch.events, len(body), limits)
    members = _members(body)
    token = _token(members.token, limits)
    if members.events is None or members.events[:1] != b"[":
        raise rejections.events_invalid(limits, found(members.events))
    return _checked_batch(token, _rows(members, limits), len(body), limits)


def read_track(body: bytes, limits: Limits) -> TrackRequest:
    """The token and the row of a /track. Raises RequestRejected (400)."""
    try:
        token = _skim_token(body).token
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        token = _token(_members(body).token, limits)
    return RowRequest(_checked_token(token, limits), body)


read_identify = read_track


def found(value: outline.Text | None) -> str:
    """What kind of thing a JSON text is, for a message; None is no text at all."""
    if value is None:
        return "none"
    return {
        b'"': "a string",
        b"{": "an object",
        b"[": "an array",
        b"n": "null",
        b"t": "a boolean",
        b"f": "a boolean",
    }.get(bytes(value[:1]), "a number")


class _Batch(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    token: str
    events: list[msgspec.Raw]


class _Token(msgspec.Struct, gc=False):
    token: str


class _RawMembers(msgspec.Struct, gc=False):
    token: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    events: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Members(msgspec.Struct, frozen=True):
    """The members of a body that matter, as their JSON texts; the last of each name."""

    token: outline.Text | None
    events: outline.Text | None
    readable_events: outline.Text | None
    """`events` as a decoder takes it, byte for byte in the same places: without lone surrogates."""


_skim_batch = msgspec.json.Decoder(_Batch).decode
_skim_token = msgspec.json.Decoder(_Token).decode
_skim_members = msgspec.json.Decoder(_RawMembers).decode
_skim_rows = msgspec.json.Decoder(list[msgspec.Raw]).decode
_skim_value = msgspec.json.Decoder(msgspec.Raw).decode
_read_string = msgspec.json.Decoder(str).decode


def _rows_max(body: outline.Text) -> int:
    """A number that the rows of a body can't exceed."""
    if len(body) <= 2 * SKIM_ROWS_MAX:
        return len(body) // 2
    view = np.frombuffer(body, np.uint8)
    return 1 + sum(int(np.count_nonzero(view[at : at + MIB] == ord(","))) for at in range(0, len(body), MIB))


def _checked_batch(token: str, rows: Sequence[RawRow], body_bytes: int, limits: Limits) -> BatchRequest:
    token = _checked_token(token, limits)
    if not rows:
        raise rejections.events_invalid(limits, "an empty array")
    if len(rows) > limits.rows_max:
        raise rejections.rows_too_many(limits)
    return BatchRequest(token, rows, body_bytes)


def _token(value: outline.Text | None, limits: Limits) -> str:
    if value is None or value[:1] != b'"':
        raise rejections.token_invalid(limits, found(value))
    try:
        return _read_string(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise rejections.not_json() from None


def _checked_token(token: str, limits: Limits) -> str:
    token = trim(token)
    if not token:
        raise rejections.token_invalid(limits, "an empty string")
    if utf16_units(token) > limits.token_chars_max:
        raise rejections.token_invalid(limits, "a longer one")
    return token


def _members(body: bytes) -> _Members:
    """The members of the body's object, when JSON's grammar holds for the whole; in values that are deeper than a
    decoder can follow, so far as strings and brackets tell."""
    try:
        skimmed = _skim_members(body)
    except UnicodeDecodeError:
        raise rejections.not_json() from None
    except msgspec.ValidationError:
        raise rejections.not_an_object() from None
    except msgspec.DecodeError:
        if b"\\ud" not in body and b"\\uD" not in body:
            raise rejections.not_json() from None
        return _outlined_members(body)
    except RecursionError:
        return _outlined_members(body)
    if not _is_utf8(body):
        return _outlined_members(body)
    events = _text(skimmed.events)
    return _Members(_text(skimmed.token), events, events)


def _text(value: msgspec.Raw | msgspec.UnsetType) -> memoryview | None:
    return None if value is msgspec.UNSET else memoryview(value)


def _outlined_members(body: bytes) -> _Members:
    """The same, of a body that a decoder refuses though its grammar may hold."""
    readable = without_lone_surrogates(body)
    try:
        spans = outline.containers_of(readable, MEMBERS_MAX)
        flat = _skim_members(_flattened(readable, spans))
    except msgspec.ValidationError:
        raise rejections.not_an_object() from None
    except (outline.TooManyElements, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise rejections.not_json() from None
    values = [_text(flat.token), _text(flat.events)]
    places = [spans[int(value[1:-1])] if value is not None and bytes(value[:1]) == b"[" else None for value in values]
    for span in spans:
        _check_grammar(memoryview(readable)[span.start : span.end])
    _check_utf8_outside(body, places[1])
    token, events = (_at(body, place) or value for place, value in zip(places, values, strict=True))
    return _Members(token, events, _at(readable, places[1]) or events)


def _at(text: bytes | bytearray, place: outline.Span | None) -> memoryview | None:
    return None if place is None else memoryview(text)[place.start : place.end]


MEMBERS_MAX = 10_000
"""A body that a decoder refuses is not searched for its rows among more arrays and objects than this."""


def _flattened(body: bytes | bytearray, spans: Sequence[outline.Span]) -> bytes:
    """`body` with its i-th inner container replaced by `[i]`."""
    parts: list[bytes | bytearray] = []
    at = 0
    for index, span in enumerate(spans):
        parts += body[at : span.start], b"[%d]" % index
        at = span.end
    return b"".join((*parts, body[at:]))


def _rows(members: _Members, limits: Limits) -> Sequence[RawRow]:
    """The rows of a request."""
    events, readable = members.events, members.readable_events
    assert events is not None
    assert readable is not None
    if events is readable and _rows_max(events) <= SKIM_ROWS_MAX:
        try:
            return _skim_rows(events)
        except (msgspec.DecodeError, RecursionError):
            pass
    try:
        spans = outline.elements_of(readable, limits.rows_max)
    except outline.TooManyElements:
        raise rejections.rows_too_many(limits) from None
    rows = [bytes(events[start:end]).strip(_WHITESPACE) for start, end in spans]
    if rows == [b""]:
        return ()
    for start, end in spans:
        _check_grammar(readable[start:end])
    return rows


def _check_grammar(text: outline.Text) -> None:
    """Raise RequestRejected when a text is not JSON by its grammar, so far as a decoder can follow its levels."""
    try:
        _skim_value(text)
    except RecursionError:
        return
    except msgspec.DecodeError:
        raise rejections.not_json() from None


def _check_utf8_outside(body: bytes, rows: outline.Span | None) -> None:
    """Raise RequestRejected when a body is not UTF-8 before or after its rows."""
    start, end = rows or outline.Span(0, 0)
    if not (_is_utf8(body[:start]) and _is_utf8(body[end:])):
        raise rejections.not_json()


def _is_utf8(text: bytes) -> bool:
    """Whether a text is UTF-8, found in pieces: as a string it would take up to four times its size."""
    if text.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(text), MIB):
            decoder.decode(text[at : at + MIB])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
