"""The short version of the backfill campaign."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.backfill_campaign import play


def test_a_killed_backfill_through_a_dropping_proxy_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Sender and server killed, connections dropped: every good row once, every broken one told with its line."""
    result = play(tmp_path, rows=20_000, sender_kills=3, server_kills=1, seed=7, share=0.01)
    assert (result.in_table, result.rejected) == (19_600, 200)
