"""What the ledger keeps, as facts and as bytes; rows that are sent again stand in `resent.py`.

Every number is big-endian, so that keys sort as their numbers do. The record of a group of kind 1:

    offset  bytes  field
    0       1      kind, 1: rows as they came in; each frame whole
    1       8      settled at, ms since the Unix epoch, by the ledger's clock that never goes back
    9       4      frames, f
    13      4      rows, n
    17      4      bytes of the names
    21      26 f   frames: position (16), rows (4), bytes in the queue (4), index of the source's name (2)
            …      names: JSON of `GroupNames`: the sources, and the routed counts
            n      verdicts, one byte a row, frame after frame

A row's `seq` is group * 65,536 + its place in the group.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NewType

import msgspec
import numpy as np
from numpy.typing import NDArray

from counterfoil.contract.facts import FrameFacts, RowFlag, Verdict
from counterfoil.errors import LedgerUnusable
from counterfoil.positions import FramePosition, RowPosition

FORMAT_VERSION = 4
ROWS_A_GROUP_MAX = 65_536
"""A row's place in its group is the lower 16 bits of its `seq`."""

CONTENT_UNKNOWN = 2**64 - 1
"""The content hash of a key whose first row nobody has any more: each repeat of it counts as a duplicate."""

GroupNumber = NewType("GroupNumber", int)
"""From 1, in the order of settling over all writers; 0 stands before the first."""

Seq = NewType("Seq", int)
"""A row's place in the one sequence of everything that was settled."""

Places = tuple[int, ...]
"""Places of rows in a group, ascending."""

KIND_ROWS = 1

_GROUP = struct.Struct(">BQIII")
_FRAME = struct.Struct(">16sIIH")
_SEEN = struct.Struct(">QQH")
_REPEAT = struct.Struct(">BH")
_DELIVERY = struct.Struct(">QQQQQ")
_DEAD = struct.Struct(">QQB")
_DESTINATION = struct.Struct(">QQQQQQQ")
_DAMAGE = struct.Struct(">Q")
_COUNTS = struct.Struct(">QQQQQQQ")
_VERDICTS = max(Verdict) + 1
SEEN_BYTES = _SEEN.size
MS_A_DAY = 86_400_000


def seq_of(group: int, place: int) -> Seq:
    """The `seq` of the row at `place` in a group."""
    return Seq(group * ROWS_A_GROUP_MAX + place)


