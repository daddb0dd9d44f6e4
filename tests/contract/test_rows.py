"""A row is judged by itself: what it becomes, or the first thing wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xxhash

from counterfoil.contract.limits import Limits
from counterfoil.contract.requests import read_identify, read_track
from counterfoil.contract.rows import JudgedRows, RowRules, judge_identify, judge_track
from tests.contract.judging import DAY_MS, MADE, NOW_MS, RULES, canonical, fault, judged, row


def test_a_row_becomes_its_canonical_bytes() -> None:
    """Known fields in the contract's order, absent and null ones left out, one line, hashed as it stands."""
    result = judged(
        {
            "time": NOW_MS - 1.5,
            "email": None,
            "eventProperties": {"b": 1, "a": [1.0, "\n"]},
            "distinctId": " 1\ufeff",
            "event": "\u00a0Sign Up\u2028",
        }
    )
    body = b'{"event":"Sign Up","distinctId":"1","time":1779999999998,"eventProperties":{"b":1,"a":[1.0,"\\n"]}}'
    assert result.bodies == [body]
    assert (result.events, result.distinct_ids, result.indexes, result.row_count) == (["Sign Up"], ["1"], [0], 1)
    assert result.content_hashes == [xxhash.xxh3_64_digest(body)]
    assert result.has_version == [False]


def test_the_careful_way_and_the_typical_one_give_the_same_bytes() -> None:
    """An unknown field sends a row the careful way; but for `extra`, nothing differs."""
    fields = row(
        userId=" u ",
        externalId="x",
        email="e",
        time=NOW_MS + 0.5,
        eventProperties={"z": 1, "a": [1e22]},
        userProperties={"city": "Bonn"},
        defaultProperties={"received_at": "x", "version": "1"},
        identityContext={"ip": "i", "userAgent": "u"},
    )
    typical = judged(fields)
    careful = judged(fields | {"unknown": 1})
    assert careful.bodies[0] == typical.bodies[0][:-1] + b',"extra":{"unknown":1}}'
    assert careful.has_version == typical.has_version == [True]


def test_unknown_fields_are_kept_in_the_senders_order() -> None:
    """They lie under `extra`, also one that is itself named so."""
    assert (
        json.dumps(canonical(row(z=1, extra={"a": None}, a=[1]))["extra"]) == '{"z": 1, "extra": {"a": null}, "a": [1]}'
    )


def test_a_token_in_a_row_is_no_part_of_it() -> None:
    """It is never stored and never compared."""
    assert judged(row(token="secret")).bodies == judged(row()).bodies


def test_the_servers_own_facts_are_no_part_of_a_row() -> None:
    """`received_at` goes, whatever was sent in it; a named version stays and is noticed."""
    sent = row(defaultProperties={"received_at": "then", "version": "9"})
    result = judged(sent, row(defaultProperties={"version": None}))
    assert canonical(sent | {"unknown": 1})["defaultProperties"] == {"version": "9"}
    assert json.loads(result.bodies[0])["defaultProperties"] == {"version": "9"}
    assert result.has_version == [True, False]
    assert json.loads(result.bodies[1])["defaultProperties"] == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distinctId": None}, "distinctId: expected a string of 1 to 400 characters, found null"),
        ({"distinctId": " "}, "distinctId: expected a string of 1 to 400 characters, found an empty string"),
        ({"distinctId": 1}, "distinctId: expected a string of 1 to 400 characters, found a number"),
        ({"distinctId": "x" * 401}, "distinctId: expected a string of 1 to 400 characters, found 401 characters"),
        ({"distinctId": "😀" * 201}, "distinctId: expected a string of 1 to 400 characters, found 402 characters"),
        ({"event": None}, "event: expected a string of 1 to 1000 characters, found null"),
        ({"event": "x" * 1001}, "event: expected a string of 1 to 1000 characters, found 1001 characters"),
        ({"userId": "x" * 401}, "userId: expected a string of at most 400 characters, found 401 characters"),
        ({"email": True}, "email: expected a string of at most 1000 characters, found a boolean"),
        ({"eventProperties": []}, "eventProperties: expected an object, found an array"),
        ({"userProperties": "x"}, "userProperties: expected an object, found a string"),
        ({"time": "1"}, "time: expected a number of milliseconds since 1970, found a string"),
        ({"time": True}, "time: expected a number of milliseconds since 1970, found a boolean"),
        (
            {"event": 1, "distinctId": 1, "time": ""},
            "event: expected a string of 1 to 1000 characters, found a number (and 2 more)",
        ),
    ],
)
def test_a_fault_names_path_expectation_and_kind(fields: dict[str, Any], message: str) -> None:
    """One message, the first in the contract's order, and how many more there are."""
    assert fault(**fields) == message


