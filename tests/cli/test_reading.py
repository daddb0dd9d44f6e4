"""`counterfoil trace`, `audit` and `query`: what is on disk is told, with a server or without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from counterfoil.ledger import Ledger
from tests.cli.calling import call, complaint, facts
from tests.cli.kept import Kept

RECEIVED_AT = "2023-11-14T22:13:20.123Z"
SETTLED_AT = "2023-11-14T22:13:21.456Z"
REQUEST_ID = "00010203-0405-0607-0809-0a0b0c0d0e0f"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose server took five rows, two of them repeats, and delivered what was new; one still waits."""
    kept = Kept(tmp_path_factory.mktemp("home"))
    kept.receive("website", [("order-1", 10), ("order-2", 20), ("order-1", 10), ("order-2", 21), ("order-3", 30)])
    kept.settle()
    kept.deliver()
    kept.receive("website", [("order-4", 40)])
    return kept.home


def test_a_delivered_row_is_traced_to_its_commit(home: Path) -> None:
    """Of a row that was delivered it is told when it was received, settled and delivered, and in which commit."""
    found = facts(home, "trace", "order-3")
    assert found["is_whole"]
    [row] = found["rows"]
    position = row.pop("position")
    assert position.endswith("#4")
    [delivery] = row.pop("deliveries")
    assert delivery.pop("commit")
    assert delivery == {
        "destination": "lake",
        "state": "delivered",
        "at": "2023-11-14T22:13:21.457Z",
        "before": None,
        "behind_rows": None,
        "reason": None,
        "sent_again": [],
    }
    assert row == {
        "source": "website",
        "verdict": "new",
        "is_test": False,
        "received_at": RECEIVED_AT,
        "request_id": REQUEST_ID,
        "settled_at": SETTLED_AT,
        "seq": 65_536 + 4,
    }


def test_repeats_are_told_with_the_row_they_repeat(home: Path) -> None:
    """Every row of a distinctId is told, the first and what came after it."""
    assert [row["verdict"] for row in facts(home, "trace", "order-1")["rows"]] == ["new", "duplicate"]
    assert [row["verdict"] for row in facts(home, "trace", "order-2")["rows"]] == ["new", "conflict"]
    printed = call(home, "trace", "order-2").stdout
    assert printed.startswith("website: new\n")
    assert "conflict: an earlier row has the same distinctId and other content" in printed
    assert f"received   {RECEIVED_AT}, request {REQUEST_ID}" in printed


def test_a_row_that_waits_for_settle_is_told(home: Path) -> None:
    """A row is known as soon as it is durable."""
    [row] = facts(home, "trace", "order-4")["rows"]
    assert (row["verdict"], row["seq"], row["deliveries"]) == (None, None, [])
    assert "waits to be settled" in call(home, "trace", "order-4").stdout


def test_the_distinct_id_is_trimmed_as_when_it_was_sent(home: Path) -> None:
    """White space around an id is no part of it."""
    assert len(facts(home, "trace", "  order-3\n")["rows"]) == 1


def test_an_unknown_id_is_a_no(home: Path) -> None:
    """`trace` of what it doesn't know says so, and ends with 1."""
    assert call(home, "trace", "order-9", status=1).stdout == "order-9: no row of it is known\n"
    assert facts(home, "trace", "order-9", status=1) == {"distinct_id": "order-9", "rows": [], "is_whole": True}


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("trace", "order-1", "--source", "shop"), "shop: neither the configuration nor the ledger has a source"),
        (("replay", "lake", "--source", "shop"), "shop: neither the configuration nor the ledger has a source"),
        (("dead", "list", "--source", "shop"), "shop: neither the configuration nor the ledger has a source"),
        (("dead", "list", "--destination", "sea"), "sea: neither the configuration nor the ledger has a destination"),
        (("dead", "export", "rows.ndjson", "--destination", "sea"), "sea: neither the configuration nor the ledger"),
        (("dead", "drop", "--destination", "sea"), "sea: neither the configuration nor the ledger has a destination"),
    ],
)
def test_a_mistyped_name_is_no_empty_answer(home: Path, arguments: tuple[str, ...], what: str) -> None:
    """A name that is known nowhere is told as such, and not answered with "none"."""
    assert what in complaint(home, *arguments, status=2)
    assert not (home / "rows.ndjson").exists()


