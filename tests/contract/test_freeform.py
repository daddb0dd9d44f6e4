"""Free-form objects are normalised as contract.md section 5 says, and everything else in them stays as it was sent."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterfoil.contract.freeform import normalize, typical
from counterfoil.contract.limits import Limits
from tests.contract.json_texts import objects, values

LIMITS = Limits()


def normal(properties: dict[str, Any], limits: Limits = LIMITS) -> dict[str, Any]:
    """The normalised object, which passes no bound."""
    properties = copy.deepcopy(properties)
    assert normalize(properties, limits, 1 << 30) is None
    return properties


def bound(properties: dict[str, Any], limits: Limits = LIMITS) -> tuple[str, str] | None:
    return normalize(copy.deepcopy(properties), limits, 1 << 30)


def test_empty_keys_are_removed_at_every_depth() -> None:
    """Also in objects inside arrays."""
    sent = {"": 1, "a": {"": {"b": 1}, "c": [{"": 2, "d": [[{"": 3}]]}]}}
    assert normal(sent) == {"a": {"c": [{"d": [[{}]]}]}}


def test_arrays_are_cut_to_250_entries_at_every_depth() -> None:
    """The first 250 stay."""
    sent = {"a": list(range(251)), "b": {"c": [[0] * 300] * 300}, "d": list(range(250))}
    assert normal(sent) == {"a": list(range(250)), "b": {"c": [[0] * 250] * 250}, "d": list(range(250))}


@pytest.mark.parametrize(
    ("number", "stored"),
    [
        (2**53 - 1, 2**53 - 1),
        (2**53, "9007199254740992"),
        (-(2**53), "-9007199254740992"),
        (12345678901234567890123, "12345678901234567890123"),
        (9007199254740991.0, 9007199254740991.0),
        (9007199254740992.0, "9007199254740992"),
        (1e20, "100000000000000000000"),
        (-1e21, "-1e+21"),
        (1.5e300, "1.5e+300"),
        (5e-324, 5e-324),
        (1.0, 1.0),
    ],
)
def test_top_level_numbers_beyond_the_safe_integers_become_strings(number: float, stored: Any) -> None:
    """Integers as their digits, others as JavaScript prints them; deeper ones stay numbers."""
    result = normal({"a": number, "b": [number], "c": {"d": number}})
    assert result == {"a": stored, "b": [number], "c": {"d": number}}
    assert type(result["a"]) is type(stored)


def test_200_keys_are_counted_at_the_top_level_after_normalising() -> None:
    """The empty key does not count; nested keys do not."""
    assert bound({str(key): 0 for key in range(200)} | {"": 0}) is None
    assert bound({"a": {str(key): 0 for key in range(500)}}) is None
    assert bound({str(key): 0 for key in range(201)}) == ("at most 200 keys", "201")


def test_five_object_levels_are_counted_outside_arrays() -> None:
    """The object itself is the first; arrays and what is in them do not count."""
    five: Any = {"1": {"2": {"3": {"4": {"5": 1}}}}}
    assert bound(five) is None
    assert bound({"0": five}) == ("at most 5 object levels", "6")
    assert bound({"1": {"2": {"3": {"4": {"5": [{"0": five}]}}}}}) is None
    assert bound({"": {"0": five}}) is None


def test_the_size_is_counted_in_utf16_units_of_the_stored_text() -> None:
    """Shorter than 1,048,576, two bytes of UTF-8 being one unit and an emoji two."""
    room = 1_048_576 - len('{"a":""}')
    for character, units in (("x", 1), ("é", 1), ("😀", 2)):
        assert bound({"a": character * ((room - 1) // units)}) is None
        assert bound({"a": character * (room // units)}) == ("JSON of less than 1048576 characters", "more")


def test_limits_are_the_operators() -> None:
    """Every bound of section 5 can be set."""
    limits = Limits(object_keys_max=2, object_levels_max=1, array_entries_max=3, object_units_max=20)
    assert normal({"a": [1, 2, 3, 4]}, limits) == {"a": [1, 2, 3]}
    assert bound({"a": 1, "b": 1, "c": 1}, limits) == ("at most 2 keys", "3")
    assert bound({"a": {}}, limits) == ("at most 1 object levels", "2")
    assert bound({"a": "x" * 20}, limits) == ("JSON of less than 20 characters", "more")


@given(objects)
def test_normalising_twice_changes_nothing(properties: dict[str, Any]) -> None:
    """What is stored is normal."""
    normalize(properties, LIMITS, 0)
    once = copy.deepcopy(properties)
    normalize(properties, LIMITS, 0)
    assert json.dumps(properties) == json.dumps(once)


@given(objects, st.sampled_from([LIMITS, Limits(array_entries_max=2, object_keys_max=3, object_levels_max=2)]))
def test_a_typical_object_is_one_that_is_left_as_it_is(properties: dict[str, Any], limits: Limits) -> None:
    """The decoder's type takes only objects that `normalize` leaves alone and accepts, and all common ones of those."""
    text = json.dumps(properties).encode()
    try:
        msgspec.json.decode(text, type=typical(limits))
        is_typical = True
    except msgspec.ValidationError:
        is_typical = False
    is_normal = bound(properties, limits) is None and json.dumps(normal(properties, limits)).encode() == text
    assert is_typical <= is_normal
    if text.count(b"{") <= limits.object_levels_max and text.count(b"[") <= 1:
        assert is_normal <= is_typical


@given(st.lists(values, max_size=4))
def test_what_is_normal_already_goes_out_as_it_came_in(entries: list[Any]) -> None:
    """Below the top level every number stays, integers exactly and others as the double they are."""
    text = json.dumps({"a": entries}, separators=(",", ":"), ensure_ascii=False)
    if '"":' not in text:
        assert normal({"a": entries}) == json.loads(text)