def test_lengths_are_counted_in_utf16_units_after_trimming() -> None:
    """A string of exactly the limit is accepted, with whitespace around it too."""
    assert canonical(distinctId=" " + "x" * 400 + " ")["distinctId"] == "x" * 400
    assert canonical(distinctId="😀" * 200)["distinctId"] == "😀" * 200
    assert canonical(event="é" * 1000)["event"] == "é" * 1000


@pytest.mark.parametrize("name", ["userId", "externalId", "email"])
def test_an_identifier_that_is_empty_after_trimming_is_absent(name: str) -> None:
    """It leaves no trace in the canonical row."""
    assert name not in canonical(**{name: " \t"})
    assert name not in canonical(**{name: None})


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (NOW_MS - 7 * DAY_MS - 1, "found an older one"),
        (NOW_MS // 1000, "found one that looks like seconds"),
        (0, "found an older one"),
        (NOW_MS + 300_001, "found a later one"),
        (10**30, "found a later one"),
    ],
)
def test_a_time_outside_the_window_is_invalid(time: float, message: str) -> None:
    """7 days back and 5 minutes ahead; one that looks like seconds is told so."""
    assert fault(time=time).endswith(message)


def test_the_window_includes_its_ends_and_a_source_can_widen_it() -> None:
    """Exactly 7 days and exactly 5 minutes are within, whichever way a row takes; without end: from the year 1 on."""
    for others in ({}, {"unknown": 1}):
        assert canonical(time=NOW_MS - 7 * DAY_MS, **others)["time"] == NOW_MS - 7 * DAY_MS
        assert canonical(time=NOW_MS + 300_000, **others)["time"] == NOW_MS + 300_000
        assert fault(time=NOW_MS - 7 * DAY_MS - 1, **others).endswith("found an older one")
        assert fault(time=NOW_MS + 300_001, **others).endswith("found a later one")
    endless = RowRules(Limits(), None, 300_000)
    assert not judged(row(time=0), row(time=-62_135_596_800_000), rules=endless).faults
    assert judged(row(time=-62_135_596_800_001), row(time=-1e300), rules=endless).faults.keys() == {0, 1}


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (1, "1"),
        (1.0, "1"),
        (1e21, "1e+21"),
        (True, "true"),
        (False, "false"),
        (12345678901234567890, "12345678901234567000"),
    ],
)
def test_scalars_become_text_as_javascript_prints_them(sent: Any, text: str) -> None:
    """`externalId` everywhere, `distinctId` in /track alone; numbers are doubles first."""
    assert canonical(externalId=sent)["externalId"] == text
    assert json.loads(track(distinctId=sent).bodies[0])["distinctId"] == text
    assert fault(distinctId=sent).startswith("distinctId: expected a string of 1 to 400 characters, found a ")


def test_what_is_no_scalar_does_not_become_text() -> None:
    """An object or an array is a fault, and so is a number that is none to JavaScript."""
    assert fault(externalId={}) == "externalId: expected a string of at most 400 characters, found an object"
    assert fault(externalId=10**309) == "externalId: expected numbers within a double's range, found a larger one"
    assert "distinctId: expected a string of 1 to 400 characters, found an array" in track(distinctId=[]).faults[0]


