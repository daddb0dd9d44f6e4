from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from counterfoil.faultydisk.disk import DiskUnavailable
from tests.e2e.powercut import Game, Totals


@pytest.fixture
def game(tmp_path: Path) -> Iterator[Game]:
    """A game on a faulty disk; the test is skipped where none can be had."""
    game = Game(tmp_path / "server", seed=5, totals=Totals())
    try:
        game.__enter__()
    except DiskUnavailable as problem:
        pytest.skip(f"needs FUSE and the right to mount: {problem}")
    yield game
    game.__exit__()


def test_what_was_acknowledged_survives_a_power_cut(game: Game) -> None:
    """The power of the whole server is cut under load, twice: every acknowledged row is in the table, once."""
    for _ in range(2):
        game.send_into_a_cut()
    game.start()
    game.check()
    game.add_up()
    assert game.totals.unflushed_files > 0
    assert game.totals.acknowledged > 0


def test_the_server_outlives_its_disk(game: Game) -> None:
    """Full, failing at writes and at flushes, slow: only retryable answers, nothing lost, and it recovers by itself."""
    for failure in (Game.fill_up, Game.fail_writes, Game.fail_flushes, Game.fail_anything, Game.be_slow):
        game.fail_for(1.0, failure)
    game.check()
    game.add_up()
    assert game.totals.acknowledged > 0
    assert game.disk.state().befallen
