"""What holds of every row, whatever it holds: C1 to C4 of the package's docstring."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from counterfoil.contract.careful import CanonicalRow, Endpoint, judge_carefully
from counterfoil.contract.faults import message_of
from counterfoil.contract.fields import BATCH_ROW, DEFAULT_PROPERTIES, USER_PROPERTIES, Table
from counterfoil.contract.limits import Limits
from counterfoil.contract.rejections import RequestRejected
from counterfoil.contract.requests import read_batch, read_track
from counterfoil.contract.rows import RowRules, judge_batch, judge_track
from tests.contract.json_texts import broken_values, json_texts, keys, objects, reals, scalars, texts, values
from tests.contract.judging import MADE, NOW_MS, RULES, judged

GOOD = b'{"event":"a","distinctId":"good"}'

TEXT_NAMES = ["city", "ad_id", "utm_term", "sid", "host", "version", "received_at", "ylpcid"]
OTHER_NAMES = ["zip", "is_bot", "consent", "custom_properties", "duration", "fv"]
FIELD_NAMES = [*BATCH_ROW, "token", "unknown"]
property_names = st.sampled_from(TEXT_NAMES + OTHER_NAMES)
times = st.integers(NOW_MS - 10**9, NOW_MS + 10**6) | st.floats(NOW_MS - 1e9, NOW_MS + 1e6) | scalars
tables = st.dictionaries(property_names | keys, scalars | objects, max_size=6) | values
rows = st.fixed_dictionaries(
    {"event": texts.filter(bool) | values, "distinctId": texts.filter(bool) | values},
    optional={
        "userId": texts | values,
        "externalId": scalars | values,
        "email": texts | values,
        "time": times,
        "eventProperties": objects | values,
        "userProperties": tables,
        "defaultProperties": tables,
        "identityContext": st.fixed_dictionaries({}, optional={"ip": texts, "userAgent": texts, "x": values}) | values,
        "token": values,
        "unknown": values,
        "": values,
    },
)


def properties(table: Table, names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Properties of a table as they should be, and unknown ones."""
    kinds = {
        "string": texts,
        "number": st.integers(-(2**70), 2**70) | reals,
        "boolean": st.booleans(),
        "map": objects,
        "any": values,
    }
    known = {name: st.none() | kinds[table[name].type] for name in names if name in table and name != "received_at"}
    return st.fixed_dictionaries({}, optional=known | {"received_at": texts, "xx": values})


valid_rows = st.fixed_dictionaries(
    {"event": texts.map("a".__add__), "distinctId": texts.map("1".__add__)},
    optional={
        "userId": st.none() | texts,
        "externalId": st.none() | texts | reals,
        "email": st.none() | texts,
        "time": st.none() | st.integers(NOW_MS - 10**8, NOW_MS) | st.floats(NOW_MS - 1e8, NOW_MS),
        "eventProperties": objects,
        "userProperties": properties(USER_PROPERTIES, TEXT_NAMES + OTHER_NAMES),
        "defaultProperties": properties(DEFAULT_PROPERTIES, TEXT_NAMES + OTHER_NAMES),
        "identityContext": st.fixed_dictionaries({"ip": texts, "userAgent": texts}, optional={"x": values}),
        "token": values,
        "unknown": values,
        "": values,
    },
)
broken_rows = st.builds(
    lambda row, name, value: row | {name: value},
    rows,
    st.sampled_from(FIELD_NAMES),
    broken_values | st.dictionaries(property_names, broken_values, max_size=3),
)


@st.composite
def row_texts(draw: st.DrawFn, row: st.SearchStrategy[Any] = rows) -> bytes:
    """The JSON text of a row, its fields in any order."""
    fields = draw(row)
    return draw(json_texts({name: fields[name] for name in draw(st.permutations(list(fields)))}))


broken_texts = st.one_of(
    row_texts(valid_rows),
    row_texts(rows),
    row_texts(broken_rows),
    broken_values.flatmap(json_texts),
    st.sampled_from(
        [
            b'{"event":"a","distinctId":"1","x":"\\ud800"}',
            b'{"event":"\\udfff","distinctId":"1"}',
            b'{"event":"a","distinctId":"1","eventProperties":{"a":[1e400]}}',
            b'{"event":"a","distinctId":"\xff"}',
            b'{"event":"a","distinctId":"1","userProperties":{"city":"\xc3"}}',
            b'{"event":"a","distinctId":"1","x":' + b"[" * 80 + b"]" * 80 + b"}",
            b'{"event":"a","distinctId":"1","x":' + b"7" * 4500 + b"}",
            b"[" * 5000 + b"]" * 5000,
            b'{"event":"a","event":1,"distinctId":2,"distinctId":"1"}',
        ]
    ),
)