def group_of(seq: Seq) -> GroupNumber:
    """The group that a `seq` lies in."""
    return GroupNumber(seq // ROWS_A_GROUP_MAX)


class GroupFrame(msgspec.Struct, frozen=True, gc=False):
    """A frame as a group names it."""

    position: FramePosition
    source: str
    row_count: int
    frame_bytes: int


class RoutedCount(msgspec.Struct, frozen=True):
    """How many new rows of a source are meant for a set of destinations."""

    source: str
    destinations: tuple[str, ...] | None
    """Sorted names; None is every destination, also a later one; empty is none."""
    row_count: int

    def is_for(self, name: str) -> bool:
        return self.destinations is None or name in self.destinations


class GroupNames(msgspec.Struct, frozen=True):
    """What of a group's record is text."""

    sources: tuple[str, ...]
    routed: tuple[RoutedCount, ...]


class Group(msgspec.Struct, frozen=True):
    """Whole frames that were settled together."""

    number: GroupNumber
    frames: tuple[GroupFrame, ...]
    verdicts: bytes
    """One `Verdict` a row, frame after frame."""
    routed: tuple[RoutedCount, ...]
    settled_at_ms: int

    @property
    def row_count(self) -> int:
        return len(self.verdicts)

    @property
    def frame_bytes(self) -> int:
        """What its frames take in the queue."""
        return sum(frame.frame_bytes for frame in self.frames)

    def frame_positions(self) -> Iterator[FramePosition]:
        """Where its frames lie in the queue."""
        return (frame.position for frame in self.frames)

    def routed_to(self, name: str) -> int:
        """How many rows of this group are for a destination."""
        return sum(count.row_count for count in self.routed if count.is_for(name))

    def parts(self) -> Iterator[tuple[GroupFrame, int]]:
        """Each frame with the place of its first row in the group."""
        place = 0
        for frame in self.frames:
            yield frame, place
            place += frame.row_count

    def position_of(self, place: int) -> RowPosition:
        """Where the row at a place in the group lies in the queue."""
        for frame, first in self.parts():
            if place < first + frame.row_count:
                return RowPosition(frame.position, place - first)
        raise LedgerUnusable(f"group {self.number} has no row {place}")

    def positions_of(self, places: Iterable[int]) -> Iterator[RowPosition]:
        """Where rows at these places, ascending, lie in the queue."""
        parts = self.parts()
        frame, first = next(parts)
        for place in places:
            while place >= first + frame.row_count:
                frame, first = next(parts)
            yield RowPosition(frame.position, place - first)


class SourceCounts(msgspec.Struct, frozen=True):
    """A source's side of the books: accepted = new + duplicate + conflict + blocked + test."""

    source: str
    accepted: int = 0
    new: int = 0
    duplicate: int = 0
    conflict: int = 0
    blocked: int = 0
    test: int = 0
    erased: int = 0
    """How many of these were erased since; they stay what they were as well."""

    @property
    def is_balanced(self) -> bool:
        return self.accepted == self.new + self.duplicate + self.conflict + self.blocked + self.test

    def plus(self, other: SourceCounts) -> SourceCounts:
        return SourceCounts(
            self.source,
            self.accepted + other.accepted,
            self.new + other.new,
            self.duplicate + other.duplicate,
            self.conflict + other.conflict,
            self.blocked + other.blocked,
            self.test + other.test,
            self.erased + other.erased,
        )


class DestinationCounts(msgspec.Struct, frozen=True):
    """A destination's side of the books: routed = delivered + dead + skipped + erased + pending."""

    destination: str
    start_group: GroupNumber
    """The rows of later groups are for it; earlier ones were settled before it was there."""
    cursor: GroupNumber
    """The last group that was delivered: the ledger's copy, the destination's own is the truth."""
    routed: int
    delivered: int
    dead: int
    skipped: int = 0
    """Rows that retention removed before it took them, while it was not in the configuration."""
    erased: int = 0
    """Rows that were erased, whatever they were before."""

    @property
    def pending(self) -> int:
        return self.routed - self.delivered - self.dead - self.skipped - self.erased


class Books(msgspec.Struct, frozen=True):
    """All counters of the ledger at one moment."""

    sources: tuple[SourceCounts, ...]
    destinations: tuple[DestinationCounts, ...]
    damaged_frames: int
    last_group: GroupNumber


class DamageRecord(msgspec.Struct, frozen=True):
    """Bytes of the queue that were passed over, and why; `reason` is a code of ours."""

    position: FramePosition
    damaged_bytes: int
    reason: str


class RowCopy(msgspec.Struct, frozen=True):
    """A dead row as the ledger keeps it: all that its frame said of it."""

    source: str
    position: RowPosition
    """Where it lay in the queue."""
    received_at_ms: int
    request_id: bytes
    flags: RowFlag
    sender_version: str | None
    destinations: tuple[str, ...] | None
    """As in `RoutedCount`."""
    row: bytes
    """The canonical JSON."""


class DeadRow(msgspec.Struct, frozen=True):
    """A row that a destination can't take, and why; `reason` is a code of ours."""

    seq: Seq
    reason: str
    copy: RowCopy | None = None
    """What the ledger is to keep of it; None where it keeps one already, or the row can't be read any more."""


class DeadLetter(msgspec.Struct, frozen=True):
    """A dead row as the ledger keeps it."""

    destination: str
    seq: Seq
    """Its last one; where it was sent again, not its first."""
    reason: str
    at_ms: int
    first_seq: Seq
    is_dropped: bool = False
    """It stays dead for good: its copy is gone."""


class DeliveryRecord(msgspec.Struct, frozen=True):
    """What a destination took at once."""

    destination: str
    first_group: GroupNumber
    last_group: GroupNumber
    delivered_rows: int
    dead_rows: int
    commit: str
    """What the destination calls it: a table version, a transaction."""
    at_ms: int
    erased_rows: int = 0
    """Rows of these groups that were erased before it or since: they count here and nowhere else."""

    @property
    def row_count(self) -> int:
        """All rows of these groups that are meant for the destination."""
        return self.delivered_rows + self.dead_rows + self.erased_rows


class FoundRow(msgspec.Struct, frozen=True):
    """A row of a key, as `lookup` finds it."""

    seq: Seq
    position: RowPosition | None
    """None when its group is no longer kept."""
    verdict: Verdict
    settled_at_ms: int
    """To the day when its group is no longer kept, to the millisecond otherwise."""


class Settled(msgspec.Struct, frozen=True):
    """All that one synced batch of settle writes."""

    group: Group | None
    """None when frames were damaged and none was settled."""
    reading_positions: tuple[FramePosition, ...]
    """At most one a directory."""
    source_counts: tuple[SourceCounts, ...] = ()
    """What this group adds."""
    new_keys: list[bytes] = []
    """Key hashes that the group claims, sorted."""
    seen: list[bytes] = []
    """For each new key the 18 bytes of `pack_seen`."""
    repeats: list[bytes] = []
    """For each row that claims no key or repeats one: key hash and `seq`, 24 bytes, sorted."""
    repeat_verdicts: list[bytes] = []
    """For each of the repeats the 3 bytes of `pack_repeat`."""
    damages: tuple[DamageRecord, ...] = ()
    erased: Places = ()
    """Rows of the group that were erased before; only a ledger that is rebuilt meets such rows."""


def count_sources(
    frames: Sequence[FrameFacts] | Sequence[GroupFrame], verdicts: NDArray[np.uint8], erased: Places = ()
) -> tuple[SourceCounts, ...]:
    """The books of each source over the rows of these frames, of which those at the places `erased` were erased."""
    numbers: dict[str, int] = {}
    frame_source = [numbers.setdefault(each.source, len(numbers)) for each in frames]
    row_counts = [each.row_count for each in frames]
    source_of = np.repeat(np.array(frame_source, np.int64), row_counts)
    counted = np.bincount(source_of * _VERDICTS + verdicts, minlength=len(numbers) * _VERDICTS)
    accepted = np.bincount(frame_source, weights=row_counts, minlength=len(numbers))
    erased_of = np.bincount(source_of[np.array(erased, np.int64)], minlength=len(numbers))
    return tuple(
        SourceCounts(
            source=source,
            accepted=int(accepted[number]),
            new=int(of_source[Verdict.NEW]),
            duplicate=int(of_source[Verdict.DUPLICATE]),
            conflict=int(of_source[Verdict.CONFLICT]),
            blocked=int(of_source[Verdict.BLOCKED]),
            test=int(of_source[Verdict.TEST]),
            erased=int(erased_of[number]),
        )
        for (source, number), of_source in zip(numbers.items(), counted.reshape(len(numbers), _VERDICTS), strict=True)
    )


def pack_seen(seq: Seq, content_hash: int, day: int) -> bytes:
    """What the seen index holds of a key: 8 bytes `seq`, 8 bytes content hash, 2 bytes day since the Unix epoch."""
    return _SEEN.pack(seq, content_hash, day)


def unpack_seen(packed: bytes) -> tuple[Seq, int, int]:
    """`seq`, content hash and day of a key's first row."""
    seq, content_hash, day = _SEEN.unpack(packed)
    return Seq(seq), content_hash, day


def pack_repeat(verdict: Verdict, day: int) -> bytes:
    """What is kept of a row that claims no key or repeats one: its verdict and the day since the Unix epoch."""
    return _REPEAT.pack(verdict, day)


def unpack_repeat(packed: bytes) -> tuple[Verdict, int]:
    """Verdict and day."""
    verdict, day = _REPEAT.unpack(packed)
    return Verdict(verdict), day


_encode_names = msgspec.json.Encoder().encode
_decode_names = msgspec.json.Decoder(GroupNames).decode


def pack_group(group: Group) -> bytes:
    """A group's record."""
    sources: dict[str, int] = {}
    frames = [
        _FRAME.pack(
            frame.position.pack(), frame.row_count, frame.frame_bytes, sources.setdefault(frame.source, len(sources))
        )
        for frame in group.frames
    ]
    names = _encode_names(GroupNames(tuple(sources), group.routed))
    head = _GROUP.pack(KIND_ROWS, group.settled_at_ms, len(frames), group.row_count, len(names))
    return b"".join((head, *frames, names, group.verdicts))


def unpack_group(number: GroupNumber, packed: bytes) -> Group:
    """The group of a record; raises LedgerUnusable when it makes no sense."""
    kind, settled_at_ms, frame_count, row_count, names_bytes = _GROUP.unpack_from(packed)
    frames_end = _GROUP.size + frame_count * _FRAME.size
    names_end = frames_end + names_bytes
    if kind != KIND_ROWS or len(packed) != names_end + row_count:
        raise LedgerUnusable(f"the record of group {number} makes no sense")
    names = _decode_names(packed[frames_end:names_end])
    frames = tuple(
        GroupFrame(FramePosition.unpack(position), names.sources[source], rows, frame_bytes)
        for position, rows, frame_bytes, source in _FRAME.iter_unpack(packed[_GROUP.size : frames_end])
    )
    return Group(number, frames, packed[names_end:], names.routed, settled_at_ms)


def settled_at_ms(packed: bytes) -> int:
    """When the group of a record was settled."""
    _, at_ms, _, _, _ = _GROUP.unpack_from(packed)
    return int(at_ms)


def unpack_routed(packed: bytes) -> tuple[RoutedCount, ...]:
    """The routed counts of a group's record alone."""
    _, _, frame_count, _, names_bytes = _GROUP.unpack_from(packed)
    start = _GROUP.size + frame_count * _FRAME.size
    return _decode_names(packed[start : start + names_bytes]).routed


def pack_delivery(record: DeliveryRecord) -> bytes:
    """First group, delivered, dead and erased rows, time in ms (8 bytes each), then the commit's name."""
    numbers = (record.first_group, record.delivered_rows, record.dead_rows, record.erased_rows, record.at_ms)
    return _DELIVERY.pack(*numbers) + record.commit.encode()


def unpack_delivery(destination: str, last_group: GroupNumber, packed: bytes) -> DeliveryRecord:
    first_group, delivered_rows, dead_rows, erased_rows, at_ms = _DELIVERY.unpack_from(packed)
    commit = packed[_DELIVERY.size :].decode()
    return DeliveryRecord(destination, first_group, last_group, delivered_rows, dead_rows, commit, at_ms, erased_rows)


def upgrade_delivery(packed: bytes) -> bytes:
    """From formats before 4, in which nothing was erased."""
    counts = 3 * 8
    return packed[:counts] + bytes(8) + packed[counts:]


def pack_dead(letter: DeadLetter) -> bytes:
    """Time in ms (8), first `seq` (8), whether it was dropped (1), then the reason."""
    return _DEAD.pack(letter.at_ms, letter.first_seq, letter.is_dropped) + letter.reason.encode()


def unpack_dead(destination: str, seq: Seq, packed: bytes) -> DeadLetter:
    at_ms, first_seq, is_dropped = _DEAD.unpack_from(packed)
    return DeadLetter(destination, seq, packed[_DEAD.size :].decode(), at_ms, Seq(first_seq), bool(is_dropped))


class DestinationState(msgspec.Struct, frozen=True):
    """What the ledger keeps of a destination."""

    start_group: GroupNumber
    cursor: GroupNumber
    base: int
    """Rows that were meant for it and settled before it was there; they are not routed to it."""
    delivered: int
    dead: int
    again: int = 0
    """Rows that were sent twice on purpose; each time counts as routed."""
    erased: int = 0
    """Rows that were erased; they were delivered, dead or pending before."""

    def pack(self) -> bytes:
        """Seven numbers of 8 bytes."""
        return _DESTINATION.pack(
            self.start_group, self.cursor, self.base, self.delivered, self.dead, self.again, self.erased
        )

    @classmethod
    def unpack(cls, packed: bytes) -> DestinationState:
        return cls(*_DESTINATION.unpack(packed))


def pack_counts(counts: SourceCounts) -> bytes:
    """Rows accepted, new, duplicate, conflict, blocked, test, erased, 8 bytes each."""
    return _COUNTS.pack(
        counts.accepted, counts.new, counts.duplicate, counts.conflict, counts.blocked, counts.test, counts.erased
    )


def unpack_counts(source: str, packed: bytes) -> SourceCounts:
    return SourceCounts(source, *_COUNTS.unpack(packed))


def pack_damage(damage: DamageRecord) -> bytes:
    """Bytes (8), then the reason."""
    return _DAMAGE.pack(damage.damaged_bytes) + damage.reason.encode()


def unpack_damage(position: FramePosition, packed: bytes) -> DamageRecord:
    (damaged_bytes,) = _DAMAGE.unpack_from(packed)
    return DamageRecord(position, damaged_bytes, packed[_DAMAGE.size :].decode())
