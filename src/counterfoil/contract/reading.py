"""The JSON text of one row -> plain values, whatever it holds.

A decoder refuses a text as a whole; a sender wants to know which field it was. A row that msgspec refuses is read once
more, leniently, and what nobody can read is replaced by `Unreadable` where it stands.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

from counterfoil.contract.faults import Fault
from counterfoil.contract.fields import OBJECTS
from counterfoil.contract.limits import Limits
from counterfoil.contract.outline import depth_of

Json = Any
"""A decoded JSON value. An integer too long for Python's `int` is a `msgspec.Raw` of its digits."""
Fields = dict[str, Json]

DIGITS_MAX = 4000
"""Python refuses to make integers of more than 4300 digits, since that takes the square of their number."""


class Unreadable(msgspec.Struct, frozen=True):
    """Stands where a value can't be read."""

    expected: str
    found: str


LONE_SURROGATE = Unreadable("strings of whole characters", "a lone surrogate")
NOT_UTF8 = Unreadable("UTF-8", "other bytes")
OUT_OF_RANGE = Unreadable("numbers within a double's range", "a larger one")


def read_row(text: bytes, limits: Limits) -> Json | Fault:
    """The value of a row's JSON text, whose grammar holds; a Fault where it is too large or too deep to be read.

    A field of the row, or a property of an object that has a table, is `Unreadable` where something in it is.
    """
    if len(text) > limits.row_bytes_max:
        return Fault("", f"at most {limits.row_bytes_max} bytes of JSON", "more")
    depth_max = limits.row_depth_max
    if text.count(b"[") + text.count(b"{") > depth_max and depth_of(text) > depth_max:
        return Fault("", f"at most {depth_max} levels of nesting", "more")
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _read_leniently(text)


_decode = msgspec.json.Decoder().decode


def _read_leniently(text: bytes) -> Json | Fault:
    try:
        # What is not UTF-8 becomes lone surrogates, and is told from sent ones afterwards.
        value = json.loads(text.decode("utf-8", "surrogateescape"), parse_int=_integer)
    except ValueError:
        return Fault("", "JSON", "something else")
    broken_text = LONE_SURROGATE if _is_utf8(text) else NOT_UTF8
    if not isinstance(value, dict):
        return value if (fault := _unreadable(value, broken_text)) is None else Fault("", fault.expected, fault.found)
    if not all(map(_is_whole, value)):
        return Fault("", broken_text.expected, broken_text.found)
    return {name: _marked(name, member, broken_text) for name, member in value.items()}


def _marked(name: str, value: Json, broken_text: Unreadable) -> Json:
    """A field's value, or what stands in its place; in the objects that have tables, each property's."""
    unreadable = _unreadable(value, broken_text)
    if unreadable is None:
        return value
    if name in OBJECTS and isinstance(value, dict) and all(map(_is_whole, value)):
        return {key: _unreadable(member, broken_text) or member for key, member in value.items()}
    return unreadable


def _unreadable(value: Json, broken_text: Unreadable) -> Unreadable | None:
    """Why a value can't be read; None if it can."""
    try:
        written = _encode(value)
    except UnicodeEncodeError:
        return broken_text
    # What is beyond a double's range was read as infinite, and is written as null.
    return OUT_OF_RANGE if b"null" in written and _has_infinite(value) else None


_encode = msgspec.json.Encoder().encode


def _has_infinite(value: Json) -> bool:
    """Whether a number somewhere in a value, at most some hundred levels deep, is infinite."""
    if isinstance(value, float):
        return math.isinf(value)
    if isinstance(value, list):
        return any(map(_has_infinite, value))
    return isinstance(value, dict) and any(map(_has_infinite, value.values()))


def _integer(digits: str) -> int | msgspec.Raw:
    return int(digits) if len(digits) <= DIGITS_MAX else msgspec.Raw(digits.encode())


def _is_whole(text: str) -> bool:
    """Whether a string holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
