"""Frames and rows for tests, made the way the gateway and the contract make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from counterfoil.contract.facts import RowFlag, key_hash, key_prefix
from counterfoil.destinations.interface import DeliveredRow, Delivery
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue.frame import Frame, Origin, draft_frame, parse_frame, seal_frame

DIRECTORY = DirectoryId(b"tests dir"[:8])
RECEIVED_AT_MS = 1_700_000_000_123
REQUEST_ID = bytes(range(16))
ROWS_A_GROUP = 65_536

Row = Mapping[str, Any]


def row(number: int, **fields: Any) -> dict[str, Any]:
    """A small canonical row, different for each number."""
    return {"event": "Purchase", "distinctId": f"row-{number}", "time": RECEIVED_AT_MS - number, **fields}


def frame_of(
    rows: Sequence[Row | bytes],
    *,
    source: str = "web",
    received_at_ms: int = RECEIVED_AT_MS,
    sender_version: str | None = None,
    flags: Sequence[RowFlag] | None = None,
    destination_sets: tuple[tuple[str, ...], ...] = (),
    destination_set: Sequence[int] | None = None,
    offset: int = 4096,
) -> Frame:
    """A frame of canonical rows, as a reader of the queue hands it out; a row may be given as its bytes."""
    bodies = [each if isinstance(each, bytes) else msgspec.json.encode(each) for each in rows]
    ids = [str(index) if isinstance(each, bytes) else each["distinctId"] for index, each in enumerate(rows)]
    draft = draft_frame(
        origin=msgspec.json.encode(Origin(source, destination_sets, sender_version)),
        rows=bodies,
        key_hashes=[key_hash(key_prefix(source), each) for each in ids],
        content_hashes=[bytes(8) for _ in rows],
        destination_set=b"".join(number.to_bytes(2, "little") for number in destination_set or [0] * len(rows)),
        flags=bytes(flags or len(rows)),
        received_at_ms=received_at_ms,
        request_id=REQUEST_ID,
    )
    position = FramePosition(DIRECTORY, SegmentNumber(1), offset)
    return parse_frame(b"".join(seal_frame(draft, position, 0)), 0, position)


def delivered(seq: int, **fields: Any) -> DeliveredRow:
    """A row as destinations get it."""
    defaults: dict[str, Any] = {
        "seq": seq,
        "source": "web",
        "request_id": REQUEST_ID,
        "received_at_ms": RECEIVED_AT_MS,
        "event": "Purchase",
        "distinct_id": f"row-{seq}",
        "time_ms": RECEIVED_AT_MS - 5,
        "default_properties": '{"received_at":"2023-11-14T22:13:20.123Z"}',
    }
    return DeliveredRow(**defaults | fields)


def delivery(first_group: int, last_group: int | None = None, row_count: int = 3, **fields: Any) -> Delivery:
    """A delivery of some groups, `row_count` rows in each."""
    last_group = first_group if last_group is None else last_group
    groups = range(first_group, last_group + 1)
    rows = [delivered(group * ROWS_A_GROUP + place, **fields) for group in groups for place in range(row_count)]
    return Delivery(first_group, last_group, rows)
