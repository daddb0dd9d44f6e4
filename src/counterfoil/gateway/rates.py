"""Rows a second of a source, over all workers of a machine (contract.md section 3, 429).

One number a source says it all: until when its rows are paid for, if each takes 1/limit of a second (the generic cell
rate algorithm). A request is admitted while that lies at most BURST_SECONDS ahead, and then moves it on by its rows,
however many: a batch larger than the limit gets in as well, and what follows waits until it is paid for. So in any T
seconds there are at most limit x (T + BURST_SECONDS) rows and one request.

The numbers lie in a file that the workers map, so that they add up and a worker that dies takes nothing with it:

    offset  bytes  field
    0       8      mark, FILE_MARK
    8       16     id of the machine's boot: the clock begins anew with it, and what is written here means nothing then
    24      40     zeros
    64 + 16 i      slot i: 8 bytes of the source's hash, 8 bytes the time until which its rows are paid for (ns of the
                   monotonic clock, which all processes of a machine share)

A slot whose time has passed says what an empty one says, so any source may take it. Reading and writing a number is
done under a lock of the file (fcntl), which the kernel takes back from a process that dies: it is held for a few
microseconds, and only by requests of sources that have a limit. Numbers are little-endian.

Rejected: a counter a worker, which the others read (no lock, but a batch can't be paid for over many seconds, and
workers that ask at once each let a whole limit pass); a share of the limit for each worker (connections are not spread
evenly over them); a process to ask (a round trip a request).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import structlog
import xxhash

log = structlog.get_logger()

FILE_MARK = b"CFRATE\x00\x01"
SLOT_COUNT = 4096
BURST_SECONDS = 1.0

_HEADER_BYTES = 64
_SLOT = struct.Struct("<QQ")
_FILE_BYTES = _HEADER_BYTES + SLOT_COUNT * _SLOT.size
_BOOT_ID_BYTES = 16
_SECOND_NS = 1_000_000_000
_BURST_NS = int(BURST_SECONDS * _SECOND_NS)


class Rates(Protocol):
    """Who says whether a source may send rows now."""

    def take(self, source: str, row_count: int, rows_per_second_max: int) -> float:
        """0, and the rows are counted; or the seconds after which it is worth trying again, and they are not."""
        ...


class SharedRates:
    """`Rates` of all processes that open the same file."""

    def __init__(self, memory: mmap.mmap, descriptor: int | None, clock_ns: Callable[[], int]) -> None:
        self._memory = memory
        self._descriptor = descriptor
        self._clock_ns = clock_ns

    @classmethod
    def open(
        cls, path: Path, *, clock_ns: Callable[[], int] = time.monotonic_ns, boot_id: bytes | None = None
    ) -> SharedRates:
        """Join those who count in this file, which is made when it isn't there or is of another boot.

        Where the file can't be used this process counts alone, and says so in the log.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.warning("gateway.rates_not_shared", errno=error.errno)
            return cls(mmap.mmap(-1, _FILE_BYTES), None, clock_ns)
        try:
            with _locked(descriptor):
                # A file with holes would end the process by SIGBUS when the disk is full.
                os.posix_fallocate(descriptor, 0, _FILE_BYTES)
                memory = mmap.mmap(descriptor, _FILE_BYTES)
                header = FILE_MARK + (_read_boot_id() if boot_id is None else boot_id)
                if memory[: len(header)] != header:
                    memory[:] = header.ljust(_FILE_BYTES, b"\0")
        except OSError as error:
            os.close(descriptor)
            log.warning("gateway.rates_not_shared", errno=error.errno)
            return cls(mmap.mmap(-1, _FILE_BYTES), None, clock_ns)
        return cls(memory, descriptor, clock_ns)

    def take(self, source: str, row_count: int, rows_per_second_max: int) -> float:
        """`Rates.take`."""
        if self._descriptor is None:
            return self._take(source, row_count, rows_per_second_max)
        with _locked(self._descriptor):
            return self._take(source, row_count, rows_per_second_max)

    def close(self) -> None:
        """Leave; closing twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, source: str, row_count: int, rows_per_second_max: int) -> float:
        now = self._clock_ns()
        source_hash = xxhash.xxh3_64_intdigest(source.encode()) or 1
        offset, paid_until = self._find(source_hash, now)
        wait = paid_until - now - _BURST_NS
        if wait > 0:
            return wait / _SECOND_NS
        cost = row_count * _SECOND_NS // rows_per_second_max
        _SLOT.pack_into(self._memory, offset, source_hash, max(paid_until, now) + cost)
        return 0.0

    def _find(self, source_hash: int, now: int) -> tuple[int, int]:
        """Where a source's slot lies, and its time; the first free one when it has none.

        When every slot is taken by another, its own place: two sources then share what each may send.
        """
        first = source_hash % SLOT_COUNT
        free = None
        for step in range(SLOT_COUNT):
            offset = _HEADER_BYTES + (first + step) % SLOT_COUNT * _SLOT.size
            found, paid_until = _SLOT.unpack_from(self._memory, offset)
            if found == source_hash:
                return offset, paid_until
            if free is None and paid_until <= now:
                free = offset
            # No source ever lay behind a slot that was never used.
            if found == 0:
                break
        if free is not None:
            return free, 0
        offset = _HEADER_BYTES + first * _SLOT.size
        return offset, _SLOT.unpack_from(self._memory, offset)[1]


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)


def _read_boot_id() -> bytes:
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return bytes(_BOOT_ID_BYTES)
    return bytes.fromhex(text.strip().replace("-", ""))
