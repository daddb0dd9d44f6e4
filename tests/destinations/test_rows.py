from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterfoil.contract.facts import RowFlag
from counterfoil.destinations.interface import RefusedRow
from counterfoil.destinations.rows import UNREADABLE, delivered_rows, iso_utc
from tests.destinations.making import RECEIVED_AT_MS, REQUEST_ID, frame_of, row

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
JSON_OBJECT = st.dictionaries(
    TEXT, st.recursive(st.none() | st.booleans() | st.integers() | TEXT, st.lists, max_leaves=5), max_size=4
)
ROWS = st.fixed_dictionaries(
    {"event": TEXT, "distinctId": TEXT},
    optional={
        "userId": TEXT,
        "externalId": TEXT,
        "email": TEXT,
        "time": st.integers(-62_135_596_800_000, 253_402_300_799_999),
        "eventProperties": JSON_OBJECT,
        "userProperties": JSON_OBJECT,
        "defaultProperties": JSON_OBJECT.filter(lambda o: not {"received_at", "version"} & o.keys()),
        "identityContext": JSON_OBJECT,
        "extra": JSON_OBJECT,
    },
)


@given(rows=st.lists(ROWS, min_size=1, max_size=6), data=st.data())
def test_every_value_comes_out_as_it_went_in(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    """Plain fields equal what was sent, free-form ones are the same JSON, whichever rows of a frame are asked for."""
    indexes = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1))))
    delivered, refused = delivered_rows(frame_of(rows), indexes, first_seq=7)
    assert refused == []
    assert [each.seq for each in delivered] == [7 + index for index in indexes]
    for each, sent in zip(delivered, (rows[index] for index in indexes), strict=True):
        assert (each.event, each.distinct_id) == (sent["event"], sent["distinctId"])
        assert (each.user_id, each.external_id, each.email) == tuple(
            sent.get(name) for name in ("userId", "externalId", "email")
        )
        assert each.time_ms == sent.get("time", RECEIVED_AT_MS)
        for text, name in (
            (each.event_properties, "eventProperties"),
            (each.user_properties, "userProperties"),
            (each.identity_context, "identityContext"),
            (each.extra, "extra"),
        ):
            assert (None if text is None else json.loads(text)) == sent.get(name)
        defaults = json.loads(each.default_properties)
        assert defaults.pop("received_at") == iso_utc(RECEIVED_AT_MS)
        assert defaults == sent.get("defaultProperties", {})


def test_the_server_puts_in_what_it_knows_itself() -> None:
    """Source, request and time of receipt come from the frame; received_at stands in defaultProperties."""
    (each,), _ = delivered_rows(frame_of([{"event": "e", "distinctId": "d"}], source="shop"), [0], first_seq=1)
    assert (each.source, each.request_id, each.received_at_ms) == ("shop", REQUEST_ID, RECEIVED_AT_MS)
    assert each.time_ms == RECEIVED_AT_MS
    assert each.default_properties == '{"received_at":"2023-11-14T22:13:20.123Z"}'


def test_a_version_from_the_headers_stands_in_where_the_sender_named_none() -> None:
    """Only rows whose facts say so get the version that the request's headers gave."""
    rows = [row(0, defaultProperties={"version": "mine"}), row(1, defaultProperties={"ip": "x"}), row(2)]
    flags = [RowFlag(0), RowFlag.VERSION_FROM_HEADERS, RowFlag.VERSION_FROM_HEADERS]
    frame = frame_of(rows, sender_version='ingest-sdk-p"y/2.1.0', flags=flags)
    delivered, _ = delivered_rows(frame, [0, 1, 2], first_seq=0)
    versions = [json.loads(each.default_properties)["version"] for each in delivered]
    assert versions == ["mine", 'ingest-sdk-p"y/2.1.0', 'ingest-sdk-p"y/2.1.0']


@pytest.mark.parametrize(
    "bad", [b"{", b'{"event":1,"distinctId":"d"}', b'{"event":"e","distinctId":"d","extra":{"a":"\xff"}}']
)
def test_a_row_that_nothing_can_read_fails_alone(bad: bytes) -> None:
    """An unreadable row is refused with our own code; its neighbours are delivered with their own seq."""
    delivered, refused = delivered_rows(frame_of([row(0), bad, row(2)]), [0, 1, 2], first_seq=10)
    assert [each.seq for each in delivered] == [10, 12]
    assert refused == [RefusedRow(11, UNREADABLE)]


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (-62_135_596_800_000, "0001-01-01T00:00:00.000Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_written_exactly(ms: int, text: str) -> None:
    """ISO 8601 to the millisecond from the first to the last year, without a float between."""
    assert iso_utc(ms) == text
