"""The short version of the overload campaign: small limits make much of what a little is to a real server."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.e2e.overload import play
from tests.e2e.server import TOKEN, Server, running, until

LIMITS = """
[limits]
body_bytes_max = 2000000
"""
SENDERS = {"one": 8, "hundred": 8, "long": 4, "large": 4, "squeezed": 2, "endless": 1}
NUISANCES = {
    "idle": 300,
    "slow head": 10,
    "slow body": 6,
    "slow reader": 6,
    "cut": 8,
    "half closed": 8,
    "rapid reset": 1,
    "endless headers": 1,
    "pings": 1,
    "held streams": 4,
}
SECONDS_MAX = 600
ANSWERS_OF_EACH = 20


def test_more_than_a_server_takes_costs_nobody_a_row(tmp_path: Path) -> None:
    """Whoever sends too much, slowly, in halves or without an end: what was accepted is delivered once, the rest is
    told when to come again, no worker dies or grows, and afterwards it answers as before."""
    server = Server(tmp_path, gateway="bodies_bytes_max = 3000000", source="rows_per_second_max = 1000", more=LIMITS)
    with running(server):
        result = play(server, SECONDS_MAX, SENDERS, NUISANCES, processes=1, is_enough=lambda: has_met_all(server))
        row = {"token": TOKEN, "event": "Purchase", "distinctId": "o-0"}
        until(
            lambda: httpx.post(f"{server.url}/track", json=row, trust_env=False, timeout=60).status_code == 200,
            "a row is accepted again",
        )
        server.rows_of("o-0")
    assert not result.broken(with_times=False), result.report()
    assert result.connections.keys() >= NUISANCES.keys()
    assert {200, 413, 429, 500} <= result.statuses.keys(), result.report()


def has_met_all(server: Server) -> bool:
    """Whether the server counts enough answers of each kind that there is to an overload."""
    lines = httpx.get(f"http://127.0.0.1:{server.console_port}/metrics", trust_env=False, timeout=600).text.splitlines()
    counts = {
        status: float(line.split()[-1])
        for line in lines
        for status in (200, 413, 429, 500)
        if line.startswith("counterfoil_requests_total{") and f'path="/api/v1/batch",status="{status}"' in line
    }
    return len(counts) == 4 and min(counts.values()) >= ANSWERS_OF_EACH
