"""Rows erased in closed segments: gone for good, and everything else as it was (I10)."""

from __future__ import annotations

from pathlib import Path

import pytest
import zstandard

from counterfoil.contract.facts import Verdict
from counterfoil.contract.subject import Subject
from counterfoil.positions import FramePosition, SegmentNumber
from counterfoil.queue import ErasedRows
from counterfoil.queue.reader import QueueReader
from tests.queue.drafts import SOURCE, draft
from tests.queue.lives import life, reader, segment_path, the_directory

COMPRESSORS = {"none": None, "zstd": zstandard.ZstdCompressor()}

ONE = SegmentNumber(1)


@pytest.fixture(params=COMPRESSORS)
def compressor(request: pytest.FixtureRequest) -> zstandard.ZstdCompressor | None:
    return COMPRESSORS[request.param]


def write_segments(root: Path, compressor: zstandard.ZstdCompressor | None = None) -> list[FramePosition]:
    """A segment of three frames, closed by one with another; their rows' distinctIds are `a.0`, `a.1` ... to `d.2`."""
    with life(root) as one:
        positions = one.tail.write([draft(name, 3, 40, compressor) for name in ("a", "b", "c")])
        one.roll()
        positions += one.tail.write([draft("d", 3, 40, compressor)])
    return positions


def duplicate(position: FramePosition, row_index: int) -> Verdict:
    return Verdict.DUPLICATE


def unknown(position: FramePosition, row_index: int) -> None:
    """The group of the row is gone."""


def rows_of(source: QueueReader) -> list[tuple[FramePosition, bytes, int]]:
    """Every row of the one directory, with its place."""
    directory = the_directory(source)
    found: list[tuple[FramePosition, bytes, int]] = []
    at = None
    while (result := source.read(directory, at, 1_000_000)).next != at:
        assert not result.damages
        for frame in result.frames:
            found += [(frame.position, frame.row(index), index) for index in range(frame.facts.row_count)]
        at = result.next
    return found


def test_a_row_is_erased_and_the_rest_stays(tmp_path: Path, compressor: zstandard.ZstdCompressor | None) -> None:
    """The row's content and hashes are gone, its frame says what it was, and every other row is as it was."""
    positions = write_segments(tmp_path, compressor)
    source = reader(tmp_path)
    directory = the_directory(source)
    before, size = rows_of(source), segment_path(tmp_path, 1).stat().st_size
    asked: list[tuple[FramePosition, int]] = []

    def conflict(position: FramePosition, row_index: int) -> Verdict:
        asked.append((position, row_index))
        return Verdict.CONFLICT

    subject = Subject(distinct_id="b.1")
    assert source.count_rows(directory, ONE, subject) == ErasedRows(rows=1, frames=1)
    assert source.erase(directory, ONE, subject, conflict) == ErasedRows(rows=1, frames=1)
    assert asked == [(positions[1], 1)]
    after = rows_of(source)
    assert [(position, index) for position, _, index in after] == [(position, index) for position, _, index in before]
    changed = [new[1] for old, new in zip(before, after, strict=True) if old != new]
    assert [row.strip() for row in changed] == [b""]
    assert segment_path(tmp_path, 1).stat().st_size == size
    facts = source.fetch(positions[1]).facts
    assert facts.are_erased.tolist() == [False, True, False]
    assert facts.erased_verdicts.tolist() == [0, Verdict.CONFLICT, 0]
    assert not facts.key_hashes[1].any()
    assert facts.content_hashes[1] == 0
    assert facts.source == SOURCE


def test_erasing_again_changes_nothing(tmp_path: Path, compressor: zstandard.ZstdCompressor | None) -> None:
    """What is erased is not found again, and a segment without rows of the subject is left as it is."""
    write_segments(tmp_path, compressor)
    source = reader(tmp_path)
    directory = the_directory(source)
    subject = Subject(distinct_id="a.0")
    assert source.erase(directory, ONE, subject, duplicate).rows == 1
    path = segment_path(tmp_path, 1)
    data, inode = path.read_bytes(), path.stat().st_ino
    for again in (subject, Subject(distinct_id="nobody"), Subject(distinct_id="a.1", source="another")):
        assert source.erase(directory, ONE, again, duplicate) == ErasedRows()
        assert (path.read_bytes(), path.stat().st_ino) == (data, inode)
