"""`counterfoil rebuild` on a whole server: the ledger lost, and every row in every table once all the same."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import httpx
import psycopg
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from counterfoil import failpoints
from tests.e2e.server import TOKEN, Server, clean_environment, command, running
from tests.postgres_server import postgres_server, why_not

ROWS = 60
SECOND = """
[[destinations]]
name = "second"
type = "delta"
path = "data/second"
batch_seconds = 0.1
"""


def send(server: Server, *names: str, value: str = "first") -> None:
    """Send rows, which must all be acknowledged."""
    rows = [{"event": "Purchase", "distinctId": name, "eventProperties": {"value": value}} for name in names]
    answer = httpx.post(f"{server.url}/batch", json={"token": TOKEN, "events": rows}, timeout=60).json()
    assert all(result["success"] for result in answer["results"])


def names_in(path: Path) -> Counter[str]:
    """How often each distinctId lies in a table."""
    return Counter(str(row["distinct_id"]) for row in pa.table(DeltaTable(path).to_pyarrow_table()).to_pylist())


def lose_the_ledger(server: Server) -> None:
    shutil.rmtree(server.directory / "data" / "ledger")


def test_the_ledger_is_lost_and_rebuilt(tmp_path: Path) -> None:
    """Rows that one table lacks are sent to it alone, rows that came since are delivered, repeats are known."""
    server = Server(tmp_path, more=SECOND, workers=2)
    first = [f"first-{number}" for number in range(ROWS)]
    second = tmp_path / "data" / "second"
    with running(server):
        for start in range(0, ROWS, 6):
            send(server, *first[start : start + 6])
        send(server, first[0], first[1], value="other")
        server.settle_down()
        server.kill()
    DeltaTable(second).delete("distinct_id = 'first-3' OR distinct_id = 'first-40'")
    lose_the_ledger(server)
    with running(server):
        send(server, "while-held")
        assert server.stop() == 0
    told = server.run("rebuild")
    assert "sent to it now" in told
    with running(server):
        send(server, *first[:5], "later")
        send(server, first[5], value="other")
        server.settle_down()
        expected = Counter([*first, "while-held", "later"])
        assert names_in(server.lake) == expected
        assert names_in(second) == expected
        (source,) = server.status()["sources"]
        assert (source["new"], source["duplicate"], source["conflict"]) == (ROWS + 2, 5, 3)
        server.run("audit")
        server.run("trace", first[0])
    server.run("rebuild", status=1)


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_with_postgres_and_killed_on_the_way(tmp_path: Path) -> None:
    """A rebuild that is killed at each of its steps is begun again; both tables hold each row once in the end."""
    with postgres_server() as postgres:
        server = Server(
            tmp_path,
            more=f'[[destinations]]\nname = "base"\ntype = "postgres"\ndsn = "{postgres.dsn()}"\nbatch_seconds = 0.1',
        )
        first = [f"first-{number}" for number in range(ROWS)]
        with running(server):
            for start in range(0, ROWS, 6):
                send(server, *first[start : start + 6])
            server.settle_down()
            server.kill()
        with psycopg.connect(postgres.dsn()) as connection:
            connection.execute("DELETE FROM events WHERE distinct_id IN ('first-7', 'first-59')")
        lose_the_ledger(server)
        for point in ("rebuild.asking", "rebuild.comparing=2", "rebuild.moved"):
            kill_rebuild_at(server, point)
        server.run("rebuild", "--json")
        with running(server):
            send(server, first[7], first[8], "later")
            server.settle_down()
            expected = Counter([*first, "later"])
            assert names_in(server.lake) == expected
            with psycopg.connect(postgres.dsn()) as connection:
                assert Counter(name for (name,) in connection.execute("SELECT distinct_id FROM events")) == expected
            server.run("audit")


def kill_rebuild_at(server: Server, point: str) -> None:
    """Begin a rebuild that ends with SIGKILL when it comes to a point."""
    environment = clean_environment() | {"COUNTERFOIL_CONFIG": str(server.config), failpoints.VARIABLE: point}
    done = subprocess.run(command("rebuild"), cwd=server.directory, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
