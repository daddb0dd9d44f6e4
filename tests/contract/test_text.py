"""Text and numbers are what JavaScript makes of them."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from counterfoil.contract.text import WHITESPACE, number_text, trim, utf16_units


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (-1, "-1"),
        (-1.5, "-1.5"),
        (0.1, "0.1"),
        (100.0, "100"),
        (123.456, "123.456"),
        (0.000001, "0.000001"),
        (0.0000012, "0.0000012"),
        (1e-7, "1e-7"),
        (1.5e-7, "1.5e-7"),
        (-1.25e-9, "-1.25e-9"),
        (1e16, "10000000000000000"),
        (1e20, "100000000000000000000"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e21, "1e+21"),
        (1.5e300, "1.5e+300"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (2**53 - 1, "9007199254740991"),
        (2**53 + 1, "9007199254740992"),
        (12345678901234567890, "12345678901234567000"),
        (10**21, "1e+21"),
        (-(10**21), "-1e+21"),
        (0.30000000000000004, "0.30000000000000004"),
        (4.35, "4.35"),
    ],
)
def test_numbers_are_printed_as_javascript_prints_them(number: float, text: str) -> None:
    """ECMA-262, Number::toString."""
    assert number_text(number) == text


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**300), 10**300))
@example(sys.float_info.min)
def test_a_printed_number_is_the_number(number: float) -> None:
    """Reading the text gives the nearest double back, and the text has JavaScript's form."""
    text = number_text(number)
    assert float(text) == float(number)
    assert re.fullmatch(
        r"-?(0|[1-9][0-9]{0,20}|(0|[1-9][0-9]*)\.[0-9]*[1-9]|[1-9](\.[0-9]*[1-9])?e[+-][1-9][0-9]*)", text
    )


def test_an_integer_beyond_a_double_is_no_number_to_javascript() -> None:
    """It raises, so that the caller can say so."""
    with pytest.raises(OverflowError):
        number_text(10**309)


def test_trimmed_is_what_javascript_trims() -> None:
    """ECMA-262: WhiteSpace and LineTerminator, every one of them and no other character."""
    removed = {character for character in map(chr, range(sys.maxunicode + 1)) if not trim(character)}
    assert sorted(map(ord, removed)) == [
        *(0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x20, 0xA0, 0x1680),
        *range(0x2000, 0x200B),
        *(0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF),
    ]
    assert len(WHITESPACE) == len(removed)


def test_pythons_strip_misses_only_the_byte_order_mark() -> None:
    """The quick look of `typical.fit` stands on it: what `str.strip` leaves alone needs no trimming, but for U+FEFF."""
    assert {character for character in WHITESPACE if character.strip()} == {"\ufeff"}


@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_length_is_counted_in_utf16_units(text: str) -> None:
    """Characters beyond the first plane count 2."""
    assert utf16_units(text) == sum(2 if ord(character) > 0xFFFF else 1 for character in text)
