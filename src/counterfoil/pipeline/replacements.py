"""Replacements: a dead letter whose frame was damaged is delivered after all, when the same row was sent again.

The key of such a row lies in the damaged frame and is lost. But a repeat of it, whether it came already or is still to
come, has the verdict `duplicate`, and the seen index leads from the repeat's key to the `seq` of the first row: where
that is a dead letter with the reason `damaged`, the repeat is sent in its place.

Groups are gone through in order, a few a step, from that of the first such dead letter on; then each new group, as
long as there are such letters. Nothing is remembered on disk: a letter that was replaced is none any more, and a life
that begins looks through all again. Damage is rare, and so is all of this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import structlog

from counterfoil.contract.facts import Verdict
from counterfoil.errors import FrameDamaged
from counterfoil.ledger import (
    Cause,
    DamageRecord,
    DeadLetter,
    Group,
    Ledger,
    ResentRow,
    Seq,
    Settled,
    group_of,
    unpack_seen,
)
from counterfoil.pipeline.handover import DAMAGED
from counterfoil.pipeline.settle import packed_items
from counterfoil.positions import RowPosition
from counterfoil.queue import FrameSource

GROUPS_A_STEP = 4

log = structlog.get_logger()


class Replacements:
    """Finds repeats that can take the place of damaged rows. Used where groups are settled, in turn with that."""

    def __init__(self, ledger: Ledger, source: FrameSource, clock_ms: Callable[[], int]) -> None:
        self._ledger = ledger
        self._source = source
        self._clock_ms = clock_ms
        self._deaths = -1
        self._letters: dict[Seq, dict[str, DeadLetter]] = {}
        """By first seq and destination."""
        self._gone_through = 0

    def step(self) -> int:
        """Go through some more groups; how many rows were sent in the place of damaged ones."""
        if self._ledger.damaged_deaths() != self._deaths:
            self._look_for_letters()
        if not self._letters:
            return 0
        row_count = 0
        for group in self._ledger.groups(self._gone_through, GROUPS_A_STEP):
            if isinstance(group, Group) and Verdict.DUPLICATE in group.verdicts:
                row_count += self._replace(group)
            self._gone_through = group.number
        return row_count

    def _look_for_letters(self) -> None:
        self._deaths = self._ledger.damaged_deaths()
        self._letters.clear()
        for name in self._ledger.destinations():
            for letter in self._ledger.dead_letters(name):
                if letter.reason == DAMAGED and not letter.is_dropped:
                    self._letters.setdefault(letter.first_seq, {})[name] = letter
        # A repeat comes after its first row, or beside it.
        self._gone_through = min((group_of(seq) - 1 for seq in self._letters), default=0)

    def _replace(self, group: Group) -> int:
        found: dict[str, list[ResentRow]] = defaultdict(list)
        frame_bytes: dict[str, int] = defaultdict(int)
        verdicts = np.frombuffer(group.verdicts, np.uint8)
        for part, place in group.parts():
            repeats = np.flatnonzero(verdicts[place : place + part.row_count] == Verdict.DUPLICATE)
            if not len(repeats):
                continue
            try:
                facts = self._source.fetch(part.position).facts
            except FrameDamaged:
                damage = DamageRecord(part.position, part.frame_bytes, DAMAGED)
                self._ledger.record(Settled(group=None, reading_positions=(), damages=(damage,)))
                continue
            seen = self._ledger.seen(packed_items(facts.key_hashes[repeats]))
            for index, first in zip(repeats.tolist(), seen, strict=True):
                letters = self._letters.pop(unpack_seen(first)[0], {}) if first is not None else {}
                for name, letter in letters.items():
                    position = RowPosition(part.position, index)
                    found[name].append(ResentRow(letter.first_seq, letter.seq, position, part.source))
                    frame_bytes[name] += part.frame_bytes
        row_count = 0
        for name, rows in found.items():
            sent = self._ledger.send_again(
                name, Cause.REPLACEMENT, rows, frame_bytes=frame_bytes[name], at_ms=self._clock_ms()
            )
            row_count += 0 if sent is None else sent.row_count
            log.info("replacements.sent", destination=name, row_count=len(rows))
        return row_count
