"""The data directory: owner only, one id for good, and each half of the server at most once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from counterfoil.datadir import DataDir, Part
from counterfoil.errors import StartRefused

HOLD = """
import sys
from pathlib import Path
from counterfoil.datadir import DataDir, Part
with DataDir(Path(sys.argv[1])).lock(Part(sys.argv[2]), wait_seconds=0):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    """A data directory that was made."""
    made = DataDir(tmp_path / "data")
    made.make()
    return made


def hold(data: DataDir, part: Part) -> subprocess.Popen[str]:
    """A process that holds a part's lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(data.path), part], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    with process:
        process.send_signal(signal.SIGKILL)


def test_all_of_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    """N1: whatever the umask, and also when the directory was there and open."""
    path = tmp_path / "data"
    path.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        DataDir(path).make()
    finally:
        os.umask(before)
    for entry in (path, *path.rglob("*")):
        assert entry.stat().st_mode & 0o077 == 0, entry


def test_the_id_is_made_once(data: DataDir) -> None:
    """N2: a second make, by another object, returns the id of the first."""
    assert isinstance(data.id, UUID)
    assert DataDir(data.path).make() == data.id


@pytest.mark.parametrize("part", ["queue", "ledger"])
def test_a_lost_id_is_never_made_anew(data: DataDir, part: str) -> None:
    """N2: beside a queue or a ledger no new id is made; where nothing tells the old one there is none."""
    (data.path / part / "something").touch()
    (data.path / "id").unlink()
    assert data.make() is None
    assert not (data.path / "id").exists()


def test_a_lost_id_is_put_back(data: DataDir) -> None:
    """N2: the id also stands in `ledger.made`, and is taken from there."""
    before = data.id
    (data.path / "ledger.made").write_text(f"{before}\n")
    (data.path / "id").unlink()
    assert data.make() == before == data.id


@pytest.mark.parametrize("text", ["?", "\xff", "", str(UUID(int=7))])
def test_a_damaged_id_is_put_back_and_set_aside(data: DataDir, text: str) -> None:
    """N2: what two places say holds against a third, also where that reads as an id; the damaged file is kept."""
    before = data.id
    (data.path / "ledger.made").write_text(f"{before}\n")
    damaged = text.encode("latin-1")
    (data.path / "id").write_bytes(damaged)
    assert data.make(lambda: before) == before == data.id
    (copy,) = data.quarantine.glob("id-*.bytes")
    assert copy.read_bytes() == damaged


def test_of_two_ids_that_differ_neither_is_taken(data: DataDir) -> None:
    """N2: when the ledger can't say which of two is right, nobody guesses."""
    (data.path / "ledger.made").write_text(f"{UUID(int=7)}\n")
    assert data.make() is None


def test_a_directory_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    """A home directory that was named by mistake is not made private and filled."""
    tmp_path.chmod(0o755)
    (tmp_path / "letters").mkdir()
    with pytest.raises(StartRefused, match="neither empty nor a data directory: it holds letters"):
        DataDir(tmp_path).make()
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_what_a_crash_left_of_the_first_start_is_no_other_thing(tmp_path: Path) -> None:
    """A start that ended before the id was there can be repeated."""
    (tmp_path / ".id.17.tmp").touch()
    (tmp_path / "lock").touch()
    DataDir(tmp_path).make()


def test_another_owners_directory_is_refused_in_one_line(data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server started by the wrong user says whose directory it is."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 54_321)
    with pytest.raises(StartRefused) as caught:
        data.make()
    assert str(caught.value).startswith(f"{data.path}: the data directory of user ")
    assert "\n" not in str(caught.value)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    """What can't be a directory is one line, not a traceback."""
    (tmp_path / "data").touch()
    with pytest.raises(StartRefused, match=r"^\S+/data: File exists; everything in the data directory must be"):
        DataDir(tmp_path / "data").make()


@pytest.mark.parametrize("name", ["id", "ledger.made", "lock", "quarantine"])
def test_what_can_not_be_opened_is_named(data: DataDir, name: str) -> None:
    """Something else in the place of one of its files is told by that file's name in one line, not by a traceback."""
    path = data.path / name
    if path.is_dir():
        path.rmdir()
        path.symlink_to("nowhere")
    else:
        path.unlink(missing_ok=True)
        path.mkdir()

    def start() -> None:
        data.make()
        with data.lock(Part.SERVE):
            pass

    with pytest.raises(StartRefused) as caught:
        start()
    assert str(caught.value).startswith(f"{path}: ")
    assert "for user " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_makes_nothing(tmp_path: Path) -> None:
    """A command that reads leaves no directory behind and says that there is none."""
    with pytest.raises(StartRefused, match="no data directory yet"):
        _ = DataDir(tmp_path / "data").id
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (Part.SERVE, Part.SERVE),
        (Part.SERVE, Part.GATEWAY),
        (Part.GATEWAY, Part.SERVE),
        (Part.PIPELINE, Part.SERVE),
        (Part.PIPELINE, Part.PIPELINE),
    ],
)
def test_a_part_that_runs_is_named_to_who_wants_its_place(data: DataDir, held: Part, wanted: Part) -> None:
    """N3: the second is refused, and learns which command and process is the first."""
    process = hold(data, held)
    try:
        assert data.holder() == f"counterfoil {held}, process {process.pid}"
        with pytest.raises(StartRefused) as caught, data.lock(wanted, wait_seconds=0):
            pass
        assert str(caught.value) == f"{data.path}: in use by counterfoil {held}, process {process.pid}; stop it first"
    finally:
        end(process)


def test_the_halves_run_beside_each_other(data: DataDir) -> None:
    """A gateway and a pipeline share a data directory."""
    process = hold(data, Part.GATEWAY)
    try:
        with data.lock(Part.PIPELINE, wait_seconds=0):
            assert data.holder() is not None
    finally:
        end(process)


def test_an_old_life_that_ends_in_time_is_waited_for(data: DataDir) -> None:
    """N3: a restart after a SIGKILL gets the lock as soon as the kernel lets it go."""
    process = hold(data, Part.SERVE)
    end(process)
    with data.lock(Part.SERVE):
        assert data.holder() is not None
    assert data.holder() is None


def test_who_inherits_the_lock_holds_it_too(data: DataDir) -> None:
    """The lock of a killed supervisor is free when the last process below it has ended, and not before."""
    with data.lock(Part.SERVE, wait_seconds=0) as descriptors:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=descriptors)
    with pytest.raises(StartRefused), data.lock(Part.SERVE, wait_seconds=0):
        pass
    with child:
        child.kill()
    with data.lock(Part.SERVE, wait_seconds=0):
        pass
