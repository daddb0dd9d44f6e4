"""A request's shape is told before its rows are read, and no row can take another's chance."""

from __future__ import annotations

import json

import pytest

from counterfoil.contract import requests
from counterfoil.contract.limits import Limits
from counterfoil.contract.rejections import RequestRejected
from counterfoil.contract.requests import read_batch, read_track

LIMITS = Limits()


def batch(*rows: bytes, token: bytes = b'"t"') -> bytes:
    return b'{"token":' + token + b',"events":[' + b",".join(rows) + b"]}"


def rejection(body: bytes) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        read_batch(body, LIMITS)
    return caught.value


def rows_of(body: bytes) -> list[bytes]:
    return [bytes(row) for row in read_batch(body, LIMITS).rows]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"token":"t","events":[{}]',
        b'{"token":"t","events":[{},]}',
        b'{"token":"t","events":[,{}]}',
        b'{"token":"t","events":[{"a":NaN}]}',
        b'{"token":"t","events":[{"a":Infinity}]}',
        b'{"token":"t","events":[{"a":"\\x"}]}',
        b'{"token":"t","events":[{"a":"\x01"}]}',
        b'{"token":"t","events":[{"a":01}]}',
        b'{"token":"t","events":[{"a":"\\ud800"},{"a":NaN}]}',
        b'{"token":"t","events":[{"a":"\\ud800"},,{}]}',
        b'{"token":"t","events":[{"a":"\\ud800"}}}',
        b'{"token":"t","events":[{"a":"\\ud800"}],"x":[NaN]}',
        b'{"token":"t","events":[{"a":"\\ud800"}],"events":[{}],"x":nul}',
        b'{"token":"t","events":[' + b"[" * 5000 + b"]" * 5000 + b",NaN]}",
        b'{"token":"t","events":[' + b"[" * 5000,
        b'\xef\xbb\xbf{"token":"t","events":[{}]}',
        b'{"token":"t\xff","events":[{}]}',
        b'{"token":"t","\xff":1,"events":[{}]}',
        b'{"token":"t","x":"\xff","events":[{}]}',
        b'{"token":"t","events":[{"a":"\\ud800"}],"x":"\xff"}',
    ],
)
def test_a_body_that_is_not_json_in_utf8_is_refused_whole(body: bytes) -> None:
    """Where the JSON can't be read as a whole, or is not UTF-8 outside the rows, the request is a 400."""
    rejected = rejection(body)
    assert (rejected.status, rejected.message) == (400, "the body is not JSON in UTF-8")


@pytest.mark.parametrize("body", [b"[]", b"1", b'"a"', b"null", b"[" * 100_000 + b"]" * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    """The message says that an object was expected."""
    assert (rejection(body).status, rejection(body).message) == (400, "the body is not a JSON object")


@pytest.mark.parametrize(
    ("token", "found"),
    [
        (b"null", "null"),
        (b"1", "a number"),
        (b"true", "a boolean"),
        (b"[1]", "an array"),
        (b'{"a":1}', "an object"),
        (b'""', "an empty string"),
        (b'" \\u00a0\\ufeff"', "an empty string"),
        (b'"' + b"x" * 251 + b'"', "a longer one"),
        (b'"' + "😀".encode() * 126 + b'"', "a longer one"),
    ],
)
def test_a_token_of_the_wrong_kind_or_length_is_a_400(token: bytes, found: str) -> None:
    """Whatever stands in the token's place, the message says what was found, in /batch as in /track."""
    expected = f"token: expected a string of 1 to 250 characters, found {found}"
    assert (rejection(batch(b"{}", token=token)).status, rejection(batch(b"{}", token=token)).message) == (
        400,
        expected,
    )
    with pytest.raises(RequestRejected) as caught:
        read_track(b'{"event":"a","token":' + token + b"}", LIMITS)
    assert caught.value.message == expected


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"token":"t"}', "none"),
        (b'{"token":"t","events":null}', "null"),
        (b'{"token":"t","events":{}}', "an object"),
        (b'{"token":"t","events":[]}', "an empty array"),
        (b'{"token":"t","events":[ \\n ]}'.replace(b"\\n", b"\n"), "an empty array"),
    ],
)
def test_events_must_be_an_array_with_rows(body: bytes, found: str) -> None:
    """`events` missing, of another kind or empty is a 400."""
    assert rejection(body).message == f"events: expected an array of 1 to 10000 rows, found {found}"


