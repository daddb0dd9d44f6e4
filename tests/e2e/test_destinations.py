"""A whole server with a destination of each kind, and everything that can go wrong with them at once."""

from __future__ import annotations

import base64
import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from counterfoil.datadir import DataDir
from counterfoil.ledger import LedgerReader
from counterfoil.ledger.settings import LedgerSettings
from tests.e2e.server import TOKEN, Server, until
from tests.http_receiver import Received, Receiver, Reply, http_receiver
from tests.postgres_server import PostgresServer, postgres_server, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

SECRET = f"whsec_{base64.b64encode(b'a key of 24 bytes at least').decode()}"
DEATHS = (
    "deliver.before=9,deliver.before_cursor=8,deliver.after_cursor=14,delta.files_flushed=6,delta.delivery_committed=5,"
    "postgres.before_cursor=4,postgres.after_commit=3,webhook.after_request=12"
)
"""The pipeline's lives end at these points, each at the one that it reaches first."""

REFUSED = frozenset({"row-3-7", "row-11-0", "row-14-24"})
ROWS_A_BATCH = 25
BATCHES = 16
DEATHS_MIN = 4
BATCHES_MAX = 64
"""More than BATCHES only where destinations fall so far behind that they reach few points."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the tests of this module."""
    with postgres_server() as running:
        yield running


class BadReceiver:
    """Answers at random: taken, 429, 5xx, cut before or after it took the rows; some rows it never takes."""

    def __init__(self, receiver: Receiver) -> None:
        self.taken: list[tuple[str, str]] = []
        """Id and distinctId of each row that it took, whatever it answered."""
        self.is_healthy = False
        self._chance = random.Random(5)
        receiver.answer = self._answer

    def _answer(self, request: Received) -> Reply:
        mood = 1.0 if self.is_healthy else self._chance.random()
        if mood < 0.1:
            return Reply(429, {"retry-after": "0.2"})
        if mood < 0.2:
            return Reply(self._chance.choice((500, 502, 503)))
        if mood < 0.25:
            return Reply(cut=True)
        if any(row["distinctId"] in REFUSED for row in request.rows):
            return Reply(422)
        self.taken += [(row["id"], row["distinctId"]) for row in request.rows]
        return Reply(cut=mood < 0.35)


def send(server: Server, number: int) -> list[str]:
    """One batch, sent until it is acknowledged; its distinctIds."""
    names = [f"row-{number}-{place}" for place in range(ROWS_A_BATCH)]
    events = [{"event": "Purchase", "distinctId": name, "email": "canary@example.org"} for name in names]

    def is_acknowledged() -> bool:
        try:
            answer = httpx.post(
                f"{server.url}/batch", json={"token": TOKEN, "events": events}, trust_env=False, timeout=60
            )
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    until(is_acknowledged, "the batch is acknowledged")
    return names


def database(postgres: PostgresServer) -> str:
    """The dsn of a new database."""
    name = f"t{uuid4().hex}"
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return postgres.dsn(name)


def webhook(name: str, receiver: Receiver, more: str = "") -> str:
    """A webhook's table in the configuration."""
    return f"""
[[destinations]]
name = "{name}"
type = "webhook"
url = "{receiver.url}/rows"
secret = "{SECRET}"
request_rows = 10
batch_seconds = 0.05
{more}
"""


def warehouse(dsn: str, name: str = "warehouse") -> str:
    """A PostgreSQL table's table in the configuration."""
    return f"""
[[destinations]]
name = "{name}"
type = "postgres"
dsn = "{dsn}"
batch_seconds = 0.05
"""


def fetch(dsn: str, query: str) -> list[str]:
    """The first column of what a query answers."""
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute(query.encode())]


def await_in_table(server: Server, names: list[str]) -> None:
    """Return when rows of all these distinctIds are in the Delta table, however often the pipeline dies meanwhile."""
    until(lambda: {row["distinct_id"] for row in server.rows()} >= set(names) or None, "the rows are in Delta")


def deaths_of_pipeline(server: Server) -> list[dict[str, Any]]:
    """What the log says of lives of the pipeline that ended before their time."""
    return [line for line in server.log() if line["event"] == "process.ended" and line["child"] == "pipeline"]


def posted(receiver: Receiver) -> set[str]:
    """The distinctIds of all rows that came in."""
    return {row["distinctId"] for request in list(receiver.received) for row in request.rows}


def dead_letters(server: Server, destination: str) -> dict[str, str]:
    """The distinctIds of a destination's dead letters, and why."""
    names = {row["seq"]: row["distinct_id"] for row in server.rows()}
    data = DataDir(server.directory / "data")
    ledger = LedgerReader.open(data.ledger, LedgerSettings(), data.id)
    try:
        return {names[letter.seq]: letter.reason for letter in ledger.dead_letters(destination)}
    finally:
        ledger.close()


