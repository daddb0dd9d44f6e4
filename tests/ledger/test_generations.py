"""The seen index forgets by generations, never before its horizon."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from counterfoil.ledger import Ledger, SourceCounts, pack_seen, seq_of
from counterfoil.ledger.generations import (
    AGREEMENT_MS,
    GENERATIONS_MAX,
    Generation,
    LedgerClock,
    pack_clock,
    pack_generations,
    plan_generations,
    unpack_clock,
    unpack_generations,
)
from counterfoil.ledger.records import Settled
from tests.ledger.test_ledger import DAY_MS, opened

HORIZON_MS = 30 * DAY_MS
FIRST: tuple[Generation, ...] = (Generation(1, 0, 0),)


@given(st.lists(st.tuples(st.integers(-400, 400), st.integers(0, 20)), max_size=60))
def test_no_key_goes_before_its_horizon(steps: list[tuple[int, int]]) -> None:
    """However the clock jumps: while less than the horizon was lived through, a key's generation is kept."""
    generations, clock, wall = FIRST, LedgerClock(0, 0), 1_700_000_000_000
    claimed: list[tuple[int, LedgerClock]] = []
    for jump_days, run_days in steps:
        claimed.append((generations[-1].number, clock))
        wall = max(0, wall + (jump_days + run_days) * DAY_MS)
        clock = clock.advanced(wall, run_days * DAY_MS)
        plan = plan_generations(generations, clock, HORIZON_MS)
        generations = plan.kept
        assert 1 <= len(generations) <= GENERATIONS_MAX
        assert list(generations) == sorted(generations, key=lambda each: each.number)
        kept = {generation.number for generation in generations}
        for number, then in claimed:
            observed_ms = clock.observed_ms - then.observed_ms
            is_agreed = clock.time_ms - then.time_ms >= HORIZON_MS and observed_ms >= HORIZON_MS - AGREEMENT_MS
            assert number in kept or observed_ms >= HORIZON_MS or is_agreed


def test_a_clock_that_was_a_year_ahead_does_not_stop_forgetting() -> None:
    """When the clock was put right again generations go as if it had never jumped; the index does not grow a year."""
    generations, clock = FIRST, LedgerClock(0, 0).advanced(400 * DAY_MS, 0)
    for day in range(90):
        clock = clock.advanced(day * DAY_MS, DAY_MS)
        generations = plan_generations(generations, clock, HORIZON_MS).kept
        assert clock.observed_ms - generations[0].observed_ms <= HORIZON_MS * 3 // 2 + DAY_MS


def test_a_year_of_quiet_running_keeps_two_or_three_generations() -> None:
    """When both clocks run evenly a key goes between one and one and a half horizons after it came."""
    generations, clock = FIRST, LedgerClock(0, 0)
    for day in range(365):
        clock = clock.advanced(day * DAY_MS, DAY_MS if day else 0)
        generations = plan_generations(generations, clock, HORIZON_MS).kept
        assert clock.observed_ms - generations[0].observed_ms <= HORIZON_MS * 3 // 2 + DAY_MS
    assert len(generations) in (2, 3)


@given(st.lists(st.builds(Generation, st.integers(1, 2**32 - 1), st.integers(0, 2**60), st.integers(0, 2**60))))
def test_generations_unpack_to_themselves(generations: list[Generation]) -> None:
    """Nothing of a generation is lost in its 20 bytes."""
    assert unpack_generations(pack_generations(generations)) == tuple(generations)
    for each in generations:
        clock = LedgerClock(each.begun_ms, each.observed_ms)
        assert unpack_clock(pack_clock(clock)) == clock


def claim(ledger: Ledger, key: bytes) -> None:
    """Let a key be seen, without a group around it."""
    ledger.record(Settled(group=None, reading_positions=(), new_keys=[key], seen=[pack_seen(seq_of(9, 0), 1, 2)]))


def test_a_key_is_known_for_the_horizon_and_then_goes(tmp_path: Path) -> None:
    """L4: keys of two generations are found while they live; the older goes as a whole."""
    ledger = opened(tmp_path)
    claim(ledger, b"a" * 16)
    for day in range(1, 46):
        ledger.tend(day * DAY_MS, DAY_MS)
        if day == 20:
            claim(ledger, b"b" * 16)
        if day < 45:
            assert ledger.seen([b"a" * 16])[0] is not None
    assert [value is None for value in ledger.seen([b"a" * 16, b"b" * 16])] == [True, False]
    ledger.close()
    ledger = opened(tmp_path)
    assert [value is None for value in ledger.seen([b"a" * 16, b"b" * 16])] == [True, False]
    ledger.close()


def test_a_slot_that_is_used_again_holds_nothing_of_before(tmp_path: Path) -> None:
    """The fourth generation lies where the first lay, and knows none of its keys, nor its repeats."""
    ledger = opened(tmp_path)
    claim(ledger, b"a" * 16)
    day = 0
    while len(ledger.seen([b"a" * 16])) and ledger.seen([b"a" * 16])[0] is not None:
        day += 1
        ledger.tend(day * DAY_MS, DAY_MS)
        assert day < 100
    for _ in range(20):
        day += 1
        ledger.tend(day * DAY_MS, DAY_MS)
    claim(ledger, b"d" * 16)
    assert [value is None for value in ledger.seen([b"a" * 16, b"d" * 16])] == [True, False]
    assert ledger.lookup(b"a" * 16) == []
    ledger.close()


def test_time_never_goes_back(tmp_path: Path) -> None:
    """L5: a clock that jumps back is not followed, also not by another life."""
    ledger = opened(tmp_path)
    ledger.tend(1000, 5)
    ledger.tend(400, 5)
    assert ledger.time_ms() == 1000
    ledger.close()
    ledger = opened(tmp_path)
    assert ledger.time_ms() == 1000
    assert ledger.books().sources == tuple[SourceCounts]()
    ledger.close()
