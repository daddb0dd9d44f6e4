r"""Lone surrogates in JSON texts: `\ud800` that no `\udc00` to `\udfff` follows, or the other way round.

JSON's grammar allows them and no UTF-8 can hold them, so decoders refuse the whole text. Here each becomes U+FFFD in
place, so that the rest can be read and every byte stays where it was. With numpy and in chunks: a text may hold
millions of escapes (a regular expression took 2.5 s and 250 MiB for 16 MiB of them; this takes a tenth of either).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 16 * 1024

_ESCAPE_BYTES = 6
_NOWHERE = -(1 << 60)
_FFFD = np.frombuffer(b"fffd", np.uint8)


def _class(characters: bytes) -> NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[list(characters)] = True
    return table


_BACKSLASH = np.uint8(ord("\\"))
_U = np.uint8(ord("u"))
_IS_D = _class(b"dD")
_IS_HIGH = _class(b"89abAB")
_IS_LOW = _class(b"cdefCDEF")
_IS_HEX = _class(b"0123456789abcdefABCDEF")


def without_lone_surrogates(text: bytes) -> bytes | bytearray:
    """`text` with each escape of a lone surrogate replaced by that of U+FFFD, which is as long."""
    mended: bytearray | None = None
    backslashes = 0
    high_before = _NOWHERE
    for at in range(0, len(text), CHUNK_BYTES):
        # So far beyond the chunk as a pair reaches that begins in it.
        chunk = np.frombuffer(text, np.uint8, min(CHUNK_BYTES + 2 * _ESCAPE_BYTES, len(text) - at), at)
        found = np.flatnonzero(chunk[:CHUNK_BYTES] == _BACKSLASH)
        begins, backslashes = _escapes(found, backslashes, min(CHUNK_BYTES, len(chunk)))
        if not len(begins):
            continue
        places, is_high = _surrogates(chunk, begins)
        if not len(places):
            continue
        before = np.concatenate(([high_before - at], np.where(is_high, places, _NOWHERE)[:-1]))
        high_before = int(places[-1]) + at if is_high[-1] else _NOWHERE
        is_paired = np.where(is_high, _is_low(chunk, places + _ESCAPE_BYTES), places - before == _ESCAPE_BYTES)
        lone = places[~is_paired] + at
        if len(lone):
            mended = bytearray(text) if mended is None else mended
            view = np.frombuffer(mended, np.uint8)
            view[(lone + 2)[:, np.newaxis] + np.arange(len(_FFFD))] = _FFFD
            del view
    return text if mended is None else mended


def _surrogates(chunk: NDArray[np.uint8], begins: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which of the escapes are of surrogates, and whether each is a high one."""
    begins = begins[begins + _ESCAPE_BYTES <= len(chunk)]
    begins = begins[(chunk[begins + 1] == _U) & _IS_D[chunk[begins + 2]]]
    third = chunk[begins + 3]
    is_surrogate = (_IS_HIGH[third] | _IS_LOW[third]) & _IS_HEX[chunk[begins + 4]] & _IS_HEX[chunk[begins + 5]]
    return begins[is_surrogate], _IS_HIGH[third[is_surrogate]]


def _is_low(chunk: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the escape of a low surrogate begins at each place, which follows a whole escape."""
    is_low = places + _ESCAPE_BYTES <= len(chunk)
    places = np.where(is_low, places, 0)
    is_low &= (chunk[places] == _BACKSLASH) & (chunk[places + 1] == _U) & _IS_D[chunk[places + 2]]
    is_low &= _IS_LOW[chunk[places + 3]] & _IS_HEX[chunk[places + 4]] & _IS_HEX[chunk[places + 5]]
    return is_low


def _escapes(found: NDArray[np.int64], before: int, chunk_bytes: int) -> tuple[NDArray[np.int64], int]:
    """Those of the backslashes that begin an escape, and how many backslashes end the chunk.

    In a run of them every other one begins one; `before` of them end the chunk before.
    """
    if not len(found):
        return found, 0
    is_first = np.ones(len(found), np.bool_)
    is_first[1:] = np.diff(found) != 1
    indexes = np.arange(len(found))
    firsts = np.maximum.accumulate(np.where(is_first, indexes, 0))
    in_run = indexes - firsts
    if found[0] == 0 and before:
        in_run[firsts == 0] += before
    ending = int(in_run[-1]) + 1 if found[-1] == chunk_bytes - 1 else 0
    return found[(in_run & 1) == 0], ending
