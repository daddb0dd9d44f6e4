"""A row is judged by itself: what it becomes, or the first thing wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xxhash

from counterfoil.contract.limits import Limits
from counterfoil.contract.requests import read_batch, read_identify, read_track
from counterfoil.contract.rows import JudgedRows, RowRules, judge_batch, judge_identify, judge_track

NOW_MS = 1_780_000_000_000
DAY_MS = 86_400_000
RULES = RowRules(Limits(), 7 * DAY_MS, 300_000)
MADE = "01890a5d-ac96-774b-bcce-b302099a8057"


def judged(*rows: bytes | dict[str, Any], rules: RowRules = RULES) -> JudgedRows:
    texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    body = b'{"token":"t","events":[' + b",".join(texts) + b"]}"
    return judge_batch(read_batch(body, rules.limits), rules, NOW_MS)


def row(**fields: Any) -> dict[str, Any]:
    return {"event": "Sign Up", "distinctId": "1"} | fields


def canonical(*args: Any, **fields: Any) -> Any:
    """The canonical row that a row becomes, alone."""
    result = judged(*args or [row(**fields)])
    assert not result.faults, result.faults
    return json.loads(result.bodies[0])


def fault(*args: Any, **fields: Any) -> str:
    """The message of a row that is invalid, without where it lies."""
    message = judged(row(), *args or [row(**fields)]).faults[1]
    assert message.startswith("events[1]")
    return message.removeprefix("events[1]").removeprefix(".").removeprefix(": ")


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
        eventProperties={"z": 1, "a": 1e22},
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
    result = judged(
        row(defaultProperties={"received_at": "then", "version": "9"}), row(defaultProperties={"version": None})
    )
    assert json.loads(result.bodies[0])["defaultProperties"] == {"version": "9"}
    assert result.has_version == [True, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distinctId": None}, "distinctId: expected a string of 1 to 400 characters, found none"),
        ({"distinctId": " "}, "distinctId: expected a string of 1 to 400 characters, found an empty string"),
        ({"distinctId": 1}, "distinctId: expected a string of 1 to 400 characters, found a number"),
        ({"distinctId": "x" * 401}, "distinctId: expected a string of 1 to 400 characters, found 401 characters"),
        ({"distinctId": "😀" * 201}, "distinctId: expected a string of 1 to 400 characters, found 402 characters"),
        ({"event": None}, "event: expected a string of 1 to 1000 characters, found none"),
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
    """Exactly 7 days and exactly 5 minutes are within; without end means from the year 1 on."""
    assert canonical(time=NOW_MS - 7 * DAY_MS)["time"] == NOW_MS - 7 * DAY_MS
    assert canonical(time=NOW_MS + 300_000)["time"] == NOW_MS + 300_000
    endless = RowRules(Limits(), None, 300_000)
    assert not judged(row(time=0), row(time=-62_135_596_800_000), rules=endless).faults
    assert judged(row(time=-62_135_596_800_001), row(time=-1e300), rules=endless).faults.keys() == {0, 1}


POISON: list[tuple[bytes, str]] = [
    (b'{"a":"\\ud800"}', "expected strings of whole characters, found a lone surrogate"),
    (b'{"a":"\xff"}', "expected UTF-8, found other bytes"),
    (b'{"a":1e400}', "expected numbers within a double's range, found a larger one"),
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


def test_an_identify_is_a_row_of_its_own_event() -> None:
    """Fields of other rows are unknown ones in it."""
    body = json.dumps({"token": "t", "userProperties": {}, "event": "x", "distinctId": "1", "time": 0, "userId": "u"})
    result = judge_identify(read_identify(body.encode(), RULES.limits), RULES, NOW_MS, MADE)
    assert json.loads(result.bodies[0]) == {
        "event": "$identify",
        "distinctId": MADE,
        "userId": "u",
        "userProperties": {},
        "extra": {"event": "x", "distinctId": "1", "time": 0},
    }
    assert result.events == ["$identify"]
