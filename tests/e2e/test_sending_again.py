"""What an operator does at three in the morning, on a real server: dead letters sent again, what is lost replayed."""

from __future__ import annotations

import base64
import json
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from deltalake import DeltaTable

from tests.cli.calling import call
from tests.e2e.server import TOKEN, Server, until
from tests.http_receiver import Received, Receiver, Reply, http_receiver
from tests.postgres_server import postgres_server, why_not

SECRET = f"whsec_{base64.b64encode(b'k' * 32).decode()}"
IDS = [f"order-{number}" for number in range(30)]
REFUSED = {"order-3", "order-4", "order-17"}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that refuses some rows until it is told otherwise."""
    with http_receiver() as running:
        running.answer = lambda request: Reply(422 if ids_in(request) & REFUSED else 204)
        yield running


def ids_in(request: Received) -> set[str]:
    return {row["distinctId"] for row in request.rows}


def taken(receiver: Receiver) -> Counter[str]:
    """How often each row was taken."""
    return Counter(row["distinctId"] for row in receiver.taken_rows)


def hook(receiver: Receiver) -> str:
    return f"""
[[destinations]]
name = "hook"
type = "webhook"
url = "{receiver.url}"
secret = "{SECRET}"
batch_seconds = 0.1
"""


def send(server: Server, ids: list[str]) -> None:
    rows = [{"event": "Purchase", "distinctId": each, "email": "ann@example.com", "shoe": 42} for each in ids]
    answer = httpx.post(f"{server.url}/batch", json={"token": TOKEN, "events": rows}, trust_env=False, timeout=60)
    assert answer.json()["success"], answer.text


def quiet(server: Server, accepted: int) -> None:
    """Wait until so many rows were settled, and no destination has any to take."""

    def is_quiet() -> bool | None:
        status = server.status()
        is_settled = sum(source["accepted"] for source in status["sources"]) == accepted
        return (is_settled and not any(each["pending"] for each in status["destinations"])) or None

    until(is_quiet, "everything delivered")


def facts(server: Server, *arguments: str, status: int = 0) -> Any:
    return json.loads(run(server, *arguments, "--json", status=status))


def run(server: Server, *arguments: str, status: int = 0) -> str:
    """What a command prints; called in this process, which has loaded everything already."""
    return call(server.directory, *arguments, status=status).stdout


def test_dead_letters_are_found_shown_and_retried_once(
    make_server: Callable[..., Server], receiver: Receiver, tmp_path: Path
) -> None:
    """By reason and source, without a person's data; after the fix exactly those arrive, while the server runs."""
    server = make_server(more=hook(receiver)).start()
    send(server, IDS)
    quiet(server, len(IDS))
    listed = facts(server, "dead", "list", "--destination", "hook")
    assert listed["counts"] == [{"destination": "hook", "reason": "http_422", "is_retryable": True, "rows": 3}]
    assert facts(server, "dead", "list", "--source", "website")["total"] == 3
    seq = str(listed["letters"][0]["seq"])
    for command in (["list"], ["show", "hook", seq]):
        assert "order-3" not in run(server, "dead", *command)
        assert "ann@example.com" not in run(server, "dead", *command)
    shown = facts(server, "dead", "show", "hook", seq, "--reveal")
    row = {"event": "Purchase", "distinctId": "order-3", "email": "ann@example.com", "shoe": 42}
    assert shown["row"] == row
    assert facts(server, "dead", "retry", "--dry-run") == {"rows": 3, "is_dry_run": True}
    file = tmp_path / "dead.ndjson"
    run(server, "dead", "export", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {json.loads(line)["distinctId"] for line in file.read_text().splitlines()} == REFUSED
    run(server, "dead", "export", "-", status=2)

    # Still refused: they are dead again, under new seqs.
    assert facts(server, "dead", "retry", "--destination", "hook")["rows"] == 3
    until(lambda: len([r for r in receiver.received if ids_in(r) <= REFUSED]) > 3 or None, "they were tried")
    quiet(server, len(IDS))
    again = facts(server, "dead", "list")
    assert again["total"] == 3
    assert not {letter["seq"] for letter in again["letters"]} & {letter["seq"] for letter in listed["letters"]}

    receiver.answer = lambda _: Reply()
    assert facts(server, "dead", "retry", "--reason", "http_4")["rows"] == 3
    assert facts(server, "dead", "retry", status=1)["rows"] == 0
    quiet(server, len(IDS))
    until(lambda: taken(receiver).total() == len(IDS) or None, "all rows at the receiver")
    assert taken(receiver) == Counter(IDS)
    assert facts(server, "audit")["is_balanced"]
    [traced] = facts(server, "trace", "order-3")["rows"]
    [at_hook] = [each for each in traced["deliveries"] if each["destination"] == "hook"]
    assert at_hook["state"] == "delivered"
    assert [(each["cause"], each["reason"]) for each in at_hook["sent_again"]] == [("retry", "http_422")] * 2
    assert (server.directory / "data" / "control.sock").stat().st_mode & 0o077 == 0

    # Twice on purpose: the same ids, each once more.
    run(server, "replay", "hook", status=2)
    assert facts(server, "replay", "hook", "--again")["sent"] == len(IDS)
    until(lambda: taken(receiver).total() == 2 * len(IDS) or None, "all rows twice at the receiver")
    quiet(server, len(IDS))
    assert facts(server, "audit")["is_balanced"]
    assert server.stop() == 0


def test_what_is_given_up_stays_dead(make_server: Callable[..., Server], receiver: Receiver) -> None:
    """Dropped, also while no server runs, a row is forgotten and stays in the books; the others are retried."""
    server = make_server(more=hook(receiver)).start()
    send(server, IDS)
    quiet(server, len(IDS))
    assert server.stop() == 0
    letters = facts(server, "dead", "list")["letters"]
    run(server, "dead", "drop", status=2)
    assert facts(server, "dead", "drop", "--to", "2020-01-01", status=1)["rows"] == 0
    assert facts(server, "dead", "drop", "--destination", "hook", "--source", "website", "--dry-run")["rows"] == 3
    assert facts(server, "dead", "drop", "--destination", "hook")["rows"] == 3
    shown = facts(server, "dead", "show", "hook", str(letters[0]["seq"]), "--reveal")
    assert (shown["is_dropped"], shown["row"]) == (True, None)
    assert facts(server, "dead", "retry", status=1)["rows"] == 0
    receiver.answer = lambda _: Reply()
    server.start()
    send(server, ["order-30"])
    quiet(server, len(IDS) + 1)
    assert facts(server, "audit")["destinations"][0]["dead"] == 3
    assert taken(receiver) == Counter({*IDS, "order-30"} - REFUSED)


def test_what_the_lake_lost_is_replayed(make_server: Callable[..., Server]) -> None:
    """Rows that somebody deleted from the table come back, exactly those, once; also ones that were replayed before."""
    server = make_server().start()
    send(server, IDS[:20])
    send(server, IDS[20:])
    quiet(server, len(IDS))
    until(lambda: len(server.rows()) == len(IDS) or None, "all rows in the table")
    assert facts(server, "replay", "lake", status=1)["missing"] == 0
    for lost in (["order-1", "order-2", "order-25"], ["order-2", "order-9"]):
        names = ", ".join(f"'{each}'" for each in lost)
        DeltaTable(server.lake).delete(f"distinct_id IN ({names})")
        found = facts(server, "audit", status=1)["destinations"][0]
        assert (found["missing"], found["surplus"]) == (len(lost), 0)
        dry = facts(server, "replay", "lake", "--dry-run")
        assert (dry["compared"], dry["missing"], dry["sent"]) == (len(IDS), len(lost), 0)
        run(server, "replay", "lake", "--source", "other", status=2)
        assert facts(server, "replay", "lake", "--to", "2020-01-01", status=1)["missing"] == 0
        assert facts(server, "replay", "lake", "--from", "2020-01-01")["sent"] == len(lost)
        until(lambda: len(server.rows()) == len(IDS) or None, "all rows in the table again")
        quiet(server, len(IDS))
        assert Counter(row["distinct_id"] for row in server.rows()) == Counter(IDS)
        assert facts(server, "audit")["is_balanced"]
        assert facts(server, "replay", "lake", status=1)["missing"] == 0
    assert "replayed, because it was not there any more, in group" in run(server, "trace", "order-2")
    run(server, "replay", "lake", "--again", status=2)
    run(server, "replay", "pond", status=2)


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_what_postgres_lost_is_replayed(make_server: Callable[..., Server]) -> None:
    """Rows that were deleted from the table come back once, given the order while nothing runs."""
    with postgres_server() as postgres:
        warehouse = f"""
[[destinations]]
name = "warehouse"
type = "postgres"
dsn = "{postgres.dsn()}"
batch_seconds = 0.1
"""
        server = make_server(more=warehouse).start()
        send(server, IDS)
        quiet(server, len(IDS))
        with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
            count = "SELECT count(*), count(DISTINCT distinct_id) FROM events"
            until(lambda: connection.execute(count).fetchone() == (30, 30) or None, "all rows in the table")
            quiet(server, len(IDS))
            assert server.stop() == 0
            connection.execute("DELETE FROM events WHERE distinct_id IN ('order-5', 'order-6')")
            assert facts(server, "audit", status=1)["destinations"][1]["missing"] == 2
            assert facts(server, "replay", "warehouse")["sent"] == 2
            server.start()
            until(lambda: connection.execute(count).fetchone() == (30, 30) or None, "all rows in the table again")
            quiet(server, len(IDS))
            assert facts(server, "audit")["is_balanced"]


def test_what_was_blocked_is_settled_anew(make_server: Callable[..., Server]) -> None:
    """Rows that today's allowlist lets pass arrive as if they came now, once, with the time at which they came."""
    server = make_server(source='allowed_events = ["Sign Up"]').start()
    send(server, IDS[:5])
    quiet(server, 5)
    assert facts(server, "replay", "lake", "--verdict", "blocked", status=1)["blocked"] == 5
    server.config.write_text(server.config.read_text().replace('"Sign Up"', '"Sign Up", "Purchase"'))
    assert facts(server, "replay", "lake", "--verdict", "blocked", "--dry-run")["allowed"] == 5
    [before] = facts(server, "trace", "order-1")["rows"]
    assert facts(server, "replay", "lake", "--verdict", "blocked")["sent"] == 5
    assert Counter(row["distinct_id"] for row in server.rows_of(*IDS[:5])) == Counter(IDS[:5])
    quiet(server, 10)
    blocked, new = facts(server, "trace", "order-1")["rows"]
    assert (blocked["verdict"], new["verdict"]) == ("blocked", "new")
    assert new["received_at"] == before["received_at"]
    assert facts(server, "replay", "lake", "--verdict", "blocked", status=1)["known"] == 5
    found = facts(server, "audit")
    assert found["is_balanced"]
    assert (found["sources"][0]["accepted"], found["sources"][0]["blocked"], found["sources"][0]["new"]) == (10, 5, 5)
