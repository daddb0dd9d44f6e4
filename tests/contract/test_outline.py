"""Strings and brackets alone are enough to find where values lie."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterfoil.contract import outline
from counterfoil.contract.outline import TooManyElements, containers_of, depth_of, elements_of

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\[]{},:é\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='ab"\\[]{}'), inner),
    max_leaves=20,
)


def levels(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(levels, value.values()), default=0)
    return 1 + max(map(levels, value), default=0) if isinstance(value, list) else 0


@pytest.fixture(params=[1, 7, 256 * 1024], autouse=True, scope="module")
def _chunk_bytes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every chunk size finds the same."""
    usual = outline.CHUNK_BYTES
    outline.CHUNK_BYTES = request.param
    yield
    outline.CHUNK_BYTES = usual


@settings(max_examples=50, deadline=None)
@given(st.lists(json_values, min_size=1))
def test_elements_lie_where_the_decoder_sees_them(values: list[object]) -> None:
    """Cut at the elements, each piece decodes to its own value, whatever brackets and quotes its strings hold."""
    text = json.dumps(values, ensure_ascii=False, indent=1).encode()
    spans = elements_of(text, len(values) + 1)
    assert [json.loads(text[start:end]) for start, end in spans] == values
    containers = [value for value in values if isinstance(value, list | dict)]
    assert [json.loads(text[start:end]) for start, end in containers_of(text, len(values))] == containers


@settings(max_examples=50, deadline=None)
@given(json_values)
def test_depth_is_the_levels_of_nesting(value: object) -> None:
    """Brackets inside strings count for nothing."""
    assert depth_of(json.dumps(value).encode()) == levels(value)


def test_elements_beyond_the_bound_stop_the_search() -> None:
    """As many as asked for are found; one more raises."""
    assert len(elements_of(b"[1,2,3]", 3)) == 3
    with pytest.raises(TooManyElements):
        elements_of(b"[1,2,3]", 2)
    assert len(containers_of(b"[[],{}]", 2)) == 2
    with pytest.raises(TooManyElements):
        containers_of(b"[[],{}]", 1)
