"""The Delta Lake destination in an object store, against moto's S3 over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Field, Schema
from deltalake.exceptions import DeltaError
from deltalake.fs import DeltaStorageHandler
from deltalake.schema import PrimitiveType
from pyarrow.fs import FileSelector, FileType, PyFileSystem

from counterfoil import failpoints
from counterfoil.contract.subject import Subject
from counterfoil.destinations.delta import COMMITS_BETWEEN_UPKEEP_MAX, DeltaDestination
from counterfoil.destinations.delta_address import TableAddress
from counterfoil.destinations.interface import Delivery, Receipt
from counterfoil.destinations.query import run_query
from counterfoil.destinations.settings import DeltaSettings
from counterfoil.errors import DestinationDown, DestinationRefused, QueryRefused
from counterfoil.files import RealFiles
from tests.destinations.conformance import CursorKeepingDestination, Make, held_seqs
from tests.destinations.lake import LEDGER, Clock
from tests.destinations.making import ROWS_A_GROUP, delivered, delivery
from tests.destinations.power import PowerCut
from tests.e2e.server import until
from tests.object_store import ObjectStore, object_store
from tests.pipeline.delivering import new_ids, one_life

FRAMES = 7


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """One store for the tests of this module; each has a bucket of its own."""
    with object_store() as running:
        yield running


@pytest.fixture
def url(store: ObjectStore) -> Iterator[str]:
    """Where a table of the test's own may lie."""
    yield f"s3://{store.bucket()}/a/lake"
    store.meddle()


Lake = Callable[..., DeltaDestination]


@pytest.fixture
def lake(store: ObjectStore, url: str, tmp_path: Path) -> Lake:
    """Makes lives of the destination `lake`, each on the same table."""

    def make(
        url: str = url, options: dict[str, str] | None = None, ledger_id: UUID = LEDGER, **settings: int
    ) -> DeltaDestination:
        return destination_at(url, options or store.options(), tmp_path, ledger_id, **settings)

    return make


def destination_at(
    url: str, options: dict[str, str], quarantine: Path, ledger_id: UUID = LEDGER, **settings: int
) -> DeltaDestination:
    """The destination `lake` with its table at an address."""
    return DeltaDestination(
        DeltaSettings(name="lake", **settings),
        address=TableAddress(None, url, options),
        ledger_id=ledger_id,
        files=RealFiles(),
        quarantine=quarantine,
        clock_ms=Clock(),
    )


class TestConformance(CursorKeepingDestination):
    """The suite of the interface."""

    @pytest.fixture
    def make(self, lake: Lake) -> Make:
        return lambda: lake(merge_commits=2)


class TestCrashes:
    """Lives that end by SIGKILL."""

    @pytest.mark.parametrize(
        ("when", "suffix", "nth"),
        [
            ("before", ".parquet", 2),
            ("before", ".json", 3),
            ("after", ".json", 1),
            ("after", ".json", 4),
            ("after", ".checkpoint.parquet", 1),
            ("before", "_last_checkpoint", 1),
        ],
    )
    def test_killed_at_a_put(
        self, store: ObjectStore, url: str, tmp_path: Path, when: str, suffix: str, nth: int
    ) -> None:
        """Killed before a PUT reached the store, or before its answer came back: each row is there once in the end."""
        life = begin_life(store, url, tmp_path)
        store.meddle(kill=life.pid, when=when, suffix=suffix, nth=nth)
        assert life.wait() == -signal.SIGKILL
        store.meddle()
        assert_all_is_there_once(store, url, tmp_path)

    @pytest.mark.parametrize(
        "point",
        [
            "delta.created=1",
            "delta.delivery_committed=2",
            "deliver.before_cursor=2",
            "delta.merge_committed=2",
            "delta.checkpoint_made=2",
            "delta.files_removed=2",
        ],
    )
    def test_killed_between_two_steps(self, store: ObjectStore, url: str, tmp_path: Path, point: str) -> None:
        """Ended at a point, the pipeline leaves nothing that the next life can't make good."""
        assert begin_life(store, url, tmp_path, point).wait() == -signal.SIGKILL
        assert_all_is_there_once(store, url, tmp_path)


def begin_life(store: ObjectStore, url: str, root: Path, points: str = "") -> subprocess.Popen[bytes]:
    """A life of the pipeline, in a process of its own, that may end at these failpoints."""
    command = [sys.executable, "-m", "tests.pipeline.delivering", str(root), str(FRAMES), url]
    environment = os.environ | {failpoints.VARIABLE: points, "STORAGE_OPTIONS": json.dumps(store.options())}
    return subprocess.Popen(command, env=environment)


