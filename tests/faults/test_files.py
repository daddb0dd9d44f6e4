"""The faulty twin of files fails when it is told to, and only then."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from counterfoil.files import FILE_MODE, Files, RealFiles
from tests.faults.disk import RecordingFiles, everything, nothing
from tests.faults.files import ANY, OPERATIONS, FaultyFiles

IMPLEMENTATIONS: dict[str, Callable[[Path], Files]] = {
    "real": lambda root: RealFiles(),
    "faulty": lambda root: FaultyFiles(),
    "recording": lambda root: RecordingFiles(root, "shared"),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return IMPLEMENTATIONS[request.param](tmp_path)


def test_a_file_grows_by_appending(files: Files, tmp_path: Path) -> None:
    """A new file holds what was appended, belongs to its owner alone, and can't be made twice."""
    path = tmp_path / "file"
    descriptor = files.create(path)
    files.append(descriptor, b"one ")
    files.append(descriptor, b"")
    files.append(descriptor, b"two")
    files.fdatasync(descriptor)
    os.close(descriptor)
    assert path.read_bytes() == b"one two"
    assert path.stat().st_mode & 0o777 == FILE_MODE
    with pytest.raises(FileExistsError):
        files.create(path)
    files.truncate(path, 3)
    files.sync_file(path)
    assert path.read_bytes() == b"one"


def test_entries_come_and_go(files: Files, tmp_path: Path) -> None:
    """Directories are made with what lies above them; files are renamed over others and removed."""
    folder = tmp_path / "a" / "b"
    files.make_dir(folder)
    files.make_dir(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    files.write_whole(folder / "one", b"1")
    files.write_whole(folder / "two", b"2")
    files.rename(folder / "one", folder / "two")
    files.sync_dir(folder)
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("two", b"1")]
    files.remove(folder / "two")
    with pytest.raises(FileNotFoundError):
        files.remove(folder / "two")
    assert 0 < files.free_bytes(folder) <= files.disk_bytes(folder)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Whichever step of write_whole fails, the old content or the new stands there, and a later try succeeds."""
    path = tmp_path / "whole"
    RealFiles().write_whole(path, b"old")
    for at in range(1, 20):
        files = FaultyFiles(ANY, at=at)
        try:
            files.write_whole(path, b"new")
        except OSError:
            assert path.read_bytes() in (b"old", b"new")
            files.write_whole(path, b"newer")
            assert path.read_bytes() == b"newer"
            RealFiles().write_whole(path, b"old")
        else:
            assert path.read_bytes() == b"new"
            break
    assert at == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_operation_fails_at_its_count(operation: str, tmp_path: Path) -> None:
    """The n-th call fails, with the error that was asked for; the ones before and after it do not."""
    files = FaultyFiles(operation, at=2, code=errno.ENOSPC)
    descriptor = files.create(tmp_path / "open") if operation != "create" else -1

    def call() -> None:
        count = sum(files.calls.values())
        path = tmp_path / f"{count}"
        if operation not in ("create", "make_dir", "append", "fdatasync"):
            path.write_bytes(b"")
        match operation:
            case "append":
                files.append(descriptor, b"0123456789")
            case "fdatasync":
                files.fdatasync(descriptor)
            case "truncate":
                files.truncate(path, 0)
            case "rename":
                files.rename(path, tmp_path / "renamed")
            case "sync_dir":
                files.sync_dir(tmp_path)
            case "create":
                os.close(files.create(path))
            case "make_dir":
                files.make_dir(tmp_path)  # One that is there: a new one makes those above it, too.
            case _:
                getattr(files, operation)(path)

    call()
    with pytest.raises(OSError, match="No space left"):
        call()
    call()
    assert files.calls[operation] == 3
    if descriptor >= 0:
        os.close(descriptor)
    if operation == "append":
        assert (tmp_path / "open").read_bytes() == b"0123456789" + b"0123456" + b"0123456789"


def test_a_process_that_dies_does_nothing_more(tmp_path: Path) -> None:
    """With every operation failing for good, files stay as they are until healed."""
    files = FaultyFiles(ANY, at=4, times=None)
    files.make_dir(tmp_path)  # Two operations: it flushes the directory's entry.
    os.close(files.create(tmp_path / "file"))
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            files.remove(tmp_path / "file")
    files.heal()
    files.remove(tmp_path / "file")


def test_a_power_cut_forgets_what_was_not_flushed(tmp_path: Path) -> None:
    """Bytes without an fdatasync and entries without a sync_dir may be gone; what was flushed never is."""
    files = RecordingFiles(tmp_path, "shared")
    path, here = tmp_path / "file", Path("file")
    descriptor = files.create(path)
    files.append(descriptor, b"flushed")
    files.fdatasync(descriptor)
    count = len(files.record)
    assert files.cut(count, nothing).files == {}
    assert files.cut(count, everything).files == {here: b"flushed"}
    files.sync_dir(tmp_path)
    files.append(descriptor, b" and not")
    os.close(descriptor)
    count = len(files.record)
    assert files.cut(count, nothing).files == {here: b"flushed"}
    assert files.cut(count, everything).files == {here: b"flushed and not"}
    files.remove(path)
    assert files.cut(len(files.record), nothing).files == {here: b"flushed"}
    assert files.cut(len(files.record), everything).files == {}
    files.sync_dir(tmp_path)
    assert files.cut(len(files.record), nothing).files == {}
