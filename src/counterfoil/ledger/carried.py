"""What is kept of groups that are gone: their counts, carried forward, so that the books go on balancing.

Groups go from the oldest on. What goes is added to what has gone before (`carry_sources`, `carry_destinations`), in the
batch that removes the groups. An audit begins with these balances and counts the groups that are kept.

A delivery is folded when its last group goes. One that reaches into groups that are kept stays whole: its rows in
groups that are gone are `open_rows` until then.

Rows of a gone group that a destination had not passed were never delivered to it. That happens to one that was taken
out of the configuration: nothing is held for it. They are `skipped`, and stay in its books for good:
routed = delivered + dead + skipped + erased + pending.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from counterfoil.ledger.records import (
    DeliveryRecord,
    DestinationState,
    GroupNumber,
    Places,
    RoutedCount,
    SourceCounts,
    count_sources,
)
from counterfoil.ledger.resent import AnyGroup, Cause, ResentGroup
from counterfoil.positions import DirectoryId, FramePosition

_DESTINATION = struct.Struct(">QQQQQQ")
_SPAN = struct.Struct(">QQ")

Spans = tuple[tuple[int, int], ...]
"""Runs of groups: the first and the last of each."""


class CarriedDestination(msgspec.Struct, frozen=True):
    """A destination's side of the groups that are gone."""

    routed: int = 0
    delivered: int = 0
    dead: int = 0
    """As the deliveries said that are folded; a dead letter itself is kept."""
    skipped: int = 0
    """Rows that went before it took them."""
    delivered_to: int = 0
    """The last group of the last delivery that is folded; 0 is none."""
    skipped_groups: Spans = ()
    """The groups that it never got."""
    erased: int = 0
    """Rows that were erased, whatever they were before."""

    @property
    def open_rows(self) -> int:
        """Rows whose delivery is kept whole, because it reaches into groups that are kept."""
        return self.routed - self.delivered - self.dead - self.skipped - self.erased

    def has_skipped(self, group: int) -> bool:
        """Whether a group went before the destination got it."""
        return any(first <= group <= last for first, last in self.skipped_groups)

    def pack(self) -> bytes:
        """Six numbers of 8 bytes, then two for each run of groups that were skipped."""
        counts = (self.routed, self.delivered, self.dead, self.skipped, self.delivered_to, self.erased)
        return _DESTINATION.pack(*counts) + b"".join(_SPAN.pack(*span) for span in self.skipped_groups)

    @classmethod
    def unpack(cls, packed: bytes) -> CarriedDestination:
        routed, delivered, dead, skipped, delivered_to, erased = _DESTINATION.unpack_from(packed)
        spans = tuple(_SPAN.iter_unpack(packed[_DESTINATION.size :]))
        return cls(routed, delivered, dead, skipped, delivered_to, spans, erased)


class Carried(msgspec.Struct, frozen=True):
    """The balances of all groups that are gone."""

    last_group: GroupNumber = GroupNumber(0)
    """The last that is gone; 0 is none."""
    at_ms: int = 0
    """When that went, by the ledger's time."""
    sources: Mapping[str, SourceCounts] = {}
    routed: tuple[RoutedCount, ...] = ()
    """New rows by source and set of destinations."""
    destinations: Mapping[str, CarriedDestination] = {}
    ends: Mapping[DirectoryId, FramePosition] = {}
    """For each writer's directory the place after the last frame that a gone group named."""

    @property
    def oldest_group(self) -> GroupNumber:
        """The oldest group that is kept, or the next one where none is."""
        return GroupNumber(self.last_group + 1)

    def of(self, destination: str) -> CarriedDestination:
        """What is carried forward of a destination."""
        return self.destinations.get(destination, CarriedDestination())

    def routed_to(self, destination: str) -> int:
        """How many rows of gone groups were meant for a destination, there already or not."""
        return sum(count.row_count for count in self.routed if count.is_for(destination))


