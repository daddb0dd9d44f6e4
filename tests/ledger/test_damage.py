"""What the disk or an operator breaks is refused with one line, and nothing is told that is not so."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from counterfoil.errors import LedgerDamaged, LedgerInUse, LedgerUnusable, LedgerWriteFailed
from counterfoil.ledger import Ledger, LedgerReader
from counterfoil.ledger.records import FORMAT_VERSION
from counterfoil.ledger.store import COMMITTED, FACTS, Store
from tests.ledger.test_ledger import LEDGER_ID, SETTINGS, one_row, opened


def with_groups(path: Path, count: int) -> Ledger:
    ledger = opened(path)
    for number in range(1, count + 1):
        ledger.record(one_row(number, number.to_bytes(16, "big")))
    return ledger


def flip_in_the_middle(path: Path, pattern: str) -> tuple[Path, int, bytes]:
    """Change some bytes in the largest file of a kind; where, and what stood there."""
    file = max((path / "ledger").glob(pattern), key=lambda each: each.stat().st_size)
    middle = file.stat().st_size // 2
    with file.open("r+b") as opened_file:
        opened_file.seek(middle)
        before = opened_file.read(16)
        opened_file.seek(middle)
        opened_file.write(bytes(byte ^ 0xFF for byte in before))
    return file, middle, before


def test_damage_in_the_log_is_refused_and_the_log_is_left_alone(tmp_path: Path) -> None:
    """When batches that were flushed can't be read any more the ledger is refused; mended, it has them all."""
    # Copied before it is closed: what it wrote lies in the log alone, as after a crash.
    killed = with_groups(tmp_path, 50)
    shutil.copytree(tmp_path / "ledger", tmp_path / "crashed" / "ledger")
    killed.close()
    crashed = tmp_path / "crashed"
    file, middle, before = flip_in_the_middle(crashed, "*.log")
    for _ in range(2):
        with pytest.raises(LedgerUnusable, match="changes that were flushed are gone"):
            opened(crashed)
    with file.open("r+b") as mended:
        mended.seek(middle)
        mended.write(before)
    ledger = opened(crashed)
    assert ledger.last_group() == 50
    ledger.close()


