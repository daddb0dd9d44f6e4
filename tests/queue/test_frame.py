"""A frame is read back as it was drafted, or it is damaged; nothing in between."""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from counterfoil.contract.facts import RowFlag
from counterfoil.errors import FrameDamaged
from counterfoil.positions import FRAME_ALIGNMENT, DirectoryId, FramePosition, SegmentNumber
from counterfoil.queue.frame import (
    FRAME_BYTES_MAX,
    FRAME_MARK,
    FRAME_PREFIX_BYTES,
    HEADER_BYTES,
    FrameDraft,
    Origin,
    draft_frame,
    frame_length,
    parse_frame,
    seal_frame,
    sealed_bytes,
    whole_frames,
)
from tests.queue.drafts import draft

HERE = FramePosition(DirectoryId(b"directry"), SegmentNumber(3), 4096)

destination_sets = st.lists(st.lists(st.sampled_from(["lake", "crm", "hook"]), unique=True).map(tuple), max_size=3).map(
    tuple
)
origins = st.builds(
    Origin,
    source=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True),
    destination_sets=destination_sets,
    sender_version=st.none() | st.just("ingest-sdk-python/2.1.0"),
)
row_texts = st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3).map(msgspec.json.encode)


@st.composite
def rows_and_facts(draw: st.DrawFn) -> dict[str, object]:
    rows = draw(st.lists(row_texts, min_size=1, max_size=20))
    return {
        "rows": rows,
        "key_hashes": [draw(st.binary(min_size=16, max_size=16)) for _ in rows],
        "content_hashes": [draw(st.binary(min_size=8, max_size=8)) for _ in rows],
        "destination_set": draw(st.none() | st.binary(min_size=2 * len(rows), max_size=2 * len(rows))),
        "flags": draw(st.none() | st.binary(min_size=len(rows), max_size=len(rows))),
    }


def sealed(one: FrameDraft, position: FramePosition = HERE, flushed: int = 64) -> bytes:
    return b"".join(seal_frame(one, position, flushed))


@given(
    origin=origins,
    content=rows_and_facts(),
    received_at_ms=st.integers(0, 2**62),
    request_id=st.binary(min_size=16, max_size=16),
    is_compressed=st.booleans(),
    flushed=st.integers(0, HERE.offset),
    before=st.integers(0, 3).map(lambda units: bytes(units * FRAME_ALIGNMENT)),
)
def test_a_frame_round_trips(
    origin: Origin,
    content: dict[str, object],
    received_at_ms: int,
    request_id: bytes,
    is_compressed: bool,
    flushed: int,
    before: bytes,
) -> None:
    """Every field, every fact and every row comes back as it went in, wherever the frame stands in a buffer."""
    one = draft_frame(
        origin=msgspec.json.encode(origin),
        received_at_ms=received_at_ms,
        request_id=request_id,
        compressor=zstandard.ZstdCompressor() if is_compressed else None,
        **content,  # type: ignore[arg-type]
    )
    written = sealed(one, flushed=flushed)
    frame = parse_frame(before + written + b"more", len(before), HERE)
    rows, count = content["rows"], len(content["rows"])  # type: ignore[arg-type]
    assert frame.position == HERE
    assert frame.frame_bytes == len(written) == sealed_bytes(one)
    assert len(written) % FRAME_ALIGNMENT == 0
    assert (frame.flushed, frame.received_at_ms, frame.request_id) == (flushed, received_at_ms, request_id)
    assert (frame.facts.source, frame.sender_version) == (origin.source, origin.sender_version)
    assert frame.facts.destination_sets == origin.destination_sets
    assert [frame.row(i) for i in range(count)] == rows
    assert [bytes(key) for key in frame.facts.key_hashes] == content["key_hashes"]
    assert frame.facts.content_hashes.tobytes() == b"".join(content["content_hashes"])  # type: ignore[arg-type]
    assert frame.facts.destination_set.tobytes() == (content["destination_set"] or bytes(2 * count))
    assert frame.facts.flags.tobytes() == (content["flags"] or bytes(count))
    assert frame.facts.row_count == count


@given(at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_no_flipped_bit_passes(at: int, bit: int) -> None:
    """F1: one bit changed anywhere in a frame makes it damaged; its padding alone holds nothing."""
    one = draft("flipped", row_count=3)
    written = bytearray(sealed(one))
    at %= HEADER_BYTES + len(one.body)
    written[at] ^= 1 << bit
    with pytest.raises(FrameDamaged):
        parse_frame(bytes(written), 0, HERE)


def test_a_frame_cut_short_is_truncated() -> None:
    """However much of a frame is missing, it is told as truncated."""
    one = draft("short")
    written = sealed(one)
    for length in range(HEADER_BYTES + len(one.body)):
        with pytest.raises(FrameDamaged, match="truncated"):
            parse_frame(written[:length], 0, HERE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        HERE._replace(offset=HERE.offset + 8),
        HERE._replace(segment=SegmentNumber(4)),
        HERE._replace(directory=DirectoryId(b"DIRECTRY")),
    ],
)
def test_a_frame_of_another_place_is_damaged(elsewhere: FramePosition) -> None:
    """F1: a frame that was copied to another offset, segment or directory is not taken for one of that place."""
    with pytest.raises(FrameDamaged):
        parse_frame(sealed(draft("moved")), 0, elsewhere)


