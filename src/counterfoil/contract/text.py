"""Strings and numbers as JavaScript sees them: the vendor's service is written in it, and its rules follow."""

from __future__ import annotations

WHITESPACE = (
    "\t\n\v\f\r \N{NO-BREAK SPACE}\N{OGHAM SPACE MARK}"
    "\N{EN QUAD}\N{EM QUAD}\N{EN SPACE}\N{EM SPACE}\N{THREE-PER-EM SPACE}\N{FOUR-PER-EM SPACE}\N{SIX-PER-EM SPACE}"
    "\N{FIGURE SPACE}\N{PUNCTUATION SPACE}\N{THIN SPACE}\N{HAIR SPACE}"
    "\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}\N{NARROW NO-BREAK SPACE}\N{MEDIUM MATHEMATICAL SPACE}"
    "\N{IDEOGRAPHIC SPACE}\N{ZERO WIDTH NO-BREAK SPACE}"
)
"""What `String.prototype.trim` removes (ECMA-262: WhiteSpace and LineTerminator); not what `str.strip` does by itself:
that also takes U+001C to U+001F and U+0085, and leaves the byte order mark."""


def trim(text: str) -> str:
    """`text` without JavaScript's whitespace at either end."""
    return text.strip(WHITESPACE)


def utf16_units(text: str) -> int:
    """The length of `text` in UTF-16 code units, as JavaScript counts it: an emoji is 2."""
    if text.isascii():
        return len(text)
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def number_text(number: float) -> str:
    """A number as JavaScript prints it (ECMA-262, Number::toString): `1`, `0.000001`, `1e-7`, `1e+21`.

    An integer of any size is first the nearest double, as it is to JavaScript. Raises OverflowError beyond a double's
    range.
    """
    if isinstance(number, int) and -SAFE_INTEGER_MAX <= number <= SAFE_INTEGER_MAX:
        return str(number)
    # Both languages print the shortest digits that give the double back; they only set them differently.
    mantissa, _, exponent = repr(abs(float(number))).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if not digits:
        return "0"
    return ("-" if number < 0 else "") + _placed(digits, point)


SAFE_INTEGER_MAX = 2**53 - 1
"""`Number.MAX_SAFE_INTEGER`."""


def _placed(digits: str, point: int) -> str:
    """The digits with a decimal point before the digit at `point`, or as a power of ten where JavaScript does so."""
    if len(digits) <= point <= 21:
        return digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{fraction}e{point - 1:+d}"