def test_a_torn_end_of_the_log_is_no_damage(tmp_path: Path) -> None:
    """What a crash cut off had not been flushed; the ledger opens with everything before it."""
    killed = with_groups(tmp_path, 5)
    shutil.copytree(tmp_path / "ledger", tmp_path / "crashed" / "ledger")
    killed.close()
    log = max((tmp_path / "crashed" / "ledger").glob("*.log"), key=lambda each: each.stat().st_size)
    with log.open("ab") as torn:
        torn.write(b"\x17" * 100)
    ledger = opened(tmp_path / "crashed")
    assert ledger.last_group() == 5
    ledger.close()


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x10]) + data[len(data) // 2 + 1 :],
    "zeroed": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "cut": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "missing": lambda data: None,
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of 200 groups as a killed process leaves it, the last 50 of them in the log alone."""
    path = tmp_path_factory.mktemp("killed")
    ledger = with_groups(path, 150)
    for family in ledger._store._families.values():
        family.flush()
    for number in range(151, 201):
        ledger.record(one_row(number, number.to_bytes(16, "big")))
    shutil.copytree(path / "ledger", path / "copy" / "ledger")
    shutil.copy(path / "ledger.made", path / "copy")
    ledger.close()
    return path / "copy"


def read_whole(path: Path) -> None:
    ledger = opened(path)
    try:
        assert [group.number for group in ledger.groups(0, 1000)] == list(range(1, 201))
        assert None not in ledger.seen([number.to_bytes(16, "big") for number in range(1, 201)])
    finally:
        ledger.close()


def damaged_copy(killed: Path, path: Path, pattern: str, damage: str) -> Path:
    shutil.copytree(killed, path, dirs_exist_ok=True)
    file = max((path / "ledger").glob(pattern), key=lambda each: each.stat().st_size)
    data = DAMAGES[damage](file.read_bytes())
    file.unlink() if data is None else file.write_bytes(data)
    return path


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", ["*.log", "*.sst", "MANIFEST-*", "CURRENT"])
def test_a_damaged_file_of_the_ledger_is_told(killed: Path, tmp_path: Path, pattern: str, damage: str) -> None:
    """Where a file that the ledger needs is damaged the ledger is refused with what to do, at once or at a read."""
    with pytest.raises(LedgerDamaged, match="run `counterfoil rebuild`"):
        read_whole(damaged_copy(killed, tmp_path, pattern, damage))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", ["OPTIONS-*", "IDENTITY", "LOG", "rocksdict-config.json", COMMITTED])
def test_a_damaged_file_that_the_ledger_does_not_need(killed: Path, tmp_path: Path, pattern: str, damage: str) -> None:
    """Damage of what only helps changes nothing of what the ledger knows."""
    read_whole(damaged_copy(killed, tmp_path, pattern, damage))


@pytest.mark.parametrize("kind", [Ledger, LedgerReader])
@pytest.mark.parametrize("pattern", ["CURRENT", "MANIFEST-*", "rocksdict-config.json"])
def test_a_directory_in_a_files_place_is_told(
    killed: Path, tmp_path: Path, pattern: str, kind: type[LedgerReader]
) -> None:
    """Whoever opens the ledger is told in one line what to look at, also where only reading is wanted."""
    shutil.copytree(killed / "ledger", tmp_path / "ledger")
    (file,) = (tmp_path / "ledger").glob(pattern)
    file.unlink()
    file.mkdir()
    with pytest.raises(LedgerUnusable, match=r": see that the disk|; everything in the data directory must be"):
        kind.open(tmp_path / "ledger", SETTINGS, LEDGER_ID)


def test_a_lock_that_can_not_be_opened_is_nobodys(killed: Path, tmp_path: Path) -> None:
    """It is not taken for another process, which would be waited for without end."""
    shutil.copytree(killed / "ledger", tmp_path / "ledger")
    (tmp_path / "ledger" / "LOCK").unlink(missing_ok=True)
    (tmp_path / "ledger" / "LOCK").mkdir()
    with pytest.raises(LedgerUnusable, match="see that the disk can be read") as caught:
        opened(tmp_path)
    assert not isinstance(caught.value, LedgerInUse)


def test_a_reader_tells_a_current_that_is_no_text(killed: Path, tmp_path: Path) -> None:
    """Bytes that name no manifest are damage."""
    shutil.copytree(killed / "ledger", tmp_path / "ledger")
    (tmp_path / "ledger" / "CURRENT").write_bytes(b"\xff\xfe\n")
    with pytest.raises(LedgerDamaged, match="CURRENT: names no manifest"):
        LedgerReader.open(tmp_path / "ledger", SETTINGS, LEDGER_ID)


def test_a_ledger_whose_log_and_note_are_gone_is_not_begun_anew(killed: Path, tmp_path: Path) -> None:
    """Where nothing of a ledger is left but its frame, no second one begins with group 1."""
    shutil.copy(killed / "ledger.made", tmp_path)
    Store(tmp_path / "ledger", SETTINGS, is_writer=True).close()
    (tmp_path / "ledger" / COMMITTED).unlink(missing_ok=True)
    with pytest.raises(LedgerDamaged, match="what the ledger held is gone"):
        opened(tmp_path)


def test_a_reader_refuses_what_lost_commits(killed: Path, tmp_path: Path) -> None:
    """A command that reads does not take the part that is left for the whole."""
    damaged_copy(killed, tmp_path, "*.log", "cut")
    with pytest.raises(LedgerDamaged):
        LedgerReader.open(tmp_path / "ledger", SETTINGS, LEDGER_ID)


def test_a_lost_note_of_what_was_committed_is_no_damage(tmp_path: Path) -> None:
    """The note is not flushed: missing, torn or unreadable it says nothing."""
    with_groups(tmp_path, 3).close()
    note = tmp_path / "ledger" / COMMITTED
    for content in (b"", b"\xff" * 7, b"\xff" * 16):
        note.write_bytes(content)
        ledger = opened(tmp_path)
        assert ledger.last_group() == 3
        ledger.close()
    note.unlink()
    opened(tmp_path).close()


def test_files_that_were_removed_are_refused(tmp_path: Path) -> None:
    """A directory whose database is gone does not become a new, empty ledger."""
    with_groups(tmp_path, 3).close()
    for file in (tmp_path / "ledger").iterdir():
        if file.name != COMMITTED:
            file.unlink()
    with pytest.raises(LedgerUnusable, match="gone"):
        opened(tmp_path)


def test_a_ledger_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """Where a ledger was made and is gone no second one begins with group 1."""
    with_groups(tmp_path, 3).close()
    shutil.move(tmp_path / "ledger", tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(LedgerUnusable, match="the ledger that was made here is gone"):
            opened(tmp_path)
        (tmp_path / "ledger").mkdir(exist_ok=True)
    (tmp_path / "ledger").rmdir()
    shutil.move(tmp_path / "elsewhere", tmp_path / "ledger")
    opened(tmp_path).close()


def test_a_damaged_block_is_never_read_as_nothing(tmp_path: Path) -> None:
    """Reading over damage raises; it does not end as if there were no more."""
    ledger = with_groups(tmp_path, 150)
    for family in ledger._store._families.values():
        family.flush()
    ledger.close()
    flip_in_the_middle(tmp_path, "*.sst")

    def read_all() -> int:
        ledger = opened(tmp_path)
        try:
            assert [group.number for group in ledger.groups(0, 1000)] == list(range(1, 151))
            keys = [number.to_bytes(16, "big") for number in range(1, 151)]
            return sum(seen is not None for seen in ledger.seen(keys))
        finally:
            ledger.close()

    with pytest.raises(LedgerUnusable, match="Corruption"):
        read_all()


def test_a_ledger_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    """L6: what another version wrote is not read, and not written."""
    ledger = opened(tmp_path)
    batch = ledger._store.batch()
    batch.put(FACTS, b"format", (FORMAT_VERSION + 1).to_bytes(2, "big"))
    ledger._store.write(batch)
    ledger.close()
    with pytest.raises(
        LedgerUnusable, match=f"format version {FORMAT_VERSION + 1}, this .* reads versions up to {FORMAT_VERSION}"
    ):
        opened(tmp_path)
    with pytest.raises(
        LedgerUnusable, match=f"format version {FORMAT_VERSION + 1}, this .* reads versions up to {FORMAT_VERSION}"
    ):
        LedgerReader.open(tmp_path / "ledger", SETTINGS, LEDGER_ID)


def test_a_ledger_in_use_is_refused(tmp_path: Path) -> None:
    """One writer at a time; the line says so."""
    ledger = opened(tmp_path)
    with pytest.raises(LedgerUnusable, match="another process writes this ledger"):
        opened(tmp_path)
    ledger.close()


def test_reading_where_no_ledger_is_makes_none(tmp_path: Path) -> None:
    """A reader says that there is none, and leaves nothing behind."""
    with pytest.raises(LedgerUnusable, match="there is no ledger here"):
        LedgerReader.open(tmp_path / "ledger", SETTINGS, LEDGER_ID)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """What the system refuses is told with the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnusable, match="file/ledger: Not a directory"):
        opened(tmp_path / "file")


