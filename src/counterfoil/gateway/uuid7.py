"""UUIDv7 (RFC 9562, section 5.7): ids that sort by the time they were made; Python 3.11 has none.

48 bits   milliseconds since the Unix epoch
4         version, 7
12        random
2         variant, 0b10
62        random
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

UUID_BYTES = 16
_SUFFIX_BYTES = 10
# One call of the system for many ids: it gives the interpreter away, and to get it back takes longer than an id.
_IDS_A_DRAW = 4096


class Uuid7:
    """Makes UUIDv7s. Not for use by several threads or on both sides of a fork."""

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._suffixes = b""
        self._at = 0

    def next(self, now_ms: int) -> bytes:
        """The 16 bytes of a new id."""
        at = self._at
        if at >= len(self._suffixes):
            self._suffixes = self._draw()
            at = 0
        self._at = at + _SUFFIX_BYTES
        return now_ms.to_bytes(6, "big") + self._suffixes[at : at + _SUFFIX_BYTES]

    def _draw(self) -> bytes:
        """What follows the time in many ids."""
        drawn = np.frombuffer(self._random_bytes(_SUFFIX_BYTES * _IDS_A_DRAW), np.uint8)
        suffixes = drawn.reshape(_IDS_A_DRAW, _SUFFIX_BYTES).copy()
        suffixes[:, 0] = suffixes[:, 0] & 0x0F | 0x70
        suffixes[:, 2] = suffixes[:, 2] & 0x3F | 0x80
        return suffixes.tobytes()


def uuid_text(packed: bytes) -> str:
    """An id as people write it: 8-4-4-4-12 hexadecimal digits."""
    digits = packed.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
