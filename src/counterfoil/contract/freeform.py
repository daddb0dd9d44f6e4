"""Free-form objects: `eventProperties`, `custom_properties`, `consent` (contract.md section 5).

Two ways to the same end. `normalize` does what the section says to a decoded object. `typical` is a type for msgspec
that takes exactly objects which `normalize` would leave as they are and find nothing wrong with, so that a decoder
answers for the common ones while it decodes; it may refuse others of that kind (deep ones).
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from counterfoil.contract.limits import Limits
from counterfoil.contract.reading import Fields, Json
from counterfoil.contract.text import SAFE_INTEGER_MAX, number_text, utf16_units

BoundPassed = tuple[str, str]
"""What was expected, and what was found."""

GROWTH_MAX = 6
"""A canonical JSON text is at most so many times as long as the text it was read from: `9e15` becomes
`9000000000000000.0`, or as a member of its own `"9000000000000000"`."""

_TYPICAL_LEVELS = 5


def normalize(properties: Fields, limits: Limits, text_bytes: int) -> BoundPassed | None:
    """Normalise an object in place, then check it; what bound it passes, if any.

    `text_bytes` is the size of a JSON text that the object is a part of; its own is only measured when it can matter.
    """
    properties.pop("", None)
    entries_max = limits.array_entries_max
    levels = 1
    for name, value in properties.items():
        kind = type(value)
        if kind is int or kind is float:
            if not -SAFE_INTEGER_MAX <= value <= SAFE_INTEGER_MAX:
                properties[name] = str(value) if kind is int else number_text(value)
        elif kind is dict:
            levels = max(levels, 1 + _clean_object(value, entries_max))
        elif kind is list:
            _clean_array(value, entries_max)
        elif kind is msgspec.Raw:
            properties[name] = bytes(value).decode()
    if len(properties) > limits.object_keys_max:
        return f"at most {limits.object_keys_max} keys", f"{len(properties)}"
    if levels > limits.object_levels_max:
        return f"at most {limits.object_levels_max} object levels", f"{levels}"
    if text_bytes * GROWTH_MAX >= limits.object_units_max and _units(properties) >= limits.object_units_max:
        return f"JSON of less than {limits.object_units_max} characters", "more"
    return None


def _clean_object(value: Fields, entries_max: int) -> int:
    """Clean a nested object; its object levels, those inside arrays not counted."""
    if "" in value:
        del value[""]
    levels = 0
    for member in value.values():
        if type(member) is dict:
            levels = max(levels, _clean_object(member, entries_max))
        elif type(member) is list:
            _clean_array(member, entries_max)
    return 1 + levels


def _clean_array(value: list[Json], entries_max: int) -> None:
    if len(value) > entries_max:
        del value[entries_max:]
    for entry in value:
        if type(entry) is dict:
            _clean_object(entry, entries_max)
        elif type(entry) is list:
            _clean_array(entry, entries_max)


def _units(properties: Fields) -> int:
    return utf16_units(msgspec.json.encode(properties).decode())


def typical(limits: Limits) -> Any:
    """A type for msgspec, of objects that are normal as they are but for their size."""
    whole = Annotated[int, msgspec.Meta(ge=-SAFE_INTEGER_MAX, le=SAFE_INTEGER_MAX)]
    real = Annotated[float, msgspec.Meta(ge=-SAFE_INTEGER_MAX, le=SAFE_INTEGER_MAX)]
    levels = min(limits.object_levels_max, _TYPICAL_LEVELS)
    members = _typical_object(whole | real | str | bool | None, levels, limits)
    return Annotated[members, msgspec.Meta(max_length=limits.object_keys_max)]


_Key = Annotated[str, msgspec.Meta(min_length=1)]
_PLAIN: Any = int | float | str | bool | None


def _typical_object(scalar: Any, levels: int, limits: Limits) -> Any:
    """Objects of up to so many levels, in which arrays hold scalars and objects."""
    entries = msgspec.Meta(max_length=limits.array_entries_max)
    if levels == 1:
        return dict[_Key, scalar | Annotated[list[_PLAIN], entries]]
    inner: Any = _typical_object(_PLAIN, levels - 1, limits)
    entry: Any = _PLAIN | inner
    return dict[_Key, scalar | inner | Annotated[list[entry], entries]]
