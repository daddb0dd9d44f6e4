"""Each line of the tables is a promise: type, trimming, conversion, length."""

from __future__ import annotations

import json
from typing import Any

import pytest

from counterfoil.contract import fields as contract
from counterfoil.contract.fields import Field
from tests.contract.judging import canonical, fault, row

PROPERTIES = [
    pytest.param(path, field, id=f"{path}.{field.name}")
    for path, table in (
        ("userProperties", contract.USER_PROPERTIES),
        ("defaultProperties", contract.DEFAULT_PROPERTIES),
    )
    for field in table.values()
    if field.name != "received_at"
]

SAMPLES: dict[str, Any] = {
    "a string": "x",
    "a number": 1.5,
    "a boolean": True,
    "an object": {"a": 1},
    "an array": [1],
}
TAKES = {
    "string": {"a string"},
    "number": {"a number"},
    "boolean": {"a boolean"},
    "map": {"an object"},
    "any": set(SAMPLES),
}


def kept(path: str, field: Field, value: Any, **more: Any) -> Any:
    """What a property becomes, on the typical way and, beside an unknown field, on the careful one."""
    typical = canonical(row(**{path: {field.name: value} | more}))
    careful = canonical(row(unknown=1, **{path: {field.name: value} | more}))
    assert typical[path] == careful[path]
    return typical[path][field.name]


def test_the_tables_are_in_the_order_of_their_names() -> None:
    """The canonical order of properties, which the checks take for that of the names."""
    for table in (contract.USER_PROPERTIES, contract.DEFAULT_PROPERTIES, contract.IDENTITY_CONTEXT):
        assert list(table) == sorted(table)


def test_the_tables_hold_what_the_contract_lists() -> None:
    """82 and 68 properties."""
    assert (len(contract.DEFAULT_PROPERTIES), len(contract.USER_PROPERTIES)) == (82, 68)


@pytest.mark.parametrize(("path", "field"), PROPERTIES)
def test_a_property_takes_its_type_and_null(path: str, field: Field) -> None:
    """Values of its type come out as they went in, null too; others are faults that name the property's path."""
    if field.name != "version":
        assert kept(path, field, None) is None
    for kind, value in SAMPLES.items():
        if kind in TAKES[field.type]:
            assert kept(path, field, value) == value
        elif field.to_text and kind in ("a number", "a boolean"):
            assert kept(path, field, value) == {"a number": "1.5", "a boolean": "true"}[kind]
        else:
            assert (
                fault(**{path: {field.name: value}}) == f"{path}.{field.name}: expected {field.expected}, found {kind}"
            )


@pytest.mark.parametrize(("path", "field"), [case for case in PROPERTIES if case.values[1].type == "string"])  # type: ignore[union-attr]
def test_a_string_property_is_trimmed_and_bounded_as_its_line_says(path: str, field: Field) -> None:
    """Trimmed or not, before its length is counted in UTF-16 units."""
    for padded in (" x", "x\ufeff", "\u3000x\n", " \u00a0"):
        assert kept(path, field, padded) == (padded.strip(" \ufeff\u3000\n\u00a0") if field.trim else padded)
    for untrimmed in ("\x1cx", "x\x85", "", "é", "\0", '"', "a b"):
        assert kept(path, field, untrimmed) == untrimmed
    longest = field.max_length or 10_000
    padding = " " if field.trim else ""
    assert kept(path, field, padding + "x" * longest) == "x" * longest
    assert kept(path, field, "😀" * (longest // 2)) == "😀" * (longest // 2)
    if field.max_length is not None:
        for text, units in (("x" * (longest + 1), longest + 1), ("😀" * (longest // 2 + 1), longest + 2)):
            message = (
                f"{path}.{field.name}: expected a string of at most {longest} characters, found {units} characters"
            )
            assert fault(**{path: {field.name: text}}) == message


@pytest.mark.parametrize("path", ["userProperties", "defaultProperties"])
def test_unknown_properties_are_kept_after_the_known_ones(path: str) -> None:
    """Known ones in the contract's order, unknown ones in the sender's."""
    sent = {"zz": [1], "utm_term": "x", "aa": {"": None}, "ad_id": None}
    assert (
        json.dumps(canonical(row(**{path: sent}))[path])
        == '{"ad_id": null, "utm_term": "x", "zz": [1], "aa": {"": null}}'
    )


def test_the_order_of_known_properties_is_the_contracts() -> None:
    """Two senders that say the same in another order say the same."""
    sent = {"utm_term": "x", "city": "y", "ad_id": "z"}
    assert (
        json.dumps(canonical(row(userProperties=sent))["userProperties"])
        == '{"ad_id": "z", "city": "y", "utm_term": "x"}'
    )


@pytest.mark.parametrize("name", ["custom_properties", "consent"])
def test_maps_are_free_form_objects(name: str) -> None:
    """They are normalised and bounded as section 5 says."""
    sent = {"": 1, "n": 2**53, "a": list(range(300)), "b": None, "c": ""}
    expected = {"n": "9007199254740992", "a": list(range(250)), "b": None, "c": ""}
    assert canonical(row(userProperties={name: sent}))["userProperties"] == {name: expected}
    message = f"userProperties.{name}: expected at most 200 keys, found 201"
    assert fault(userProperties={name: {str(key): 0 for key in range(201)}}) == message


def test_numbers_of_the_table_are_doubles() -> None:
    """An integer beyond a double's range is none; within it, it stays exact."""
    assert canonical(row(defaultProperties={"duration": 10**30}))["defaultProperties"] == {"duration": 10**30}
    message = "defaultProperties.duration: expected numbers within a double's range, found a larger one"
    assert fault(defaultProperties={"duration": 10**309}) == message
    digits = b'{"event":"a","distinctId":"1","defaultProperties":{"duration":' + b"9" * 5000 + b"}}"
    assert fault(digits) == message


def test_received_at_is_checked_and_taken_out() -> None:
    """Any string goes, since the server sets it over what was sent; anything else is a fault."""
    for value in ("", "now", None):
        assert canonical(row(defaultProperties={"received_at": value}))["defaultProperties"] == {}
    message = "defaultProperties.received_at: expected a string, found a number"
    assert fault(defaultProperties={"received_at": 1}) == message


def test_an_identity_context_needs_both_its_strings() -> None:
    """`ip` and `userAgent` are required when it is there; what else is in it is kept."""
    both = {"ip": " i", "userAgent": ""}
    assert canonical(row(identityContext=both))["identityContext"] == both
    sent = {"x": 1, "userAgent": "u", "ip": "i"}
    assert (
        json.dumps(canonical(row(identityContext=sent))["identityContext"]) == '{"ip": "i", "userAgent": "u", "x": 1}'
    )
    assert fault(identityContext={}) == "identityContext.ip: expected a string, found none (and 1 more)"
    assert (
        fault(identityContext={"ip": "i", "userAgent": None})
        == "identityContext.userAgent: expected a string, found null"
    )
    assert fault(identityContext={"ip": 1, "userAgent": "u"}) == "identityContext.ip: expected a string, found a number"
    assert fault(identityContext="i") == "identityContext: expected an object, found a string"
