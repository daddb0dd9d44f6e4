"""The PostgreSQL destination, against a real server."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from msgspec import structs
from structlog.testing import capture_logs

from counterfoil.contract.subject import Subject
from counterfoil.destinations.interface import Delivery, RefusedRow
from counterfoil.destinations.postgres import PostgresDestination
from counterfoil.destinations.postgres_connection import connect
from counterfoil.destinations.settings import PostgresSettings
from counterfoil.errors import DestinationDown, DestinationRefused
from tests.destinations.conformance import CursorKeepingDestination, Make
from tests.destinations.rows import ROWS_A_GROUP_MAX, delivery, row
from tests.e2e.server import until
from tests.postgres_server import PostgresServer, postgres_server, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

LEDGER = UUID(int=7)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One server for the tests of this module."""
    with postgres_server() as running:
        yield running


@pytest.fixture
def dsn(server: PostgresServer) -> str:
    """A database of the test's own."""
    name = f"t{uuid4().hex}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return server.dsn(name)


_made: list[PostgresDestination] = []


@pytest.fixture(autouse=True)
def _closed_at_the_end() -> Iterator[None]:
    yield
    while _made:
        _made.pop().close()


class TestConformance(CursorKeepingDestination):
    """The suite of the interface."""

    @pytest.fixture
    def make(self, dsn: str) -> Make:
        return lambda: destination(dsn)


def destination(dsn: str, ledger: UUID = LEDGER, **settings: Any) -> PostgresDestination:
    """A destination named warehouse, not yet open; closed when the test ends."""
    _made.append(PostgresDestination(PostgresSettings(name="warehouse", dsn=dsn, **settings), ledger))
    return _made[-1]


def fetch(dsn: str, query: str) -> list[tuple[Any, ...]]:
    """What a query answers."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


def test_every_value_of_a_row_lies_in_the_table(dsn: str) -> None:
    """What is delivered is what the table holds, column by column, JSON as its text."""
    target = destination(dsn)
    assert target.open() is None
    receipt = target.deliver(Delivery(1, 1, [row(65_536)]))
    assert (receipt.row_count, receipt.dead) == (1, ())
    assert receipt.commit.isdigit()
    columns = (
        "ledger_id, seq, source, event, distinct_id, user_id, external_id, email, time, received_at, "
        "event_properties::text, user_properties::text, default_properties::text, extra::text"
    )
    assert fetch(dsn, f"SELECT {columns} FROM events") == [
        (
            LEDGER,
            65_536,
            "website",
            "Purchase",
            "order-65536",
            "u-1",
            None,
            "ann@example.com",
            datetime(2025, 12, 31, 23, 59, 59, 123_000, tzinfo=UTC),
            datetime(2026, 1, 1, 0, 0, 0, 536_000, tzinfo=UTC),
            '{"sum":12.5,"nul":"a\\u0000b","big":123456789012345678901234567890}',
            None,
            '{"received_at":"2026-01-01T00:00:00.000Z"}',
            '{"colour":"red"}',
        )
    ]
    target.close()


def test_times_of_the_first_and_the_last_year_are_kept(dsn: str) -> None:
    """The contract's whole range of times fits the table."""
    target = destination(dsn)
    target.open()
    first, last = -62_135_596_800_000, 253_402_300_799_999
    target.deliver(Delivery(1, 1, [row(65_536, time_ms=first), row(65_537, time_ms=last)]))
    found = fetch(dsn, "SELECT (extract(epoch FROM time) * 1000)::bigint FROM events ORDER BY seq")
    assert found == [(first,), (last,)]
    target.close()


def test_the_cursor_is_found_again(dsn: str) -> None:
    """A destination that opens knows the last delivery that is there, also one without rows."""
    target = destination(dsn)
    target.open()
    target.deliver(delivery(1))
    receipt = target.deliver(Delivery(2, 5, []))
    target.close()
    assert destination(dsn).open() == receipt
    assert (receipt.first_group, receipt.last_group, receipt.row_count) == (2, 5, 0)
    assert destination(dsn, ledger=UUID(int=8)).open() is None


