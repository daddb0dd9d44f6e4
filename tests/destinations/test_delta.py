from __future__ import annotations

import json
import os
import stat
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from deltalake import DeltaTable, Field, Schema
from deltalake.schema import PrimitiveType
from hypothesis import given, settings
from hypothesis import strategies as st

from counterfoil.destinations.delta import COMMITS_BETWEEN_UPKEEP_MAX
from counterfoil.destinations.interface import Delivery
from counterfoil.errors import DestinationDown, DestinationRefused
from tests.destinations.conformance import CursorKeepingDestination, Make
from tests.destinations.lake import Clock, data_files, lake, log_path, read, seqs, table
from tests.destinations.making import RECEIVED_AT_MS, ROWS_A_GROUP, delivered, delivery

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_1_MS = -62_135_596_800_000
YEAR_9999_MS = 253_402_300_799_999
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


class TestConformance(CursorKeepingDestination):
    """The suite of the interface."""

    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        return lambda: lake(tmp_path, merge_commits=2)


class TestValues:
    """What lies in the table."""

    def test_every_column_holds_its_value(self, tmp_path: Path) -> None:
        """A row that has everything is read back value for value, and one that has little with nulls."""
        full = delivered(
            ROWS_A_GROUP,
            source="shop",
            event="Sign Up",
            distinct_id="d-1",
            user_id="u",
            external_id="x",
            email="a@example.com",
            time_ms=RECEIVED_AT_MS - 86_400_000,
            event_properties='{"a":1}',
            user_properties='{"b":null}',
            default_properties='{"ip":"::1","received_at":"z"}',
            identity_context='{"ip":"1","userAgent":"y"}',
            extra='{"k":[1e400]}',
        )
        destination = lake(tmp_path)
        destination.open()
        destination.deliver(Delivery(1, 1, [full, delivered(ROWS_A_GROUP + 1)]))
        first, second = read(tmp_path)
        received = EPOCH + timedelta(milliseconds=RECEIVED_AT_MS)
        assert first == {
            "source": "shop",
            "event": "Sign Up",
            "distinct_id": "d-1",
            "user_id": "u",
            "external_id": "x",
            "email": "a@example.com",
            "time": received - timedelta(days=1),
            "received_at": received,
            "seq": ROWS_A_GROUP,
            "event_properties": '{"a":1}',
            "user_properties": '{"b":null}',
            "default_properties": '{"ip":"::1","received_at":"z"}',
            "identity_context": '{"ip":"1","userAgent":"y"}',
            "extra": '{"k":[1e400]}',
            "received_date": received.date(),
        }
        assert {name for name, value in second.items() if value is None} == {
            "user_id", "external_id", "email", "event_properties", "user_properties", "identity_context", "extra",
        }  # fmt: skip

    @settings(max_examples=25, deadline=None)
    @given(values=st.lists(st.tuples(TEXT, TEXT, st.none() | TEXT, st.integers(YEAR_1_MS, YEAR_9999_MS)), min_size=1))
    def test_any_text_and_time_comes_back(
        self, tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str, str, str | None, int]]
    ) -> None:
        """NUL, any Unicode, and times from the first to the last year are kept, through a merge too."""
        root = tmp_path_factory.mktemp("values")
        destination = lake(root, merge_commits=2)
        destination.open()
        for group in (1, 2):
            rows = [
                delivered(group * ROWS_A_GROUP + place, event=event, distinct_id=identity, email=email, time_ms=time_ms)
                for place, (event, identity, email, time_ms) in enumerate(values)
            ]
            destination.deliver(Delivery(group, group, rows))
        while destination.tend():
            pass
        destination.close()
        found = [(row["event"], row["distinct_id"], row["email"], row["time"]) for row in read(root)]
        sent = [(event, ident, email, EPOCH + timedelta(milliseconds=ms)) for event, ident, email, ms in values]
        assert found == sent * 2
        assert len(data_files(root) - _removed(root)) == 1

    @pytest.mark.parametrize("time_ms", [YEAR_1_MS, YEAR_9999_MS, 0, -1])
    def test_times_at_the_edges_are_found_by_their_statistics(self, tmp_path: Path, time_ms: int) -> None:
        """A filter on `time` finds the row that lies at the edge of what a time can be."""
        destination = lake(tmp_path)
        destination.open()
        destination.deliver(Delivery(1, 1, [delivered(ROWS_A_GROUP, time_ms=time_ms)]))
        destination.deliver(Delivery(2, 2, [delivered(2 * ROWS_A_GROUP, time_ms=1_000_000_000_000)]))
        moment = EPOCH + timedelta(milliseconds=time_ms)
        found = table(tmp_path).to_pyarrow_table(filters=[("time", "=", moment)])
        assert found.column("seq").to_pylist() == [ROWS_A_GROUP]

    def test_a_very_large_text_is_kept_whole(self, tmp_path: Path) -> None:
        """Megabytes of JSON in a field, in many rows, come back to the last character."""
        text = json.dumps({"a": "ü\\u0000" * 200_000})
        destination = lake(tmp_path)
        destination.open()
        rows = [delivered(ROWS_A_GROUP + place, event_properties=text) for place in range(60)]
        destination.deliver(Delivery(1, 1, rows))
        assert {row["event_properties"] for row in read(tmp_path)} == {text}

    def test_rows_lie_in_the_partition_of_their_day_of_receipt(self, tmp_path: Path) -> None:
        """A delivery over midnight makes a file a day, in one commit."""
        midnight = 1_700_006_400_000
        rows = [delivered(ROWS_A_GROUP + place, received_at_ms=midnight + place - 2) for place in range(4)]
        destination = lake(tmp_path)
        destination.open()
        receipt = destination.deliver(Delivery(1, 1, rows))
        assert receipt.commit == "1"
        assert [row["received_date"].day for row in read(tmp_path)] == [14, 14, 15, 15]
        assert len(data_files(tmp_path)) == 2


