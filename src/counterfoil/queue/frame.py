"""A frame: the accepted rows of one request (or of a part of a large one) as they lie in the queue.

Little-endian; a frame begins at a multiple of 8 bytes and is padded with zeros to one.

    offset  bytes  field
    0       8      mark, FRAME_MARK
    8       8      checksum: xxh3-64, seeded with the directory's id, over bytes 0 to 8 and 16 to `length`
    16      4      length: bytes of the frame without its padding
    20      2      format version, 1
    22      1      kind, 1: rows
    23      1      frame flags; bit 0: the rows are compressed with zstd; bit 1: with the dictionary DICTIONARY
    24      8      flushed: the offset up to which this file was flushed when this frame was written
    32      4      segment: the number of the segment it was written to
    36      4      row count, n
    40      8      offset: where in the segment it was written
    48      8      received at, ms since the Unix epoch
    56      16     request id, a UUIDv7
    72      4      bytes of the origin
    76      4      bytes of the rows, not compressed
    80             origin: JSON of `Origin`, padded to 8
                   key hashes: 16 n bytes
                   content hashes: 8 n bytes
                   row ends: 4 n bytes, padded to 8; where each row ends in the rows
                   destination sets: 2 n bytes, padded to 8
                   row flags: n bytes, padded to 8
                   rows: canonical JSON, one a line, no line end after the last

A row that was erased has the flag `RowFlag.ERASED`, in the bits above it the verdict it had, hashes of zeros, and no
content: spaces, or nothing where the rows are compressed. Where no row of a frame is left its request id is zeros too,
which the only row of a request may have as its distinctId. What shares the frame stays as it was, and so does the place
of the next one: where compressed rows need less room than before a skippable frame of zstd follows them, and where they
would need more (others pointed to what was erased) they are compressed with a dictionary.

Invariants:
    F1. A frame whose checksum holds was written whole, to this directory, this segment and this offset.
    F2. Every row is one line: `rows[row_ends[i - 1] + 1 : row_ends[i]]`, and the last row ends where the rows end.

The length stands outside nothing: a flipped bit in it makes the checksum fail, and FRAME_BYTES_MAX bounds what a
reader asks for before it knows.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate

import msgspec
import numpy as np
import xxhash
import zstandard

from counterfoil.contract.facts import (
    CONTENT_HASH_BYTES,
    ERASED_VERDICT_SHIFT,
    KEY_HASH_BYTES,
    FrameFacts,
    RowFlag,
    Verdict,
)
from counterfoil.errors import FrameDamaged
from counterfoil.positions import FRAME_ALIGNMENT, DirectoryId, FramePosition

FRAME_MARK = b"\xf0CFOIL\x0d\x0a"
"""Not UTF-8 at its first byte, so no row holds it."""

FRAME_VERSION = 1
FRAME_BYTES_MAX = 64 * 1024 * 1024
ROWS_A_FRAME_MAX = 65_535
"""A row's index in its frame is 2 bytes in a packed position."""

KIND_ROWS = 1
FLAG_COMPRESSED = 1
FLAG_DICTIONARY = 2
DICTIONARY = b'{"event":"","distinctId":"","userId":"","eventProperties":{"'
"""What rows begin with. Frames on disk hang on it, so it never changes."""

