"""Real programs on the disk: those that flush what they promise lose nothing, those that don't are found out."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from counterfoil.faultydisk.disk import FaultyDisk
from counterfoil.faultydisk.faults import Fault, Operation
from counterfoil.files import RealFiles
from tests.e2e.server import until

CUTS = 12

LOG_PROGRAM = """
import os, sys
path, flushes = sys.argv[1:]
descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
if "directory" in flushes:
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(directory)
for number in range(1_000_000):
    os.write(descriptor, b"%07d\\n" % number)
    if "bytes" in flushes:
        os.fdatasync(descriptor)
    print(number, flush=True)
"""
"""Appends numbers to a file, and acknowledges each; flushes what it is told to."""

ROCKSDB_PROGRAM = """
import sys
from rocksdict import Options, Rdict, WriteOptions
path, flushes = sys.argv[1:]
options = Options(raw_mode=True)
options.set_write_buffer_size(20_000)
ledger = Rdict(path, options)
how = WriteOptions()
how.sync = "bytes" in flushes
for number in range(1_000_000):
    ledger.put(b"%07d" % number, b"x" * 100, write_opt=how)
    print(number, flush=True)
"""


def acknowledged_until_the_cut(disk: FaultyDisk, program: str, name: str, flushes: str, operations: int) -> int:
    """How many numbers a program acknowledged before the power was cut at so many operations; the power is on again."""
    disk.power_off(after=operations)
    with subprocess.Popen(
        (sys.executable, "-c", program, str(disk.mount_point / name), flushes), stdout=subprocess.PIPE
    ) as running:
        until(lambda: disk.state().is_off or None, "the power is off")
        running.kill()
        disk.unplug()
        output, _ = running.communicate()
    disk.power_on(seed=operations)
    return output.count(b"\n")


def numbers_there(path: Path) -> int:
    """How many numbers of the program stand in its file, one after the other from 0."""
    data = path.read_bytes() if path.exists() else b""
    count = 0
    while data[8 * count : 8 * (count + 1)] == b"%07d\n" % count:
        count += 1
    return count


def losses(disk: FaultyDisk, flushes: str) -> int:
    """In how many of CUTS power cuts something acknowledged was lost."""
    lost = 0
    for cut in range(CUTS):
        acknowledged = acknowledged_until_the_cut(disk, LOG_PROGRAM, f"log-{cut}", flushes, operations=10 + 7 * cut)
        lost += numbers_there(disk.mount_point / f"log-{cut}") < acknowledged
    return lost


def test_a_program_that_flushes_what_it_acknowledges_loses_nothing(disk: FaultyDisk) -> None:
    """K1: fdatasync of the bytes and fsync of the directory are enough, at every power cut."""
    assert losses(disk, "bytes directory") == 0


def test_a_program_that_does_not_flush_its_bytes_is_found_out(disk: FaultyDisk) -> None:
    """K2: without fdatasync acknowledged bytes are lost in most power cuts."""
    assert losses(disk, "directory") > CUTS / 3


def test_a_program_that_does_not_flush_the_directory_is_found_out(disk: FaultyDisk) -> None:
    """K2: without fsync of the directory a file with all that was flushed into it is lost."""
    assert losses(disk, "bytes") > CUTS / 5


def test_rocksdb_keeps_what_it_synced_and_loses_what_it_did_not(disk: FaultyDisk) -> None:
    """K1, K2: the same library on the same disk, with and without `sync`; its own files and renames included."""
    lost = {"bytes": 0, "nothing": 0}
    for flushes in lost:
        for cut in range(5):
            name = f"{flushes}-{cut}"
            # RocksDB flushes what it makes in its directory, and not the directory's own entry.
            (disk.mount_point / name).mkdir()
            sync_directory(disk.mount_point)
            operations = 150 + 200 * cut
            acknowledged = acknowledged_until_the_cut(disk, ROCKSDB_PROGRAM, name, flushes, operations)
            lost[flushes] += rocksdb_count(disk.mount_point / name) < acknowledged
    assert lost["bytes"] == 0
    assert lost["nothing"] > 0


def rocksdb_count(path: Path) -> int:
    program = (
        "import sys; from rocksdict import Options, Rdict\n"
        "print(sum(1 for _ in Rdict(sys.argv[1], Options(raw_mode=True)).keys()))"
    )
    done = subprocess.run((sys.executable, "-c", program, str(path)), capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_what_was_stored_through_a_map_is_kept_when_it_was_flushed(disk: FaultyDisk) -> None:
    """K1: msync of a shared map is a flush, also of a file that another process reads."""
    path = disk.mount_point / "mapped"
    with path.open("w+b") as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        with mmap.mmap(file.fileno(), mmap.PAGESIZE) as view:
            view[:5] = b"store"
            assert path.read_bytes()[:5] == b"store"
            view.flush()
    sync_directory(disk.mount_point)
    for seed in range(5):
        cut(disk, seed)
        assert path.read_bytes()[:5] == b"store"


def test_nothing_is_answered_when_the_power_is_off(disk: FaultyDisk) -> None:
    """K4: a flush that is under way does not come to its end, until it fails."""
    path = disk.mount_point / "a"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"x")
    disk.power_off()
    failed: list[OSError] = []

    def flush() -> None:
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    disk.unplug()
    thread.join(120)
    assert not thread.is_alive()
    assert failed
    with contextlib.suppress(OSError):
        os.close(descriptor)


@pytest.mark.parametrize(
    ("operation", "number"),
    [(Operation.WRITE, errno.EIO), (Operation.WRITE, errno.ENOSPC), (Operation.FLUSH, errno.EIO)],
)
def test_an_operation_fails_as_it_was_told(disk: FaultyDisk, operation: Operation, number: int) -> None:
    """Of files with this name, from the second time on, twice; then it works again, and each failure is counted."""
    fault = Fault(frozenset([operation]), errno=number, path="^bad$", after=1, times=2)
    disk.set_faults([fault])
    for name, expected in (("good", [0, 0, 0, 0]), ("bad", [0, number, number, 0])):
        descriptor = os.open(disk.mount_point / name, os.O_WRONLY | os.O_CREAT)
        seen = []
        for _ in range(4):
            try:
                os.write(descriptor, b"x")
                os.fdatasync(descriptor)
                seen.append(0)
            except OSError as error:
                seen.append(error.errno or 0)
        os.close(descriptor)
        assert seen == expected
    assert disk.state().befallen == {f"{operation} errno {number}": 2}


def test_what_a_failed_flush_threw_away_is_read_until_the_kernel_lets_go(disk: FaultyDisk) -> None:
    """K3: the page is called clean and read back as it was written, until it is not in memory any more."""
    path = disk.mount_point / "a"
    lost = 0
    for number in range(8):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, b"x" * mmap.PAGESIZE)
        disk.set_faults([Fault(frozenset([Operation.FLUSH]), errno=errno.EIO, times=1)])
        with pytest.raises(OSError, match="Input/output"):
            os.fdatasync(descriptor)
        os.fdatasync(descriptor)
        assert path.read_bytes() == b"x" * mmap.PAGESIZE, number
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        data = path.read_bytes()
        assert data in (b"x" * mmap.PAGESIZE, bytes(mmap.PAGESIZE))
        lost += data != b"x" * mmap.PAGESIZE
        os.close(descriptor)
    assert 0 < lost < 8


def test_a_slow_flush_keeps_nobody_else_waiting(disk: FaultyDisk) -> None:
    """A flush that takes seconds is waited for by who asked; others read and write."""
    # On a busy machine the others may be slow, too: then the flush is to be slower still.
    assert any(others_come_first(disk, delay_seconds) for delay_seconds in (1.0, 8.0, 64.0))


def others_come_first(disk: FaultyDisk, delay_seconds: float) -> bool:
    """Whether twenty files are written while one is flushed that takes so long."""
    disk.set_faults([Fault(frozenset([Operation.FLUSH]), delay_seconds=delay_seconds, path="slow")])
    descriptor = os.open(disk.mount_point / "slow", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"x")
    began = time.monotonic()
    thread = threading.Thread(target=os.fdatasync, args=(descriptor,))
    thread.start()
    for number in range(20):
        (disk.mount_point / f"other-{number}").write_bytes(b"x")
    is_under_way = thread.is_alive()
    thread.join(300)
    assert time.monotonic() - began >= delay_seconds
    os.close(descriptor)
    return is_under_way


def test_a_full_disk_is_full_and_then_has_room(disk: FaultyDisk) -> None:
    """ENOSPC where the room ends, as statvfs foretold; a file that is removed makes room again."""
    disk.set_room(1 << 20, more=True)
    free = os.statvfs(disk.mount_point).f_bavail * os.statvfs(disk.mount_point).f_frsize
    assert free <= 1 << 20
    with pytest.raises(OSError, match="No space left"):
        (disk.mount_point / "large").write_bytes(bytes(2 << 20))
    (disk.mount_point / "large").unlink()
    (disk.mount_point / "large").write_bytes(bytes(1 << 19))


def test_a_directory_that_a_killed_process_made_is_flushed_by_the_next(disk: FaultyDisk) -> None:
    """It was killed between making the directory and flushing its entry: who finds it there flushes that first."""
    directory = disk.mount_point / "queue" / "1"
    for seed in range(6):
        shutil.rmtree(directory.parent, ignore_errors=True)
        directory.parent.mkdir()
        sync_directory(disk.mount_point)
        directory.mkdir()
        files = RealFiles()
        files.make_dir(directory)
        descriptor = files.create(directory / "segment")
        files.append(descriptor, b"row")
        files.fdatasync(descriptor)
        os.close(descriptor)
        files.sync_dir(directory)
        cut(disk, seed)
        assert (directory / "segment").read_bytes() == b"row"


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def cut(disk: FaultyDisk, seed: int) -> None:
    disk.power_off()
    disk.unplug()
    disk.power_on(seed)