def test_a_failed_batch_leaves_nothing_and_ends_writing(tmp_path: Path) -> None:
    """L1: after a batch that failed nothing of it counts, and nothing more is taken until the ledger is opened anew."""
    ledger = opened(tmp_path)
    ledger.register_destination("lake")
    ledger.record(one_row(1, b"y" * 16))
    before = ledger.books()
    with patch.object(Store, "write", side_effect=LedgerWriteFailed("no space left")), pytest.raises(LedgerWriteFailed):
        ledger.record(one_row(2, b"x" * 16))
    with pytest.raises(LedgerWriteFailed, match="no space left"):
        ledger.record(one_row(2, b"x" * 16))
    with pytest.raises(LedgerWriteFailed, match="no space left"):
        ledger.record_delivery("lake", first_group=1, last_group=1, delivered_rows=0, commit="", at_ms=1)
    assert (ledger.books(), ledger.last_group(), ledger.seen([b"x" * 16])) == (before, 1, [None])
    ledger.close()
    ledger = opened(tmp_path)
    assert ledger.books() == before
    ledger.record(one_row(2, b"x" * 16))
    ledger.close()


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    """Promise P6: nobody else can read what RocksDB makes, whatever the umask was."""
    ledger = with_groups(tmp_path, 3)
    for family in ledger._store._families.values():
        family.flush()
    files = [tmp_path / "ledger", *(tmp_path / "ledger").iterdir()]
    assert {stat.S_IMODE(file.stat().st_mode) & 0o077 for file in files} == {0}
    assert any(file.suffix == ".sst" for file in files)
    ledger.close()