def test_rows_are_lines() -> None:
    """F2: the rows of a frame are lines, told apart by their ends."""
    frame = parse_frame(sealed(draft("lines", row_count=5)), 0, HERE)
    assert frame.rows.split(b"\n") == [frame.row(i) for i in range(5)]


def test_facts_are_read_in_place() -> None:
    """The columns of facts are views of the bytes that were read, not copies of them."""
    written = sealed(draft("in place", row_count=4))
    facts = parse_frame(written, 0, HERE).facts
    whole = np.frombuffer(written, np.uint8)
    for column in (facts.key_hashes, facts.content_hashes, facts.destination_set, facts.flags):
        assert np.shares_memory(column, whole)
        assert not column.flags.writeable


def test_flags_are_row_flags() -> None:
    """A row's flags read as `RowFlag`."""
    one = draft_frame(
        origin=b'{"source":"website"}',
        rows=[b"{}"],
        key_hashes=[bytes(16)],
        content_hashes=[bytes(8)],
        flags=bytes([RowFlag.TEST | RowFlag.VERSION_FROM_HEADERS]),
        received_at_ms=0,
        request_id=bytes(16),
    )
    frame = parse_frame(sealed(one), 0, HERE)
    assert RowFlag(int(frame.facts.flags[0])) == RowFlag.TEST | RowFlag.VERSION_FROM_HEADERS


@pytest.mark.parametrize("length", [0, HEADER_BYTES - 1, FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_an_impossible_length_asks_for_nothing(length: int) -> None:
    """A length that no frame has is told before a byte more is read."""
    prefix = struct.pack("<8s8xI4x", FRAME_MARK, length)
    with pytest.raises(FrameDamaged, match="impossible length"):
        frame_length(prefix)
    with pytest.raises(FrameDamaged, match="impossible length"):
        parse_frame(prefix + bytes(100), 0, HERE)


def test_a_length_is_known_from_the_prefix() -> None:
    """The prefix of a frame says how much to read, and a short or strange one says that no frame begins there."""
    one = draft("prefix")
    written = sealed(one)
    assert frame_length(written[:FRAME_PREFIX_BYTES]) == HEADER_BYTES + len(one.body)
    for prefix in (written[: FRAME_PREFIX_BYTES - 1], b"", bytes(FRAME_PREFIX_BYTES)):
        with pytest.raises(FrameDamaged):
            frame_length(prefix)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 10_000), st.integers(1, 255), st.booleans())
def test_frames_are_walked_as_they_are_parsed(row_counts: list[int], at: int, mask: int, is_cut: bool) -> None:
    """A walk over many frames takes exactly those that are read one by one, up to the first that is damaged."""
    compressor = zstandard.ZstdCompressor()
    position, written, starts = HERE, b"", []
    for place, row_count in enumerate(row_counts):
        one = draft(f"{place}", row_count, compressor=compressor if row_count == 4 else None)
        starts.append((len(written), row_count == 4))
        written += sealed(one, position)
        position = HERE._replace(offset=HERE.offset + len(written))
    assert whole_frames(written, HERE) == (starts, len(written))
    damaged = bytearray(written)
    if is_cut:
        del damaged[at % len(written) :]
    else:
        damaged[at % len(written)] ^= mask
    found, end = whole_frames(bytes(damaged), HERE)
    parsed, start = [], 0
    while start < len(damaged):
        try:
            frame = parse_frame(bytes(damaged), start, HERE._replace(offset=HERE.offset + start))
        except FrameDamaged:
            break
        parsed.append(start)
        start += frame.frame_bytes
    assert ([first for first, _ in found], end) == (parsed, start)


def test_a_newer_frame_is_told() -> None:
    """A frame of a later format version is never read as if it were of this one."""
    written = bytearray(sealed(draft("newer")))
    written[20:22] = (2).to_bytes(2, "little")
    length = frame_length(bytes(written[:FRAME_PREFIX_BYTES]))
    checksum = xxhash.xxh3_64(bytes(written[:8]), seed=int.from_bytes(HERE.directory, "little"))
    checksum.update(bytes(written[16:length]))
    written[8:16] = checksum.intdigest().to_bytes(8, "little")
    with pytest.raises(FrameDamaged, match="unknown format version"):
        parse_frame(bytes(written), 0, HERE)
    assert whole_frames(bytes(written), HERE) == ([], 0)
