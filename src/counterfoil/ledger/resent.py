"""Rows that are sent again: the groups that name them, how to find these, and the copies of dead rows.

Every number is big-endian. The record of a group of kind 2, addressed to one destination:

    offset  bytes  field
    0       1      kind, 2: rows sent again
    1       8      settled at, ms since the Unix epoch, as in a group of kind 1
    9       1      `Cause`
    10      4      rows, n
    14      4      bytes of the names
    18      8      bytes of the rows
    26      36 n   rows: first seq (8), last seq (8), position (18; zeros: the ledger's copy), index of the source (2)
            …      names: JSON of `ResentNames`: the destination and the sources

A row keeps its first `seq` for good: that of the group it was settled in. Each time it is sent again it gets one more,
and its last is the one that counts: it is dead, pending or delivered by that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

import msgspec

from counterfoil.contract.facts import RowFlag
from counterfoil.errors import LedgerUnusable
from counterfoil.ledger.records import (
    KIND_ROWS,
    Group,
    GroupNumber,
    RowCopy,
    Seq,
    group_of,
    seq_of,
    unpack_group,
    unpack_routed,
)
from counterfoil.positions import ROW_POSITION_BYTES, FramePosition, RowPosition

KIND_RESENT = 2

_GROUP = struct.Struct(">BQBIIQ")
_ROW = struct.Struct(">QQ18sH")
_RESENDING = struct.Struct(">HBQQ")
_COPY = struct.Struct(">Q16sB18sI")
_NO_POSITION = bytes(ROW_POSITION_BYTES)


class Cause(IntEnum):
    """Why rows are sent again, and which counter they leave to be pending once more."""

    RETRY = 1
    """They were dead letters, and somebody mended what stood in the way: dead - n."""
    REPLAY = 2
    """They were delivered, and the destination does not hold them any more: delivered - n."""
    AGAIN = 3
    """They are sent twice on purpose: routed + n."""
    REPLACEMENT = 4
    """They were dead letters of a damaged frame, and a repeat of the same content takes their place: dead - n."""

    @property
    def is_of_dead(self) -> bool:
        return self in (Cause.RETRY, Cause.REPLACEMENT)


class ResentRow(msgspec.Struct, frozen=True, gc=False):
    """A row that a group sends again."""

    first_seq: Seq
    last_seq: Seq
    """The `seq` it had before this group: it died by it, or was delivered."""
    position: RowPosition | None
    """Where in the queue the row is read; None: from the copy that the ledger keeps."""
    source: str


class ResentNames(msgspec.Struct, frozen=True):
    """What of the record is text."""

    destination: str
    sources: tuple[str, ...]


class ResentGroup(msgspec.Struct, frozen=True):
    """Rows that are sent to one destination again; the place of each gives its new `seq`."""

    number: GroupNumber
    destination: str
    cause: Cause
    rows: tuple[ResentRow, ...]
    settled_at_ms: int
    frame_bytes: int
    """What its rows take, at about."""

    @property
    def row_count(self) -> int:
        return len(self.rows)

    def routed_to(self, name: str) -> int:
        """How many rows of this group are for a destination."""
        return len(self.rows) if name == self.destination else 0

    def position_of(self, place: int) -> RowPosition | None:
        """Where the row at a place lies in the queue; None where it is read from a copy."""
        return self.rows[place].position

    def frame_positions(self) -> Iterator[FramePosition]:
        """The frames that its rows are read from; those with a copy need none."""
        return (row.position.frame for row in self.rows if row.position is not None)

    def seq_at(self, place: int) -> Seq:
        """The new `seq` of the row at a place."""
        return seq_of(self.number, place)


AnyGroup = Group | ResentGroup


class Resending(msgspec.Struct, frozen=True):
    """That a row was sent again."""

    destination: str
    first_seq: Seq
    seq: Seq
    """Its new one."""
    cause: Cause
    last_seq: Seq
    """The one before."""
    died_at_ms: int | None = None
    """When it had become a dead letter, where it was one, and the reason."""
    reason: str | None = None

    @property
    def group(self) -> GroupNumber:
        return group_of(self.seq)


class _CopyNames(msgspec.Struct, frozen=True):
    source: str
    sender_version: str | None
    destinations: tuple[str, ...] | None


_encode = msgspec.json.Encoder().encode
_decode_names = msgspec.json.Decoder(ResentNames).decode
_decode_copy_names = msgspec.json.Decoder(_CopyNames).decode


def pack_resent(group: ResentGroup) -> bytes:
    """The record of a group of kind 2."""
    sources: dict[str, int] = {}
    rows = [
        _ROW.pack(
            row.first_seq,
            row.last_seq,
            _NO_POSITION if row.position is None else row.position.pack(),
            sources.setdefault(row.source, len(sources)),
        )
        for row in group.rows
    ]
    names = _encode(ResentNames(group.destination, tuple(sources)))
    head = _GROUP.pack(KIND_RESENT, group.settled_at_ms, group.cause, len(rows), len(names), group.frame_bytes)
    return b"".join((head, *rows, names))


def unpack_any(number: GroupNumber, packed: bytes) -> AnyGroup:
    """The group of a record of any kind; raises LedgerUnusable when it makes no sense."""
    return _unpack_resent(number, packed) if packed[:1] == bytes([KIND_RESENT]) else unpack_group(number, packed)


def _unpack_resent(number: GroupNumber, packed: bytes) -> ResentGroup:
    _, settled_at_ms, cause, row_count, names_bytes, frame_bytes = _GROUP.unpack_from(packed)
    rows_end = _GROUP.size + row_count * _ROW.size
    if len(packed) != rows_end + names_bytes:
        raise LedgerUnusable(f"the record of group {number} makes no sense")
    names = _decode_names(packed[rows_end:])
    rows = tuple(
        ResentRow(
            Seq(first),
            Seq(last),
            None if position == _NO_POSITION else RowPosition.unpack(position),
            names.sources[source],
        )
        for first, last, position, source in _ROW.iter_unpack(packed[_GROUP.size : rows_end])
    )
    return ResentGroup(number, names.destination, Cause(cause), rows, settled_at_ms, frame_bytes)


def rows_routed(packed: bytes, name: str) -> int:
    """How many rows for a destination the group of a record has, without unpacking all of it."""
    if packed[0] == KIND_ROWS:
        return sum(routed.row_count for routed in unpack_routed(packed) if routed.is_for(name))
    _, _, _, row_count, _, _ = _GROUP.unpack_from(packed)
    names = _decode_names(packed[_GROUP.size + row_count * _ROW.size :])
    return row_count if names.destination == name else 0


def pack_resending(resending: Resending) -> bytes:
    """Place in the group (2), cause (1), the `seq` before (8), when it died in ms or 0 (8), then the reason."""
    place = resending.seq - seq_of(resending.group, 0)
    head = _RESENDING.pack(place, resending.cause, resending.last_seq, resending.died_at_ms or 0)
    return head + (resending.reason or "").encode()


def unpack_resending(destination: str, first_seq: Seq, group: GroupNumber, packed: bytes) -> Resending:
    place, cause, last_seq, died_at_ms = _RESENDING.unpack_from(packed)
    reason = packed[_RESENDING.size :].decode()
    return Resending(
        destination, first_seq, seq_of(group, place), Cause(cause), Seq(last_seq), died_at_ms or None, reason or None
    )


def pack_copy(copy: RowCopy) -> bytes:
    """Received at (8), request id (16), flags (1), position (18), bytes of the names (4), names as JSON, the row."""
    names = _encode(_CopyNames(copy.source, copy.sender_version, copy.destinations))
    head = _COPY.pack(copy.received_at_ms, copy.request_id, copy.flags, copy.position.pack(), len(names))
    return head + names + copy.row


def unpack_copy(packed: bytes) -> RowCopy:
    received_at_ms, request_id, flags, position, names_bytes = _COPY.unpack_from(packed)
    names_end = _COPY.size + names_bytes
    names = _decode_copy_names(packed[_COPY.size : names_end])
    return RowCopy(
        names.source,
        RowPosition.unpack(position),
        received_at_ms,
        request_id,
        RowFlag(flags),
        names.sender_version,
        names.destinations,
        packed[names_end:],
    )
