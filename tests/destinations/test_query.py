from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from counterfoil.destinations.delta_address import TableAddress
from counterfoil.destinations.query import held_rows, run_query
from counterfoil.errors import DestinationDown, QueryRefused
from tests.destinations.lake import address, lake
from tests.destinations.making import delivery


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table with ten rows of two groups."""
    destination = lake(tmp_path)
    destination.open()
    destination.deliver(delivery(1, 2, row_count=5, event_properties='{"dollars":2.5}', event="a\0b"))
    destination.close()
    return tmp_path / "lake"


def test_names_and_rows_come_back(path: Path) -> None:
    """A query gives the names of its columns and Python values, NUL and times included."""
    result = run_query(TableAddress(path, ""), "SELECT event, time, user_id, seq FROM events ORDER BY seq DESC LIMIT 1")
    assert result.columns == ("event", "time", "user_id", "seq")
    ((event, time, user_id, seq),) = result.rows()
    assert (event, user_id, seq) == ("a\0b", None, 2 * 65_536 + 4)
    assert time == datetime(2023, 11, 14, 22, 13, 20, 118_000, UTC)


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("select count(*) from events", [(10,)]),
        ("-- a comment\n/* another */ (SELECT 1) ", [(1,)]),
        ("WITH a AS (SELECT seq FROM events) SELECT count(*) FROM a", [(10,)]),
        ("VALUES (1), (2)", [(1,), (2,)]),
        ("SELECT received_date::varchar, count(*) FROM events GROUP BY 1", [("2023-11-14", 10)]),
        ("SELECT count(*) FROM events WHERE time > '2023-01-01'", [(10,)]),
        ("SELECT count(*) FROM events WHERE time < to_timestamp_micros(-62104060800000000)", [(0,)]),
        ("SELECT seq FROM events WHERE false", []),
    ],
)
def test_what_reads_is_run(path: Path, sql: str, rows: list[tuple[object, ...]]) -> None:
    """Plain queries, common table expressions, values, comments and brackets."""
    assert list(run_query(TableAddress(path, ""), sql).rows()) == rows


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "  -- nothing",
        "DELETE FROM events",
        "COPY (SELECT * FROM events) TO '{out}' STORED AS CSV",
        "EXPLAIN ANALYZE COPY (SELECT * FROM events) TO '{out}' STORED AS CSV",
        "EXPLAIN (ANALYZE) COPY (SELECT * FROM events) TO '{out}' STORED AS CSV",
        "INSERT INTO events SELECT * FROM events",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '{out}'",
        "SET datafusion.execution.batch_size = 1",
        "/* SELECT */ DROP TABLE events",
    ],
)
def test_what_writes_is_refused(path: Path, tmp_path: Path, sql: str) -> None:
    """Only statements that read are run: no file is written, no table changed."""
    out = tmp_path / "out.csv"
    with pytest.raises(QueryRefused, match="expected one statement that reads"):
        run_query(TableAddress(path, ""), sql.replace("{out}", str(out)))
    assert not out.exists()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT nope FROM events", "No field named nope"),
        ("SELECT 1 +", "SQL error"),
        ("SELECT * FROM other", "table"),
        ("SELECT 1; SELECT 2", "single SQL statement"),
    ],
)
def test_a_wrong_statement_is_told_in_one_line(path: Path, sql: str, message: str) -> None:
    """The message says what is wrong with the statement, on one line."""
    with pytest.raises(QueryRefused, match=message) as refused:
        run_query(TableAddress(path, ""), sql)
    assert "\n" not in str(refused.value)


def test_a_fault_that_shows_only_while_reading_is_told_too(path: Path) -> None:
    """A cast that fails in the middle of the rows ends in the same error."""
    with pytest.raises(QueryRefused) as refused:
        list(run_query(TableAddress(path, ""), "SELECT event::int FROM events").rows())
    assert "\n" not in str(refused.value)


def test_a_table_that_is_not_there_yet(tmp_path: Path) -> None:
    """Before the pipeline's first start the message says so."""
    with pytest.raises(QueryRefused, match="there is no table yet"):
        run_query(address(tmp_path), "SELECT 1")


def test_queries_work_while_the_pipeline_writes(tmp_path: Path) -> None:
    """Every query sees whole deliveries, never fewer than the one before, through merges, cleaning and removal."""
    destination = lake(tmp_path, merge_commits=3, keep_hours=0.01)
    destination.open()
    destination.deliver(delivery(1))
    done = threading.Event()

    def write() -> None:
        for group in range(2, 60):
            destination.deliver(delivery(group))
            while destination.tend():
                pass
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [3]
    while not done.is_set():
        ((count, distinct),) = run_query(address(tmp_path), "SELECT count(*), count(DISTINCT seq) FROM events").rows()
        assert isinstance(count, int)
        assert count == distinct
        assert count % 3 == 0
        seen.append(count)
    writer.join()
    assert seen == sorted(seen)
    ((count,),) = run_query(address(tmp_path), "SELECT count(*) FROM events").rows()
    assert count == 59 * 3


def test_a_damaged_data_file_is_told_by_name(path: Path) -> None:
    """What the table holds can't be told then; which file stands in the way can."""
    (file,) = path.rglob("*.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 8 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 8)
    file.write_bytes(data)
    with pytest.raises(DestinationDown, match=f"{file.name} can't be read"):
        list(held_rows(TableAddress(path, ""), 0, None))
    file.unlink()
    with pytest.raises(DestinationDown, match=f"{file.name} can't be read"):
        list(held_rows(TableAddress(path, ""), 0, None))
