"""Settle, audit and trace on the real queue: segments on disk, written by a writer, read from its files."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import xxhash

from counterfoil.contract.facts import Verdict, key_hash, key_prefix
from counterfoil.files import RealFiles
from counterfoil.ledger import Ledger, SourceCounts
from counterfoil.pipeline.audit import DifferenceKind, audit
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.pipeline.trace import trace
from counterfoil.queue.frame import FrameDraft, Origin, draft_frame
from counterfoil.queue.reader import QueueReader
from counterfoil.queue.settings import MIB, QueueSettings
from counterfoil.queue.writer import SegmentWriter

FILL = "x" * 2000


def draft(ids: Sequence[str]) -> FrameDraft:
    rows = [msgspec.json.encode({"event": "e", "distinctId": each, "extra": {"fill": FILL}}) for each in ids]
    return draft_frame(
        origin=msgspec.json.encode(Origin("web")),
        rows=rows,
        key_hashes=[key_hash(key_prefix("web"), each) for each in ids],
        content_hashes=[xxhash.xxh3_64_digest(row) for row in rows],
        received_at_ms=1_700_000_000_000,
        request_id=bytes(16),
    )


def write(root: Path, drafts: Sequence[FrameDraft]) -> None:
    """Two writers take turns, in segments of 1 MiB."""

    async def run() -> None:
        settings = QueueSettings(segment_bytes=MIB, reserve_bytes=0)
        writers = [SegmentWriter.open(root, RealFiles(), settings, quarantine=root.parent / "q") for _ in range(2)]
        for number, each in enumerate(drafts):
            await asyncio.gather(*writers[number % 2].append([each]))
        for writer in writers:
            await writer.close()

    asyncio.run(run())


def settle_all(queue: QueueReader, ledger: Ledger) -> int:
    settler = Settler(queue, ledger, PipelineSettings(group_rows=300), lambda: 1_700_000_000_500)
    settled = 0
    while count := settler.step():
        settled += count
    return settled


def test_every_row_of_every_writer_is_settled_once(ledger: Ledger, tmp_path: Path) -> None:
    """Over the ends of segments, two lives of the writers and a repeat of everything, the books balance."""
    drafts = [draft([f"{number}-{row}" for row in range(100)]) for number in range(12)]
    write(tmp_path / "queue", drafts)
    queue = QueueReader(tmp_path / "queue", RealFiles(), tmp_path / "q")
    assert settle_all(queue, ledger) == 1200
    write(tmp_path / "queue", drafts)
    assert settle_all(queue, ledger) == 1200
    assert ledger.books().sources == (SourceCounts("web", accepted=2400, new=1200, duplicate=1200),)
    reading = QueueReader(tmp_path / "queue", RealFiles(), None)
    found = audit(ledger, reading)
    assert found.is_balanced
    first, repeat = trace(ledger, reading, ["web"], "7-99").rows
    assert (first.verdict, repeat.verdict) == (Verdict.NEW, Verdict.DUPLICATE)
    assert first.received_at_ms == 1_700_000_000_000


def test_a_damaged_segment_is_counted_and_the_audit_names_what_was_settled(ledger: Ledger, tmp_path: Path) -> None:
    """Damage before settling stands beside the equations; a settled frame that is damaged later is a difference."""
    root = tmp_path / "queue"
    write(root, [draft([f"{number}-{row}" for row in range(100)]) for number in range(12)])
    segments = sorted(root.glob("*/*.seg"))
    with segments[0].open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff" * 100)
    queue = QueueReader(root, RealFiles(), tmp_path / "q")
    assert settle_all(queue, ledger) == 1100
    found = audit(ledger, QueueReader(root, RealFiles(), None))
    assert (found.is_balanced, found.damaged_frames) == (True, 1)
    with segments[1].open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff" * 100)
    found = audit(ledger, QueueReader(root, RealFiles(), None))
    assert [each.kind for each in found.differences] == [DifferenceKind.FRAME_UNREADABLE]
    assert not found.is_balanced
