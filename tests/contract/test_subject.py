"""Whose rows are meant."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from counterfoil.contract.subject import Subject
from counterfoil.contract.text import trim
from tests.contract.judging import judged, row

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).map(trim).filter(bool)
WAYS: list[dict[str, Any]] = [{}, {"unknown": 1}]
"""An unknown field sends a row the careful way."""


@given(IDS, IDS, st.sampled_from(WAYS), st.sampled_from(["distinct_id", "user_id"]))
@example('"\\\b\f\n\r\t\x00\x1f\x7f/', ".\u2028\ud7ff\ue000\U0001f600", WAYS[0], "user_id")
@example(".\u2029é<>&'", "x", WAYS[1], "distinct_id")
def test_a_row_is_found_whatever_its_id_is(distinct_id: str, user_id: str, way: dict[str, Any], by: str) -> None:
    """The rows of an id are found among others, however its characters are escaped in a canonical row."""
    bodies = judged(row(distinctId=distinct_id, userId=user_id, **way), row(distinctId="-", userId="-")).bodies
    subject = Subject(**{by: distinct_id if by == "distinct_id" else user_id})
    assert subject.may_be_in(b"\n".join(bodies))
    assert subject.is_row("website", bodies[0])
    assert subject.is_row("website", bodies[1]) == (distinct_id == "-" if by == "distinct_id" else user_id == "-")


def test_only_the_rows_own_field_counts() -> None:
    """An id that stands in another field, or in a longer one, is not the row's."""
    nested = {"distinctId": "a", "userId": "a"}
    bodies = judged(
        row(distinctId="b", userId="c", eventProperties=nested), row(distinctId="ab", externalId="a", email="a")
    ).bodies
    for subject in (Subject(distinct_id="a"), Subject(user_id="a")):
        assert subject.may_be_in(bodies[0])
        assert [subject.is_row("website", body) for body in bodies] == [False, False]
        assert not subject.may_be_in(bodies[1])


def test_a_subject_may_be_of_one_source() -> None:
    """A source's name narrows it to that source's rows."""
    (body,) = judged(row(distinctId="a")).bodies
    assert Subject(distinct_id="a", source="website").is_row("website", body)
    assert not Subject(distinct_id="a", source="shop").is_row("website", body)


def test_what_cannot_be_read_and_holds_the_id_is_meant() -> None:
    """A row that nothing can read is nobody's to keep; blanks are no row."""
    subject = Subject(distinct_id="a")
    assert subject.is_row("website", b'{"distinctId":"a"')
    assert not subject.is_row("website", b'{"distinctId":"b"')
    assert not subject.is_row("website", b"   ")


@pytest.mark.parametrize(
    "ids", [{}, {"distinct_id": "a", "user_id": "a"}, {"distinct_id": ""}, {"user_id": "secret-\udc80"}]
)
def test_a_subject_has_one_id(ids: dict[str, str]) -> None:
    """No id, two, an empty one and one that is no text are refused, without a value in the words."""
    with pytest.raises(ValueError, match="expected") as refused:
        Subject(**ids)
    assert "secret" not in str(refused.value)


def test_a_subject_shows_no_value() -> None:
    """Its text, also as rich prints it, names no person; and it goes through JSON whole."""
    subject = Subject(user_id="secret", source="secret")
    assert "secret" not in f"{subject} {subject!r} {pretty_repr(subject)}"
    assert msgspec.json.decode(msgspec.json.encode(subject), type=Subject) == subject