def assert_all_is_there_once(store: ObjectStore, url: str, root: Path) -> None:
    """A life to the end, and then: each new row once in the table, and the books balanced."""
    books = one_life(root, FRAMES, TableAddress(None, url, store.options()))
    rows = pa.table(DeltaTable(url, storage_options=store.options()).to_pyarrow_table()).to_pylist()
    assert Counter(row["distinct_id"] for row in rows) == Counter(
        each for frame in range(FRAMES) for each in new_ids(frame)
    )
    (destination,) = books.destinations
    assert (destination.routed, destination.delivered, destination.dead) == (len(rows), len(rows), 0)


class TestTwoWriters:
    """Who else may write."""

    def test_somebody_else_who_delivers(self, lake: Lake) -> None:
        """Two lives on one table: the second commit of a group is refused, and no row is there twice."""
        one, two = lake(), lake()
        one.open()
        two.open()
        one.deliver(delivery(1))
        with pytest.raises(DestinationDown):
            two.deliver(delivery(1))
        assert two.open() == Receipt(1, 1, 3, "1")
        with pytest.raises(DestinationDown, match="somebody else"):
            two.deliver(delivery(1))
        assert held_seqs(one) == [ROWS_A_GROUP, ROWS_A_GROUP + 1, ROWS_A_GROUP + 2]

    def test_commits_that_could_overwrite_one_another_are_refused(self, lake: Lake, store: ObjectStore) -> None:
        """An option that takes the condition from the put of a log entry is named, before anything is written."""
        for unsafe in ({"AWS_S3_ALLOW_UNSAFE_RENAME": "true"}, {"aws_conditional_put": "disabled"}):
            destination = lake(options=store.options(**unsafe))
            (fault,) = destination.check()
            assert "conditional put" in fault
            with pytest.raises(DestinationRefused, match="conditional put"):
                destination.open()