@given(st.lists(broken_texts, min_size=1, max_size=5), st.data())
def test_a_row_is_judged_alike_alone_and_in_any_batch_at_any_place(texts: list[bytes], data: st.DataObject) -> None:
    """C1: the same canonical bytes and hashes, or the same message but for the index."""
    place = data.draw(st.integers(0, len(texts) - 1))
    alone, together = judged(texts[place]), judged(*texts)
    assert len(together.indexes) + len(together.faults) == together.row_count == len(texts)
    if 0 in alone.faults:
        assert together.faults[place] == alone.faults[0].replace("events[0]", f"events[{place}]", 1)
    else:
        among = together.indexes.index(place)
        for column in ("bodies", "distinct_ids", "events", "content_hashes", "has_version"):
            assert getattr(together, column)[among] == getattr(alone, column)[0]


@given(st.lists(broken_texts, min_size=1, max_size=6), st.data())
def test_rows_judged_in_pieces_are_judged_as_if_they_were_not(texts: list[bytes], data: st.DataObject) -> None:
    """C1 once more: where a large request is cut into pieces makes no difference to any row."""
    request = read_batch(b'{"token":"t","events":[' + b",".join(texts) + b"]}", RULES.limits)
    whole = judge_batch(request, RULES, NOW_MS)
    cut = data.draw(st.integers(0, len(texts)))
    pieces = [judge_batch(request, RULES, NOW_MS, 0, cut), judge_batch(request, RULES, NOW_MS, cut, len(texts))]
    assert pieces[0].faults | pieces[1].faults == whole.faults
    for column in ("indexes", "bodies", "content_hashes", "has_version"):
        assert getattr(pieces[0], column) + getattr(pieces[1], column) == getattr(whole, column)


@given(rows | valid_rows | broken_rows, st.data())
def test_a_row_is_the_same_in_track_and_in_batch(fields: dict[str, Any], data: st.DataObject) -> None:
    """Sent with its token beside its fields it has the same canonical bytes, or the same fault without an index."""
    fields = {name: value for name, value in fields.items() if name != "token"}
    assume(isinstance(fields.get("distinctId"), str))
    text = data.draw(row_texts(st.just(fields)))
    batch = judged(text)
    body = text[: text.index(b"{") + 1] + b'"token":"t",' + text[text.index(b"{") + 1 :]
    track = judge_track(read_track(body, RULES.limits), RULES, NOW_MS, MADE)
    assert (track.bodies, track.content_hashes, track.has_version) == (
        batch.bodies,
        batch.content_hashes,
        batch.has_version,
    )
    messages = [message.removeprefix("events[0].").replace("events[0]", "body") for message in batch.faults.values()]
    assert list(track.faults.values()) == messages


FAULTY: dict[str, Any] = {
    "event": 1,
    "distinctId": [],
    "userId": {},
    "externalId": [],
    "email": True,
    "time": "now",
    "eventProperties": "x",
    "userProperties": {"city": {}, "zz": 1, "job_title": 5},
    "defaultProperties": {"duration": "long"},
    "identityContext": {"ip": 1, "userAgent": 2},
}
"""A wrong value for each field, in the contract's order; of the properties' the second in that order counts too."""
FAULT_COUNTS = {"userProperties": 2, "identityContext": 2}


@given(st.sets(st.sampled_from(list(FAULTY)), min_size=1), st.data())
def test_a_row_with_many_faults_tells_the_first_and_how_many_more(names: set[str], data: st.DataObject) -> None:
    """Whatever the order in which they were sent, the first is the first of the contract's fields."""
    fields = {"event": "a", "distinctId": "1"} | {name: FAULTY[name] for name in names}
    (message,) = judged(data.draw(row_texts(st.just(fields)))).faults.values()
    first = min(names, key=list(FAULTY).index)
    more = sum(FAULT_COUNTS.get(name, 1) for name in names) - 1
    assert re.match(rf"events\[0\]\.{first}[.:]", message)
    assert re.findall(r"\(and (\d+) more\)$", message) == ([str(more)] if more else [])


def without_empty_keys(value: Any) -> Any:
    if isinstance(value, list):
        return [without_empty_keys(entry) for entry in value]
    if isinstance(value, dict):
        return {name: without_empty_keys(member) for name, member in value.items() if name}
    return value


@given(st.lists(values, max_size=4).flatmap(lambda entries: st.tuples(st.just(entries), json_texts({"a": entries}))))
def test_free_form_values_come_out_as_they_went_in(entries_and_text: tuple[Any, bytes]) -> None:
    """Bytes in = value out: in a free-form object nothing below its top level changes but that empty keys go."""
    entries, text = entries_and_text
    for path in ("eventProperties", "userProperties.consent", "userProperties.custom_properties"):
        name, _, inner = path.partition(".")
        sent = b'{"%b":%b}' % (inner.encode(), text) if inner else text
        result = judged(b'{"event":"a","distinctId":"1","%b":%b}' % (name.encode(), sent))
        kept = json.loads(result.bodies[0])[name]
        assert json.dumps(kept[inner] if inner else kept) == json.dumps({"a": without_empty_keys(entries)})