def test_duplicate_keys_count_with_their_last_value() -> None:
    """At every depth, and whatever the earlier ones hold."""
    text = (
        b'{"event":1,"distinctId":"1","event":"a","eventProperties":{"x":1,"x":{"y":1,"y":2}},"time":null,"time":null}'
    )
    assert canonical(text) == {"event": "a", "distinctId": "1", "eventProperties": {"x": {"y": 2}}}


def test_nul_is_kept() -> None:
    """It is a character like any other, in identifiers too."""
    text = b'{"event":"\\u0000","distinctId":"a\\u0000b","eventProperties":{"\\u0000":"\\u0000"}}'
    assert canonical(text) == {"event": "\0", "distinctId": "a\0b", "eventProperties": {"\0": "\0"}}
    assert b"\0" not in judged(text).bodies[0]


def test_nesting_of_64_levels_is_accepted_and_65_are_not() -> None:
    """The row is the first level; arrays and objects count alike, brackets in strings not at all."""

    def nested(levels: int) -> bytes:
        arrays = b"[" * (levels - 3) + b'"[[[{"' + b"]" * (levels - 3)
        return b'{"event":"a","distinctId":"1","eventProperties":{"a":{"b":' + arrays + b"}}}"

    assert not judged(nested(64)).faults
    assert fault(nested(65)) == "expected at most 64 levels of nesting, found more"
    unknown = b'{"event":"a","distinctId":"1","x":' + b'{"a":' * 63 + b"1" + b"}" * 64
    assert not judged(unknown).faults
    assert fault(unknown.replace(b"1}", b"[]}")) == "expected at most 64 levels of nesting, found more"


def test_integers_of_any_size_are_kept_exactly() -> None:
    """In free-form data below the top level, where they become strings, and in unknown fields."""
    for digits in ("18446744073709551616", "-" + "9" * 400, "7" * 4300, "8" * 20_000):
        text = b'{"event":"a","distinctId":"1","eventProperties":{"a":N,"b":[N]},"x":{"y":N},"z":N}'
        body = judged(text.replace(b"N", digits.encode())).bodies[0].decode()
        assert (
            f'"eventProperties":{{"a":"{digits}","b":[{digits}]}},"extra":{{"x":{{"y":{digits}}},"z":{digits}}}' in body
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'"event":"\\ud800"', "event: expected strings of whole characters, found a lone surrogate"),
        (
            b'"eventProperties":{"a":["\\udfff"]}',
            "eventProperties: expected strings of whole characters, found a lone surrogate",
        ),
        (
            b'"eventProperties":{"\\udfff":1}',
            "eventProperties: expected strings of whole characters, found a lone surrogate",
        ),
        (b'"userProperties":{"city":"\xc3"}', "userProperties.city: expected UTF-8, found other bytes"),
        (b'"userProperties":{"\xc3":1}', "userProperties: expected UTF-8, found other bytes"),
        (b'"userProperties":{"zz":"\xc3"}', "userProperties: expected UTF-8, found other bytes in an unknown field"),
        (
            b'"userProperties":{"consent":{"a":1e400}}',
            "userProperties.consent: expected numbers within a double's range, found a larger one",
        ),
        (b'"time":1e400', "time: expected numbers within a double's range, found a larger one"),
        (
            b'"time":-1e400,"email":1',
            "email: expected a string of at most 1000 characters, found a number (and 1 more)",
        ),
    ],
)
def test_what_nobody_can_read_is_named_by_its_field(text: bytes, message: str) -> None:
    """As near as the contract's own names go, and counted like every other fault."""
    assert fault(b'{"event":"a","distinctId":"1",' + text + b"}") == message


