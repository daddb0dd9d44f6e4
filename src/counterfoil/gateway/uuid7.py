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

UUID_BYTES = 16
_RANDOM_BYTES = 10
# One call of the system for many ids: it would cost as much as the id itself.
_IDS_A_DRAW = 256


class Uuid7:
    """Makes UUIDv7s. Not for use by several threads or on both sides of a fork."""

    def __init__(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._drawn = b""
        self._at = 0

    def next(self, now_ms: int) -> bytes:
        """The 16 bytes of a new id."""
        at = self._at
        if at >= len(self._drawn):
            self._drawn = self._random_bytes(_RANDOM_BYTES * _IDS_A_DRAW)
            at = 0
        self._at = at + _RANDOM_BYTES
        random = int.from_bytes(self._drawn[at : at + _RANDOM_BYTES], "big")
        # 80 bits are drawn, 74 used: 12 above the variant and 62 below it.
        value = now_ms << 80 | 0x7 << 76 | (random >> 68) << 64 | 0b10 << 62 | random & 0x3FFF_FFFF_FFFF_FFFF
        return value.to_bytes(UUID_BYTES, "big")


def uuid_text(packed: bytes) -> str:
    """An id as people write it: 8-4-4-4-12 hexadecimal digits."""
    digits = packed.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
