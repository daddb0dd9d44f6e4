"""The chain: which segments belong to a directory and where each ends, from headers alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue.chain import Link, Links, link_segments
from counterfoil.queue.segment import SegmentHeader

DIRECTORY = DirectoryId(b"directry")


def header(number: int, previous: int, previous_flushed: int) -> SegmentHeader:
    return SegmentHeader(SegmentNumber(number), DIRECTORY, SegmentNumber(previous), previous_flushed, 0)


def links_of(there: list[int], end: tuple[int, int], headers: list[SegmentHeader]) -> Links:
    by_number = {one.number: one for one in headers if one.number in there}
    numbers = [SegmentNumber(number) for number in there]
    return link_segments(numbers, FramePosition(DIRECTORY, SegmentNumber(end[0]), end[1]), by_number.get)


def link(limit: int | None, following: int | None, *, is_missing: bool = False) -> Link:
    return Link(limit, None if following is None else SegmentNumber(following), is_missing)


def test_each_ends_where_the_next_header_says() -> None:
    """The newest ends at the published offset, every other at the length that the header after it names (I3)."""
    headers = [header(1, 0, 0), header(2, 1, 500), header(3, 2, 700)]
    assert links_of([1, 2, 3], (3, 96), headers) == {1: link(500, 2), 2: link(700, 3), 3: link(96, None)}


def test_what_comes_after_the_published_place_is_not_there_yet() -> None:
    """A segment that is being begun is no part of the chain before it is published."""
    headers = [header(1, 0, 0), header(2, 1, 500)]
    assert links_of([1, 2], (1, 96), headers) == {1: link(96, None)}


def test_numbers_that_no_header_names_are_skipped() -> None:
    """A segment that could not be begun leaves a number that is neither read nor missed (I1)."""
    headers = [header(1, 0, 0), header(4, 1, 500)]
    assert links_of([1, 4], (4, 96), headers) == {1: link(500, 4), 4: link(96, None)}
    assert links_of([1, 3, 4], (4, 96), headers) == {1: link(500, 4), 4: link(96, None)}


def test_a_gap_is_missing_and_an_old_end_is_removed() -> None:
    """A segment that a header names is missing when an older one is there, and removed when none is."""
    headers = [header(1, 0, 0), header(2, 1, 500), header(3, 2, 700)]
    assert links_of([1, 3], (3, 96), headers) == {1: link(None, 2), 2: link(700, 3, is_missing=True), 3: link(96, None)}
    assert links_of([3], (3, 96), headers) == {3: link(96, None)}
    assert links_of([2, 3], (3, 96), headers) == {2: link(700, 3), 3: link(96, None)}


def test_the_newest_is_missing() -> None:
    """A published segment that is not there is missing, even when no other is left."""
    headers = [header(1, 0, 0)]
    assert links_of([1], (2, 96), headers) == {1: link(None, 2), 2: link(96, None, is_missing=True)}
    assert links_of([], (2, 96), headers) == {2: link(96, None, is_missing=True)}


def test_a_damaged_header_hides_one_length_alone() -> None:
    """Where a header can't be read the segment before it ends with its file; the chain goes on."""
    headers = [header(1, 0, 0), header(3, 2, 700)]
    assert links_of([1, 2, 3], (3, 96), headers) == {1: link(None, 2), 2: link(700, 3), 3: link(96, None)}


def test_nothing_is_a_chain_of_nothing() -> None:
    """A directory without segments has no links."""
    assert links_of([], (0, 0), []) == {}


@given(
    lengths=st.lists(st.integers(64, 1 << 30), min_size=1, max_size=12),
    gaps=st.lists(st.integers(1, 3), min_size=12, max_size=12),
    lost=st.sets(st.integers(0, 11)),
    damaged=st.sets(st.integers(0, 11)),
)
def test_every_chain_is_in_order(lengths: list[int], gaps: list[int], lost: set[int], damaged: set[int]) -> None:
    """Whatever is lost or damaged, the links run from older to newer, each to the one after it, and skip nothing."""
    numbers = [sum(gaps[: i + 1]) for i in range(len(lengths))]
    headers = [
        header(number, numbers[i - 1] if i else 0, lengths[i - 1] if i else 0)
        for i, number in enumerate(numbers)
        if i not in damaged
    ]
    there = [number for i, number in enumerate(numbers) if i not in lost]
    links = links_of(there, (numbers[-1], lengths[-1]), headers)
    order = list(links)
    assert order == sorted(order)
    assert [one.following for one in links.values()] == [*order[1:], None]
    assert set(there) <= set(order) <= set(numbers)
    assert all(one.is_missing == (number not in there) for number, one in links.items())
    assert all(one.limit is not None for one in links.values() if one.is_missing)