def carry_sources(carried: Carried, groups: Sequence[AnyGroup], erased: Mapping[GroupNumber, Places]) -> Carried:
    """The balances of sources with the oldest groups that are kept; it counts every row of them.

    `erased` has for each group the places of rows that were erased.
    """
    sources = dict(carried.sources)
    routed: Counter[tuple[str, tuple[str, ...] | None]] = Counter(
        {(count.source, count.destinations): count.row_count for count in carried.routed}
    )
    ends = dict(carried.ends)
    for group in groups:
        if isinstance(group, ResentGroup):
            # Its rows came in with an earlier group.
            continue
        verdicts = np.frombuffer(group.verdicts, np.uint8)
        for counts in count_sources(group.frames, verdicts, erased.get(group.number, ())):
            sources[counts.source] = sources.get(counts.source, SourceCounts(counts.source)).plus(counts)
        for count in group.routed:
            routed[count.source, count.destinations] += count.row_count
        for frame in {frame.position.directory: frame for frame in group.frames}.values():
            ends[frame.position.directory] = frame.position._replace(offset=frame.position.offset + frame.frame_bytes)
    return msgspec.structs.replace(
        carried,
        sources=sources,
        routed=tuple(RoutedCount(source, names, count) for (source, names), count in routed.items()),
        ends=ends,
    )


def carry_destinations(
    carried: Carried,
    groups: Sequence[AnyGroup],
    destinations: Mapping[str, DestinationState],
    deliveries: Iterable[DeliveryRecord],
    at_ms: int,
) -> Carried:
    """The balances of `carry_sources` with those of destinations, when these groups go at `at_ms`.

    `deliveries` are those that end in one of these groups, in order.
    """
    sides = {
        name: _pass_groups(carried.of(name), name, state, groups)
        for name, state in destinations.items()
        if state.start_group < groups[-1].number
    }
    for delivery in deliveries:
        sides[delivery.destination] = _fold(sides[delivery.destination], delivery)
    return msgspec.structs.replace(
        carried, last_group=groups[-1].number, at_ms=at_ms, destinations={**carried.destinations, **sides}
    )


def upgrade_carried(packed: bytes) -> bytes:
    """From formats before 4, in which nothing was erased."""
    counts = 5 * 8
    return packed[:counts] + bytes(8) + packed[counts:]


def _pass_groups(
    side: CarriedDestination, name: str, state: DestinationState, groups: Sequence[AnyGroup]
) -> CarriedDestination:
    meant = [(group.number, group.routed_to(name)) for group in groups if group.number > state.start_group]
    skipped = [(number, rows) for number, rows in meant if number > state.cursor]
    spans = side.skipped_groups
    if skipped:
        first, last = int(skipped[0][0]), int(skipped[-1][0])
        if spans and spans[-1][1] + 1 == first:
            first, spans = spans[-1][0], spans[:-1]
        spans = (*spans, (first, last))
    left = dict.fromkeys(Cause, 0)
    for group in groups:
        if isinstance(group, ResentGroup):
            left[group.cause] += group.routed_to(name)
    # Rows that were sent again left what they had been, and were routed before.
    resent = sum(left.values())
    return msgspec.structs.replace(
        side,
        routed=side.routed + sum(rows for _, rows in meant) - resent + left[Cause.AGAIN],
        delivered=side.delivered - left[Cause.REPLAY],
        dead=side.dead - left[Cause.RETRY] - left[Cause.REPLACEMENT],
        skipped=side.skipped + sum(rows for _, rows in skipped),
        skipped_groups=spans,
    )


def _fold(side: CarriedDestination, delivery: DeliveryRecord) -> CarriedDestination:
    return msgspec.structs.replace(
        side,
        delivered=side.delivered + delivery.delivered_rows,
        dead=side.dead + delivery.dead_rows,
        erased=side.erased + delivery.erased_rows,
        delivered_to=delivery.last_group,
    )