class TestRefusal:
    """What makes it stop and say so."""

    def opened_once(self, root: Path) -> None:
        destination = lake(root)
        destination.open()
        destination.deliver(delivery(1))
        destination.close()

    def refusal(self, root: Path, **changed: Any) -> str:
        destination = lake(root, **changed)
        (fault,) = destination.check()
        with pytest.raises(DestinationRefused) as refused:
            destination.open()
        assert str(refused.value) == fault
        assert "\n" not in fault
        return fault

    def test_the_table_of_another_ledger(self, tmp_path: Path) -> None:
        """A table that another server writes is left alone; the message names both and what to do."""
        self.opened_once(tmp_path)
        other = UUID(int=7)
        fault = self.refusal(tmp_path, ledger_id=other)
        assert str(other) in fault
        assert "018f0000" in fault
        assert "path of its own" in fault

    def test_a_table_that_is_not_ours(self, tmp_path: Path) -> None:
        """A table that somebody else made is left alone."""
        DeltaTable.create(tmp_path / "lake", Schema([Field("a", PrimitiveType("string"))]))
        assert "not Counterfoil's" in self.refusal(tmp_path)

    def test_a_column_that_was_added_by_hand(self, tmp_path: Path) -> None:
        """The column is told by name."""
        self.opened_once(tmp_path)
        table(tmp_path).alter.add_columns([Field("region", PrimitiveType("string"))])
        assert "column region is not ours" in self.refusal(tmp_path)

    def test_a_column_that_is_added_while_it_delivers(self, tmp_path: Path) -> None:
        """The commit that meets the change fails as being down; opened anew the column is told by name."""
        destination = lake(tmp_path)
        destination.open()
        table(tmp_path).alter.add_columns([Field("region", PrimitiveType("string"))])
        with pytest.raises(DestinationDown):
            destination.deliver(delivery(1))
        with pytest.raises(DestinationRefused, match="column region is not ours"):
            destination.open()
        assert seqs(tmp_path) == []

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"name\\":\\"email\\",\\"type\\":\\"string', '"name\\":\\"email\\",\\"type\\":\\"long', "email is long"),
            ('"name\\":\\"extra', '"name\\":\\"Extra', "column extra is missing, column Extra is not ours"),
            ('"name\\":\\"seq\\",\\"type\\":\\"long\\",\\"nullable\\":false',
             '"name\\":\\"seq\\",\\"type\\":\\"long\\",\\"nullable\\":true', "column seq may be null"),
            ('"partitionColumns":["received_date"]', '"partitionColumns":[]', "partitioned by nothing"),
        ],
        ids=["type", "name", "null", "partition"],
    )  # fmt: skip
    def test_columns_that_differ_are_told_by_name(self, tmp_path: Path, old: str, new: str, message: str) -> None:
        """What is missing, what has another type, what may be null, and the partition."""
        self.opened_once(tmp_path)
        (log_path(tmp_path) / f"{1:020d}.json").unlink()
        entry = log_path(tmp_path) / f"{0:020d}.json"
        assert old in entry.read_text()
        entry.write_text(entry.read_text().replace(old, new))
        assert message in self.refusal(tmp_path)

    def test_a_table_feature_that_is_not_spoken_here(self, tmp_path: Path) -> None:
        """A feature that changes what files mean is named, before anything is written past it."""
        from deltalake import TableFeatures

        self.opened_once(tmp_path)
        table(tmp_path).alter.add_feature(TableFeatures.DeletionVectors, allow_protocol_versions_increase=True)
        assert "deletionVectors" in self.refusal(tmp_path)

    def test_a_path_that_deltalake_mistakes(self, tmp_path: Path) -> None:
        """A percent sign in the path is refused before anything is written."""
        assert "%" in self.refusal(tmp_path / "50%25")

    def test_a_directory_that_is_a_file(self, tmp_path: Path) -> None:
        """A path where no table can be made is told by `check`, and opening it fails as being down."""
        (tmp_path / "lake").write_text("mine")
        destination = lake(tmp_path)
        assert "not a directory" in destination.check()[0]
        with pytest.raises(DestinationDown):
            destination.open()

    def test_somebody_else_who_delivers(self, tmp_path: Path) -> None:
        """Two lives on one table: the second commit of a group is refused, and no row is there twice."""
        one, two = lake(tmp_path), lake(tmp_path)
        one.open()
        two.open()
        one.deliver(delivery(1))
        with pytest.raises(DestinationDown):
            two.deliver(delivery(1))
        assert two.open() is not None
        with pytest.raises(DestinationDown, match="somebody else"):
            two.deliver(delivery(1))
        assert seqs(tmp_path) == [ROWS_A_GROUP, ROWS_A_GROUP + 1, ROWS_A_GROUP + 2]