_ZSTD_DICTIONARY = zstandard.ZstdCompressionDict(DICTIONARY, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
_SKIPPABLE = struct.Struct("<II")
_SKIPPABLE_MARK = 0x184D2A50
"""RFC 8878, section 3.1.2: a frame that a decoder of zstd passes over."""

# The columns of one row: key hash, content hash, row end, destination set, flags, each padded to 8.
_ONE_ROW = struct.Struct("<16s8sI4xH6xB7x")
_HEADER = struct.Struct("<8sQIHBBQIIQq16sII")
_AFTER_CHECKSUM = struct.Struct("<IHBBQIIQq16sII")
HEADER_BYTES = _HEADER.size
_WALKED = struct.Struct("<8sQIHBB8xI4xQ")
_LENGTH = struct.Struct("<I")
_LENGTH_AT = 16
_FLAGS_AT = 23
_REQUEST_ID_AT = 56
_ROWS_BYTES_AT = 76

_U1, _U2, _U4, _U8 = np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8")

_PREFIX = struct.Struct("<8s8xI4x")
FRAME_PREFIX_BYTES = _PREFIX.size
"""As many bytes as `frame_length` needs."""


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """What all rows of a frame share and the server knows by itself."""

    source: str
    destination_sets: tuple[tuple[str, ...], ...] = ()
    sender_version: str | None = None
    """`ingest-sdk-<lang>/<version>` from the request's headers (contract.md section 4)."""


_decode_origin = msgspec.json.Decoder(Origin).decode


class FrameDraft(msgspec.Struct, frozen=True, gc=False):
    """A frame that has no place yet: all but the header, as the gateway hands it to the queue."""

    body: bytes
    row_count: int
    received_at_ms: int
    request_id: bytes
    origin_bytes: int
    rows_bytes: int
    is_compressed: bool


class Frame(msgspec.Struct, frozen=True):
    """A frame that was read back whole; `rows` is not compressed."""

    position: FramePosition
    frame_bytes: int
    """Bytes in the segment, padding included: the next frame begins at `position.offset + frame_bytes`."""
    flushed: int
    received_at_ms: int
    request_id: bytes
    sender_version: str | None
    facts: FrameFacts
    row_ends: list[int]
    rows: bytes

    def row(self, row_index: int) -> bytes:
        """The canonical JSON of one row, without a line end."""
        start = self.row_ends[row_index - 1] + 1 if row_index else 0
        return self.rows[start : self.row_ends[row_index]]


def draft_frame(
    *,
    origin: bytes,
    rows: Sequence[bytes],
    key_hashes: Sequence[bytes],
    content_hashes: Sequence[bytes],
    destination_set: bytes | None = None,
    flags: bytes | None = None,
    received_at_ms: int,
    request_id: bytes,
    compressor: zstandard.ZstdCompressor | None = None,
) -> FrameDraft:
    """The frame of `n` rows, from 1 to ROWS_A_FRAME_MAX, as columns of their facts.

    `origin` is the JSON of an `Origin` (made once and kept by the caller). `destination_set` is 2n bytes of
    little-endian indexes and `flags` n bytes; None is zeros.
    """
    row_count = len(rows)
    joined = b"\n".join(rows)
    rows_bytes = len(joined)
    # Each end counts the line ends before it: i rows are followed by i line ends.
    ends = array("I", (end + i for i, end in enumerate(accumulate(map(len, rows)))))
    parts = (
        origin,
        bytes(_padding(len(origin))),
        *key_hashes,
        *content_hashes,
        ends.tobytes(),
        bytes(_padding(4 * row_count)),
        bytes(2 * row_count) if destination_set is None else destination_set,
        bytes(_padding(2 * row_count)),
        bytes(row_count) if flags is None else flags,
        bytes(_padding(row_count)),
        joined if compressor is None else compressor.compress(joined),
    )
    return FrameDraft(
        body=b"".join(parts),
        row_count=row_count,
        received_at_ms=received_at_ms,
        request_id=request_id,
        origin_bytes=len(origin),
        rows_bytes=rows_bytes,
        is_compressed=compressor is not None,
    )


def draft_row(
    *,
    origin: bytes,
    row: bytes,
    key_hash: bytes,
    content_hash: bytes,
    destination_set: int,
    flags: int,
    received_at_ms: int,
    request_id: bytes,
    compressor: zstandard.ZstdCompressor | None = None,
) -> FrameDraft:
    """The frame of one row, as `draft_frame` would make it, in a third of the time: most requests have one."""
    columns = _ONE_ROW.pack(key_hash, content_hash, len(row), destination_set, flags)
    stored = row if compressor is None else compressor.compress(row)
    return FrameDraft(
        body=b"".join((origin, bytes(_padding(len(origin))), columns, stored)),
        row_count=1,
        received_at_ms=received_at_ms,
        request_id=request_id,
        origin_bytes=len(origin),
        rows_bytes=len(row),
        is_compressed=compressor is not None,
    )


def seal_frame(draft: FrameDraft, position: FramePosition, flushed: int) -> tuple[bytes, bytes, bytes]:
    """The bytes of a frame at its place: header, body and padding, to be written one after the other."""
    length = HEADER_BYTES + len(draft.body)
    rest = _AFTER_CHECKSUM.pack(
        length,
        FRAME_VERSION,
        KIND_ROWS,
        FLAG_COMPRESSED if draft.is_compressed else 0,
        flushed,
        position.segment,
        draft.row_count,
        position.offset,
        draft.received_at_ms,
        draft.request_id,
        draft.origin_bytes,
        draft.rows_bytes,
    )
    checksum = xxhash.xxh3_64(FRAME_MARK, seed=_seed(position.directory))
    checksum.update(rest)
    checksum.update(draft.body)
    header = FRAME_MARK + checksum.intdigest().to_bytes(8, "little") + rest
    return header, draft.body, bytes(_padding(length))


def sealed_bytes(draft: FrameDraft) -> int:
    """How many bytes of a segment the frame takes, padding included."""
    length = HEADER_BYTES + len(draft.body)
    return length + _padding(length)


def frame_length(prefix: bytes) -> int:
    """How many bytes to read for the frame that begins with `prefix`, of FRAME_PREFIX_BYTES; not checked any further.

    Raises FrameDamaged when no frame begins so.
    """
    if len(prefix) < FRAME_PREFIX_BYTES:
        raise FrameDamaged("truncated")
    mark, length = _PREFIX.unpack(prefix)
    if mark != FRAME_MARK:
        raise FrameDamaged("no frame mark")
    # One flipped bit here would ask for 4 GiB; no frame is larger than FRAME_BYTES_MAX.
    if not HEADER_BYTES <= length <= FRAME_BYTES_MAX:
        raise FrameDamaged("impossible length")
    return int(length)


def parse_frame(buffer: bytes | memoryview, start: int, position: FramePosition) -> Frame:
    """The frame that begins at `start` in `buffer`, which was read from `position`.

    Raises FrameDamaged with the reason when no whole frame of this place begins there; when the buffer is too short
    for it, the reason is `truncated`.
    """
    view = memoryview(buffer)[start:]
    length, fields = _checked_header(view, position)
    (flags, flushed, row_count, received_at_ms, request_id, origin_bytes, rows_bytes) = fields
    frame = view[:length]
    # Settle parses every frame: the arithmetic stands here in full, calls would take a third of the time.
    keys_at = HEADER_BYTES + (origin_bytes + 7 & -8)
    contents_at = keys_at + KEY_HASH_BYTES * row_count
    ends_at = contents_at + CONTENT_HASH_BYTES * row_count
    sets_at = ends_at + (4 * row_count + 7 & -8)
    flags_at = sets_at + (2 * row_count + 7 & -8)
    rows_at = flags_at + (row_count + 7 & -8)
    origin = _decode_origin(frame[HEADER_BYTES : HEADER_BYTES + origin_bytes])
    rows = bytes(frame[rows_at:])
    if flags & FLAG_COMPRESSED:
        rows = _decompressed(rows, flags, rows_bytes)
    return Frame(
        position=position,
        frame_bytes=length + 7 & -8,
        flushed=flushed,
        received_at_ms=received_at_ms,
        request_id=request_id,
        sender_version=origin.sender_version,
        facts=FrameFacts(
            source=origin.source,
            destination_sets=origin.destination_sets,
            key_hashes=np.ndarray((row_count, KEY_HASH_BYTES), _U1, frame, keys_at),
            content_hashes=np.ndarray((row_count,), _U8, frame, contents_at),
            destination_set=np.ndarray((row_count,), _U2, frame, sets_at),
            flags=np.ndarray((row_count,), _U1, frame, flags_at),
        ),
        row_ends=np.ndarray((row_count,), _U4, frame, ends_at).tolist(),
        rows=rows,
    )


def whole_frames(buffer: bytes, start: FramePosition) -> tuple[list[tuple[int, bool]], int]:
    """Where in a buffer that was read from `start` whole frames begin, one after the other; and where the last ends.

    With each stands whether its rows are compressed. Says what `parse_frame` would, in a third of the time, for who
    looks for something in all of them.
    """
    view, size = memoryview(buffer), len(buffer)
    unpack, seeded = _WALKED.unpack_from, xxhash.xxh3_64(FRAME_MARK, seed=_seed(start.directory)).copy
    segment, base, expected = start.segment, start.offset, (FRAME_VERSION, KIND_ROWS)
    found: list[tuple[int, bool]] = []
    at = 0
    while at + HEADER_BYTES <= size:
        mark, checksum, length, version, kind, flags, number, offset = unpack(view, at)
        end = at + length
        if mark != FRAME_MARK or end > size or not HEADER_BYTES <= length <= FRAME_BYTES_MAX:
            break
        digest = seeded()
        digest.update(view[at + 16 : end])
        if digest.intdigest() != checksum or (number, offset) != (segment, base + at) or (version, kind) != expected:
            break
        found.append((at, flags & FLAG_COMPRESSED > 0))
        at = end + 7 & -8
    return found, at


def erase_rows(buffer: bytes, position: FramePosition, verdicts: Mapping[int, Verdict | None]) -> bytes:
    """The bytes of a whole frame, padding included, without the content of the rows at these indexes: as many bytes.

    `verdicts` says which verdict each had; None where nobody knows. Raises FrameDamaged.
    """
    erased = bytearray(buffer)
    frame = parse_frame(memoryview(erased), 0, position)
    # The columns of the facts are views of the bytes they were read from.
    facts = frame.facts
    for index, verdict in verdicts.items():
        facts.key_hashes[index] = 0
        facts.content_hashes[index] = 0
        facts.flags[index] |= RowFlag.ERASED | (verdict or 0) << ERASED_VERDICT_SHIFT
    if facts.are_erased.all():
        erased[_REQUEST_ID_AT : _REQUEST_ID_AT + 16] = bytes(16)
    _, (flags, *_, origin_bytes, rows_bytes) = _checked_header(memoryview(buffer), position)
    rows_at = _rows_at(origin_bytes, facts.row_count)
    if flags & FLAG_COMPRESSED:
        rows = [b"" if index in verdicts else frame.row(index) for index in range(facts.row_count)]
        ends = array("I", (end + i for i, end in enumerate(accumulate(map(len, rows)))))
        ends_at = HEADER_BYTES + _aligned(origin_bytes) + (KEY_HASH_BYTES + CONTENT_HASH_BYTES) * facts.row_count
        erased[ends_at : ends_at + 4 * facts.row_count] = ends.tobytes()
        rows_bytes = ends[-1]
        stored, flags = _fitted(b"\n".join(rows), len(erased) - rows_at)
    else:
        text = bytearray(frame.rows)
        for index in verdicts:
            start = frame.row_ends[index - 1] + 1 if index else 0
            text[start : frame.row_ends[index]] = b" " * (frame.row_ends[index] - start)
        stored = bytes(text)
    length = rows_at + len(stored)
    erased[rows_at:] = stored + bytes(len(erased) - length)
    _LENGTH.pack_into(erased, _LENGTH_AT, length)
    _LENGTH.pack_into(erased, _ROWS_BYTES_AT, rows_bytes)
    erased[_FLAGS_AT] = flags
    checksum = xxhash.xxh3_64(erased[:8], seed=_seed(position.directory))
    checksum.update(memoryview(erased)[16:length])
    erased[8:16] = checksum.intdigest().to_bytes(8, "little")
    return bytes(erased)


def _fitted(rows: bytes, room: int) -> tuple[bytes, int]:
    """Rows compressed into `room` bytes, less at most those of a frame's padding, and the flags of their frame."""
    for compressor, flags in (
        (zstandard.ZstdCompressor(), FLAG_COMPRESSED),
        (zstandard.ZstdCompressor(level=12), FLAG_COMPRESSED),
        (zstandard.ZstdCompressor(level=12, dict_data=_ZSTD_DICTIONARY), FLAG_COMPRESSED | FLAG_DICTIONARY),
    ):
        stored = compressor.compress(rows)
        gap = room - len(stored)
        if gap >= _SKIPPABLE.size:
            return stored + _SKIPPABLE.pack(_SKIPPABLE_MARK, gap - _SKIPPABLE.size).ljust(gap, b"\0"), flags
        if gap >= 0:
            return stored, flags
    raise AssertionError("a part of the rows takes more room than all of them")


def _decompressed(stored: bytes | memoryview, flags: int, rows_bytes: int) -> bytes:
    dictionary = _ZSTD_DICTIONARY if flags & FLAG_DICTIONARY else None
    decompressor = zstandard.ZstdDecompressor(dict_data=dictionary)
    # What follows the rows only fills the frame.
    return decompressor.decompress(stored, max_output_size=rows_bytes, allow_extra_data=True)


_CheckedFields = tuple[int, int, int, int, bytes, int, int]


def _checked_header(view: memoryview, position: FramePosition) -> tuple[int, _CheckedFields]:
    if len(view) < HEADER_BYTES:
        raise FrameDamaged("truncated")
    (mark, checksum, length, version, kind, flags, flushed, segment, row_count, offset, received, request, origin,
     rows) = _HEADER.unpack_from(view)  # fmt: skip
    if mark != FRAME_MARK:
        raise FrameDamaged("no frame mark")
    if not HEADER_BYTES <= length <= FRAME_BYTES_MAX:
        raise FrameDamaged("impossible length")
    if len(view) < length:
        raise FrameDamaged("truncated")
    digest = xxhash.xxh3_64(view[:8], seed=_seed(position.directory))
    digest.update(view[16:length])
    if digest.intdigest() != checksum:
        raise FrameDamaged("checksum differs")
    if (segment, offset) != (position.segment, position.offset):
        raise FrameDamaged("written for another place")
    if version != FRAME_VERSION or kind != KIND_ROWS:
        raise FrameDamaged("unknown format version")
    return length, (flags, flushed, row_count, received, request, origin, rows)


def _rows_at(origin_bytes: int, row_count: int) -> int:
    """Where a frame's rows begin."""
    columns = (KEY_HASH_BYTES + CONTENT_HASH_BYTES) * row_count
    padded = _aligned(4 * row_count) + _aligned(2 * row_count) + _aligned(row_count)
    return HEADER_BYTES + _aligned(origin_bytes) + columns + padded


def _seed(directory: DirectoryId) -> int:
    return int.from_bytes(directory, "little")


def _aligned(size: int) -> int:
    return size + _padding(size)


def _padding(size: int) -> int:
    return -size % FRAME_ALIGNMENT