def test_what_waits_for_a_destination_that_is_not_set_says_so(tmp_path: Path) -> None:
    """Rows that are pending for a destination that was taken out of the configuration wait until it is back."""
    kept = Kept(tmp_path)
    kept.receive("website", [("order-1", 10)])
    kept.settle()
    assert "lake       pending, behind 0 rows\n" in call(tmp_path, "trace", "order-1").stdout
    configuration = tmp_path / "counterfoil.toml"
    configuration.write_text(configuration.read_text().replace('name = "lake"', 'name = "sea"'))
    printed = call(tmp_path, "trace", "order-1").stdout
    assert "lake       pending, behind 0 rows; it is not in the configuration\n" in printed
    assert call(tmp_path, "dead", "list", "--destination", "lake").stdout == "No dead letters.\n"


def test_the_books_balance(home: Path) -> None:
    """`audit` recounts each source and destination and ends with 0."""
    found = facts(home, "audit")
    assert found["is_balanced"]
    assert found["sources"] == [
        {
            "source": "website",
            "accepted": 5,
            "new": 3,
            "duplicate": 1,
            "conflict": 1,
            "blocked": 0,
            "test": 0,
            "erased": 0,
            "is_balanced": True,
        }
    ]
    [lake] = found["destinations"]
    assert (lake["routed"], lake["delivered"], lake["pending"], lake["held"]) == (3, 3, 0, 3)
    assert call(home, "audit").stdout.endswith("The books balance.\n")


def test_books_that_do_not_balance_are_a_no(tmp_path: Path) -> None:
    """A delivery that the destination doesn't hold is found, named, and ends with 1; without asking it is not seen."""
    kept = Kept(tmp_path)
    kept.receive("website", [("order-1", 10)])
    kept.settle()
    ledger = Ledger.open(kept.data.ledger, kept.settings.ledger, kept.data.id)
    ledger.record_delivery("lake", first_group=1, last_group=1, delivered_rows=1, commit="0", at_ms=1)
    ledger.close()
    found = facts(tmp_path, "audit", status=1)
    assert [each["kind"] for each in found["differences"]] == ["row_missing"]
    printed = call(tmp_path, "audit", status=1).stdout
    assert "row_missing, group 1" in printed
    assert printed.endswith("The books do not balance.\n")
    call(tmp_path, "audit", "--no-destinations")


def test_a_destination_that_can_not_be_asked_is_no_difference(tmp_path: Path) -> None:
    """Nobody is told that the books differ where a table could not be read; but the audit is not content either."""
    kept = Kept(tmp_path)
    kept.receive("website", [("order-1", 10)])
    kept.settle()
    kept.deliver()
    for file in (tmp_path / "data" / "lake" / "_delta_log").iterdir():
        file.write_bytes(b"damaged")
    printed = call(tmp_path, "audit", status=1).stdout
    assert "lake could not be asked: " in printed
    assert printed.endswith("The books balance so far; not every destination could be asked what it holds.\n")
    assert not facts(tmp_path, "audit", status=1)["is_balanced"]


def test_the_table_is_queried(home: Path) -> None:
    """`query` runs SQL over the rows that were delivered, each once."""
    sql = "SELECT distinct_id, seq, received_at FROM events ORDER BY seq"
    assert facts(home, "query", sql) == {
        "columns": ["distinct_id", "seq", "received_at"],
        "rows": [
            [f"order-{n}", 65_536 + place, RECEIVED_AT.replace("3Z", "3000Z")] for n, place in ((1, 0), (2, 1), (3, 4))
        ],
    }
    printed = call(home, "query", "SELECT count(*) AS purchases FROM events").stdout
    assert printed.split() == ["purchases", "3"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("SELECT nothing FROM events",), "nothing"),
        (("DELETE FROM events",), "expected one statement that reads"),
        (("SELECT 1", "--destination", "sea"), "sea: no Delta Lake table of the configuration; there are: lake"),
    ],
)
def test_a_query_that_cannot_be_run_is_one_line(home: Path, arguments: tuple[str, ...], line: str) -> None:
    """What is wrong with a query is said in one line."""
    assert line in complaint(home, "query", *arguments, status=1)


@pytest.mark.parametrize("arguments", [("trace", "a"), ("audit",), ("query", "SELECT 1 FROM events")])
def test_before_the_first_start_there_is_nothing_to_tell(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A command that reads makes nothing, and says that nothing is there."""
    call(tmp_path, "init")
    assert "yet" in complaint(tmp_path, *arguments, status=1)
    assert not (tmp_path / "data").exists()


def test_a_long_answer_may_be_cut_off_by_its_reader(home: Path) -> None:
    """`counterfoil query … | head` ends quietly."""
    command = [sys.executable, "-m", "counterfoil", "query", "--json"]
    sql = "SELECT a.seq FROM events a, generate_series(1, 200000)"
    with subprocess.Popen([*command, sql], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert json.loads(first.decode().removesuffix('"rows": [\n') + '"rows": []}')
