"""The keys that destinations hold, while a ledger is rebuilt: on disk, because they may be more than memory takes.

A store of its own beside the new ledger. Key: key hash (16), number of the destination (2); value: seq (8), the row's
number in the lost ledger.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from counterfoil.contract.facts import KEY_HASH_BYTES
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.ledger.store import Store, seen_family

_NUMBER = struct.Struct(">H")
_SEQ = struct.Struct(">Q")
_FAMILY = seen_family(0)
_ROWS_A_BATCH = 50_000


class HeldKeys:
    """Which keys each destination holds, and under which `seq`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[bytes, bytes] = {}

    @classmethod
    def open(cls, path: Path, settings: LedgerSettings) -> HeldKeys:
        """A new index at `path`, where nothing is."""
        return cls(Store(path, settings, is_writer=True))

    def add(self, destination: int, key_hashes: Sequence[bytes], seqs: Sequence[int]) -> None:
        """Note rows that a destination holds; `flush` after the last."""
        suffix = _NUMBER.pack(destination)
        self._waiting.update(
            (key_hash + suffix, _SEQ.pack(seq)) for key_hash, seq in zip(key_hashes, seqs, strict=True)
        )
        if len(self._waiting) >= _ROWS_A_BATCH:
            self.flush()

    def flush(self) -> None:
        """Let all that was added be found."""
        batch = self._store.batch()
        keys = sorted(self._waiting)
        batch.put_all(_FAMILY, keys, [self._waiting[key] for key in keys])
        self._store.write(batch)
        self._waiting.clear()

    def are_held(self, destination: int, key_hashes: Sequence[bytes]) -> NDArray[np.bool_]:
        """For each key whether a destination holds it."""
        suffix = _NUMBER.pack(destination)
        found = self._store.get_all(_FAMILY, [key_hash + suffix for key_hash in key_hashes])
        return np.fromiter((value is not None for value in found), np.bool_, len(found))

    def batches(self, count_max: int) -> Iterator[tuple[list[bytes], list[int]]]:
        """All keys, each once and in order, with the least `seq` of each; so many at a time."""
        by_key = groupby(self._store.items(_FAMILY, b""), lambda item: item[0][:KEY_HASH_BYTES])
        known = ((key, min(_SEQ.unpack(value)[0] for _, value in items)) for key, items in by_key)
        while batch := list(islice(known, count_max)):
            yield [key for key, _ in batch], [seq for _, seq in batch]

    def close(self) -> None:
        """Close; closing twice is harmless."""
        self._store.close()
