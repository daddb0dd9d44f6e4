"""Why a row is invalid, in words that a person can act on: path, what was expected, what kind of thing was found.

Never a value, nor a name that the sender chose: paths name the contract's fields alone.
"""

from __future__ import annotations

import msgspec


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong with a row."""

    path: str
    """Of the field, as in `userProperties.city`; empty is the row itself."""
    expected: str
    found: str


def message_of(faults: list[Fault], row_path: str) -> str:
    """The one message of a row with these faults, in the order of the contract's fields; `row_path` is where the row
    lies in the request, empty when it is the request."""
    first = faults[0]
    path = f"{row_path}.{first.path}" if row_path and first.path else row_path or first.path or "body"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{path}: expected {first.expected}, found {first.found}{more}"


def kind_of(value: object) -> str:
    """What kind of thing a decoded JSON value is."""
    return _KINDS.get(type(value), "a number")


_KINDS = {
    type(None): "null",
    bool: "a boolean",
    str: "a string",
    dict: "an object",
    list: "an array",
}
