"""Erasing from a Delta table on a disk: what is left of a person, of the others, and after a crash."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Field
from deltalake.exceptions import DeltaError
from deltalake.schema import PrimitiveType

from counterfoil import failpoints
from counterfoil.contract.subject import Subject
from counterfoil.destinations.delta import DeltaDestination
from counterfoil.destinations.interface import DeliveredRow, Delivery
from counterfoil.errors import DestinationDown, DestinationRefused
from tests.destinations.lake import Clock, data_files, lake, log_path, read, seqs, table
from tests.destinations.making import RECEIVED_AT_MS, ROWS_A_GROUP, delivered
from tests.destinations.power import PowerCut, PowerFiles
from tests.faults.files import ANY, FaultyFiles

CANARY = "canary7f3a"
SUBJECT = Subject(distinct_id=f"{CANARY}-id")
DAY_MS = 86_400_000


def group_of_two(group: int, **fields: Any) -> list[DeliveredRow]:
    """A row that tells of the subject in each of its values, and one of somebody else."""
    told = {
        "distinct_id": f"{CANARY}-id",
        "user_id": f"{CANARY}-user",
        "external_id": f"{CANARY}-external",
        "email": f"{CANARY}@example.org",
        "event_properties": f'{{"name":"{CANARY}"}}',
        "extra": f'{{"note":"{CANARY}"}}',
    }
    first = group * ROWS_A_GROUP
    return [delivered(first, source=f"web-{group}", **told, **fields), delivered(first + 1, user_id="other", **fields)]


def others(groups: int) -> list[int]:
    """The seqs that an erasure leaves of groups of two."""
    return [group * ROWS_A_GROUP + 1 for group in range(1, groups + 1)]


def deliver_two(destination: DeltaDestination, group: int, **fields: Any) -> None:
    destination.deliver(Delivery(group, group, group_of_two(group, **fields)))


def telling_files(root: Path) -> set[str]:
    """The files of the table's directory that hold the canary, in their bytes or in what they say when read."""
    found = set()
    for path in (root / "lake").rglob("*"):
        if not path.is_file():
            continue
        said = path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            said += str(pq.ParquetFile(path).read().to_pylist())
        if CANARY in said:
            found.add(path.relative_to(root / "lake").as_posix())
    return found


def test_no_file_of_the_table_tells_of_the_subject(tmp_path: Path) -> None:
    """Data files in the table, replaced, or never in it; log entries and checkpoints; others' too: nothing is left."""
    destination = lake(tmp_path, merge_commits=4)
    destination.open()
    for group in range(1, 8):
        deliver_two(destination, group, received_at_ms=RECEIVED_AT_MS + group % 2 * DAY_MS)
        while destination.tend():
            pass
    # Another writer rewrites a file, and says in the log why.
    table(tmp_path).delete(f"email = '{CANARY}@example.org' AND source = 'web-7'")
    table(tmp_path).create_checkpoint()
    # A crash left a file that no commit names.
    written = min((tmp_path / "lake").glob("received_date=*/counterfoil-*.parquet"))
    shutil.copy(written, written.with_name("counterfoil-left-over.parquet"))
    before = telling_files(tmp_path)
    assert len([path for path in before if path.startswith("received_date=")]) > 7
    assert len([path for path in before if path.startswith("_delta_log/")]) > 0
    old = table(tmp_path).version()

    assert destination.erase(SUBJECT) == 6
    assert telling_files(tmp_path) == set()
    assert seqs(tmp_path) == others(7)
    with pytest.raises(DeltaError):
        DeltaTable(tmp_path / "lake", version=old)
    destination.close()
    assert lake(tmp_path).open() is not None
    assert seqs(tmp_path) == others(7)


def test_what_is_nobodys_business_stays(tmp_path: Path) -> None:
    """Replaced files without such rows stay for readers; so does a file that another may be about to commit."""
    clock = Clock()
    destination = lake(tmp_path, merge_commits=3, clock=clock)
    destination.open()
    deliver_two(destination, 1)
    for group in (2, 3):
        destination.deliver(Delivery(group, group, group_of_two(group)[1:]))
    replaced = data_files(tmp_path)
    while destination.tend():
        pass
    (telling,) = telling_files(tmp_path) & replaced
    young = (tmp_path / "lake" / telling).with_name("part-of-another.parquet")
    shutil.copy(tmp_path / "lake" / telling, young)
    theirs = tmp_path / "lake" / "theirs.parquet"
    pq.write_table(pa.table({"something": [CANARY]}), theirs)
    destination.erase(SUBJECT)
    assert len(replaced & data_files(tmp_path)) == 2
    assert young.exists()
    clock.ahead_ms = 3_600_000 + 60_000
    destination.erase(SUBJECT)
    assert not young.exists()
    assert theirs.exists()
    assert seqs(tmp_path) == others(3)


def test_a_file_whose_every_row_goes_is_not_replaced(tmp_path: Path) -> None:
    """Nothing stands in its place."""
    destination = lake(tmp_path)
    destination.open()
    destination.deliver(Delivery(1, 1, group_of_two(1)[:1]))
    deliver_two(destination, 2)
    assert destination.erase(SUBJECT) == 2
    assert len(data_files(tmp_path)) == len(table(tmp_path).file_uris()) == 1
    assert seqs(tmp_path) == [2 * ROWS_A_GROUP + 1]


