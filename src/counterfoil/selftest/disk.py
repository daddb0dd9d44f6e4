"""What can be told of a disk: how long a flush takes there, and whether it is likely to be one.

No program can prove that a disk keeps what it was told to flush: only a cut of the power does (`plug`). What can be
seen is told, and from what:

    what is seen                                             verdict
    a file system in memory                                  NO: nothing outlives the power there
    a mount that forbids barriers                            NO
    a file system of the network, FUSE, a container's layer  UNKNOWN: what lies behind it decides
    a device with a volatile cache, flushed in under 50 µs   IMPLAUSIBLE: no such cache is written out in that time
    a turning disk, flushed in under 1 ms                    IMPLAUSIBLE: it turns once in 4 to 11 ms
    a device that says it has no volatile cache              PLAUSIBLE: the kernel believes it, and so must we
    any other device                                         PLAUSIBLE

A virtual machine's disk is what its host makes of it; that is said beside the verdict.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

FLUSHES = 300
SECONDS_MAX = 10.0
WRITE_BYTES = 4096
FILE_BYTES = 1 << 20

CACHE_FLUSH_SECONDS_MIN = 50e-6
TURN_SECONDS_MIN = 1e-3

_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
_ELSEWHERE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "glusterfs", "afs", "lustre"})
_LAYERED = frozenset({"overlay", "aufs", "overlayfs"})
_NO_BARRIERS = frozenset({"nobarrier", "barrier=0"})


class Flushing(StrEnum):
    """Whether what is flushed is likely to outlive the power."""

    PLAUSIBLE = "plausible"
    IMPLAUSIBLE = "implausible"
    NO = "no"
    UNKNOWN = "unknown"


class Mount(msgspec.Struct, frozen=True):
    """The file system under a path."""

    type: str
    source: str
    options: tuple[str, ...]


class Device(msgspec.Struct, frozen=True):
    """The block device under a file system, as /sys tells of it; None is what it does not tell."""

    name: str
    is_rotational: bool | None
    write_cache: str | None
    """`write back`: a volatile cache, flushed on demand. `write through`: none, says the device."""
    is_virtual: bool


class Latency(msgspec.Struct, frozen=True):
    """Seconds that a write of 4 KiB and its fdatasync took."""

    count: int
    p50: float
    p99: float
    max: float


class DiskReport(msgspec.Struct, frozen=True):
    """What was seen, and what it means."""

    mount: Mount | None
    device: Device | None
    flush: Latency
    flushing: Flushing
    reasons: tuple[str, ...]
    """Why, a sentence each."""


def examine(directory: Path) -> DiskReport:
    """Measure flushes in a directory and say what its disk is. Raises OSError when nothing can be written there."""
    mount, device = mount_of(directory), device_of(directory)
    flush = measure_flushes(directory / "flushes")
    flushing, reasons = judge_flushing(mount, device, flush)
    return DiskReport(mount, device, flush, flushing, reasons)


def measure_flushes(path: Path, flushes: int = FLUSHES) -> Latency:
    """Write and flush as the queue does, for some seconds at most; the file is gone at the end."""
    seconds: list[float] = []
    data = os.urandom(WRITE_BYTES)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        began = time.monotonic()
        while len(seconds) < flushes and (not seconds or time.monotonic() - began < SECONDS_MAX):
            # A segment grows, so each flush has a new length to keep as well.
            if os.lseek(file, 0, os.SEEK_CUR) >= FILE_BYTES:
                os.ftruncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)
            before = time.perf_counter()
            os.write(file, data)
            os.fdatasync(file)
            seconds.append(time.perf_counter() - before)
    finally:
        os.close(file)
        path.unlink()
    seconds.sort()
    return Latency(len(seconds), seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100], seconds[-1])


def judge_flushing(mount: Mount | None, device: Device | None, flush: Latency) -> tuple[Flushing, tuple[str, ...]]:
    """What follows from what was seen, and why."""
    if mount is None:
        return Flushing.UNKNOWN, ("the system does not tell what file system this is",)
    if mount.type in _IN_MEMORY:
        return Flushing.NO, (f"{mount.type} lies in memory: a power cut takes all of it",)
    if forbidden := _NO_BARRIERS.intersection(mount.options):
        return Flushing.NO, (f"it is mounted with {min(forbidden)}: nothing tells the device to flush",)
    if mount.type in _LAYERED:
        return Flushing.UNKNOWN, (f"{mount.type} is a container's layer: mount a volume, and test that",)
    if mount.type in _ELSEWHERE or mount.type.startswith("fuse"):
        return Flushing.UNKNOWN, (f"{mount.type}: whoever serves it decides what a flush is",)
    if device is None:
        return Flushing.UNKNOWN, ("the device under the file system can't be seen from here",)
    return _judge_device(device, flush)


def _judge_device(device: Device, flush: Latency) -> tuple[Flushing, tuple[str, ...]]:
    reasons = []
    flushing = Flushing.PLAUSIBLE
    if device.is_virtual:
        reasons.append(f"{device.name} is a virtual machine's disk: what a flush is there, its host decides")
    if device.is_rotational and not device.is_virtual and flush.p50 < TURN_SECONDS_MIN:
        flushing = Flushing.IMPLAUSIBLE
        reasons.append(
            f"{device.name} is a turning disk, and a flush took less than a turn: a cache with a battery, or no flush"
        )
    elif device.write_cache == "write back" and flush.p50 < CACHE_FLUSH_SECONDS_MIN:
        flushing = Flushing.IMPLAUSIBLE
        reasons.append(f"{device.name} has a volatile cache, and writing it out took less than any device needs")
    elif device.write_cache == "write back":
        reasons.append(f"{device.name} has a volatile cache and takes its time to write it out")
    elif device.write_cache == "write through":
        reasons.append(f"{device.name} says it has no volatile cache, so the kernel sends it no flushes")
    else:
        reasons.append(f"{device.name} does not say what cache it has")
    return flushing, tuple(reasons)


def mount_of(path: Path) -> Mount | None:
    """The mount that a path lies on; None where the system does not tell."""
    wanted = path.stat().st_dev
    found = None
    for point, mount in _mounts():
        # A later mount on the same point hides the earlier one.
        try:
            if path.resolve().is_relative_to(point) and Path(point).stat().st_dev == wanted:
                found = mount
        except OSError:
            continue
    return found


def _mounts() -> Iterator[tuple[str, Mount]]:
    """Each mount point, by /proc/self/mountinfo (man 5 proc_pid_mountinfo)."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, behind = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(behind) < 3:
            continue
        point = fields[4].encode().decode("unicode_escape")
        yield point, Mount(behind[0], behind[1], (*fields[5].split(","), *behind[2].split(",")))


def device_of(path: Path, sys_class: Path = Path("/sys/class/block")) -> Device | None:
    """The block device that a path lies on; None where none can be seen."""
    wanted = path.stat().st_dev
    numbers = {f"{os.major(wanted)}:{os.minor(wanted)}"}
    mount = mount_of(path)
    if mount is not None and mount.source.startswith("/dev/"):
        # Some file systems (btrfs) have a number of their own, and name their device here.
        try:
            source = Path(mount.source).stat().st_rdev
            numbers.add(f"{os.major(source)}:{os.minor(source)}")
        except OSError:
            pass
    for entry in sorted(sys_class.glob("*")):
        if _read(entry / "dev") in numbers:
            return _device(entry.resolve())
    return None


def _device(entry: Path) -> Device:
    # A partition has no queue of its own: its disk's directory is the one above it.
    disk = entry if (entry / "queue").exists() else entry.parent
    rotational = _read(disk / "queue" / "rotational")
    return Device(
        entry.name,
        None if rotational is None else rotational == "1",
        _read(disk / "queue" / "write_cache"),
        disk.name.startswith(("vd", "xvd")) or "/virtio" in str(disk),
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