class TestUpkeep:
    """Merging, checkpoints, log cleaning, and the removal of what was replaced."""

    def test_files_and_log_stay_few(self, tmp_path: Path) -> None:
        """After 1000 commits there are few data files, few log entries since a checkpoint, and every row."""
        destination = lake(tmp_path, keep_hours=0, merge_commits=20)
        destination.open()
        for group in range(1, 1001):
            destination.deliver(delivery(group, row_count=1))
            while destination.tend():
                pass
        destination.close()
        assert len(table(tmp_path).file_uris()) < 40
        assert len(data_files(tmp_path)) < 80
        assert len(list(log_path(tmp_path).iterdir())) < 60
        assert seqs(tmp_path) == [group * ROWS_A_GROUP for group in range(1, 1001)]

    def test_a_delivery_waits_for_upkeep_that_is_overdue(self, tmp_path: Path) -> None:
        """Even when nobody tends, files are merged and the log is cleaned once in 100 commits."""
        destination = lake(tmp_path, keep_hours=0)
        destination.open()
        for group in range(1, COMMITS_BETWEEN_UPKEEP_MAX + 11):
            destination.deliver(delivery(group, row_count=1))
        assert len(table(tmp_path).file_uris()) == 11
        assert len(list(log_path(tmp_path).glob("*.json"))) < 20

    def test_upkeep_comes_in_steps(self, tmp_path: Path) -> None:
        """A merge reads a file a step, so that a delivery that comes in between waits for one file at most."""
        destination = lake(tmp_path, merge_commits=20)
        destination.open()
        for group in range(1, 21):
            destination.deliver(delivery(group))
        steps = 0
        group = 21
        while destination.tend():
            steps += 1
            if steps % 5 == 0:
                destination.deliver(delivery(group))
                group += 1
        assert steps > 20
        assert seqs(tmp_path) == [each * ROWS_A_GROUP + place for each in range(1, group) for place in range(3)]

    def test_replaced_files_stay_for_readers_and_then_go(self, tmp_path: Path) -> None:
        """A reader that opened the table before a merge can read on for `keep_hours`; then the files are removed."""
        clock = Clock()
        destination = lake(tmp_path, clock=clock, merge_commits=5, keep_hours=2)
        destination.open()
        for group in range(1, 6):
            destination.deliver(delivery(group))
        reader = table(tmp_path)
        while destination.tend():
            pass
        assert reader.to_pyarrow_table().num_rows == 15
        replaced = _removed(tmp_path)
        assert len(replaced) == 5
        clock.ahead_ms = 2 * 3_600_000 + 1000
        for group in range(6, 11):
            destination.deliver(delivery(group))
        while destination.tend():
            pass
        assert not replaced & data_files(tmp_path)
        assert len(seqs(tmp_path)) == 30

    def test_rows_that_somebody_deleted_do_not_come_back(self, tmp_path: Path) -> None:
        """A DELETE by another writer during a merge wins: the merge is given up."""
        destination = lake(tmp_path, merge_commits=5)
        destination.open()
        for group in range(1, 6):
            destination.deliver(delivery(group))
        for _ in range(3):
            assert destination.tend()
        table(tmp_path).delete(f"seq = {ROWS_A_GROUP}")
        while destination.tend():
            pass
        destination.deliver(delivery(6))
        assert ROWS_A_GROUP not in seqs(tmp_path)
        assert len(seqs(tmp_path)) == 17

    def test_a_data_file_that_cannot_be_read_stops_nothing(self, tmp_path: Path) -> None:
        """A damaged file is left as it is and left out of merges; deliveries and upkeep go on."""
        destination = lake(tmp_path, merge_commits=3)
        destination.open()
        destination.deliver(delivery(1))
        (damaged,) = data_files(tmp_path)
        (tmp_path / "lake" / damaged).write_bytes(b"PAR1 nothing PAR1")
        for group in range(2, 10):
            destination.deliver(delivery(group))
            while destination.tend():
                pass
        assert (tmp_path / "lake" / damaged).exists()
        with pytest.raises(DestinationDown, match="can't be read"):
            destination.counts()
        assert len(table(tmp_path).file_uris()) < 6

    def test_settings_that_changed_reach_the_table(self, tmp_path: Path) -> None:
        """Another `keep_hours` is written to the table's properties at the next start, once."""
        lake(tmp_path).open()
        lake(tmp_path, keep_hours=3).open()
        lake(tmp_path, keep_hours=3).open()
        assert table(tmp_path).version() == 1
        kept = table(tmp_path).metadata().configuration["delta.deletedFileRetentionDuration"]
        assert kept == "interval 14400 seconds"


class TestModes:
    """Who may read."""

    def test_files_are_the_owners_alone(self, tmp_path: Path) -> None:
        """Whatever the umask is, nobody else can read a file or a directory of the table."""
        before = os.umask(0)
        try:
            destination = lake(tmp_path, merge_commits=2)
            destination.open()
            for group in range(1, 6):
                destination.deliver(delivery(group))
                while destination.tend():
                    pass
        finally:
            os.umask(before)
        inside = [tmp_path / "lake", *(tmp_path / "lake").rglob("*")]
        assert len(inside) > 10
        assert [path for path in inside if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def _removed(root: Path) -> set[str]:
    active = {str(path) for path in table(root).file_uris()}
    return {path for path in data_files(root) if not any(uri.endswith(path) for uri in active)}


def test_the_day_of_a_row_is_the_utc_day(tmp_path: Path) -> None:
    """The partition is the UTC date of receipt, whatever the machine's zone is."""
    destination = lake(tmp_path)
    destination.open()
    destination.deliver(Delivery(1, 1, [delivered(ROWS_A_GROUP, received_at_ms=1_700_006_399_999)]))
    assert [row["received_date"] for row in read(tmp_path)] == [date(2023, 11, 14)]