class TestUpkeep:
    """Merging, checkpoints, and the removal of what was replaced."""

    def test_files_stay_few(self, lake: Lake, store: ObjectStore, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Small files become larger ones; those that were replaced go after their time, and every row stays."""
        monkeypatch.setattr("counterfoil.destinations.delta_store.LEFT_OVER_HOURS_MIN", 0)
        destination = lake(merge_commits=5, keep_hours=0)
        destination.open()
        for group in range(1, 21):
            destination.deliver(delivery(group, row_count=1))
            while destination.tend():
                pass
        table = DeltaTable(url, storage_options=store.options())
        assert len(table.file_uris()) <= 6
        assert held_seqs(destination) == [group * ROWS_A_GROUP for group in range(1, 21)]
        assert [each for each in store.requests() if each.startswith("POST")], "replaced files were deleted"

    def test_a_delivery_waits_for_upkeep_that_is_overdue(self, lake: Lake) -> None:
        """Even when nobody tends, files are merged once in 100 commits."""
        destination = lake(merge_commits=2)
        destination.open()
        destination.deliver(delivery(1))
        destination._storage.commit_count = COMMITS_BETWEEN_UPKEEP_MAX
        destination.deliver(delivery(2))
        assert destination._storage.commit_count < 10

    def test_the_log_says_nothing_of_a_person(self, lake: Lake, store: ObjectStore, url: str) -> None:
        """The statistics in the log are of `seq`, `source` and times alone, after a merge too (promise P6)."""
        destination = lake(merge_commits=2)
        destination.open()
        for group in (1, 2, 3):
            destination.deliver(delivery(group, email="canary@example.org", user_id="canary"))
            while destination.tend():
                pass
        actions = pa.table(DeltaTable(url, storage_options=store.options()).get_add_actions(flatten=True))
        assert {name for name in actions.column_names if name.startswith(("min.", "max."))} == {
            f"{bound}.{name}" for bound in ("min", "max") for name in ("seq", "source", "time", "received_at")
        }
        assert "canary" not in str(actions.to_pylist())


CANARY = "canary7f3a"
SUBJECT = Subject(distinct_id=f"{CANARY}-id")
OTHERS = [group * ROWS_A_GROUP + 1 for group in range(1, 5)]


class TestErasing:
    """What is left of a person, and after a crash."""

    def begin(self, lake: Lake, store: ObjectStore, url: str) -> DeltaDestination:
        """A table with a merged file and others, those that were replaced, and one that no commit names."""
        destination = lake(merge_commits=2)
        destination.open()
        for group in range(1, 5):
            told = {name: f"{CANARY}-{name}" for name in ("user_id", "email", "event_properties")}
            first = group * ROWS_A_GROUP
            rows = [delivered(first, distinct_id=SUBJECT.distinct_id, **told), delivered(first + 1)]
            destination.deliver(Delivery(group, group, rows))
            while group == 2 and destination.tend():
                pass
        files = file_system(destination)
        written = min(path for path in objects(files) if "part-00000" in path)
        place = url.removeprefix("s3://")
        store.copy(f"{place}/{written}", f"{place}/{written.replace('part-00000', 'part-left-over')}")
        return destination

    def assert_made_good(self, lake: Lake) -> None:
        """Another life finds the cursor and everybody else's rows, and the same once more erases what is left."""
        destination = lake(merge_commits=2)
        held = destination.open()
        assert held is not None
        assert held.last_group == 4
        assert set(OTHERS) <= set(held_seqs(destination))
        destination.erase(SUBJECT)
        assert held_seqs(destination) == OTHERS
        assert telling_objects(destination) == set()
        destination.deliver(delivery(5))
        assert len(held_seqs(destination)) == 7

    def test_no_object_of_the_table_tells_of_the_subject(self, lake: Lake, store: ObjectStore, url: str) -> None:
        """Files in the table, replaced, or never in it; log entries and checkpoints: nothing is left."""
        destination = self.begin(lake, store, url)
        DeltaTable(url, storage_options=store.options()).delete(
            f"email = '{CANARY}-email' AND seq = {4 * ROWS_A_GROUP}"
        )
        told = telling_objects(destination)
        assert any("part-left-over" in path for path in told)
        assert any(path.endswith(".json") for path in told)
        assert len(told) > 4
        assert destination.erase(SUBJECT) == 3
        self.assert_made_good(lake)
        with pytest.raises(DeltaError):
            DeltaTable(url, storage_options=store.options(), version=2)

    @pytest.mark.parametrize(
        "point",
        ["delta.erase_committed", "delta.retention_ended", "delta.old_files_removed", "delta.log_forgotten"],
    )
    def test_ended_between_two_steps_it_is_made_good(
        self, lake: Lake, store: ObjectStore, url: str, point: str
    ) -> None:
        """At each step the process may end."""

        def end() -> None:
            raise PowerCut

        destination = self.begin(lake, store, url)
        failpoints.arm(point, end)
        try:
            with pytest.raises(PowerCut):
                destination.erase(SUBJECT)
        finally:
            failpoints.arm("")
        self.assert_made_good(lake)

    @pytest.mark.parametrize(("when", "suffix"), [("before", ".json"), ("after", ".parquet")])
    def test_killed_at_a_put_it_is_made_good(
        self, lake: Lake, store: ObjectStore, url: str, when: str, suffix: str
    ) -> None:
        """Killed before a PUT reached the store, or before its answer came back."""
        self.begin(lake, store, url).close()
        script = (
            "import json, os, sys; from pathlib import Path; from tests.destinations.test_delta_store import *\n"
            "options = json.loads(os.environ['STORAGE_OPTIONS'])\n"
            "life = destination_at(sys.argv[1], options, Path(sys.argv[2])); life.open(); sys.stdin.readline()\n"
            "life.erase(SUBJECT)\n"
        )
        life = subprocess.Popen(
            [sys.executable, "-c", script, url, os.devnull],
            env=os.environ | {"STORAGE_OPTIONS": json.dumps(store.options())},
            stdin=subprocess.PIPE,
        )
        store.meddle(kill=life.pid, when=when, suffix=suffix, nth=1)
        life.communicate(b"\n")
        assert life.returncode == -signal.SIGKILL
        store.meddle()
        self.assert_made_good(lake)

    def test_a_column_that_was_added_is_told(self, lake: Lake, store: ObjectStore, url: str) -> None:
        """The column is told by name, and nothing is lost."""
        destination = self.begin(lake, store, url)
        DeltaTable(url, storage_options=store.options()).alter.add_columns([Field("region", PrimitiveType("string"))])
        with pytest.raises(DestinationRefused, match="column region is not ours"):
            destination.erase(SUBJECT)
        assert len(held_seqs(destination)) == 8


def file_system(destination: DeltaDestination) -> PyFileSystem:
    """What lies below the table's address."""
    address = destination._address
    return PyFileSystem(DeltaStorageHandler(address.uri, address.storage_options))


def objects(files: PyFileSystem) -> list[str]:
    """Every object there."""
    found = files.get_file_info(FileSelector("", recursive=True))
    return [each.path for each in found if each.type == FileType.File]


def telling_objects(destination: DeltaDestination) -> set[str]:
    """The objects that hold the canary, in their bytes or in what they say when read."""
    files = file_system(destination)
    told = set()
    for path in objects(files):
        with files.open_input_file(path) as opened:
            data = opened.read()
        said = data.decode("latin-1")
        if path.endswith(".parquet"):
            said += str(pq.ParquetFile(pa.BufferReader(data)).read().to_pylist())
        if CANARY in said:
            told.add(path)
    return told


class TestFailures:
    """What is told when it can't be reached or used; never a word of the store, nor of a secret."""

    def told(self, destination: DeltaDestination, error: type[Exception]) -> str:
        """The one line that `check` and `open` say."""
        (fault,) = destination.check()
        with pytest.raises(error) as caught:
            destination.open()
        assert str(caught.value) == fault
        for secret in ("secret-of-the-test", "key-of-the-test", "<Error>", "\n"):
            assert secret not in fault
        assert caught.value.__cause__ is None
        return fault

    def test_a_bucket_that_is_not_there(self, lake: Lake) -> None:
        """A missing bucket is told with what to do."""
        assert "store_no_bucket: the bucket is not there: make it" in self.told(
            lake("s3://nowhere/lake"), DestinationRefused
        )

    def test_keys_that_are_not_known(self, lake: Lake, store: ObjectStore) -> None:
        """A wrong key is told with where to look."""
        lake().open()
        store.meddle(knows_keys=False)
        fault = self.told(lake(), DestinationRefused)
        with pytest.raises(QueryRefused) as caught:
            run_query(lake()._address, "SELECT 1")
        assert "storage_options" in fault or "policies" in fault
        assert str(caught.value) == fault

    def test_an_option_that_is_none(self, lake: Lake, store: ObjectStore) -> None:
        """A value that can't be used is told."""
        assert "store_options" in self.told(lake(options=store.options(timeout="soon")), DestinationRefused)

    def test_nobody_there(self, lake: Lake, store: ObjectStore) -> None:
        """A store that can't be reached is a reason to try again."""
        fault = self.told(lake(options=store.options(aws_endpoint_url="http://127.0.0.1:1")), DestinationDown)
        assert "store_unreachable" in fault

    def test_a_table_that_is_not_ours(self, lake: Lake, store: ObjectStore, url: str) -> None:
        """A table that somebody else made, or another server, is left alone."""
        DeltaTable.create(url, Schema([Field("a", PrimitiveType("string"))]), storage_options=store.options())
        assert "not Counterfoil's" in self.told(lake(), DestinationRefused)
        lake(f"{url}-2").open()
        assert "path of its own" in self.told(lake(f"{url}-2", ledger_id=UUID(int=7)), DestinationRefused)

    def test_a_column_that_is_added_while_it_delivers(self, lake: Lake, store: ObjectStore, url: str) -> None:
        """The commit that meets the change fails as being down; opened anew the column is told by name."""
        destination = lake()
        destination.open()
        DeltaTable(url, storage_options=store.options()).alter.add_columns([Field("region", PrimitiveType("string"))])
        with pytest.raises(DestinationDown):
            destination.deliver(delivery(1))
        with pytest.raises(DestinationRefused, match="column region is not ours"):
            destination.open()
        assert held_seqs(destination) == []

    def test_a_store_that_hangs_holds_up_nobody_else(self, lake: Lake, store: ObjectStore) -> None:
        """While a delivery waits for the store's answer, other threads of the process go on."""
        destination = lake()
        destination.open()
        store.meddle(holds=True)
        thread = threading.Thread(target=destination.deliver, args=(delivery(1),))
        thread.start()
        until(lambda: any(each.startswith("PUT") for each in store.requests()) or None, "a PUT that waits")
        assert thread.is_alive()
        store.meddle()
        thread.join()
        assert held_seqs(destination) == [ROWS_A_GROUP, ROWS_A_GROUP + 1, ROWS_A_GROUP + 2]


def test_a_query_reads_it(lake: Lake) -> None:
    """`counterfoil query` reads a table in an object store like any other."""
    destination = lake()
    address = destination._address
    with pytest.raises(QueryRefused, match="there is no table yet"):
        run_query(address, "SELECT 1")
    destination.open()
    destination.deliver(delivery(1))
    assert list(run_query(address, "SELECT count(*) FROM events").rows()) == [(3,)]
    with pytest.raises(QueryRefused, match="nothing"):
        run_query(address, "SELECT nothing FROM events")
