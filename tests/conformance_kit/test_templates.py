"""Templates become exactly the bytes that their case file says."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterfoil.conformance.cases import Part
from counterfoil.conformance.templates import TemplateInvalid, Values, render, render_text


def values(parts: dict[str, Part] | None = None, **texts: str) -> Values:
    """Values for a case with these parts and texts."""
    return Values(texts, {"now": 1000, "rows_max": 3}, "cf-1", parts or {})


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_a_token_survives_a_json_string(token: str) -> None:
    """Whatever is in a token, the server reads that token."""
    assert json.loads(render_text('{"token": "{{token}}"}', values(token=token))) == {"token": token}


def test_placeholders() -> None:
    """Each placeholder stands for what the module's docstring says."""
    assert render_text("{{id}} {{id.1}} {{id.2}}", values()) == "cf-1-1 cf-1-1 cf-1-2"
    assert render_text("{{= now - 1}}{{= rows_max * 2}}", values()) == "9996"
    assert b"".join(render("{{hex c3 28}}", values())) == b"\xc3\x28"
    assert render_text("{{each}}", values().with_verbatim(each=r"\u0085")) == r"\u0085"


@pytest.mark.parametrize(
    "text", ['{"a":{"b":{}}}', '{"a":{{= now}}}', '{"a": {{{many}}}}', "}}{{= now}}", '{"a": "}}"}', "{{ }", "{"]
)
def test_braces_of_json_are_left_alone(text: str) -> None:
    """A brace before or behind a placeholder belongs to the JSON."""
    expected = text.replace("{{= now}}", "1000").replace("{{many}}", '"k": 1')
    assert render_text(text, values({"many": Part(repeat='"k": 1')})) == expected


@given(st.integers(0, 3000), st.text("ab", max_size=300), st.sampled_from(["", ",", ", "]))
def test_a_repeated_part_is_its_text_so_many_times(times: int, text: str, between: str) -> None:
    """Blocks begin and end nowhere that shows."""
    part = Part(repeat=text, times=times, between=between)
    assert render_text("{{p}}", values({"p": part})) == between.join([text] * times)


def test_a_repeated_part_counts() -> None:
    """`{{n}}` counts from 0, also in a part inside the part."""
    parts = {"p": Part(repeat="{{n}}{{q}}", times="rows_max", between="|"), "q": Part(nest="{{n}}")}
    assert render_text("{{p}}", values(parts)) == "0[0]|1[1]|2[2]"


def test_a_nested_part_opens_and_closes() -> None:
    """As many close as open."""
    assert render_text("{{p}}", values({"p": Part(nest="1", open='{"a":', close="}", times=2)})) == '{"a":{"a":1}}'


@given(st.integers(10, 3000))
def test_a_padded_part_has_its_size(to: int) -> None:
    """A padded text is exactly as many bytes as it should be."""
    text = render_text("{{p}}", values({"p": Part(pad="<{{id}}{{pad}}>", to=to)}))
    assert len(text) == to
    assert text.startswith("<cf-1-1")
    assert text.endswith(">")


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{{nobody}}", {}),
        ("{{p}}", {"p": Part()}),
        ("{{p}}", {"p": Part(pad="0123456789{{pad}}", to=5)}),
        ("{{p}}", {"p": Part(pad="{{pad}}", fill="ab", to=5)}),
    ],
)
def test_what_makes_no_sense_is_refused(template: str, parts: dict[str, Any]) -> None:
    """A slip in a case file is told, not sent."""
    with pytest.raises(TemplateInvalid):
        render_text(template, values(parts))
