"""Rows that were blocked when they came and that today's allowlist lets pass: they go through the queue once more.

A blocked row claimed no key, so it may come again: its frame is written anew, with its source, request, time of receipt
and content as they were, without the mark, and for the destinations that the allowlist names today. Settle judges it in
its order like any row that comes in, by the same judge: new, duplicate or conflict. So no key is claimed twice whatever
happens beside or dies on the way, and what is done twice is a duplicate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from counterfoil.contract.facts import EVERY_DESTINATION, RowFlag, Verdict
from counterfoil.ledger import Group, GroupFrame, LedgerReader
from counterfoil.pipeline.handover import FrameCache
from counterfoil.pipeline.replay import ReplayFilter
from counterfoil.queue import FrameSource
from counterfoil.queue.frame import Frame, FrameDraft, Origin, draft_frame
from counterfoil.sources import Route

_GROUPS_AT_ONCE = 16

Routing = Callable[[str, str], Route | None]
"""Where an event of a source goes by today's allowlist; None for a source that is no more."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """What of a canonical row the allowlist asks for."""

    event: str


class Unblocking:
    """A search; `drafts` carries it out, and the counts are whole when it is at its end."""

    def __init__(
        self, ledger: LedgerReader, source: FrameSource, destination: str, routing: Routing, wanted: ReplayFilter
    ) -> None:
        """Rows are wanted that may go to `destination` today; they go wherever else they may, too."""
        self._ledger = ledger
        self._frames = FrameCache(source)
        self._destination = destination
        self._routing = routing
        self._wanted = wanted
        self._decode = msgspec.json.Decoder(Event).decode
        self.blocked = 0
        """Blocked rows that are kept and wanted by source and time."""
        self.known = 0
        """Of these, the ones that are allowed and whose key another row has by now, or they themselves."""
        self.allowed: Counter[str] = Counter()
        """Of these, the ones to be settled anew, by source."""
        self.unreadable = 0

    def drafts(self) -> Iterator[FrameDraft]:
        """The frames to be written, each of rows of one frame that was."""
        number: int = self._ledger.carried().last_group
        while groups := self._ledger.groups(number, _GROUPS_AT_ONCE):
            for group in groups:
                if isinstance(group, Group) and Verdict.BLOCKED in group.verdicts:
                    yield from self._of_group(group)
            number = groups[-1].number

    def _of_group(self, group: Group) -> Iterator[FrameDraft]:
        verdicts = np.frombuffer(group.verdicts, np.uint8)
        for part, place in group.parts():
            is_blocked = verdicts[place : place + part.row_count] == Verdict.BLOCKED
            if is_blocked.any() and self._wanted.source in (None, part.source):
                draft = self._of_frame(part, is_blocked)
                if draft is not None:
                    yield draft

    def _of_frame(self, part: GroupFrame, is_blocked: NDArray[np.bool_]) -> FrameDraft | None:
        frame = self._frames.fetch(part.position)
        if frame is None:
            self.unreadable += int(is_blocked.sum())
            return None
        if not self._wanted.takes_time(frame.received_at_ms):
            return None
        is_blocked = is_blocked & ~frame.facts.are_erased
        chosen: list[tuple[int, Route]] = []
        for index in np.flatnonzero(is_blocked).tolist():
            self.blocked += 1
            route = self._routing(part.source, self._decode(frame.row(index)).event)
            if route is None or not route.is_allowed:
                continue
            if route.destinations is not None and self._destination not in route.destinations:
                continue
            if self._is_known(frame.facts.key_hashes[index].tobytes()):
                self.known += 1
                continue
            chosen.append((index, route))
        self.allowed[part.source] += len(chosen)
        return draft_anew(frame, chosen) if chosen else None

    def _is_known(self, key_hash: bytes) -> bool:
        return any(row.verdict is Verdict.NEW for row in self._ledger.lookup(key_hash))


def draft_anew(frame: Frame, chosen: Sequence[tuple[int, Route]]) -> FrameDraft:
    """A frame of some rows of another, each with the route that it has now."""
    facts = frame.facts
    sets = sorted({route.destinations for _, route in chosen if route.destinations is not None})
    places = {names: number for number, names in enumerate(sets, 1)}
    indexes = [index for index, _ in chosen]
    return draft_frame(
        origin=msgspec.json.encode(Origin(facts.source, tuple(sets), frame.sender_version)),
        rows=[frame.row(index) for index in indexes],
        key_hashes=[facts.key_hashes[index].tobytes() for index in indexes],
        content_hashes=[int(facts.content_hashes[index]).to_bytes(8, "little") for index in indexes],
        destination_set=np.array(
            [EVERY_DESTINATION if route.destinations is None else places[route.destinations] for _, route in chosen],
            "<u2",
        ).tobytes(),
        flags=bytes(int(facts.flags[index]) & ~int(RowFlag.BLOCKED) for index in indexes),
        received_at_ms=frame.received_at_ms,
        request_id=frame.request_id,
    )
