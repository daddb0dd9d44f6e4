"""A segment's header and frames are found wherever they stand, and nothing else is taken for them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterfoil.errors import FrameDamaged
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue.frame import FRAME_MARK, seal_frame
from counterfoil.queue.segment import (
    SEARCH_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentFile,
    SegmentHeader,
    parse_header,
    segment_name,
    segment_numbers,
)
from tests.queue.drafts import draft, name_of
from tests.queue.lives import flip, life, read_all, segment_path

DIRECTORY = DirectoryId(b"directry")
NUMBER = SegmentNumber(3)

headers = st.builds(
    SegmentHeader,
    number=st.integers(1, 2**32 - 1).map(SegmentNumber),
    directory=st.binary(min_size=8, max_size=8).map(DirectoryId),
    previous=st.integers(0, 2**32 - 1).map(SegmentNumber),
    previous_flushed=st.integers(0, 2**63),
    begun_at_ms=st.integers(-(2**63), 2**63 - 1),
)


def frame_bytes(name: str, offset: int) -> bytes:
    return b"".join(seal_frame(draft(name), FramePosition(DIRECTORY, NUMBER, offset), 64))


def segment_of(tmp_path: Path, content: bytes) -> SegmentFile:
    path = tmp_path / segment_name(NUMBER)
    path.write_bytes(content)
    return SegmentFile(path, DIRECTORY, NUMBER)


@given(headers)
def test_a_header_round_trips(header: SegmentHeader) -> None:
    """Everything a header says comes back from its bytes."""
    assert parse_header(header.pack(), Path("any")) == header


@given(headers, st.integers(0, SEGMENT_HEADER_BYTES - 1), st.integers(1, 255))
def test_no_changed_byte_of_a_header_passes(header: SegmentHeader, at: int, mask: int) -> None:
    """One byte changed anywhere in a header makes it damaged, also in the bytes that mean nothing yet."""
    packed = bytearray(header.pack())
    packed[at] ^= mask
    with pytest.raises(FrameDamaged):
        parse_header(bytes(packed), Path("any"))


def test_a_header_of_another_number_is_none(tmp_path: Path) -> None:
    """A segment that was renamed to another number is not read as that one."""
    with life(tmp_path) as one:
        directory = one.directory.id
    path = segment_path(tmp_path, 1).rename(segment_path(tmp_path, 7))
    with pytest.raises(FrameDamaged, match="another number"):
        SegmentFile(path, directory, SegmentNumber(7)).header()


def test_other_files_are_no_segments(tmp_path: Path) -> None:
    """Only names of ten digits are numbers of segments."""
    for name in (
        "0000000002.seg",
        "0000000010.seg",
        "2.seg",
        "000000000x.seg",
        "0000000003.tmp",
        "\u0661" * 10 + ".seg",
        "id",
    ):
        (tmp_path / name).write_bytes(b"")
    assert segment_numbers(tmp_path) == [2, 10]


@pytest.mark.parametrize(
    "gap", [8, 4096, SEARCH_BYTES - 64, SEARCH_BYTES - 8, SEARCH_BYTES, SEARCH_BYTES + 8, 3_000_000]
)
def test_the_next_frame_is_found_however_far(tmp_path: Path, gap: int) -> None:
    """The search for the next whole frame finds it over any distance, within the limit."""
    at = 64 + gap
    segment = segment_of(tmp_path, bytes(at) + frame_bytes("next", at))
    found = segment.next_frame(64, segment.size())
    assert found is not None
    assert (name_of(found), found.position.offset) == ("next", at)
    assert segment.next_frame(64, segment.size() - 8) is None
    assert segment.next_frame(at + 8, segment.size()) is None


def test_marks_that_are_no_frames_are_passed_over(tmp_path: Path) -> None:
    """A mark out of line, with no frame behind it, or with a frame of another place is not the next frame."""
    content = bytes(64) + FRAME_MARK + bytes(56) + bytes(4) + FRAME_MARK + bytes(4)
    content += frame_bytes("moved", 4096)
    at = len(content)
    segment = segment_of(tmp_path, content + frame_bytes("next", at) + frame_bytes("after", at))
    found = segment.next_frame(64, segment.size())
    assert found is not None
    assert (name_of(found), found.position.offset) == ("next", at)


@pytest.mark.parametrize("is_short", [False, True], ids=["fails whole", "stops before the block"])
def test_a_block_that_can_not_be_read_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_short: bool
) -> None:
    """Where the disk answers EIO only the frames of that block are lost; the rest is read (I5).

    Linux gives what stands before the block, and EIO to who asks for the block first.
    """
    names = [f"frame-{i:02}" for i in range(60)]
    with life(tmp_path) as one:
        positions = one.write(*names)
    real_pread = os.pread

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        if offset < 8192 and offset + size > 4096:
            if offset >= 4096 or not is_short:
                raise OSError(errno.EIO, "Input/output error")
            size = 4096 - offset
        return real_pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    found = read_all(tmp_path)
    ends = [*(position.offset for position in positions[1:]), segment_path(tmp_path, 1).stat().st_size]
    kept = [n for n, p, end in zip(names, positions, ends, strict=True) if end <= 4096 or p.offset >= 8192]
    assert found.names == kept
    assert len(found.damages) == 1


def test_a_flipped_bit_between_frames_harms_nothing(tmp_path: Path) -> None:
    """The padding after a frame holds nothing, and no change of it is a loss."""
    with life(tmp_path) as one:
        one.write("a")
        one.write("b")
    path = segment_path(tmp_path, 1)
    at = path.read_bytes().index(FRAME_MARK, 100) - 1
    assert path.read_bytes()[at] == 0
    flip(path, at)
    assert read_all(tmp_path).names == ["a", "b"]


def test_a_strict_read_gives_all_or_nothing(tmp_path: Path) -> None:
    """Who copies a segment is told where the file ends before what is to be copied."""
    with life(tmp_path) as one:
        one.write("a")
    path = segment_path(tmp_path, 1)
    data = path.read_bytes()
    segment = SegmentFile(path, DirectoryId(b"writer-1"), SegmentNumber(1))
    assert segment.read_strictly(0, len(data)) == data
    assert segment.read_strictly(len(data), 0) == b""
    with pytest.raises(OSError, match="shorter"):
        segment.read_strictly(10, len(data) - 9)
