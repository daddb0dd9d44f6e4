"""Columns into rows, by names or by a mapping file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from counterfoil.backfill.errors import BackfillError
from counterfoil.backfill.mapping import Mapper, MappingFault, automatic_mapping, load_mapping
from counterfoil.backfill.reading import Input, encode_record
from counterfoil.backfill.rows import Made, row_maker


def mapper(tmp_path: Path, text: str) -> Mapper:
    """A mapper by a mapping file of this text."""
    path = tmp_path / "mapping.toml"
    path.write_text(text)
    counts: dict[bytes, int] = {}

    def count(digest: bytes) -> int:
        counts[digest] = counts.get(digest, 0) + 1
        return counts[digest] - 1

    return Mapper(load_mapping(path), count)


def test_columns_are_put_where_the_mapping_says(tmp_path: Path) -> None:
    """A column, a constant, a template, typed values; what no field names goes where `rest` says."""
    found = mapper(
        tmp_path,
        """
        rest = "userProperties.custom_properties"
        [fields]
        event = {constant = "Purchase"}
        distinctId = {template = "order-{order}-{line}"}
        userId = "customer"
        time = {column = "day", format = "%Y-%m-%d", zone = "Europe/Berlin"}
        "eventProperties.amount" = {column = "amount", type = "number"}
        "eventProperties.gift" = {column = "gift", type = "boolean"}
        """,
    ).row(
        {"order": "7", "line": 2, "customer": "c", "day": "2026-01-01", "amount": "12.50", "gift": "t", "city": "Ulm"}
    )
    assert found == {
        "event": "Purchase",
        "distinctId": "order-7-2",
        "userId": "c",
        "time": 1_767_222_000_000,
        "eventProperties": {"amount": 12.5, "gift": True},
        "userProperties": {"custom_properties": {"city": "Ulm"}},
    }


def test_true_repeats_get_distinct_ids_of_their_own(tmp_path: Path) -> None:
    """The same columns twice are two events; read again, each has the distinctId it had."""
    text = '[fields]\ndistinctId = {hash = ["customer", "day"]}\n'
    columns = [{"customer": 1, "day": "a"}, {"customer": 2, "day": "a"}, {"customer": 1, "day": "a"}]

    def read() -> list[str]:
        one = mapper(tmp_path, text)
        return [one.row(row)["distinctId"] for row in columns]

    first = read()
    assert len(set(first)) == 3
    assert read() == first


@pytest.mark.parametrize(
    ("value", "format_name", "expected"),
    [
        ("1767225600", "s", 1_767_225_600_000),
        (1_767_225_600_123, "ms", 1_767_225_600_123),
        ("1767225600123456", "us", 1_767_225_600_123),
        ("2026-01-01T00:00:00Z", "iso", 1_767_225_600_000),
        ("2026-01-01", "iso", 1_767_225_600_000),
        ("20260101", "%Y%m%d", 1_767_225_600_000),
    ],
)
def test_times_come_in_many_formats(tmp_path: Path, value: Any, format_name: str, expected: int) -> None:
    """Counts from the epoch, ISO 8601 and strptime; a time without a zone is UTC."""
    text = f'[fields]\ntime = {{column = "at", format = "{format_name}"}}\n'
    assert mapper(tmp_path, text).row({"at": value}) == {"time": expected}


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ('time = {column = "at", format = "iso"}', {"at": "soon"}, "time: expected a time ISO 8601"),
        ('event = {template = "{a}"}', {}, "event: the record has no column a"),
        ('distinctId = {template = "o-{a}"}', {"a": ""}, "distinctId: column a is empty"),
        ('distinctId = {template = "o-{a}"}', {"a": None}, "distinctId: column a is empty"),
        ('eventProperties = {column = "a", type = "json"}', {"a": "soon"}, "eventProperties: expected JSON, found"),
        ('"eventProperties.n" = {column = "n", type = "number"}', {"n": "x1"}, "eventProperties.n: expected a number"),
        ('eventProperties = "a"\n"eventProperties.n" = "n"', {"a": "x", "n": 1}, "eventProperties: expected an object"),
    ],
)
def test_a_record_that_cannot_be_mapped_is_told_without_its_value(
    tmp_path: Path, text: str, columns: dict[str, Any], message: str
) -> None:
    """The message names the field and what was expected."""
    with pytest.raises(MappingFault) as caught:
        mapper(tmp_path, f"[fields]\n{text}\n").row(columns)
    assert str(caught.value).startswith(message)
    assert "soon" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[fields", "not TOML"),
        ("", "fields: expected a table"),
        ("fields = 5", "fields: expected a table"),
        ("[fields]\n", "fields: expected at least one field"),
        ('more = 1\n[fields]\nevent = "a"\n', "more: expected one of fields, rest"),
        ('rest = 5\n[fields]\nevent = "a"\n', "rest: expected a valid string"),
        ('rest = ""\n[fields]\nevent = "a"\n', "expected paths like"),
        ('[fields]\n"eventProperties." = "a"\n', "expected paths like"),
        ("[fields]\nevent = 5\n", "fields.event: expected the name of a column, or a table"),
        ('[fields]\nevent = {column = "a", constant = "b"}\n', "fields.event: expected exactly one of"),
        ('[fields]\nevent = {colum = "a"}\n', "fields.event.colum: expected one of column, constant"),
        ('[fields]\nevent = {constant = "a", type = "text"}\n', "fields.event: expected type, format and zone beside"),
        ('[fields]\nuserId = {column = "a", type = "int"}\n', "fields.userId.type: expected 'text', 'number'"),
        ('[fields]\ndistinctId = {template = "a"}\n', "fields.distinctId: expected a template with a {column}"),
        ('[fields]\ndistinctId = {constant = "a"}\n', "expected distinctId to differ from record to record"),
        ("[fields]\ndistinctId = {hash = []}\n", "fields.distinctId.hash: expected at least one column"),
        ('[fields]\ndistinctId = {hash = "a"}\n', "fields.distinctId.hash: expected an array"),
        ('[fields]\ntime = {column = "a", format = "iso", zone = "Mars"}\n', "fields.time: expected a zone"),
        ('[fields]\ntime = {column = "a", format = ""}\n', "fields.time: expected one of s, ms, us, iso, auto, or"),
        ('[fields]\ntime = {column = "a", format = "%Q"}\n', "fields.time: expected one of s, ms, us, iso, auto, or"),
        ('[fields]\ntime = {column = "a", format = "%Y-%Y"}\n', "fields.time: expected one of s, ms, us, iso, auto"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_refused(tmp_path: Path, text: str, part: str) -> None:
    """One line with the file and the place."""
    path = tmp_path / "mapping.toml"
    path.write_text(text)
    with pytest.raises(BackfillError) as caught:
        load_mapping(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)


def test_a_constant_object_is_each_rows_own(tmp_path: Path) -> None:
    """What a record puts beside it stands in no other record's row."""
    one = mapper(tmp_path, 'fields.eventProperties = {constant = {channel = "web"}}\n')
    assert one.row({"name": "Ann"}) == {"eventProperties": {"channel": "web", "name": "Ann"}}
    assert one.row({}) == {"eventProperties": {"channel": "web"}}