def test_the_token_is_trimmed_as_javascript_trims() -> None:
    """A byte order mark and a no-break space go; U+0085 stays."""
    assert read_batch(batch(b"{}", token='"\ufeff t\u00a0\u2028"'.encode()), LIMITS).token == "t"
    assert read_batch(batch(b"{}", token='"\u0085t"'.encode()), LIMITS).token == "\u0085t"


def test_the_last_of_two_members_of_one_name_counts() -> None:
    """Duplicate keys: the last one, for `token` and for `events`, whichever way the body is read."""
    body = b'{"token":"a","events":[1],"token":"b","events":[2]}'
    assert read_batch(body, LIMITS).token == "b"
    assert rows_of(body) == [b"2"]
    poisoned = b'{"token":"a","events":[1],"token":"b","\\u0065vents":[2,"\\ud800"]}'
    assert read_batch(poisoned, LIMITS).token == "b"
    assert rows_of(poisoned) == [b"2", b'"\\ud800"']


POISON = [
    b'{"a":"\\ud800"}',
    b'{"a":"\\udc00\\ud800"}',
    b'{"a":"x\\\\\\ud83d"}',
    b'{"\\ud800":1}',
    b'{"a":"\xff"}',
    b'{"a":"\xed\xa0\x80"}',
    b'{"a":1e400}',
    b'{"a":' + b"9" * 5000 + b"}",
    b"[" * 10_000 + b"]" * 10_000,
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b"null",
    b"1",
    b'"text with ] and } and , and \\" in it"',
]


@pytest.mark.parametrize("poison", POISON, ids=range(len(POISON)))
@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_row_can_poison_the_cutting_of_the_others(poison: bytes, place: int) -> None:
    """Whatever the grammar allows inside a row, the rows before and after it are cut as they were sent."""
    rows = [b'{"event":"a","distinctId":"]}\\\\"}', b'{"event":"\\"[{","distinctId":"2"}']
    rows.insert(place, poison)
    spaced = b'{ "events" :\n[ ' + b" ,\t".join(rows) + b' ] , "token" : "t" }'
    assert rows_of(batch(*rows)) == rows
    assert rows_of(spaced) == rows


def test_too_many_rows_are_a_413_that_names_the_limit() -> None:
    """One row more than the limit is refused, also where the rows are too many to be skimmed at all."""
    assert len(rows_of(batch(*[b"{}"] * 10_000))) == 10_000
    for count in (10_001, 1_500_000):
        rejected = rejection(batch(*[b"1"] * count))
        assert (rejected.status, rejected.limit) == (413, 10_000)
        assert rejected.message == "the request holds more than 10000 rows"


def test_rows_are_cut_alike_with_and_without_the_skim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow way finds the same rows as the fast one."""
    body = json.dumps(
        {"token": "t", "x": [[1], {}], "events": [{"event": "a", "n": [i, {"s": '"\\'}]} for i in range(99)]}
    )
    fast = rows_of(body.encode())
    monkeypatch.setattr(requests, "SKIM_ROWS_MAX", 0)
    assert rows_of(body.encode()) == fast


def test_a_track_with_a_row_that_no_decoder_reads_still_has_its_token() -> None:
    """The token is told before the row is judged, also when the row is poison."""
    for poison in POISON:
        body = b'{"event":"a","token":"\\ud83d\\ude00 t","eventProperties":{"x":' + poison + b"}}"
        assert read_track(body, LIMITS).token == "😀 t"