def test_a_delivery_that_is_there_already_is_not_taken_again(dsn: str) -> None:
    """A second server with a copy of the ledger can't deliver a group twice."""
    target = destination(dsn)
    target.open()
    target.deliver(delivery(1))
    with pytest.raises(DestinationRefused, match="group 1 already"):
        target.deliver(delivery(1))
    assert fetch(dsn, "SELECT count(*) FROM events") == [(3,)]


def test_a_row_refused_for_its_content_is_dead_and_the_rest_goes_on(dsn: str) -> None:
    """A check constraint of the operator's refuses one row in 100: it alone is dead, by SQLSTATE."""
    target = destination(dsn)
    target.open()
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE events ADD CHECK (distinct_id <> 'order-65577')")
    receipt = target.deliver(delivery(1, 100))
    assert receipt.dead == (RefusedRow(65_577, "sqlstate_23514"),)
    assert receipt.row_count == 99
    assert fetch(dsn, "SELECT count(*) FROM events") == [(99,)]
    assert destination(dsn).open() == receipt


def test_a_nul_in_a_text_column_is_dead_by_its_columns_name(dsn: str) -> None:
    """PostgreSQL's text can't hold NUL; the reason names the column, and the JSON columns hold it."""
    target = destination(dsn)
    target.open()
    receipt = target.deliver(Delivery(1, 1, [row(65_536, email="a\0b"), row(65_537)]))
    assert receipt.dead == (RefusedRow(65_536, "nul:email"),)
    assert fetch(dsn, "SELECT seq FROM events") == [(65_537,)]


def test_a_key_that_is_taken_is_dead_and_the_first_row_stays(dsn: str) -> None:
    """The unique key holds beyond the horizon of the seen index, and across ledgers."""
    target = destination(dsn)
    target.open()
    target.deliver(Delivery(1, 1, [row(65_536, "order")]))
    receipt = target.deliver(Delivery(2, 2, [row(131_072, "order", event="Other"), row(131_073)]))
    assert receipt.dead == (RefusedRow(131_072, "already_there"),)
    assert fetch(dsn, "SELECT seq, event FROM events ORDER BY seq") == [(65_536, "Purchase"), (131_073, "Purchase")]


def test_a_row_that_is_there_and_is_sent_again_is_no_second_one(dsn: str) -> None:
    """It takes its new seq, so that what is held is what the ledger says; a later row of the key is refused as ever."""
    target = destination(dsn)
    target.open()
    first = row(65_536, "a")
    target.deliver(Delivery(1, 1, [first, row(65_537, "b")]))
    again = structs.replace(first, seq=131_072, first_seq=65_536)
    later = row(131_073, "b", received_at_ms=first.received_at_ms + 86_400_000)
    receipt = target.deliver(Delivery(2, 2, [again, later]))
    assert (receipt.row_count, receipt.dead) == (1, (RefusedRow(131_073, "already_there"),))
    assert fetch(dsn, "SELECT distinct_id, seq FROM events ORDER BY distinct_id") == [("a", 131_072), ("b", 65_537)]


def test_the_same_row_once_more_is_no_refusal(dsn: str) -> None:
    """A replay hands over rows that are there: they stay once, and count as delivered."""
    target = destination(dsn)
    target.open()
    target.deliver(delivery(1))
    receipt = target.deliver(Delivery(2, 2, delivery(1, 4).rows))
    assert (receipt.row_count, receipt.dead) == (4, ())
    assert fetch(dsn, "SELECT count(*) FROM events") == [(4,)]


def test_counts_and_held_tell_what_is_there(dsn: str) -> None:
    """Audit and replay ask the table itself, and only for this ledger's rows."""
    target = destination(dsn)
    assert target.counts() == {}
    assert list(target.held()) == []
    target.open()
    target.deliver(Delivery(1, 1, [row(65_536), row(65_537, source="app"), row(65_538)]))
    other = destination(dsn, ledger=UUID(int=8))
    other.open()
    other.deliver(Delivery(1, 1, [row(65_536, "elsewhere")]))
    assert target.counts() == {"website": 2, "app": 1}
    held = [(run.source, list(run.seqs), list(run.distinct_ids)) for run in target.held(65_537)]
    assert held == [("app", [65_537], ["order-65537"]), ("website", [65_538], ["order-65538"])]


