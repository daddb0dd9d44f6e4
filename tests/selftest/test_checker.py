from __future__ import annotations

import pytest

from counterfoil.selftest.content import Content
from counterfoil.selftest.journal import Journal
from counterfoil.selftest.judging import Judgement, judge
from counterfoil.selftest.load import Load
from counterfoil.selftest.sending import HttpSender
from tests.selftest.small_server import Breakage, SmallServer, small_server

RUN = Content("canary00c0ffee", 1_790_000_000_000)
ROWS = 1_500

CAUGHT = {
    Breakage.ACKNOWLEDGES_BEFORE_THE_FLUSH: {"lost"},
    Breakage.KNOWS_NO_REPEATS: {"twice"},
    Breakage.FLIPS_A_BIT: {"changed"},
    Breakage.DROPS_A_FIELD: {"changed"},
    Breakage.SWAPS_ROWS: {"changed"},
    Breakage.INVENTS_ROWS: {"never_sent"},
    Breakage.LEAVES_RESULTS_OUT: {"neither"},
    Breakage.SAYS_NOTHING: {"neither"},
    Breakage.SAYS_ANOTHER_CODE: {"neither"},
    Breakage.REFUSES_GOOD_ROWS: {"wrongly_refused"},
    Breakage.TAKES_BROKEN_ROWS: {"wrongly_taken"},
    Breakage.DELIVERS_WHAT_IT_REFUSED: {"wrongly_taken"},
}
"""What the checker must say of each broken server, and nothing else."""


def judged(server: SmallServer) -> tuple[Load, Judgement]:
    """What the checker says of a server after a few thousand rows."""
    journal = Journal()
    load = Load(RUN, journal, lambda: HttpSender(server.url, "token"), clients=2, wait_seconds_max=0.01)
    load.run_until(ROWS)
    assert load.finish(seconds=300) == 0
    server.crash()
    return load, judge(RUN, journal, server.delivered())


@pytest.mark.parametrize("breakage", CAUGHT, ids=lambda breakage: str(breakage.name).lower())
def test_each_breakage_is_reported(breakage: Breakage) -> None:
    """A server that is broken in one way is reported with that fault, and with no other."""
    with small_server(breakage) as server:
        _, told = judged(server)
    found = {name for name, fault in told.faults.items() if fault.count}
    # What is also delivered twice here are the invalid rows that are sent again.
    assert found - {"twice"} == CAUGHT[breakage] - {"twice"}
    assert found >= CAUGHT[breakage]
    assert not told.is_clean


def test_every_breakage_has_its_fault() -> None:
    """No breakage of the small server is left untried, and every fault the checker knows is provoked by one."""
    assert CAUGHT.keys() == set(Breakage) - {Breakage.NONE, Breakage.FAILS_OFTEN}
    assert set().union(*CAUGHT.values()) == Judgement().faults.keys()


def test_a_good_server_is_clean() -> None:
    """Of a server that keeps the contract, nothing is reported, and every row is accounted for."""
    with small_server(Breakage.NONE) as server:
        load, told = judged(server)
    assert told.is_clean, told.lines()
    assert told.sent >= ROWS
    assert told.acknowledged + told.refused == told.sent
    assert told.found == told.acknowledged
    assert told.unsure == 0
    assert load.counts.doubled_rows > 0


def test_failures_that_the_contract_allows_are_repeated_and_no_fault() -> None:
    """Cut connections, 500, 429 and queue_failed are repeated until each row has its answer; nothing is reported."""
    with small_server(Breakage.FAILS_OFTEN) as server:
        load, told = judged(server)
    assert told.is_clean, told.lines()
    assert told.unsure == 0
    assert load.counts.silent_requests > 0
    assert load.counts.repeated_rows > 0


def test_a_client_that_ends_before_its_time_is_told() -> None:
    """When a client can't go on, whoever stops the clients is told why."""

    def refuse(_: str) -> None:
        raise OSError("no room for the journal")

    with small_server(Breakage.NONE) as server:
        load = Load(RUN, Journal(refuse), lambda: HttpSender(server.url, "token"), clients=1)
        with pytest.raises(OSError, match="no room"):
            load.run_until(1)
