from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from counterfoil.aside import FileNote
from counterfoil.destinations.delta_log import is_whole
from counterfoil.errors import DestinationDown, DestinationRefused
from tests.destinations.lake import Clock, data_files, lake, log_path, newest_entry, seqs, table
from tests.destinations.making import ROWS_A_GROUP, delivery


def deliver(root: Path, first_group: int, count: int, merge_commits: int = 50) -> None:
    """One life that delivers some groups of a row each."""
    destination = lake(root, merge_commits=merge_commits)
    destination.open()
    for group in range(first_group, first_group + count):
        destination.deliver(delivery(group, row_count=1))
        while destination.tend():
            pass
    destination.close()


def cut_in_half(entry: bytes) -> bytes:
    return entry[: len(entry) // 2]


def empty(entry: bytes) -> bytes:
    return b""


def zeros(entry: bytes) -> bytes:
    return bytes(len(entry))


def zeros_at_the_end(entry: bytes) -> bytes:
    return entry[:-20] + bytes(20)


def without_its_last_line(entry: bytes) -> bytes:
    return b"\n".join(entry.splitlines()[:-1]) + b"\n"


@pytest.mark.parametrize("tear", [cut_in_half, empty, zeros, zeros_at_the_end, without_its_last_line])
def test_a_torn_newest_entry_goes_to_quarantine(tmp_path: Path, tear: Callable[[bytes], bytes]) -> None:
    """The entry is set aside with a note, its files go, the cursor stands before it: the group comes again, once."""
    deliver(tmp_path, 1, 3)
    entry = newest_entry(tmp_path)
    torn = tear(entry.read_bytes())
    entry.write_bytes(torn)

    destination = lake(tmp_path)
    receipt = destination.open()
    assert receipt is not None
    assert receipt.last_group == 2
    assert len(data_files(tmp_path)) == 2
    (note_path,) = (tmp_path / "quarantine").glob("*.json")
    note = msgspec.json.decode(note_path.read_bytes(), type=FileNote)
    assert note.file == f"lake/_delta_log/{entry.name}"
    assert note.copied_bytes == len(torn)
    assert note_path.with_suffix(".bytes").read_bytes() == torn

    destination.deliver(delivery(3, row_count=1))
    destination.close()
    assert seqs(tmp_path) == [ROWS_A_GROUP, 2 * ROWS_A_GROUP, 3 * ROWS_A_GROUP]


@pytest.mark.parametrize("kind", ["create", "delivery", "settings", "merge"])
def test_every_entry_of_ours_shows_when_a_line_of_it_is_missing(tmp_path: Path, kind: str) -> None:
    """Creation, delivery, change of settings and merge: each says of itself how much it holds."""
    deliver(tmp_path, 1, 2, merge_commits=2)
    lake(tmp_path, keep_hours=9).open()
    entries = [path.read_bytes() for path in log_path(tmp_path).glob("*.json")]
    (entry, *_) = [entry for entry in entries if f'"kind":"{kind}"'.encode() in entry]
    assert is_whole(entry)
    for number in range(1, len(entry.splitlines())):
        lines = entry.splitlines(keepends=True)
        assert not is_whole(b"".join(lines[:number] + lines[number + 1 :]))


def test_a_table_whose_first_entry_is_torn_is_made_anew(tmp_path: Path) -> None:
    """A power cut while the table is made leaves nothing that stands in the way."""
    lake(tmp_path).open()
    newest_entry(tmp_path).write_bytes(b"")
    deliver(tmp_path, 1, 2)
    assert seqs(tmp_path) == [ROWS_A_GROUP, 2 * ROWS_A_GROUP]
    assert len(list((tmp_path / "quarantine").iterdir())) == 2


def test_a_torn_merge_loses_nothing(tmp_path: Path) -> None:
    """When the entry of a merge is torn the files it merged are still there and count again."""
    destination = lake(tmp_path, merge_commits=5)
    destination.open()
    for group in range(1, 6):
        destination.deliver(delivery(group, row_count=1))
    while len(list(log_path(tmp_path).glob("*.json"))) < 7:
        assert destination.tend()
    destination.close()
    newest_entry(tmp_path).write_bytes(b"\0" * 100)
    again = lake(tmp_path)
    receipt = again.open()
    assert receipt is not None
    assert receipt.last_group == 5
    assert seqs(tmp_path) == [group * ROWS_A_GROUP for group in range(1, 6)]
    assert len(data_files(tmp_path)) == 5


def test_damage_that_no_crash_explains_is_refused_by_name(tmp_path: Path) -> None:
    """A bad entry below the newest, or a missing one, is never passed over; the message names the file."""
    deliver(tmp_path, 1, 3)
    victim = log_path(tmp_path) / f"{2:020d}.json"
    victim.write_bytes(b"{")
    with pytest.raises(DestinationRefused, match=victim.name):
        lake(tmp_path).open()
    victim.unlink()
    with pytest.raises(DestinationRefused, match=f"{victim.name}: missing"):
        lake(tmp_path).open()
    assert newest_entry(tmp_path).name == f"{3:020d}.json"


@pytest.mark.parametrize("pointer", [b"", b"{", b'{"version":77}', b"[]", b'{"version":"x"}'])
def test_a_torn_pointer_to_the_checkpoint_is_done_without(tmp_path: Path, pointer: bytes) -> None:
    """`_last_checkpoint` is a hint: when it is torn it is removed and the table opens all the same."""
    deliver(tmp_path, 1, 6, merge_commits=5)
    (log_path(tmp_path) / "_last_checkpoint").write_bytes(pointer)
    deliver(tmp_path, 7, 1)
    assert len(seqs(tmp_path)) == 7


def test_a_torn_checkpoint_is_set_aside_while_the_log_before_it_stands(tmp_path: Path) -> None:
    """A checkpoint that a power cut tore goes to quarantine; the entries that it would replace serve."""
    deliver(tmp_path, 1, 6, merge_commits=5)
    (checkpoint,) = log_path(tmp_path).glob("*.checkpoint.parquet")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100] + bytes(100))
    deliver(tmp_path, 7, 1)
    assert len(seqs(tmp_path)) == 7
    assert not checkpoint.exists()
    assert len(list((tmp_path / "quarantine").glob("*.bytes"))) == 1