def test_a_server_that_is_not_there_is_down(server: PostgresServer) -> None:
    """No connection is a reason to try again, and says nothing in PostgreSQL's words."""
    with pytest.raises(DestinationDown, match=r"^postgres_unreachable: .*dsn"):
        destination(server.dsn().replace("host=", "host=/nowhere")).open()


def test_what_needs_somebody_to_act_is_told(dsn: str, server: PostgresServer) -> None:
    """A database that is not there, a schema that is not there, rights that are missing: each with what to do."""
    assert "make it" in destination(server.dsn("nowhere")).check()[0]
    assert "schema" in destination(dsn, schema_name="nowhere").check()[0]
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE ROLE reader LOGIN") if not _role_is_there(connection) else None
    reader = destination(dsn.replace("postgres@", "reader@"))
    assert "CREATE" in reader.check()[0]
    with pytest.raises(DestinationRefused, match="42501"):
        reader.open()


def _role_is_there(connection: psycopg.Connection[tuple[Any, ...]], role: str = "reader") -> bool:
    return connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is not None


def test_a_column_altered_by_hand_is_named(dsn: str) -> None:
    """The table is as it was made, or the destination says which column is not."""
    target = destination(dsn)
    target.open()
    target.close()
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE events RENAME COLUMN email TO mail")
        connection.execute("ALTER TABLE events ALTER COLUMN extra TYPE text")
    problems = target.check()
    assert ["email" in problems[0], "extra" in problems[1]] == [True, True]
    with pytest.raises(DestinationRefused, match="email"):
        target.open()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("DROP COLUMN email", "the column email is gone; add it again as text"),
        ("RENAME COLUMN user_id TO uid", "the column user_id is gone"),
        ("ALTER COLUMN event TYPE varchar(3)", "the column event is character varying, expected text"),
        ("ALTER COLUMN time TYPE date", "the column time is date, expected timestamp with time zone"),
        ("ALTER COLUMN external_id SET NOT NULL", "the column external_id may not be null; drop its NOT NULL"),
    ],
)
def test_a_column_altered_while_it_delivers_is_named_and_no_row_is_dead(dsn: str, change: str, told: str) -> None:
    """No row is at fault for what somebody did to the table: the column is named, and all are delivered after it."""
    target = destination(dsn)
    target.open()
    with psycopg.connect(dsn) as connection:
        connection.execute(f"ALTER TABLE events {change}".encode())
    rows = [row(65_536, event="Purchase", email="a@b.org"), row(65_537, external_id=None)]
    with pytest.raises(DestinationRefused, match=told):
        target.deliver(Delivery(1, 1, rows))
    assert told in target.check()[0]
    with psycopg.connect(dsn) as connection:
        connection.execute("DROP TABLE events, events_cursors")
    target.open()
    assert target.deliver(Delivery(1, 1, rows)).dead == ()


def test_a_column_of_the_cursors_altered_by_hand_is_named(dsn: str) -> None:
    """The second table is looked at like the first; a column that is put back at another place will do."""
    target = destination(dsn)
    target.open()
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE events_cursors DROP COLUMN row_count")
    with pytest.raises(DestinationRefused, match="table events_cursors: the column row_count is gone; add it again as"):
        target.deliver(delivery(1))
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE events_cursors ADD COLUMN row_count bigint NOT NULL DEFAULT 0")
    target.open()
    receipt = target.deliver(delivery(1))
    assert destination(dsn).open() == receipt


def test_a_row_that_a_trigger_raises_for_is_dead_and_the_rest_goes_on(dsn: str) -> None:
    """What an operator's trigger says no to is refused for what it holds, like what a constraint refuses."""
    target = destination(dsn)
    target.open()
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.distinct_id = 'order-65540' "
            "THEN RAISE EXCEPTION 'not %', new.email; END IF; RETURN new; END $$"
        )
        connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()")
    receipt = target.deliver(delivery(1, 10))
    assert receipt.dead == (RefusedRow(65_540, "sqlstate_P0001"),)
    assert fetch(dsn, "SELECT count(*) FROM events") == [(9,)]


