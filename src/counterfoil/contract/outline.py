"""Where the values of a JSON text lie, found from strings and brackets alone.

A JSON decoder reads a text whole or not at all: a lone surrogate or some thousand levels of nesting in one row make it
refuse every row of the request. What is here knows strings and brackets and nothing else, so nothing inside a row can
stop it: it cuts the rows, and each is then decoded by itself. It is iterative (a deep row costs no stack), works on
chunks (a large body costs no memory) and stops as soon as there are too many rows.

Rejected: a loop in Python over tokens (16 MiB of brackets take 2 s, this takes a tenth), a regular expression that
matches nested rows (it recurses, or it backtracks).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 16 * 1024
"""Small enough that what is made of a chunk comes from the heap and stays in the processor's cache."""

_QUOTE = np.uint8(ord('"'))
_BACKSLASH = np.uint8(ord("\\"))
_COMMA = np.uint8(ord(","))

_STEP: NDArray[np.int8] = np.zeros(256, np.int8)
_STEP[[ord("["), ord("{")]] = 1
_STEP[[ord("]"), ord("}")]] = -1

_IS_STRUCTURAL: NDArray[np.bool_] = _STEP != 0
_IS_STRUCTURAL[[_QUOTE, _COMMA]] = True


Text = bytes | bytearray | memoryview


class Span(NamedTuple):
    """Bytes `start` to `end` of a text."""

    start: int
    end: int


class Structure(NamedTuple):
    """The brackets and commas of a chunk that stand outside strings."""

    positions: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    """The byte at each position."""
    depths: NDArray[np.int64]
    """How many brackets are open after it."""


class TooManyElements(Exception):
    """There are more of them than asked for."""


def depth_of(text: Text) -> int:
    """The levels of nesting of a JSON text; 0 for a scalar."""
    return max((int(chunk.depths.max()) for chunk in _structure(text) if len(chunk.depths)), default=0)


def containers_of(text: Text, containers_max: int) -> list[Span]:
    """Where the arrays and objects lie that are members of the outermost array or object, in order.

    One that is not closed is left out. Raises TooManyElements.
    """
    starts: list[int] = []
    ends: list[int] = []
    for positions, kinds, depths in _structure(text):
        steps = _STEP[kinds]
        starts += positions[(depths == 2) & (steps == 1)].tolist()
        ends += (positions[(depths == 1) & (steps == -1)] + 1).tolist()
        if len(starts) > containers_max:
            raise TooManyElements
    return [Span(start, end) for start, end in zip(starts, ends, strict=False)]


def elements_of(array: Text, elements_max: int) -> list[Span]:
    """Where the elements of a JSON array lie, whitespace around them included; one blank element if it is empty.

    Raises TooManyElements.
    """
    cuts: list[int] = []
    for positions, kinds, depths in _structure(array):
        cuts += positions[(depths == 1) & (kinds == _COMMA)].tolist()
        if len(cuts) >= elements_max:
            raise TooManyElements
    return [
        Span(start, end) for start, end in zip([1, *(cut + 1 for cut in cuts)], [*cuts, len(array) - 1], strict=True)
    ]


def _structure(text: Text) -> Iterator[Structure]:
    """The structure of a text, a chunk at a time."""
    is_inside = 0
    depth = 0
    backslashes = 0
    for at in range(0, len(text), CHUNK_BYTES):
        chunk = np.frombuffer(text, np.uint8, min(CHUNK_BYTES, len(text) - at), at)
        positions = np.flatnonzero(_IS_STRUCTURAL[chunk])
        is_quote = chunk[positions] == _QUOTE
        if backslashes or (chunk == _BACKSLASH).any():
            is_kept = ~is_quote
            is_kept[is_quote] = ~_is_escaped(chunk, positions[is_quote], backslashes)
            positions, is_quote = positions[is_kept], is_quote[is_kept]
            backslashes = _backslashes_at_end(chunk, backslashes)
        inside = (np.cumsum(is_quote, dtype=np.int64) + is_inside) & 1
        if len(inside):
            is_inside = int(inside[-1])
        is_outside = (inside == 0) & ~is_quote
        positions = positions[is_outside]
        kinds = chunk[positions]
        depths = np.cumsum(_STEP[kinds], dtype=np.int64) + depth
        if len(depths):
            depth = int(depths[-1])
        yield Structure(positions + at, kinds, depths)


def _is_escaped(chunk: NDArray[np.uint8], quotes: NDArray[np.int64], backslashes: int) -> NDArray[np.bool_]:
    """Whether an odd number of backslashes stands before each quote; `backslashes` of them stand before the chunk."""
    others = np.flatnonzero(chunk != _BACKSLASH)
    # The last byte before each quote that is no backslash; -1 when the run reaches the chunk's beginning.
    places = np.searchsorted(others, quotes) - 1
    last = np.where(places >= 0, others[places], -1)
    runs = quotes - 1 - last + np.where(last < 0, backslashes, 0)
    odd: NDArray[np.bool_] = (runs & 1) == 1
    return odd


def _backslashes_at_end(chunk: NDArray[np.uint8], backslashes: int) -> int:
    """How many backslashes end the chunk, counting those before it when it holds nothing else."""
    others = np.flatnonzero(chunk != _BACKSLASH)
    return len(chunk) - 1 - int(others[-1]) if len(others) else len(chunk) + backslashes
