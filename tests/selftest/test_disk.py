from __future__ import annotations

from pathlib import Path

import pytest

from counterfoil.selftest.disk import Device, Flushing, Latency, Mount, examine, judge_flushing

FAST, FLASH, SLOW = (Latency(300, p50, p50, p50) for p50 in (5e-6, 300e-6, 8e-3))
EXT4 = Mount("ext4", "/dev/sda1", ("rw", "relatime"))
FLASH_DISK = Device("sda1", False, "write back", False)
TURNING_DISK = Device("sda1", True, "write back", False)
SAFE_DISK = Device("sda1", False, "write through", False)


@pytest.mark.parametrize(
    ("mount", "device", "flush", "expected"),
    [
        (None, None, FLASH, Flushing.UNKNOWN),
        (Mount("tmpfs", "tmpfs", ("rw",)), None, FAST, Flushing.NO),
        (Mount("ext4", "/dev/sda1", ("rw", "nobarrier")), FLASH_DISK, FLASH, Flushing.NO),
        (Mount("ext4", "/dev/sda1", ("rw", "barrier=0")), FLASH_DISK, FLASH, Flushing.NO),
        (Mount("overlay", "overlay", ("rw",)), None, FLASH, Flushing.UNKNOWN),
        (Mount("nfs4", "box:/data", ("rw",)), None, FLASH, Flushing.UNKNOWN),
        (Mount("fuse.sshfs", "box:", ("rw",)), None, FLASH, Flushing.UNKNOWN),
        (EXT4, None, FLASH, Flushing.UNKNOWN),
        (EXT4, FLASH_DISK, FLASH, Flushing.PLAUSIBLE),
        (EXT4, FLASH_DISK, FAST, Flushing.IMPLAUSIBLE),
        (EXT4, SAFE_DISK, FAST, Flushing.PLAUSIBLE),
        (EXT4, TURNING_DISK, SLOW, Flushing.PLAUSIBLE),
        (EXT4, TURNING_DISK, FLASH, Flushing.IMPLAUSIBLE),
        (EXT4, Device("vda", True, "write back", True), FLASH, Flushing.PLAUSIBLE),
    ],
)
def test_what_is_said_of_a_disk(mount: Mount | None, device: Device | None, flush: Latency, expected: Flushing) -> None:
    """Each kind of disk is judged by what can be seen of it, and the reason is given."""
    flushing, reasons = judge_flushing(mount, device, flush)
    assert flushing is expected
    assert reasons


def test_a_real_directory_is_examined(tmp_path: Path) -> None:
    """Flushes of a real directory are measured, its file system is found, and nothing is left behind."""
    report = examine(tmp_path)
    assert report.flush.count > 0
    assert 0 < report.flush.p50 <= report.flush.p99 <= report.flush.max
    assert report.mount is not None
    assert report.mount.type
    assert list(tmp_path.iterdir()) == []


def test_memory_is_told(tmp_path: Path) -> None:
    """Of a directory in memory it is said that nothing outlives a power cut there."""
    memory = Path("/dev/shm")
    report = examine(memory) if memory.is_dir() else examine(tmp_path)
    assert (report.flushing is Flushing.NO) == (report.mount is not None and report.mount.type == "tmpfs")