def test_a_row_too_large_for_an_index_is_dead_and_the_rest_goes_on(dsn: str) -> None:
    """One value that an operator's index can't hold does not keep the destination down for ever."""
    target = destination(dsn)
    target.open()
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE INDEX by_email ON events (email)")
    large = "".join(map(chr, random.Random(8).sample(range(0x4E00, 0x9F00), 1000)))
    receipt = target.deliver(Delivery(1, 1, [row(65_536), row(65_537, email=large), row(65_538)]))
    assert receipt.dead == (RefusedRow(65_537, "sqlstate_54000"),)
    assert fetch(dsn, "SELECT seq FROM events ORDER BY seq") == [(65_536,), (65_538,)]


def test_a_server_that_takes_no_writes_is_told(dsn: str) -> None:
    """After a failover to a standby the line says what the server is, and where to look."""
    target = destination(f"{dsn}&options=-c%20default_transaction_read_only%3Don")
    with pytest.raises(DestinationRefused, match="sqlstate_25006: the server takes no writes"):
        target.open()


def test_a_server_that_is_gone_without_a_word_is_noticed(dsn: str) -> None:
    """A connection over TCP is kept alive by probes, unless the dsn says how."""
    settings = PostgresSettings(name="warehouse", dsn=dsn)
    with connect(settings) as connection:
        assert connection.info.get_parameters()["tcp_user_timeout"] == "60000"
    with connect(settings.model_copy(update={"dsn": f"{dsn}&tcp_user_timeout=5000"})) as connection:
        assert connection.info.get_parameters()["tcp_user_timeout"] == "5000"


def test_a_dsn_that_is_none_is_told() -> None:
    """What can't be read as a connection string is told with what was expected, and not quoted."""
    for dsn in ("postgresql://user:hunter2@host:port/x", "host=a hunter2"):
        (problem,) = destination(dsn).check()
        assert "dsn" in problem
        assert "hunter2" not in problem


def test_a_wrong_password_is_told(dsn: str, server: PostgresServer) -> None:
    """A password that the server does not take is told with where to look, and says nothing of it."""
    hba = server.directory / "data" / "pg_hba.conf"
    before = hba.read_text()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS locked")
        connection.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
        hba.write_text(f"local all locked scram-sha-256\n{before}")
        connection.execute("SELECT pg_reload_conf()")
    try:
        locked = destination(dsn.replace("postgres@", "locked:hunter2@"))

        def told() -> bool | None:
            return "28P01" in "".join(locked.check()) or None

        until(told, "the server asks for passwords")
        assert "the password is wrong: see the dsn" in locked.check()[0]
        assert "hunter2" not in locked.check()[0]
        with pytest.raises(DestinationRefused, match="28P01"):
            locked.open()
    finally:
        hba.write_text(before)
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")


def test_rights_that_were_taken_are_named(dsn: str) -> None:
    """A user that may read but not write is told which right is missing, before anything is delivered."""
    destination(dsn).open()
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE ROLE reader LOGIN") if not _role_is_there(connection) else None
        connection.execute("GRANT SELECT ON events, events_cursors TO reader")
    reader = destination(dsn.replace("postgres@", "reader@"))
    problems = reader.check()
    assert ["INSERT" in problems[0], '"events"' in problems[0]] == [True, True]
    with pytest.raises(DestinationRefused, match="UPDATE"):
        reader.open()


def test_a_column_that_asks_for_a_value_is_named_and_no_row_is_dead(dsn: str) -> None:
    """A column that somebody adds while it delivers, not null and without a default, is not the rows' fault."""
    target = destination(dsn)
    target.open()
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE events ADD COLUMN region text NOT NULL, ADD COLUMN note text")
    with pytest.raises(DestinationRefused, match="the column region is not ours and may not be null"):
        target.deliver(delivery(1))
    with pytest.raises(DestinationRefused, match="the column region is not ours and may not be null"):
        target.open()
    assert len(target.check()) == 1
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE events ALTER COLUMN region SET DEFAULT 'x'")
    target.open()
    assert target.deliver(delivery(1)).dead == ()


