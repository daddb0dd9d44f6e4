"""`counterfoil erase` at a whole server: the person is gone from everywhere, and everybody else is there once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.e2e.server import Server, until
from tests.e2e.test_destinations import database, fetch, send, warehouse, webhook
from tests.http_receiver import Received, Receiver, Reply, http_receiver
from tests.postgres_server import PostgresServer, postgres_server, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

PERSON = "row-0-3"
DEATHS = ("erase.before_cut", "erase.after_cut", "erase.between_segments", "erase.after_destination=2")


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the tests of this module."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that takes rows and messages."""
    with http_receiver() as running:
        yield running


def others(names: list[str]) -> list[str]:
    return sorted(name for name in names if name != PERSON)


def assert_gone(server: Server, dsn: str, receiver: Receiver, names: list[str]) -> None:
    """No file, table or dead letter has the person; each other row is there once, and the books balance."""
    assert sorted(row["distinct_id"] for row in server.rows()) == others(names)
    assert sorted(fetch(dsn, "SELECT distinct_id FROM events")) == others(names)
    (told,) = [each for each in receiver.received if is_erasure(each)]
    message = json.loads(told.body)
    assert (message["source"], message["distinctId"]) == (None, PERSON)
    assert files_with(server.directory / "data", PERSON) == []
    assert files_with(server.directory, PERSON) == []
    audited = server.facts("audit")
    assert audited["is_balanced"], audited["differences"]
    counts = {each["destination"]: each["erased"] for each in audited["destinations"]}
    assert counts == {"lake": 1, "warehouse": 1, "hook": 1}
    assert "no row of it is known" in server.run("trace", PERSON, status=1)


def is_erasure(request: Received) -> bool:
    return bool(json.loads(request.body)["type"] == "erasure")


def files_with(root: Path, text: str) -> list[str]:
    """The files below a directory in which a text stands."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    return [str(path.relative_to(root)) for path in paths if text.encode() in path.read_bytes()]


def test_while_the_server_runs(make_server: Any, postgres: PostgresServer, receiver: Receiver) -> None:
    """One command: it waits until everything is done, and says what went where; the row sent again is a new one."""
    dsn = database(postgres)
    server = make_server(more=warehouse(dsn) + webhook("hook", receiver)).start()
    names = send(server, 0) + send(server, 1)
    server.settle_down()
    planned = server.facts("erase", PERSON, "--dry-run")
    assert planned["queue"] == {"rows": 1, "segments": 1}
    done = server.facts("erase", PERSON, "--yes")
    assert done["is_done"]
    assert (done["queue"]["rows"], done["ledger"]["rows"], done["ledger"]["keys"]) == (1, 1, 1)
    assert [(each["state"], each["rows"]) for each in done["destinations"]] == [
        ("done", None), ("done", 1), ("done", 1)
    ]  # fmt: skip
    assert_gone(server, dsn, receiver, names)
    assert server.facts("erase", PERSON, "--dry-run", status=1)["queue"]["rows"] == 0
    assert server.facts("erase", "--list")["erasures"][0]["is_done"]
    send(server, 0)
    server.settle_down()
    assert len(server.rows_of(PERSON)) == 1
    assert server.run("audit", "--no-destinations")


def test_without_a_server(make_server: Any, postgres: PostgresServer, receiver: Receiver) -> None:
    """The command does it itself; a destination that is down does its part when the server runs and it is back."""
    dsn = database(postgres)
    server = make_server(more=warehouse(dsn) + webhook("hook", receiver)).start()
    names = send(server, 0)
    server.settle_down()
    server.stop()
    receiver.answer = lambda request: Reply(503) if is_erasure(request) else Reply()
    waits = server.facts("erase", PERSON, "--yes", status=1)
    assert {each["destination"]: each["state"] for each in waits["destinations"]} == {
        "lake": "done", "warehouse": "done", "hook": "waiting"
    }  # fmt: skip
    receiver.answer = lambda _: Reply()
    receiver.received.clear()
    server.start()
    until(lambda: server.facts("erase", "--list")["erasures"][0]["is_done"], "the hook was told")
    names += send(server, 1)
    server.settle_down()
    assert_gone(server, dsn, receiver, names)


@pytest.mark.parametrize("point", DEATHS)
def test_killed_on_the_way(make_server: Any, postgres: PostgresServer, receiver: Receiver, point: str) -> None:
    """SIGKILL at a point of it: the next life of the pipeline goes on, and comes to the same end."""
    dsn = database(postgres)
    server = make_server(more=warehouse(dsn) + webhook("hook", receiver)).start(
        environment={"COUNTERFOIL_FAILPOINTS": point}
    )
    names = send(server, 0) + send(server, 1)
    server.settle_down()
    first = server.pid_of("pipeline")
    # Not done; or, where the pipeline died at once, not even known to be ordered.
    server.run("erase", PERSON, "--yes", "--wait", "0", status=1)
    until(lambda: server.pid_of("pipeline") != first, "the pipeline died")
    server.stop()
    server.start()
    until(lambda: server.facts("erase", "--list")["erasures"][0]["is_done"], "it is done")
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (len(names) - 1,)
    audited = server.facts("audit")
    assert audited["is_balanced"], audited["differences"]
    assert files_with(server.directory, PERSON) == []