def test_files_of_other_writers_are_erased_from_too(tmp_path: Path) -> None:
    """Of one with its columns in another order, and a column left out, the others' rows are there after."""
    destination = lake(tmp_path)
    destination.open()
    deliver_two(destination, 1)
    # As Spark and others may lay a file out.
    (path,) = (tmp_path / "lake").glob("*/*.parquet")
    rows = pq.ParquetFile(path).read().drop_columns(["extra"])
    pq.write_table(rows.select(rows.column_names[::-1]), path)
    assert destination.erase(SUBJECT) == 1
    assert telling_files(tmp_path) == set()
    (row,) = read(tmp_path)
    assert (row["seq"], row["user_id"], row["extra"]) == (ROWS_A_GROUP + 1, "other", None)


def test_rows_of_a_long_file_keep_their_order_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file of several row groups every other row is as it was, in the same order."""
    monkeypatch.setattr("counterfoil.destinations.delta_columns.ROW_GROUP_ROWS", 500)
    rows = [
        delivered(ROWS_A_GROUP + place, user_id="u" if place % 7 == 0 else None, event_properties=f'{{"n":{place}}}')
        for place in range(3000)
    ]
    destination = lake(tmp_path)
    destination.open()
    destination.deliver(Delivery(1, 1, rows))
    before = table(tmp_path).to_pyarrow_table().to_pylist()
    assert destination.erase(Subject(user_id="u")) == 429
    assert table(tmp_path).to_pyarrow_table().to_pylist() == [row for row in before if row["user_id"] != "u"]
    (path,) = data_files(tmp_path)
    assert pq.ParquetFile(tmp_path / "lake" / path).num_row_groups > 2


def test_rows_of_many_files_go_in_few_commits(tmp_path: Path) -> None:
    """A commit replaces many small files, or one that is large."""
    cases: list[tuple[str, dict[str, Any], int]] = [("small", {}, 1), ("large", {"file_bytes": 2**20}, 5)]
    for name, settings, commits in cases:
        destination = lake(tmp_path / name, **settings)
        destination.open()
        for group in range(1, 6):
            # What can't be compressed makes files of more than half of `file_bytes`.
            noise = Random(group).randbytes(700_000 if settings else 10).hex()
            deliver_two(destination, group, identity_context=noise)
        before = table(tmp_path / name).version()
        assert destination.erase(SUBJECT) == 5
        # And one that says nothing, at the end of what is left of the log.
        assert table(tmp_path / name).version() == before + commits + 1
        assert seqs(tmp_path / name) == others(5)


def test_a_file_that_changes_meanwhile_is_looked_at_anew(tmp_path: Path) -> None:
    """Rows that another writer deletes meanwhile do not come back, and the subject's go all the same."""
    destination = lake(tmp_path)
    destination.open()
    for group in (1, 2, 3):
        deliver_two(destination, group)

    def meddle() -> None:
        table(tmp_path).delete(f"seq = {2 * ROWS_A_GROUP + 1}")

    failpoints.arm("delta.erase_written=1", meddle)
    try:
        assert destination.erase(SUBJECT) == 3
    finally:
        failpoints.arm("")
    assert seqs(tmp_path) == [ROWS_A_GROUP + 1, 3 * ROWS_A_GROUP + 1]
    assert telling_files(tmp_path) == set()


class TestReaders:
    """Who reads meanwhile."""

    def test_whoever_opens_the_table_sees_all_rows_of_the_others(self, tmp_path: Path) -> None:
        """A read that succeeds holds each row of the others once; one that was under way may fail."""
        destination = lake(tmp_path)
        destination.open()
        for group in range(1, 13):
            deliver_two(destination, group)
        seen: list[set[int]] = []
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                try:
                    found = seqs(tmp_path)
                except (DeltaError, OSError, pa.ArrowException):
                    continue
                assert len(found) == len(set(found))
                seen.append(set(found))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            while not seen:
                done.wait(0.01)
            assert destination.erase(SUBJECT) == 12
            count = len(seen)
            while len(seen) < count + 2 and watcher.is_alive():
                done.wait(0.01)
        finally:
            done.set()
            watcher.join()
        assert len(seen[0]) == 24
        assert all(each >= set(others(12)) for each in seen)
        assert seen[-1] == set(others(12))


