from __future__ import annotations

from pathlib import Path

from counterfoil.selftest.faults import FAULTS
from tests.e2e.crash import a_game
from tests.postgres_server import why_not


def test_what_was_acknowledged_survives_every_fault(tmp_path: Path) -> None:
    """Whichever process or destination is killed or frozen under load, no row is lost, doubled or changed anywhere."""
    with a_game(tmp_path, seed=3, with_postgres=why_not() is None, rows_per_second=500) as (game, persons):
        game.play(rounds=2)
        persons.see_them_gone(game.server)
        judgements = game.reckon()
    assert sum(game.faults.values()) >= 2
    for told in judgements.values():
        assert told.is_clean, told.lines()
        assert told.acknowledged > 0
        assert told.found >= told.acknowledged


def test_faults_have_names_of_their_own() -> None:
    """A report tells each kind of fault apart."""
    assert len({fault.__name__ for fault in FAULTS}) == len(FAULTS)
