"""Which groups and segments are kept, how old they are, and what is carried forward of those that are gone.

A segment may go when the last group that names a frame of it is gone: that group is noted for each segment in the
batch that records the group.

How old a group is is told by marks: "all groups up to this one were settled before the ledger had been observed
running for so long". Marks are set from time to time, never at each group. The wall clock has no say in it: one that
jumps a year ahead removes nothing, and one that jumped and came back keeps nothing for a year. Time in which nothing
ran does not count, so groups are kept longer then, never shorter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import msgspec

from counterfoil.ledger.carried import Carried, CarriedDestination
from counterfoil.ledger.records import GroupNumber, RoutedCount, SourceCounts, pack_counts, unpack_counts
from counterfoil.ledger.store import FACTS, GROUPS, Batch
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber

SEGMENT = b"segment/"
_MARK = b"mark/"
_GONE = b"gone/group"
GONE_SOURCE = b"gone/source/"
_GONE_ROUTED = b"gone/routed/"
GONE_DESTINATION = b"gone/destination/"
_GONE_END = b"gone/end/"

_U64 = struct.Struct(">Q")
_SEGMENT_KEY = struct.Struct(">8sI")
_GONE_VALUE = struct.Struct(">QQ")

Segment = tuple[DirectoryId, SegmentNumber]


class AgeMark(msgspec.Struct, frozen=True):
    """Every group up to `group` was settled before the ledger had been observed running for `observed_ms`."""

    group: GroupNumber
    observed_ms: int


class Kept:
    """What `Ledger` knows of it in memory; not shared between threads without its lock."""

    def __init__(self, facts: Mapping[bytes, bytes]) -> None:
        """`facts`: everything in the family of that name."""
        self.last_group_of: dict[Segment, GroupNumber] = {}
        self.marks: list[AgeMark] = []
        sources: dict[str, SourceCounts] = {}
        routed: list[RoutedCount] = []
        destinations: dict[str, CarriedDestination] = {}
        ends: dict[DirectoryId, FramePosition] = {}
        for key, value in facts.items():
            if key.startswith(SEGMENT):
                directory, number = _SEGMENT_KEY.unpack(key[len(SEGMENT) :])
                self.last_group_of[DirectoryId(directory), SegmentNumber(number)] = _group(value)
            elif key.startswith(_MARK):
                self.marks.append(AgeMark(_group(key[len(_MARK) :]), _U64.unpack(value)[0]))
            elif key.startswith(GONE_SOURCE):
                name = key[len(GONE_SOURCE) :].decode()
                sources[name] = unpack_counts(name, value)
            elif key.startswith(_GONE_ROUTED):
                source, names = unpack_routed_key(key[len(_GONE_ROUTED) :])
                routed.append(RoutedCount(source, names, _U64.unpack(value)[0]))
            elif key.startswith(GONE_DESTINATION):
                destinations[key[len(GONE_DESTINATION) :].decode()] = CarriedDestination.unpack(value)
            elif key.startswith(_GONE_END):
                ends[DirectoryId(key[len(_GONE_END) :])] = FramePosition.unpack(value)
        last, at_ms = _GONE_VALUE.unpack(facts[_GONE]) if _GONE in facts else (0, 0)
        self.carried = Carried(GroupNumber(last), at_ms, sources, tuple(routed), destinations, ends)

    def put_named(
        self, batch: Batch, frames: Iterable[FramePosition], number: GroupNumber
    ) -> dict[Segment, GroupNumber]:
        """Note in a group's batch which segments it names; what to add to `last_group_of` when that is written."""
        named = dict.fromkeys(((frame.directory, frame.segment) for frame in frames), number)
        put_segments(batch, named)
        return named

    def is_named(self, frame: FramePosition) -> bool:
        """Whether a kept group holds the frame's segment."""
        return (frame.directory, frame.segment) in self.last_group_of

    def put_side(self, batch: Batch, name: str, side: CarriedDestination) -> None:
        """Write what is carried forward of a destination, where it changed; `remember_side` when that is written."""
        if side != self.carried.of(name):
            batch.put(FACTS, GONE_DESTINATION + name.encode(), side.pack())

    def remember_side(self, name: str, side: CarriedDestination) -> None:
        if side != self.carried.of(name):
            destinations = {**self.carried.destinations, name: side}
            self.carried = msgspec.structs.replace(self.carried, destinations=destinations)

    def put_carried(self, batch: Batch, carried: Carried) -> list[Segment]:
        """Remove groups that are kept, up to `carried.last_group`; the segments that no group names then."""
        batch.delete_range(GROUPS, _U64.pack(self.carried.oldest_group), _U64.pack(carried.oldest_group))
        batch.put(FACTS, _GONE, _GONE_VALUE.pack(carried.last_group, carried.at_ms))
        for source, counts in carried.sources.items():
            if counts != self.carried.sources.get(source):
                batch.put(FACTS, GONE_SOURCE + source.encode(), pack_counts(counts))
        for count in set(carried.routed) - set(self.carried.routed):
            key = pack_routed_key(count.source, count.destinations)
            batch.put(FACTS, _GONE_ROUTED + key, _U64.pack(count.row_count))
        for name, side in carried.destinations.items():
            if side != self.carried.of(name):
                batch.put(FACTS, GONE_DESTINATION + name.encode(), side.pack())
        for directory, end in carried.ends.items():
            if end != self.carried.ends.get(directory):
                batch.put(FACTS, _GONE_END + directory, end.pack())
        for mark in self.marks:
            if mark.group <= carried.last_group:
                batch.delete(FACTS, _MARK + _U64.pack(mark.group))
        unnamed = [segment for segment, group in self.last_group_of.items() if group <= carried.last_group]
        for directory, number in unnamed:
            batch.delete(FACTS, SEGMENT + _SEGMENT_KEY.pack(directory, number))
        return unnamed

    def forget(self, carried: Carried, unnamed: Iterable[Segment]) -> None:
        """What `put_carried` wrote is on disk."""
        self.carried = carried
        self.marks = [mark for mark in self.marks if mark.group > carried.last_group]
        for segment in unnamed:
            del self.last_group_of[segment]

    def next_mark(self, last_group: GroupNumber, observed_ms: int, every_ms: int) -> AgeMark | None:
        """The mark that is due; None when there is no newer group, or the last one was less than `every_ms` ago."""
        group, at_ms = (self.marks[-1].group, self.marks[-1].observed_ms) if self.marks else (0, -every_ms)
        is_due = last_group > max(group, self.carried.last_group) and observed_ms - at_ms >= every_ms
        return AgeMark(last_group, observed_ms) if is_due else None


def put_mark(batch: Batch, mark: AgeMark) -> None:
    """Write a mark."""
    batch.put(FACTS, _MARK + _U64.pack(mark.group), _U64.pack(mark.observed_ms))


def put_segments(batch: Batch, named: Mapping[Segment, GroupNumber]) -> None:
    """Write for each segment the last group that names it."""
    for (directory, number), group in named.items():
        batch.put(FACTS, SEGMENT + _SEGMENT_KEY.pack(directory, number), _U64.pack(group))


RoutedKey = tuple[str, tuple[str, ...] | None]
"""Source, and the names of a set of destinations; None is all of them."""


def pack_routed_key(source: str, names: tuple[str, ...] | None) -> bytes:
    """SOURCE/SET: the set's names joined by commas, empty for none, * for every destination."""
    return source.encode() + b"/" + (b"*" if names is None else ",".join(names).encode())


def unpack_routed_key(packed: bytes) -> RoutedKey:
    """Source and set."""
    source, _, joined = packed.decode().partition("/")
    if joined == "*":
        return source, None
    return source, tuple(joined.split(",")) if joined else ()


def _group(packed: bytes) -> GroupNumber:
    return GroupNumber(_U64.unpack(packed)[0])
