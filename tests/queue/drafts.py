"""Frames for tests, whose rows say which they are."""

from __future__ import annotations

import msgspec
import xxhash
import zstandard

from counterfoil.contract.facts import key_hash, key_prefix
from counterfoil.queue.frame import Frame, FrameDraft, Origin, draft_frame

SOURCE = "website"


def draft(
    name: str, row_count: int = 1, row_bytes: int = 0, compressor: zstandard.ZstdCompressor | None = None
) -> FrameDraft:
    """A frame of `row_count` rows, each with the frame's name in it and `row_bytes` of filling."""
    rows = [
        msgspec.json.encode({"event": name, "distinctId": f"{name}.{i}", "fill": "x" * row_bytes})
        for i in range(row_count)
    ]
    return draft_frame(
        origin=msgspec.json.encode(Origin(source=SOURCE)),
        rows=rows,
        key_hashes=[key_hash(key_prefix(SOURCE), f"{name}.{i}") for i in range(row_count)],
        content_hashes=[xxhash.xxh3_64_digest(row) for row in rows],
        received_at_ms=1_700_000_000_000,
        request_id=name.encode().ljust(16, b"\0")[:16],
        compressor=compressor,
    )


def name_of(frame: Frame) -> str:
    """The name that a frame was drafted with."""
    return str(msgspec.json.decode(frame.row(0))["event"])
