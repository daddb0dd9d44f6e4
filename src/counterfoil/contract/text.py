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
