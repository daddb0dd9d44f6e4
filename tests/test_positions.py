"""Positions pack to what they came from, and sort as they were written."""

from hypothesis import given
from hypothesis import strategies as st

from counterfoil.positions import DirectoryId, FramePosition, RowPosition, SegmentNumber

frame_positions = st.builds(
    FramePosition,
    st.binary(min_size=8, max_size=8).map(DirectoryId),
    st.integers(1, 2**32 - 1).map(SegmentNumber),
    st.integers(0, 2**32 - 1).map(lambda units: units * 8),
)


@given(frame_positions, st.integers(0, 65_535))
def test_a_packed_row_position_unpacks_to_itself(frame: FramePosition, row_index: int) -> None:
    """Nothing of a position is lost in its 18 bytes."""
    row = RowPosition(frame, row_index)
    assert RowPosition.unpack(row.pack()) == row
    assert FramePosition.unpack(frame.pack()) == frame


@given(frame_positions, st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_packed_positions_of_a_directory_sort_as_written(first: FramePosition, segment: int, units: int) -> None:
    """A later frame of the same directory packs to larger bytes."""
    second = FramePosition(first.directory, SegmentNumber(segment), units * 8)
    assert (first.pack() < second.pack()) == (first < second)
