"""The pipeline is ended between ordering, delivering and moving the cursor; each lost row is back exactly once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from deltalake import DeltaTable

from counterfoil import failpoints
from tests.destinations.lake import read
from tests.pipeline.resending import IDS, LOST, one_life
from tests.postgres_server import PostgresServer, postgres_server, why_not

ORDER_POINTS = ["orders.before_group", "orders.after_group", "deliver.before", "deliver.before_cursor"]
DELTA_POINTS = [*ORDER_POINTS, "delta.files_flushed", "delta.delivery_committed", "deliver.after_cursor"]
POSTGRES_POINTS = [*ORDER_POINTS, "postgres.before_commit", "postgres.after_commit"]


def die_at(point: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "tests.pipeline.resending", *arguments]
    done = subprocess.run(command, env=os.environ | {failpoints.VARIABLE: point}, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger that knows of all rows as delivered, and a table from which somebody deleted some."""
    root = tmp_path_factory.mktemp("lossy")
    assert one_life(root, None).is_balanced
    DeltaTable(root / "lake").delete("distinct_id IN ({})".format(", ".join(f"'{each}'" for each in LOST)))
    return root


@pytest.mark.parametrize("point", DELTA_POINTS)
def test_each_lost_row_comes_back_to_the_lake_once(tmp_path: Path, lossy: Path, point: str) -> None:
    """Whatever was written when it ended, the next life sends no row twice and leaves none out."""
    root = tmp_path / "life"
    shutil.copytree(lossy, root)
    die_at(point, str(root))
    assert one_life(root, None).is_balanced
    assert Counter(row["distinct_id"] for row in read(root)) == Counter(IDS)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One server for the tests of this module."""
    with postgres_server() as running:
        yield running


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_each_lost_row_comes_back_to_postgres_once(tmp_path: Path, server: PostgresServer) -> None:
    """The same, in a table of PostgreSQL, which loses the rows anew before each end."""
    name = f"t{uuid4().hex}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    dsn = server.dsn(name)
    assert one_life(tmp_path, dsn).is_balanced
    with psycopg.connect(dsn, autocommit=True) as connection:
        for point in POSTGRES_POINTS:
            connection.execute("DELETE FROM events WHERE distinct_id = ANY (%s)", (LOST,))
            die_at(point, str(tmp_path), dsn)
            assert one_life(tmp_path, dsn).is_balanced, point
            found = connection.execute("SELECT distinct_id FROM events").fetchall()
            assert Counter(each for (each,) in found) == Counter(IDS)