def test_a_torn_checkpoint_whose_log_is_gone_is_refused(tmp_path: Path) -> None:
    """With nothing to stand in for it the table is damaged, and that is said."""
    deliver(tmp_path, 1, 6, merge_commits=5)
    (checkpoint,) = log_path(tmp_path).glob("*.checkpoint.parquet")
    checkpoint.write_bytes(b"")
    (log_path(tmp_path) / f"{0:020d}.json").unlink()
    with pytest.raises(DestinationRefused, match="missing: bring the table back"):
        lake(tmp_path).open()


def test_what_killed_writers_leave_in_the_log_is_removed(tmp_path: Path) -> None:
    """Staging files of the object store and of our own go at the next start; foreign files stay."""
    deliver(tmp_path, 1, 1)
    left = [f"{9:020d}.json#1", f"{9:020d}.checkpoint.parquet#2", "_last_checkpoint#1", f".{1:020d}.json.17.tmp"]
    for name in [*left, "notes.txt"]:
        (log_path(tmp_path) / name).write_bytes(b"x")
    lake(tmp_path).open()
    assert not {path.name for path in log_path(tmp_path).iterdir()} & set(left)
    assert (log_path(tmp_path) / "notes.txt").exists()


def test_data_files_that_no_commit_names_are_removed_at_open(tmp_path: Path) -> None:
    """What a killed delivery wrote goes; what is in the table, was replaced lately or is another's stays."""
    deliver(tmp_path, 1, 5, merge_commits=5)
    before = data_files(tmp_path)
    (day,) = (tmp_path / "lake").glob("received_date=*")
    shutil.copy(tmp_path / "lake" / next(iter(before)), day / "counterfoil-0123.parquet")
    shutil.copy(tmp_path / "lake" / next(iter(before)), day / "part-0-mine.parquet")
    lake(tmp_path).open()
    assert data_files(tmp_path) - before == {f"{day.name}/part-0-mine.parquet"}
    assert before <= data_files(tmp_path)


def test_log_entries_go_after_a_time_or_when_they_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a checkpoint no more than so many entries stay, however young; above it all of them do."""
    monkeypatch.setattr("counterfoil.destinations.delta_log.LOG_ENTRIES_MAX", 7)
    deliver(tmp_path, 1, 33, merge_commits=10)
    versions = sorted(int(path.stem) for path in log_path(tmp_path).glob("*.json"))
    checkpoint = max(int(path.name[:20]) for path in log_path(tmp_path).glob("*.checkpoint.parquet"))
    assert versions == list(range(checkpoint - 7, versions[-1] + 1))
    assert table(tmp_path).to_pyarrow_table().num_rows == 33


def test_a_reader_that_is_older_than_the_log_reads_on(tmp_path: Path) -> None:
    """A table that was opened before the log was cleaned still gives its rows."""
    clock = Clock()
    deliver(tmp_path, 1, 3)
    reader = table(tmp_path)
    destination = lake(tmp_path, clock=clock, merge_commits=5)
    destination.open()
    clock.ahead_ms = 1_800_000
    for group in range(4, 12):
        destination.deliver(delivery(group, row_count=1))
        while destination.tend():
            pass
    assert reader.to_pyarrow_table().num_rows == 3


@pytest.mark.parametrize(
    ("entry", "whole"),
    [
        (b"", False),
        (b'{"add":{"path":"a"}}', True),
        (b'{"add":{"path":"a"}}\n{"ad', False),
        (b"[]", False),
        (b"\xff", False),
        (b'{"commitInfo":{"counterfoil":{"kind":"merge","action_count":2}}}\n{"add":{}}\n{"txn":{}}', True),
        (b'{"commitInfo":{"counterfoil":{"kind":"merge","action_count":2}}}\n{"add":{}}', False),
        (b'{"commitInfo":{"counterfoil":{"kind":5}}}', False),
    ],
)
def test_what_counts_as_a_whole_entry(entry: bytes, whole: bool) -> None:
    """Every line a JSON object, and as many actions as the commit says that it has."""
    assert is_whole(entry) is whole


def test_no_value_of_a_person_stands_in_the_log(tmp_path: Path) -> None:
    """Statistics name times, sources and numbers; identities and properties are in the data files alone."""
    destination = lake(tmp_path)
    destination.open()
    fields: dict[str, Any] = {
        "distinct_id": "secret-1",
        "user_id": "secret-2",
        "external_id": "secret-3",
        "email": "secret-4",
        "event_properties": json.dumps({"secret-5": 1}),
        "event": "secret-6",
    }
    destination.deliver(delivery(1, **fields))
    assert "secret" not in newest_entry(tmp_path).read_text()


def test_a_log_entry_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    """What the system does not let read is told with the file's name, and tried again."""
    deliver(tmp_path, 1, 2)
    entry = newest_entry(tmp_path)
    entry.unlink()
    entry.mkdir()
    with pytest.raises(DestinationDown, match=f"{entry}: Is a directory"):
        lake(tmp_path).open()
