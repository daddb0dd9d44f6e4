"""Bytes of a body -> token and raw rows, or what is wrong with the request as a whole (contract.md section 3).

Rows are cut, not read: a row's values are checked when it is judged, after the token was looked up. What must hold of
a body is JSON's grammar, UTF-8 outside the rows, and the shape. A row may hold what the grammar allows and nothing can
read (a lone surrogate, thousands of levels, bytes that are not UTF-8, 1e400): that is the row's own fault, not the
request's.

The common body is skimmed by msgspec in one go. When it refuses, or when the body could hold so many rows that the
skim's objects would take too much memory, `outline` finds the rows from strings and brackets alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
import numpy as np

from counterfoil.contract import outline, rejections
from counterfoil.contract.limits import MIB, Limits
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
    token = _token(members.get("token"), limits)
    events = members.get("events")
    if events is None or not events.startswith(b"["):
        raise rejections.events_invalid(limits, found(events))
    return _checked_batch(token, _rows(events, limits), len(body), limits)


def read_track(body: bytes, limits: Limits) -> TrackRequest:
    """The token and the row of a /track. Raises RequestRejected (400)."""
    try:
        token = _skim_token(body).token
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        token = _token(_members(body).get("token"), limits)
    return RowRequest(_checked_token(token, limits), body)


read_identify = read_track


def found(value: bytes | None) -> str:
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
    }.get(value[:1], "a number")


class _Batch(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    token: str
    events: list[msgspec.Raw]


class _Token(msgspec.Struct, gc=False):
    token: str


_skim_batch = msgspec.json.Decoder(_Batch).decode
_skim_token = msgspec.json.Decoder(_Token).decode
_skim_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_skim_value = msgspec.json.Decoder(msgspec.Raw).decode
_read_string = msgspec.json.Decoder(str).decode


def _rows_max(body: bytes) -> int:
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


def _token(value: bytes | None, limits: Limits) -> str:
    if value is None or not value.startswith(b'"'):
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


def _members(body: bytes) -> dict[str, bytes]:
    """The members of the body's object by name, each as its JSON text; a later one of the same name counts.

    JSON's grammar holds for the whole, except inside values deeper than a decoder can follow.
    """
    try:
        members = {name: bytes(value) for name, value in _skim_members(body).items()}
    except UnicodeDecodeError:
        raise rejections.not_json() from None
    except msgspec.ValidationError:
        raise rejections.not_an_object() from None
    except msgspec.DecodeError:
        if b"\\ud" not in body and b"\\uD" not in body:
            raise rejections.not_json() from None
        members = _outlined_members(body)
    except RecursionError:
        members = _outlined_members(body)
    for name, value in members.items():
        if name != "events" and not _is_utf8(value):
            raise rejections.not_json()
    return members


def _outlined_members(body: bytes) -> dict[str, bytes]:
    """The same, of a body that a decoder refuses though its grammar may hold."""
    spans = outline.containers_of(body)
    try:
        flat = _skim_members(_without_lone_surrogates(_flattened(body, spans)))
    except msgspec.ValidationError:
        raise rejections.not_an_object() from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise rejections.not_json() from None
    for span in spans:
        _check_grammar(body[span.start : span.end])
    members = {name: bytes(value) for name, value in flat.items()}
    for name, value in members.items():
        if value.startswith(b"["):
            span = spans[int(value[1:-1])]
            members[name] = body[span.start : span.end]
    return members


def _flattened(body: bytes, spans: Sequence[outline.Span]) -> bytes:
    """`body` with its i-th inner container replaced by `[i]`."""
    parts: list[bytes] = []
    at = 0
    for index, span in enumerate(spans):
        parts += body[at : span.start], b"[%d]" % index
        at = span.end
    return b"".join((*parts, body[at:]))


def _rows(events: bytes, limits: Limits) -> Sequence[RawRow]:
    """The rows of a JSON array."""
    if _rows_max(events) <= SKIM_ROWS_MAX:
        try:
            return _skim_rows(events)
        except (msgspec.DecodeError, RecursionError):
            pass
    try:
        spans = outline.elements_of(events, outline.Span(0, len(events)), limits.rows_max)
    except outline.TooManyElements:
        raise rejections.rows_too_many(limits) from None
    rows = [events[span.start : span.end].strip(_WHITESPACE) for span in spans]
    if rows == [b""]:
        return ()
    for row in rows:
        _check_grammar(row)
    return rows


_skim_rows = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _check_grammar(text: bytes) -> None:
    """Raise RequestRejected when a text is not JSON by its grammar, so far as a decoder can follow its levels."""
    try:
        _skim_value(text)
    except RecursionError:
        return
    except msgspec.DecodeError:
        _check_grammar_of_strings(text)


def _check_grammar_of_strings(text: bytes) -> None:
    try:
        _skim_value(_without_lone_surrogates(text))
    except RecursionError:
        return
    except msgspec.DecodeError:
        raise rejections.not_json() from None


_SURROGATES = re.compile(
    rb"(?<!\\)((?:\\\\)*)"  # an even number of backslashes, so that the next one begins an escape
    rb"(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def _without_lone_surrogates(text: bytes) -> bytes:
    """`text` with each escaped lone surrogate replaced by U+FFFD; the grammar allows them, decoders do not."""
    return _SURROGATES.sub(lambda match: match[0] if match[2] else match[1] + rb"\ufffd", text)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
