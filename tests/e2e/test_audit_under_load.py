"""Audits of a server that is working: rows come in, are settled, delivered and removed meanwhile."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import httpx

from tests.e2e.server import TOKEN, Server, running, until

ROWS = 200
AUDITS = 4


def test_an_audit_beside_a_working_server_balances(tmp_path: Path) -> None:
    """Each audit sees one moment, whole, while rows are taken, delivered, and removed by retention under its eyes."""
    stop = threading.Event()
    statuses: set[int] = set()

    def send(server: Server) -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            for number in itertools.count():
                if stop.is_set():
                    return
                # A quarter of the rows repeat the request before.
                ids = [f"{number - (row % 4 == 0)}-{row}" for row in range(ROWS)]
                rows = [{"event": "e", "distinctId": each, "eventProperties": {"fill": "x" * 500}} for each in ids]
                statuses.add(client.post(f"{server.url}/batch", json={"token": TOKEN, "events": rows}).status_code)
                stop.wait(0.05)

    with running(Server(tmp_path, queue="segment_bytes = 1048576\nretention_days = 0")) as server:
        sender = threading.Thread(target=send, args=(server,))
        sender.start()
        try:
            until(lambda: server.status()["oldest_group"] > 1, "retention has removed something")
            reports = []
            for _ in range(AUDITS):
                reports.append(server.facts("audit"))
                seen = reports[-1]["last_group"]
                until(lambda seen=seen: server.status()["last_group"] > seen, "more is settled")  # type: ignore[misc]
        finally:
            stop.set()
            sender.join()
    assert statuses == {200}
    assert all(report["is_balanced"] for report in reports), reports
    groups = [report["last_group"] for report in reports]
    assert groups == sorted(set(groups)), "every audit saw more than the one before"
    assert all(report["destinations"][0]["held"] is not None for report in reports)
