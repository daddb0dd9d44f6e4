"""Judged rows -> frame drafts: the facts of each row, and the cuts of a large request.

A request becomes one frame, or several when its rows are more or larger than a frame takes. Rows keep their order;
each frame is durable or fails by itself, and its rows with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import msgspec
import numpy as np
import zstandard

from counterfoil.contract.facts import EVERY_DESTINATION, RowFlag, key_hash, key_hashes
from counterfoil.contract.rows import JudgedRows
from counterfoil.queue.frame import FrameDraft, Origin, draft_frame, draft_row
from counterfoil.queue.settings import QueueSettings
from counterfoil.sources import Sender

# A source has few sets of destinations and few versions of SDKs; what a sender makes up must not grow without end.
_ORIGINS_MAX = 1024

# Numbers, because an operation on an enum costs as much as judging half a row.
_TEST = int(RowFlag.TEST)
_BLOCKED = int(RowFlag.BLOCKED)
_VERSION_FROM_HEADERS = int(RowFlag.VERSION_FROM_HEADERS)


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """What the server knows of a request by itself."""

    sender: Sender
    sender_version: str | None
    """From the request's headers (contract.md section 4)."""
    received_at_ms: int
    request_id: bytes


class DraftedFrame(msgspec.Struct, frozen=True):
    """A frame, and the places of its rows among the accepted rows of the request."""

    draft: FrameDraft
    start: int
    end: int


class Frames:
    """Makes frame drafts, as the settings of the queue want them."""

    def __init__(self, settings: QueueSettings) -> None:
        self._rows_max = settings.frame_rows_max
        self._bytes_max = settings.frame_bytes_max
        self._compressor = zstandard.ZstdCompressor() if settings.compression == "zstd" else None
        self._origins: dict[tuple[object, ...], bytes] = {}

    def draft(self, rows: JudgedRows, receipt: Receipt) -> list[DraftedFrame]:
        """The frames of the accepted rows, in order; none when there are none."""
        bodies = rows.bodies
        row_count = len(bodies)
        if row_count <= self._rows_max and sum(map(len, bodies)) <= self._bytes_max:
            return [DraftedFrame(self._frame(rows, 0, row_count, receipt), 0, row_count)] if row_count else []
        return [
            DraftedFrame(self._frame(rows, start, end, receipt), start, end)
            for start, end in _cuts(bodies, self._rows_max, self._bytes_max)
        ]

    def draft_row(self, rows: JudgedRows, receipt: Receipt) -> FrameDraft:
        """The frame of a request's one row, which was accepted."""
        sender = receipt.sender
        flags = _TEST if sender.is_test else 0
        if receipt.sender_version is not None and not rows.has_version[0]:
            flags |= _VERSION_FROM_HEADERS
        destination_sets: tuple[tuple[str, ...], ...] = ()
        if sender.allowlist is not None:
            route = sender.route(rows.events[0])
            if not route.is_allowed:
                flags |= _BLOCKED
            if route.destinations is not None:
                destination_sets = (route.destinations,)
        return draft_row(
            origin=self._origin(sender.source, destination_sets, receipt.sender_version),
            row=rows.bodies[0],
            key_hash=key_hash(sender.key_prefix, rows.distinct_ids[0]),
            content_hash=rows.content_hashes[0],
            destination_set=len(destination_sets),
            flags=flags,
            received_at_ms=receipt.received_at_ms,
            request_id=receipt.request_id,
            compressor=self._compressor,
        )

    def _frame(self, rows: JudgedRows, start: int, end: int, receipt: Receipt) -> FrameDraft:
        sender = receipt.sender
        bodies, distinct_ids, content_hashes = rows.bodies, rows.distinct_ids, rows.content_hashes
        events, has_version = rows.events, rows.has_version
        if end - start < len(bodies):
            bodies, distinct_ids, content_hashes = bodies[start:end], distinct_ids[start:end], content_hashes[start:end]
            events, has_version = events[start:end], has_version[start:end]
        flags = _flags(has_version, receipt)
        destination_sets: tuple[tuple[str, ...], ...] = ()
        destination_set = None
        if sender.allowlist is not None:
            flags, destination_sets, destination_set = _routed(events, sender, flags)
        return draft_frame(
            origin=self._origin(sender.source, destination_sets, receipt.sender_version),
            rows=bodies,
            key_hashes=key_hashes(sender.key_prefix, distinct_ids),
            content_hashes=content_hashes,
            destination_set=destination_set,
            flags=flags,
            received_at_ms=receipt.received_at_ms,
            request_id=receipt.request_id,
            compressor=self._compressor,
        )

    def _origin(self, source: str, destination_sets: tuple[tuple[str, ...], ...], sender_version: str | None) -> bytes:
        key = (source, destination_sets, sender_version)
        known = self._origins.get(key)
        if known is None:
            if len(self._origins) >= _ORIGINS_MAX:
                self._origins.clear()
            known = self._origins[key] = msgspec.json.encode(Origin(*key))
        return known


def _cuts(bodies: Sequence[bytes], rows_max: int, bytes_max: int) -> Iterator[tuple[int, int]]:
    """Where frames begin and end: each takes rows up to `rows_max`, and another as long as it is below `bytes_max`."""
    row_count = len(bodies)
    ends = list(accumulate(map(len, bodies)))
    start = 0
    while start < row_count:
        limit = (ends[start - 1] if start else 0) + bytes_max
        end = min(start + rows_max, row_count)
        if ends[end - 1] > limit:
            end = int(np.searchsorted(ends, limit, "left")) + 1
        yield start, end
        start = end


def _flags(has_version: Sequence[bool], receipt: Receipt) -> bytes | None:
    """The flags that don't hang on the event; None is none."""
    row_count = len(has_version)
    if receipt.sender_version is None:
        return bytes((_TEST,)) * row_count if receipt.sender.is_test else None
    base = _TEST if receipt.sender.is_test else 0
    without = base | _VERSION_FROM_HEADERS
    if True not in has_version:
        return bytes((without,)) * row_count
    return bytes([base if has else without for has in has_version])


def _routed(
    events: Sequence[str], sender: Sender, flags: bytes | None
) -> tuple[bytes, tuple[tuple[str, ...], ...], bytes]:
    """Flags, the distinct destination sets, and each row's index of its set (little-endian)."""
    indexes: dict[tuple[str, ...] | None, int] = {None: EVERY_DESTINATION}
    # A request names few events, often: each is looked up once.
    facts: dict[str, tuple[int, int]] = {}
    for event in dict.fromkeys(events):
        route = sender.route(event)
        index = indexes.setdefault(route.destinations, len(indexes))
        facts[event] = (0 if route.is_allowed else _BLOCKED, index)
    blocked = bytes([facts[event][0] for event in events])
    if flags is not None:
        blocked = bytes([one | other for one, other in zip(blocked, flags, strict=True)])
    sets = np.array([facts[event][1] for event in events], np.dtype("<u2"))
    return blocked, tuple(names for names in indexes if names is not None), sets.tobytes()