@given(
    row_texts(rows | valid_rows | broken_rows),
    st.sampled_from([RULES, RowRules(Limits(row_depth_max=8, object_units_max=200), None, 0)]),
)
@example(b'{"event":"a","distinctId":"1","defaultProperties":{"host":" x"}}', RULES)
@example(b'{"event":"a","distinctId":"1","defaultProperties":{"host":"x\\ufeff"}}', RULES)
@example(b'{"event":"a","distinctId":"1","time":1e999}', RULES)
def test_the_typical_way_decides_as_the_careful_one(text: bytes, rules: RowRules) -> None:
    """C4: whichever way a row takes, it becomes the same, or has the same fault."""
    result = judged(text, rules=rules)
    verdict = judge_carefully(text, rules.limits, rules.window(NOW_MS), Endpoint.BATCH)
    if isinstance(verdict, CanonicalRow):
        assert result.bodies == [verdict.body]
        assert (result.events, result.distinct_ids) == ([verdict.event], [verdict.distinct_id])
        assert result.has_version == [verdict.has_version]
    else:
        assert result.faults == {0: message_of(verdict, "events[0]")}


@given(row_texts(valid_rows))
def test_a_canonical_row_judged_again_is_the_same(text: bytes) -> None:
    """C2: normalising twice changes nothing; unknown fields go back to where they came from first."""
    result = judged(text)
    assume(not result.faults)
    assert b"\n" not in result.bodies[0]
    fields = json.loads(result.bodies[0])
    again = judged(fields | fields.pop("extra", {}))
    assert again.bodies == result.bodies
    assert again.content_hashes == result.content_hashes


@given(rows | valid_rows, st.data())
def test_how_a_row_is_written_makes_no_difference(fields: dict[str, Any], data: st.DataObject) -> None:
    """Spaces, escapes and the order of known fields change neither the canonical bytes nor the message."""
    known = {name: value for name, value in fields.items() if name not in ("unknown", "")}
    results = [judged(data.draw(row_texts(st.just(known)))) for _ in range(2)]
    assert results[0].bodies == results[1].bodies
    assert results[0].faults == results[1].faults


@given(values.flatmap(lambda value: st.tuples(st.just(value), json_texts({"x": value}))))
def test_free_values_come_out_as_they_went_in(value_and_text: tuple[Any, bytes]) -> None:
    """Bytes in = value out: unknown fields keep every value, integers of any size and doubles exactly."""
    value, text = value_and_text
    result = judged(b'{"event":"a","distinctId":"1","y":' + text + b"}")
    assert json.dumps(json.loads(result.bodies[0])["extra"]["y"]["x"]) == json.dumps(value)


def is_json_by_grammar(body: bytes) -> bool:
    """Whether another reader's grammar, which lets lone surrogates and 1e400 pass, takes the body."""

    def refuse(_: str) -> None:
        raise ValueError

    try:
        json.loads(body.decode("utf-8", "surrogateescape"), parse_constant=refuse)
    except ValueError:
        return False
    return True


@given(st.binary(max_size=40) | row_texts().map(lambda text: text[:-2] + b"\xff" + text[-2:]), st.integers(0, 60))
@example(b'{"a":"\\ud800"}', 0)
@example(b"NaN", 0)
@example(b'{"a":1}}', 0)
@example(b'"\xff"', 0)
def test_any_bytes_in_a_rows_place_leave_the_others_alone(noise: bytes, cut: int) -> None:
    """The JSON of the request can't be read by its grammar, or every other row is accepted."""
    body = b'{"token":"t","events":[' + GOOD + b"," + noise[: cut or None] + b"," + GOOD + b"]}"
    if not is_json_by_grammar(body):
        with pytest.raises(RequestRejected, match="the body is not JSON in UTF-8"):
            read_batch(body, RULES.limits)
        return
    request = read_batch(body, RULES.limits)
    assert {0, len(request.rows) - 1} <= set(judge_batch(request, RULES, NOW_MS).indexes)


@given(row_texts(rows | valid_rows | broken_rows))
def test_no_message_holds_a_value(text: bytes) -> None:
    """C3: a message is made of the contract's names, numbers and words alone."""
    for message in judged(text).faults.values():
        assert re.fullmatch(
            r"events\[0\](\.(event|distinctId|userId|externalId|email|time|eventProperties|userProperties|"
            r"defaultProperties|identityContext)(\.[a-z_A-Z]+)?)?: expected [a-zA-Z0-9 ',-]+, found [a-zA-Z0-9 -]+"
            r"( \(and \d+ more\))?",
            message,
        )
