"""The facts of rows: what settle needs to know of a row without reading it.

They are decided once, at receipt, and stand in the frame beside the rows (design, section 2). A frame belongs to one
source; its rows' facts are columns, so that numpy reads them in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, IntFlag

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

KEY_HASH_BYTES = 16
CONTENT_HASH_BYTES = 8

EVERY_DESTINATION = 0
"""Index of the destination set that means: every destination, also one that is added later."""


class RowFlag(IntFlag):
    """What was decided about a row when it was received."""

    TEST = 1
    """It came with its source's test token: kept, never delivered, claims no key (contract.md section 9)."""
    BLOCKED = 2
    """Its event is not on its source's allowlist: kept, not delivered, claims no key (contract.md section 9)."""
    VERSION_FROM_HEADERS = 4
    """It named no `defaultProperties.version`; the frame's `sender_version` stands in (contract.md section 4)."""
    ERASED = 8
    """Its content was erased since: no row stands there any more, and its hashes are zeros. The three bits above say
    which verdict it had (`erased_verdicts`)."""


class Verdict(IntEnum):
    """What became of a row when it was settled; the first that fits, in this order (design, section 2)."""

    TEST = 1
    BLOCKED = 2
    NEW = 3
    DUPLICATE = 4
    CONFLICT = 5


ERASED_VERDICT_SHIFT = 4
"""Where the verdict of an erased row stands in its flags, in 3 bits; 0 where nobody knew it any more."""
_FLAGS_OF_ROWS = bytes(range(RowFlag.ERASED))
"""All that a row's flags can be which is not erased."""


class FrameFacts(msgspec.Struct, frozen=True, gc=False):
    """The facts of the rows of one frame, `n` of them."""

    source: str
    """The source's name, which is its identity."""
    destination_sets: tuple[tuple[str, ...], ...]
    """The distinct sets of destination names of this frame; set `i` of a row is `destination_sets[i - 1]`, sorted;
    set 0 is every destination."""
    key_hashes: NDArray[np.uint8]
    """Shape (n, 16): `key_hash` of each row."""
    content_hashes: NDArray[np.uint64]
    """Shape (n,): xxh3-64 of each row's content, without what the server itself set."""
    destination_set: NDArray[np.uint16]
    """Shape (n,): the index of each row's destination set."""
    flags: NDArray[np.uint8]
    """Shape (n,): each row's `RowFlag`s, and over them an erased row's verdict."""

    @property
    def row_count(self) -> int:
        return len(self.flags)

    def is_erased(self, row_index: int) -> bool:
        """Whether a row's content was erased: what stands in its place is no row."""
        return bool(self.flags[row_index] & RowFlag.ERASED)

    @property
    def has_erased(self) -> bool:
        """Whether any row's content was erased: quickly answered, and almost always no."""
        return bool(self.flags.tobytes().translate(None, _FLAGS_OF_ROWS))

    @property
    def are_erased(self) -> NDArray[np.bool_]:
        """Shape (n,): whether each row's content was erased."""
        return (self.flags & np.uint8(RowFlag.ERASED)).astype(np.bool_)

    @property
    def erased_verdicts(self) -> NDArray[np.uint8]:
        """Shape (n,): the verdict that each erased row had; 0: nobody knew it any more, or the row stands."""
        return np.where(self.are_erased, self.flags >> np.uint8(ERASED_VERDICT_SHIFT) & np.uint8(7), np.uint8(0))

    def destinations_of(self, set_index: int) -> tuple[str, ...] | None:
        """The names of a destination set; None is every destination."""
        return None if set_index == EVERY_DESTINATION else self.destination_sets[set_index - 1]


def key_prefix(source: str) -> bytes:
    """What precedes a distinctId in the bytes that `key_hash` hashes; names of sources hold no NUL."""
    return source.encode() + b"\0"


def key_hash(prefix: bytes, distinct_id: str) -> bytes:
    """The 16 bytes that stand for (source, distinctId) everywhere: xxh3-128 of the source, a NUL and the distinctId."""
    return xxhash.xxh3_128_digest(prefix + distinct_id.encode())


def key_hashes(prefix: bytes, distinct_ids: Sequence[str]) -> list[bytes]:
    """`key_hash` of each distinctId."""
    digest = xxhash.xxh3_128_digest
    return [digest(prefix + distinct_id.encode()) for distinct_id in distinct_ids]