POISON: list[tuple[bytes, str]] = [
    (b'"\\ud800"', "expected strings of whole characters, found a lone surrogate"),
    (b'"\xff"', "expected UTF-8, found other bytes"),
    (b"1e400", "expected numbers within a double's range, found a larger one"),
    (b'{"\\ud800":1}', "expected strings of whole characters, found a lone surrogate"),
    (b'{"event":"a","distinctId":"1","a":"\xff"}', "expected UTF-8, found other bytes in an unknown field"),
    (b'{"event":"a","distinctId":1e400}', "distinctId: expected numbers within a double's range, found a larger one"),
    (b"[" * 10_000 + b"]" * 10_000, "expected at most 64 levels of nesting, found more"),
    (b"[" * 65 + b"]" * 65, "expected at most 64 levels of nesting, found more"),
    (b"null", "expected an object, found null"),
    (b"1", "expected an object, found a number"),
    (b'"x"', "expected an object, found a string"),
    (b"[]", "expected an object, found an array"),
    (b"{}", "event: expected a string of 1 to 1000 characters, found none (and 1 more)"),
    (b'{"a":"' + b"x" * 1_048_576 + b'"}', "expected at most 1048576 bytes of JSON, found more"),
]


@pytest.mark.parametrize(("poison", "message"), POISON, ids=range(len(POISON)))
def test_a_broken_row_fails_alone(poison: bytes, message: str) -> None:
    """Whatever bytes a row holds, its neighbours are accepted as they would be alone."""
    result = judged(row(distinctId="a"), poison, row(distinctId="b"))
    assert result.indexes == [0, 2]
    assert result.distinct_ids == ["a", "b"]
    assert list(result.faults) == [1]
    assert fault(poison) == message


def track(**fields: Any) -> JudgedRows:
    body = json.dumps({"token": "t", "event": "a"} | fields).encode()
    return judge_track(read_track(body, RULES.limits), RULES, NOW_MS, MADE)


def test_a_track_without_distinct_id_gets_the_servers() -> None:
    """The row holds it; the content hash is that of the row without it."""
    result = track()
    assert result.bodies == [b'{"event":"a","distinctId":"' + MADE.encode() + b'"}']
    assert result.has_made_distinct_id
    assert result.content_hashes == [xxhash.xxh3_64_digest(b'{"event":"a"}')]
    assert not track(distinctId="1").has_made_distinct_id
    assert track(distinctId="1").content_hashes == [xxhash.xxh3_64_digest(b'{"event":"a","distinctId":"1"}')]


def test_an_invalid_track_names_its_field_without_an_index() -> None:
    """There is one row, so its path begins with the field."""
    assert track(event="").faults == {0: "event: expected a string of 1 to 1000 characters, found an empty string"}


def identify(**fields: Any) -> JudgedRows:
    body = json.dumps({"token": "t"} | fields).encode()
    return judge_identify(read_identify(body, RULES.limits), RULES, NOW_MS, MADE)


def test_an_identify_is_a_row_of_its_own_event() -> None:
    """Fields of other rows are unknown ones in it."""
    result = identify(userProperties={}, event="x", distinctId="1", time=0, userId="u")
    assert json.loads(result.bodies[0]) == {
        "event": "$identify",
        "distinctId": MADE,
        "userId": "u",
        "userProperties": {},
        "extra": {"event": "x", "distinctId": "1", "time": 0},
    }
    assert result.events == ["$identify"]
    assert result.content_hashes == [
        xxhash.xxh3_64_digest(result.bodies[0].replace(b'"distinctId":"%b",' % MADE.encode(), b""))
    ]


def test_an_identify_needs_user_properties() -> None:
    """They may be empty, but neither absent nor null."""
    assert identify().faults == {0: "userProperties: expected an object, found none"}
    assert identify(userProperties=None).faults == {0: "userProperties: expected an object, found null"}
    assert not identify(userProperties={}, eventProperties=None).faults


def test_no_window_reaches_beyond_the_year_9999() -> None:
    """However far ahead a time may lie."""
    rules = RowRules(Limits(), None, 10**18)
    assert judged(row(time=253_402_300_799_999), row(time=253_402_300_800_000), rules=rules).faults.keys() == {1}


def test_a_row_is_too_large_by_its_bytes_as_sent() -> None:
    """Also when what is kept of it would be small."""
    text = json.dumps(row()).encode()
    spaced = text[:-1] + b" " * (1_048_576 - len(text)) + b"}"
    assert judged(spaced).bodies == judged(text).bodies
    assert fault(spaced[:-1] + b" }") == "expected at most 1048576 bytes of JSON, found more"
