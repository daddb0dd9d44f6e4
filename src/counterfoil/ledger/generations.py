"""When generations of the seen index begin and go.

A key is known from its first row for the horizon, and some time more: its generation goes as a whole. A generation
takes new keys for half the horizon, so three at most are asked at each look-up. Beginning one forgets nothing;
dropping one does, and only when the horizon of its youngest key is over: by the time the ledger was observed running,
or by two clocks that agree, the ledger's time, and the observed one, which may lag a day behind. So a clock that jumps
a year ahead forgets nothing, and one that jumps back is not followed: the ledger's time never goes back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from counterfoil.ledger.store import SLOTS

GENERATIONS_MAX = SLOTS
AGREEMENT_MS = 86_400_000
"""How far the observed time may lag behind the ledger's when a generation goes."""

_GENERATION = struct.Struct(">IQQ")
_CLOCK = struct.Struct(">QQ")


class LedgerClock(msgspec.Struct, frozen=True):
    """The two times of a ledger; neither goes back."""

    time_ms: int
    """The latest wall clock that was recorded, ms since the Unix epoch."""
    observed_ms: int
    """How long the ledger was observed running, over all its lives."""

    def advanced(self, now_ms: int, running_ms: int) -> LedgerClock:
        return LedgerClock(max(self.time_ms, now_ms), self.observed_ms + max(0, running_ms))


class Generation(msgspec.Struct, frozen=True):
    """A part of the seen index, and both times when it began."""

    number: int
    begun_ms: int
    observed_ms: int


class GenerationPlan(msgspec.Struct, frozen=True):
    """What `plan_generations` decided."""

    kept: tuple[Generation, ...]
    """Oldest first, those begun now included; the last takes new keys."""
    gone: tuple[Generation, ...]


def plan_generations(generations: tuple[Generation, ...], clock: LedgerClock, horizon_ms: int) -> GenerationPlan:
    """Which generations go, and whether a new one begins."""
    # The youngest key of a generation came just before the next one began.
    gone = 0
    while gone + 1 < len(generations) and _is_over(generations[gone + 1], clock, horizon_ms):
        gone += 1
    kept = generations[gone:]
    newest = kept[-1]
    if len(kept) < GENERATIONS_MAX and clock.observed_ms - newest.observed_ms >= horizon_ms // 2:
        kept = (*kept, Generation(newest.number + 1, clock.time_ms, clock.observed_ms))
    return GenerationPlan(kept, generations[:gone])


def _is_over(following: Generation, clock: LedgerClock, horizon_ms: int) -> bool:
    by_wall = clock.time_ms - following.begun_ms
    observed = clock.observed_ms - following.observed_ms
    # A time that was a year ahead once stands still for a year: the disk would be full before it goes on.
    if observed >= horizon_ms:
        return True
    return by_wall >= horizon_ms and observed + AGREEMENT_MS >= horizon_ms


def pack_clock(clock: LedgerClock) -> bytes:
    """Time and observed time, 8 bytes each."""
    return _CLOCK.pack(clock.time_ms, clock.observed_ms)


def unpack_clock(packed: bytes) -> LedgerClock:
    return LedgerClock(*_CLOCK.unpack(packed))


def pack_generations(generations: Iterable[Generation]) -> bytes:
    """Number (4), time it began (8), observed time it began (8), oldest first."""
    return b"".join(_GENERATION.pack(each.number, each.begun_ms, each.observed_ms) for each in generations)


def unpack_generations(packed: bytes) -> tuple[Generation, ...]:
    return tuple(Generation(*fields) for fields in _GENERATION.iter_unpack(packed))
