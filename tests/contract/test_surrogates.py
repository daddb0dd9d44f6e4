"""Lone surrogates are found among every kind of escape, and nothing else is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from counterfoil.contract import surrogates
from counterfoil.contract.surrogates import without_lone_surrogates

parts = st.sampled_from(
    ["\\\\", "\\n", '\\"', "\\ud83d", "\\uDE00", "\\udc00", "\\uDBFF", "\\ue000", "\\u0041", "ud800", "a", "é"]
)


@pytest.fixture(params=[1, 5, 6, 7, 16 * 1024], autouse=True, scope="module")
def _chunk_bytes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every chunk size finds the same."""
    usual = surrogates.CHUNK_BYTES
    surrogates.CHUNK_BYTES = request.param
    yield
    surrogates.CHUNK_BYTES = usual


@settings(max_examples=200, deadline=None)
@given(st.lists(parts, max_size=12).map("".join))
@example("\\ud800\\ud83d\\ude00\\ude00")
@example("\\\\\\\\\\ud800\\\\ud800")
def test_each_lone_surrogate_becomes_u_fffd(escaped: str) -> None:
    """The text decodes to what it was with U+FFFD in their place, and is as long."""
    text = f'"{escaped}"'.encode()
    mended = without_lone_surrogates(text)
    assert len(mended) == len(text)
    assert json.loads(mended) == re.sub("[\\ud800-\\udfff]", "\ufffd", json.loads(text))


def test_what_is_no_escape_stays() -> None:
    """Cut-off escapes, text outside strings and bytes that are no UTF-8 are left alone."""
    for text in (b"", b"\\", b"\\u", b"\\ud80", b"\\ud8zz\\ud83", b"\xff\\\\ud800", b"[1]", b"\\" * 9):
        assert without_lone_surrogates(text) == text
