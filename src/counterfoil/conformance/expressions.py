"""Arithmetic of the case files: whole numbers, names of limits, `+`, `-` and `*`; comparisons for what a case needs.

sum        = product { ("+" | "-") product }
product    = factor { "*" factor }
factor     = digits (with `_` as the reader likes) | name
comparison = sum ("<" | "<=" | ">" | ">=" | "==") sum
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

_TOKEN = re.compile(r"\s*(?:(?P<number>\d[\d_]*)|(?P<name>[a-z][a-z0-9_]*)|(?P<sign>[-+*]))")
_COMPARISON = re.compile(r"(?P<left>[^<>=]+)(?P<sign><=|>=|==|<|>)(?P<right>[^<>=]+)")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}


class ExpressionInvalid(ValueError):
    """An expression of a case file that can't be read, or names what nobody knows."""


def evaluate(text: str | int, numbers: Mapping[str, int]) -> int:
    """The value of a sum, its names looked up in `numbers`."""
    if isinstance(text, int):
        return text
    signs, factors = _split(text, numbers)
    total, product, add = 0, factors[0], 1
    for sign, factor in zip(signs, factors[1:], strict=True):
        if sign == "*":
            product *= factor
        else:
            total, product, add = total + add * product, factor, 1 if sign == "+" else -1
    return total + add * product


def holds(text: str, numbers: Mapping[str, int]) -> bool:
    """Whether a comparison of two sums is true."""
    found = _COMPARISON.fullmatch(text)
    if found is None:
        raise ExpressionInvalid(f"{text!r}: expected two sums with <, <=, ==, >= or > between them")
    return _COMPARE[found["sign"]](evaluate(found["left"], numbers), evaluate(found["right"], numbers))


def _split(text: str, numbers: Mapping[str, int]) -> tuple[list[str], list[int]]:
    """The signs and the factors of a sum, in order; one factor more than there are signs."""
    signs: list[str] = []
    factors: list[int] = []
    at = 0
    stripped = text.rstrip()
    while at < len(stripped):
        found = _TOKEN.match(stripped, at)
        if found is None:
            raise ExpressionInvalid(f"{text!r}: can't be read from character {at} on")
        at = found.end()
        is_sign = found["sign"] is not None
        if is_sign != (len(factors) > len(signs)):
            raise ExpressionInvalid(f"{text!r}: expected numbers or names with +, - or * between them")
        if is_sign:
            signs.append(found["sign"])
        else:
            factors.append(_factor(found, text, numbers))
    if len(factors) != len(signs) + 1:
        raise ExpressionInvalid(f"{text!r}: ends where a number or a name was expected")
    return signs, factors


def _factor(found: re.Match[str], text: str, numbers: Mapping[str, int]) -> int:
    if found["number"] is not None:
        return int(found["number"].replace("_", ""))
    if found["name"] not in numbers:
        raise ExpressionInvalid(f"{text!r}: nobody knows the name {found['name']!r}")
    return numbers[found["name"]]
