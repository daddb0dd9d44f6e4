"""Strategies for JSON values and texts, as senders of every kind write them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

keys = st.text(max_size=4)
integers = (
    st.integers() | st.integers(-(2**70), 2**70) | st.sampled_from([2**53 - 1, 2**53, -(2**53), 2**63, 2**64, 10**400])
)
reals = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=8).filter(lambda text: "Infinity" not in text) | st.sampled_from(
    [" x ", "\ufeffx", "x\u2028", "\x1cx\x85", "\0", "", "😀", "a\\", '"', "\\u0020"]
)
scalars = st.none() | st.booleans() | integers | reals | texts
values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=10
)
broken_values: st.SearchStrategy[Any] = st.recursive(
    scalars
    | st.text(st.characters(exclude_categories=()), max_size=3)
    | st.sampled_from(["\ud800", "\udfff", float("inf")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.just("\udc00"), inner, max_size=3),
    max_leaves=6,
)
"""Values that JSON's grammar allows and not every reader takes: lone surrogates, bytes that are not UTF-8, 1e400."""
objects = st.dictionaries(keys, values, max_size=5)


@st.composite
def json_texts(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON text of a value: compact or spaced, with escapes or without."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r: ")]))
    text = json.dumps(
        value, separators=separators, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1]))
    )
    return text.replace("Infinity", "1e400").encode("utf-8", "surrogatepass")
