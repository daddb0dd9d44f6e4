"""The arithmetic of the case files is the usual one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterfoil.conformance.expressions import ExpressionInvalid, evaluate, holds

numbers = st.integers(0, 10**6)
sums = st.lists(st.tuples(st.sampled_from("+-*"), numbers), max_size=6)


@given(numbers, sums)
def test_a_sum_has_the_value_that_python_gives_it(first: int, rest: list[tuple[str, int]]) -> None:
    """Products come before sums, and both are read from the left."""
    text = f"{first}" + "".join(f" {sign} {number}" for sign, number in rest)
    assert evaluate(text, {}) == eval(text)


def test_names_are_looked_up() -> None:
    """A name stands for its number."""
    assert evaluate("rows_max + 1", {"rows_max": 10_000}) == 10_001
    assert evaluate("now - 7 * day", {"now": 10, "day": 3}) == -11
    assert evaluate("1_024 * 2", {}) == 2048
    assert evaluate(7, {}) == 7


@pytest.mark.parametrize("text", ["", " ", "1 +", "+ 1", "1 1", "a", "1 / 2", "1 + (2)", "x y", "1 ** 2"])
def test_what_is_no_sum_is_refused(text: str) -> None:
    """A slip in a case file is told, not guessed at."""
    with pytest.raises(ExpressionInvalid):
        evaluate(text, {"x": 1, "y": 2})


def test_comparisons() -> None:
    """A comparison has a sum on each side."""
    assert holds("a < 2 * a", {"a": 1})
    assert not holds("a > a", {"a": 1})
    assert holds("a <= 1", {"a": 1})
    assert holds("a >= 1", {"a": 1})
    assert holds("a + 1 == 2", {"a": 1})
    with pytest.raises(ExpressionInvalid):
        holds("a", {"a": 1})
