"""Segments that may go: listed with size and age, removed oldest first and for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterfoil.files import RealFiles
from counterfoil.positions import SegmentNumber
from counterfoil.queue.directory import SegmentFacts, remove_oldest
from tests.faults.disk import RecordingFiles, nothing
from tests.queue.lives import NOW_MS, flip, life, read_all, reader, segment_path, the_directory


def three_segments(root: Path) -> None:
    with life(root) as one:
        for i in range(3):
            if i:
                one.roll()
            one.write(f"{i}")


def test_segments_are_listed_oldest_first(tmp_path: Path) -> None:
    """Each segment is listed with its bytes and when it was begun; one is the newest."""
    three_segments(tmp_path)
    flip(segment_path(tmp_path, 2), 30)
    source = reader(tmp_path)
    sizes = [segment_path(tmp_path, number).stat().st_size for number in (1, 2, 3)]
    assert source.segments(the_directory(source)) == [
        SegmentFacts(SegmentNumber(1), sizes[0], NOW_MS, is_newest=False),
        SegmentFacts(SegmentNumber(2), sizes[1], None, is_newest=False),
        SegmentFacts(SegmentNumber(3), sizes[2], NOW_MS, is_newest=True),
    ]


def test_the_oldest_goes_and_the_rest_is_read(tmp_path: Path) -> None:
    """Removing the oldest leaves the others readable, frees its bytes and can be repeated."""
    three_segments(tmp_path)
    source = reader(tmp_path)
    directory = the_directory(source)
    assert source.read(directory, None, 1_000_000).frames
    for _ in range(2):
        source.remove_oldest(directory, SegmentNumber(1))
    assert not segment_path(tmp_path, 1).exists()
    found = read_all(tmp_path)
    assert (found.names, found.damages) == (["1", "2"], [])
    assert source.oldest(directory).segment == 2


@pytest.mark.parametrize("number", [2, 3])
def test_only_the_oldest_goes_and_never_the_newest(tmp_path: Path, number: int) -> None:
    """A gap would look like a loss, and the next number is counted from the newest (I1)."""
    three_segments(tmp_path)
    source = reader(tmp_path)
    directory = the_directory(source)
    with pytest.raises(ValueError, match="oldest"):
        source.remove_oldest(directory, SegmentNumber(number))
    source.remove_oldest(directory, SegmentNumber(1))
    source.remove_oldest(directory, SegmentNumber(2))
    with pytest.raises(ValueError, match="newest"):
        source.remove_oldest(directory, SegmentNumber(3))
    with life(tmp_path) as later:
        assert later.tail.number == 4


def test_a_removal_is_for_good(tmp_path: Path) -> None:
    """A segment that was removed does not come back after a power cut."""
    three_segments(tmp_path)
    files = RecordingFiles(tmp_path, "flushed")
    remove_oldest(tmp_path / "queue" / "1", SegmentNumber(1), files)
    names = {path.name for path in files.cut(len(files.record), nothing).files if path.suffix == ".seg"}
    assert names == {"0000000002.seg", "0000000003.seg"}


def test_a_reader_in_between_moves_on(tmp_path: Path) -> None:
    """A reader whose next segment is removed while it reads is told, and goes on from the oldest that is left."""
    three_segments(tmp_path)
    source, other = reader(tmp_path), reader(tmp_path)
    directory = the_directory(source)
    result = source.read(directory, None, 1_000_000)
    remove_oldest(tmp_path / "queue" / "1", SegmentNumber(1), RealFiles())
    remove_oldest(tmp_path / "queue" / "1", SegmentNumber(2), RealFiles())
    result = source.read(directory, result.next, 1_000_000)
    assert result.is_gone
    assert result.next == other.oldest(directory)
    assert other.read(directory, result.next, 1_000_000).frames