def test_every_kind_at_once_and_everything_goes_wrong(
    make_server: Callable[..., Server], postgres: PostgresServer
) -> None:
    """The pipeline dies between its steps, PostgreSQL is killed, the receiver cuts, refuses and is busy; after peace
    every row is in both tables exactly once and was posted under one id, and the dead are exactly the refused."""
    dsn = database(postgres)
    with http_receiver() as receiver:
        bad = BadReceiver(receiver)
        server = make_server(more=warehouse(dsn) + webhook("crm", receiver))
        server.start(environment={"COUNTERFOIL_FAILPOINTS": DEATHS})
        until(lambda: fetch(dsn, "SELECT 1 FROM pg_class WHERE relname = 'events_cursors'") or None, "the tables")
        with psycopg.connect(dsn) as connection:
            refused = ", ".join(f"'{name}'" for name in sorted(REFUSED))
            connection.execute(f"ALTER TABLE events ADD CHECK (distinct_id NOT IN ({refused}))".encode())
        sent: list[str] = []
        for number in range(BATCHES_MAX):
            if number >= BATCHES and len(deaths_of_pipeline(server)) >= DEATHS_MIN:
                break
            sent += send(server, number)
            if number == BATCHES // 3:
                postgres.kill()
            if number == BATCHES // 2:
                postgres.start()
            # What is settled together is one group: batches are to be many.
            await_in_table(server, sent)
        server.stop()
        assert len(deaths_of_pipeline(server)) >= DEATHS_MIN, "the pipeline died at several points"
        bad.is_healthy = True
        server.start()
        server.settle_down()

        good = sorted(set(sent) - REFUSED)
        assert sorted(row["distinct_id"] for row in server.rows()) == sorted(sent)
        assert sorted(fetch(dsn, "SELECT distinct_id FROM events")) == good
        assert sorted({name for _, name in bad.taken}) == good
        assert len(dict(bad.taken)) == len(good), "each row has one id, however often it was posted"
        assert dead_letters(server, "lake") == {}
        assert dead_letters(server, "warehouse") == dict.fromkeys(REFUSED, "sqlstate_23514")
        assert dead_letters(server, "crm") == dict.fromkeys(REFUSED, "http_422")
        server.run("audit")
        log = server.log_path.read_text()
        assert "canary" not in log
        assert "row-" not in log
        assert server.stop() == 0


def reasons_logged(server: Server) -> dict[str, str]:
    """For each destination of which the log says why it does not work, the last reason."""
    return {line["destination"]: line["reason"] for line in server.log() if "reason" in line}


def test_a_bad_destination_holds_only_itself(make_server: Callable[..., Server], postgres: PostgresServer) -> None:
    """Beside destinations that can't work, one that can takes every row; `check` says of each what to change."""
    with http_receiver() as receiver, http_receiver() as forbidding:
        forbidding.answer = lambda _: Reply(403)
        bad = (
            warehouse(postgres.dsn("nowhere").replace("postgres@", "postgres:hunter2@"))
            + webhook("forbidden", forbidding)
            + '[[destinations]]\nname = "far"\npath = "s3://nowhere/lake"\n'
            + 'storage_options = {aws_endpoint_url = "http://127.0.0.1:1", aws_allow_http = "true", '
            + 'aws_secret_access_key = "hunter2", aws_access_key_id = "hunter2", max_retries = "0"}\n'
        )
        server = make_server(more=bad + webhook("crm", receiver))
        server.start()
        sent = send(server, 0)
        assert sorted(row["distinct_id"] for row in server.rows_of(*sent)) == sorted(sent)
        until(lambda: posted(receiver) >= set(sent) or None, "all is posted")
        wrong = {"warehouse", "forbidden", "far"}
        until(lambda: reasons_logged(server).keys() == wrong, "each that can't work has said why")
        told = server.facts("check", status=1)
        problems = {check["what"]: check["problems"] for check in told["checks"]}
        assert "make it" in problems["destination warehouse"][0]
        assert "http_403: see the url and the secret" in problems["destination forbidden"][0]
        assert "store_unreachable" in problems["destination far"][0]
        assert problems["destination crm"] == problems["destination lake"] == []
        assert reasons_logged(server).keys() == wrong
        assert "hunter2" not in server.log_path.read_text() + json.dumps(told)
        states = {each["name"]: each["state"] for each in server.status()["destinations"]}
        assert (states["lake"], states["crm"]) == ("running", "running")
        assert server.stop() == 0


def test_a_new_destination_may_begin_with_the_oldest_row(make_server: Callable[..., Server]) -> None:
    """Added to a configuration that ran, one with `start = "oldest"` takes what is kept, one without what comes."""
    with http_receiver() as early, http_receiver() as late:
        server = make_server()
        server.start()
        before = send(server, 0)
        server.rows_of(*before)
        assert server.stop() == 0
        server.config.write_text(
            server.config.read_text() + webhook("all", early, 'start = "oldest"') + webhook("new", late)
        )
        server.start()
        after = send(server, 1)
        server.settle_down()
        assert sorted(row["distinctId"] for request in early.received for row in request.rows) == sorted(before + after)
        assert sorted(row["distinctId"] for request in late.received for row in request.rows) == sorted(after)
        server.run("audit")
        assert server.stop() == 0


def test_a_slow_destination_delays_itself_alone(make_server: Callable[..., Server]) -> None:
    """While a receiver lets a request wait, others take every row and the gateway goes on."""
    released = threading.Event()

    def wait(_: Received) -> Reply:
        released.wait(600)
        return Reply()

    with http_receiver() as slow:
        slow.answer = wait
        server = make_server(more=webhook("slow", slow))
        server.start()
        try:
            sent = [name for number in range(3) for name in send(server, number)]
            assert len(server.rows_of(*sent)) == len(sent)
            assert slow.replies == []
        finally:
            released.set()
        until(lambda: posted(slow) >= set(sent) or None, "the slow one has all")
        assert server.stop() == 0