class TestFailures:
    """What keeps it from erasing."""

    def test_a_column_that_was_added_is_told_and_nothing_is_lost(self, tmp_path: Path) -> None:
        """What others keep in a column of theirs is not thrown away with a file: the column is told by name."""
        destination = lake(tmp_path)
        destination.open()
        deliver_two(destination, 1)
        table(tmp_path).alter.add_columns([Field("region", PrimitiveType("string"))])
        for _ in range(2):
            with pytest.raises(DestinationRefused, match="column region is not ours"):
                destination.erase(SUBJECT)
        with pytest.raises(DestinationRefused, match="column region is not ours"):
            destination.open()
        assert seqs(tmp_path) == [ROWS_A_GROUP, ROWS_A_GROUP + 1]

    def test_a_file_that_cannot_be_read_is_told_and_the_rest_is_erased(self, tmp_path: Path) -> None:
        """The file is told by name, with what to do; once it is out of the table, the same once more succeeds."""
        destination = lake(tmp_path)
        destination.open()
        deliver_two(destination, 1)
        (damaged,) = data_files(tmp_path)
        deliver_two(destination, 2)
        (tmp_path / "lake" / damaged).write_bytes(b"PAR1 nothing PAR1")
        for _ in range(2):
            with pytest.raises(DestinationRefused, match=f"{damaged} can't be read.*repair"):
                destination.erase(SUBJECT)
        (tmp_path / "lake" / damaged).unlink()
        assert telling_files(tmp_path) == set()
        with pytest.raises(DestinationRefused, match=damaged):
            destination.erase(SUBJECT)
        table(tmp_path).repair()
        destination.open()
        assert destination.erase(SUBJECT) == 0
        assert seqs(tmp_path) == [2 * ROWS_A_GROUP + 1]


GROUPS = 3
SETTINGS: dict[str, Any] = {"merge_commits": 2}


def begin(root: Path, files: PowerFiles | FaultyFiles | None = None) -> DeltaDestination:
    """A table with a merged file, one that is not, those that were replaced, and log entries before a checkpoint."""
    destination = lake(root, files=files, **SETTINGS)
    destination.open()
    for group in range(1, GROUPS + 1):
        deliver_two(destination, group)
        while group < GROUPS and destination.tend():
            pass
    return destination


def assert_made_good(root: Path) -> None:
    """Another life finds the cursor and everybody else's rows, and the same once more erases what is left."""
    destination = lake(root, **SETTINGS)
    held = destination.open()
    assert held is not None
    assert held.last_group == GROUPS
    assert set(others(GROUPS)) <= set(seqs(root)) <= {*others(GROUPS), *(seq - 1 for seq in others(GROUPS))}
    assert len(seqs(root)) == len(set(seqs(root)))
    destination.erase(SUBJECT)
    assert seqs(root) == others(GROUPS)
    assert telling_files(root) == set()
    deliver_two(destination, GROUPS + 1)
    assert len(seqs(root)) == GROUPS + 2
    destination.close()


def test_a_power_cut_at_any_operation_of_it_is_made_good(tmp_path: Path) -> None:
    """Whatever the disk kept of what was not flushed: nobody else's row is lost, and the subject's go in the end."""
    whole = PowerFiles(tmp_path / "whole")
    destination = begin(tmp_path / "whole", whole)
    first = whole.operation_count
    destination.erase(SUBJECT)
    assert whole.operation_count - first > 20
    picks = Random(7)
    for cut_at in range(first, whole.operation_count):
        before, after = tmp_path / "before", tmp_path / "after"
        files = PowerFiles(before, cut_at)
        destination = begin(before, files)
        with pytest.raises(PowerCut):
            destination.erase(SUBJECT)
        after.mkdir()
        files.after_cut(after, Random(picks.random()) if cut_at % 3 else None)
        assert_made_good(after)
        shutil.rmtree(before)
        shutil.rmtree(after)


def test_a_disk_that_fails_at_any_operation_of_it_is_down_and_then_goes_on(tmp_path: Path) -> None:
    """Each operation that fails makes the destination down, nothing else; the same once more makes it good."""
    for at in range(1, 200, 3):
        root = tmp_path / str(at)
        files = FaultyFiles()
        destination = begin(root, files)
        files.break_down(ANY, at)
        try:
            destination.erase(SUBJECT)
        except DestinationDown:
            destination.close()
            assert_made_good(root)
        else:
            break
    assert at > 20


@pytest.mark.parametrize(
    "point",
    [
        "delta.erase_written=2",
        "delta.erase_committed=1",
        "delta.erase_committed=3",
        "delta.erase_flushed=2",
        "delta.checkpoint_made=1",
        "delta.checkpoint_flushed=1",
        "delta.log_forgotten=1",
        "delta.old_files_removed=1",
    ],
)
def test_ended_between_two_steps_it_is_made_good(tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step the process may end."""
    monkeypatch.setattr("counterfoil.destinations.delta_disk.FILES_A_COMMIT", 1)

    def end() -> None:
        raise PowerCut

    destination = begin(tmp_path)
    failpoints.arm(point, end)
    try:
        with pytest.raises(PowerCut):
            destination.erase(SUBJECT)
    finally:
        failpoints.arm("")
    destination.close()
    assert_made_good(tmp_path)


def test_files_stay_the_owners_alone(tmp_path: Path) -> None:
    """What an erasure writes nobody else can read."""
    before = os.umask(0)
    try:
        begin(tmp_path).erase(SUBJECT)
    finally:
        os.umask(before)
    inside = list((tmp_path / "lake").rglob("*"))
    assert [path for path in inside if path.stat().st_mode & 0o077] == []
    assert log_path(tmp_path).exists()