def test_a_server_that_dies_in_a_delivery_leaves_nothing_of_it(dsn: str, server: PostgresServer) -> None:
    """After the server is back, the same delivery is taken once."""
    target = destination(dsn)
    target.open()
    target.deliver(delivery(1))
    server.kill()
    with pytest.raises(DestinationDown):
        target.deliver(delivery(2))
    server.start()
    held = target.open()
    assert held is not None
    assert held.last_group == 1
    target.deliver(delivery(2))
    assert fetch(dsn, "SELECT count(*), count(DISTINCT distinct_id) FROM events") == [(6, 6)]
    target.close()


@pytest.mark.parametrize("point", ["postgres.before_cursor", "postgres.before_commit", "postgres.after_commit"])
def test_a_process_killed_at_any_point_delivers_once(dsn: str, point: str) -> None:
    """Killed between copy, cursor and commit, a new life reads the cursor and goes on from there."""
    script = (
        "import sys; from tests.destinations.test_postgres import destination, delivery\n"
        "target = destination(sys.argv[1]); held = target.open(); first = held.last_group + 1 if held else 1\n"
        "for group in range(first, 4): target.deliver(delivery(group))\n"
    )
    command = [sys.executable, "-c", script, dsn]
    killed = subprocess.run(command, env={**os.environ, "COUNTERFOIL_FAILPOINTS": f"{point}=2"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run(command, check=True)
    assert fetch(dsn, "SELECT count(*), count(DISTINCT distinct_id), max(seq) FROM events") == [
        (9, 9, 3 * ROWS_A_GROUP_MAX + 2)
    ]


SUBJECT = Subject(user_id="u-1")


def erasing(dsn: str, last_group: int = 2) -> PostgresDestination:
    """An open destination whose rows are the subject's, three in each group, but for one of somebody else."""
    target = destination(dsn)
    target.open()
    for group in range(1, last_group + 1):
        target.deliver(delivery(group))
    group = last_group + 1
    target.deliver(Delivery(group, group, [row(group * ROWS_A_GROUP_MAX, user_id="u-2")]))
    return target


def test_an_erasure_leaves_rows_of_other_ledgers(dsn: str) -> None:
    """A table that two servers deliver to is erased from by each for itself."""
    target = erasing(dsn, 1)
    other = destination(dsn, ledger=UUID(int=8))
    other.open()
    other.deliver(Delivery(1, 1, [row(65_536, "elsewhere")]))
    assert target.erase(SUBJECT) == 3
    assert fetch(dsn, "SELECT distinct_id FROM events ORDER BY 1") == [("elsewhere",), ("order-131072",)]
    assert other.seqs_of(SUBJECT) == [65_536]


def test_the_table_is_vacuumed(dsn: str) -> None:
    """PostgreSQL has cleared up where the rows lay, and says so."""
    target = erasing(dsn)
    assert target.erase(SUBJECT) == 6
    until(
        lambda: fetch(dsn, "SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = 'events'") == [(1,)] or None,
        "the table was vacuumed",
    )


def test_rights_that_an_erasure_lacks_are_told(dsn: str) -> None:
    """Without DELETE it is refused and told what to grant; to whom VACUUM is not allowed, the log says so."""
    erasing(dsn).close()
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE ROLE eraser LOGIN") if not _role_is_there(connection, "eraser") else None
        connection.execute("GRANT SELECT, INSERT, UPDATE ON events, events_cursors TO eraser")
    eraser = destination(dsn.replace("postgres@", "eraser@"))
    eraser.open()
    with pytest.raises(DestinationRefused, match=r'sqlstate_42501: .*grant it DELETE on "public"\."events"'):
        eraser.erase(SUBJECT)
    with psycopg.connect(dsn) as connection:
        connection.execute("GRANT DELETE ON events TO eraser")
    with capture_logs() as logs:
        assert eraser.erase(SUBJECT) == 6
    (warning,) = (each for each in logs if each["event"] == "postgres.not_vacuumed")
    assert (warning["destination"], warning["table"], warning["reason"]) == ("warehouse", "events", "sqlstate_01000")
    assert fetch(dsn, "SELECT count(*) FROM events") == [(1,)]


def test_a_vacuum_that_the_server_stops_stops_no_erasure(dsn: str) -> None:
    """The rows are gone all the same; the log says why the table was not vacuumed."""
    target = erasing(dsn.replace("?", "?options=-c%20lock_timeout%3D200&"))
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE")
        with capture_logs() as logs:
            assert target.erase(SUBJECT) == 6
    assert [each["reason"] for each in logs if each["event"] == "postgres.not_vacuumed"] == ["sqlstate_55P03"]
    assert target.seqs_of(SUBJECT) == []


def test_a_column_altered_meanwhile_stops_an_erasure(dsn: str) -> None:
    """Nothing is erased by a column that is no more what it was; opened anew the column is told by name."""
    target = erasing(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE events RENAME COLUMN user_id TO person")
    with pytest.raises(DestinationRefused, match="42703"):
        target.erase(SUBJECT)
    with pytest.raises(DestinationRefused, match="user_id is gone"):
        target.open()
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE events RENAME COLUMN person TO user_id")
        connection.execute("ALTER TABLE events ADD COLUMN note text")
    target.open()
    assert target.erase(SUBJECT) == 6
    assert fetch(dsn, "SELECT count(*) FROM events") == [(1,)]


def test_a_reader_sees_all_of_it_or_nothing(dsn: str) -> None:
    """A transaction that is under way reads on what it saw; the next one sees the rows of the others alone."""
    target = erasing(dsn)
    with psycopg.connect(dsn) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        assert reader.execute("SELECT count(*) FROM events").fetchall() == [(7,)]
        assert target.erase(SUBJECT) == 6
        assert reader.execute("SELECT count(*) FROM events").fetchall() == [(7,)]
        reader.commit()
        assert reader.execute("SELECT count(*) FROM events").fetchall() == [(1,)]


def test_a_server_that_dies_in_an_erasure_has_erased_nothing_or_all(dsn: str, server: PostgresServer) -> None:
    """Killed while the rows are deleted it is down; back again it has every row, and the same once more erases."""
    target = erasing(dsn)
    failed: list[BaseException] = []

    def erase() -> None:
        try:
            target.erase(SUBJECT)
        except DestinationDown as error:
            failed.append(error)

    other = psycopg.connect(dsn)
    other.execute("SELECT 1 FROM events WHERE user_id = 'u-1' ORDER BY seq DESC LIMIT 1 FOR UPDATE")
    thread = threading.Thread(target=erase)
    thread.start()
    waiting = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'DELETE%' AND wait_event_type = 'Lock'"
    until(lambda: fetch(dsn, waiting) or None, "the erasure waits for a row")
    server.kill()
    thread.join()
    other.close()
    assert len(failed) == 1
    server.start()
    assert fetch(dsn, "SELECT count(*) FROM events") == [(7,)]
    held = target.open()
    assert held is not None
    assert held.last_group == 3
    assert target.erase(SUBJECT) == 6
    assert fetch(dsn, "SELECT count(*) FROM events") == [(1,)]


@pytest.mark.parametrize(("point", "left"), [("postgres.before_erasure", 7), ("postgres.after_erasure", 1)])
def test_a_process_killed_in_an_erasure_has_erased_nothing_or_all(dsn: str, point: str, left: int) -> None:
    """Killed before the commit no row is gone, killed after it all are; the same once more goes through."""
    erasing(dsn).close()
    script = (
        "import sys; from tests.destinations.test_postgres import SUBJECT, destination\n"
        "target = destination(sys.argv[1]); target.open(); target.erase(SUBJECT)\n"
    )
    environment = {**os.environ, "COUNTERFOIL_FAILPOINTS": point}
    killed = subprocess.run([sys.executable, "-c", script, dsn], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert fetch(dsn, "SELECT count(*) FROM events") == [(left,)]
    target = destination(dsn)
    target.open()
    assert target.erase(SUBJECT) == left - 1
    target.deliver(delivery(4))
    assert fetch(dsn, "SELECT count(*) FROM events") == [(4,)]