@pytest.mark.parametrize(("value", "expected"), [(2**60 + 1, str(2**60 + 1)), (7.0, "7"), (True, "true"), ("7", "7")])
def test_what_shall_be_text_becomes_text(tmp_path: Path, value: Any, expected: str) -> None:
    """Also a number of a typed table; and identifiers of a table without having been asked for."""
    typed = mapper(tmp_path, '[fields]\nuserId = {column = "user_id", type = "text"}\n')
    assert typed.row({"user_id": value}) == {"userId": expected}
    assert Mapper(automatic_mapping(["user_id"]), lambda _: 0).row({"user_id": value}) == {"userId": expected}


def test_a_template_of_nothing_gives_nothing(tmp_path: Path) -> None:
    """A text of half a template would be taken for a value."""
    text = '[fields]\nuserId = {template = "u-{id}"}\n'
    assert mapper(tmp_path, text).row({"id": None}) == {}


def test_a_null_is_hashed_like_any_value(tmp_path: Path) -> None:
    """Columns that may be null can tell records apart."""
    text = '[fields]\ndistinctId = {hash = ["id", "email"]}\n'
    one = mapper(tmp_path, text)
    assert len({one.row({"id": 1, "email": email})["distinctId"] for email in (None, "", "a")}) == 3


def test_names_of_the_contract_map_themselves() -> None:
    """Also in snake_case and as paths; JSON texts become objects, other columns event properties."""
    columns = {
        "event": "Purchase",
        "distinct_id": "1",
        "time": "2026-01-01T00:00:00Z",
        "user_properties": '{"city":"Ulm"}',
        "eventProperties.amount": 3,
        "colour": "red",
        "empty": "",
    }
    assert Mapper(automatic_mapping(columns), lambda _: 0).row(columns) == {
        "event": "Purchase",
        "distinctId": "1",
        "time": 1_767_225_600_000,
        "userProperties": {"city": "Ulm"},
        "eventProperties": {"amount": 3, "colour": "red"},
    }


def test_json_records_are_rows_as_they_are() -> None:
    """Without a mapping a line is sent byte for byte; what is no object is a fault with its reason."""
    with row_maker(Input("a.ndjson", "ndjson", 0, 0), None) as make:
        good = [b'{"event": 1.50 }', b'{"event":"\xff"}', b'{"\xff":1}']
        assert make(good) == Made(good, {})
        deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        faulty = [b"[1]", b"{", b"{}{}", b'{"a":"\n"}', deep]
        reasons = ["expected a JSON object", "not JSON", "not JSON", "not JSON", "nested too deep"]
        assert make([*good, *faulty]) == Made([*good, b"", b"", b"", b"", b""], dict(enumerate(reasons, len(good))))


def test_repeats_are_counted_on_disk(tmp_path: Path) -> None:
    """A file of any size is counted in little memory, and gives the same rows each time."""
    path = tmp_path / "mapping.toml"
    path.write_text('rest = "none"\n[fields]\ndistinctId = {hash = ["a"]}\n')
    source = Input("a.ndjson", "ndjson", 0, 0)

    def rows() -> list[bytes]:
        with row_maker(source, load_mapping(path)) as make:
            return make([encode_record({"a": n % 2}) for n in range(4)]).bodies

    assert len(set(rows())) == 4
    assert rows() == rows()
