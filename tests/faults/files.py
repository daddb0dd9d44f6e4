"""Files that fail when they are told to."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from counterfoil.files import RealFiles

OPERATIONS = (
    "create",
    "append",
    "fdatasync",
    "sync_file",
    "truncate",
    "rename",
    "remove",
    "make_dir",
    "sync_dir",
    "free_bytes",
    "disk_bytes",
)
ANY = OPERATIONS


class FaultyFiles(RealFiles):
    """`RealFiles` whose operation `fail` fails from its `at`-th call on, `times` times; nothing fails unless told.

    `fail` may be several operations, whose calls are counted together; ANY is all of them. An append that fails has
    written a part of its bytes, as a disk that gets full does. `times` None: for good, or until `heal`; so
    `fail=ANY, at=n, times=None` is a process that dies at its n-th operation.
    """

    def __init__(
        self,
        fail: str | Collection[str] = (),
        at: int = 1,
        times: int | None = 1,
        code: int = errno.EIO,
        torn_bytes: int = 7,
    ) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self._torn_bytes = torn_bytes
        self.break_down(fail, at, times, code)

    def break_down(
        self, fail: str | Collection[str], at: int = 1, times: int | None = 1, code: int = errno.EIO
    ) -> None:
        """From now on `fail` fails, counting from its next call."""
        operations = frozenset([fail] if isinstance(fail, str) else fail)
        assert operations <= set(OPERATIONS)
        self._fail = operations
        counted = self._counted()
        self._first = counted + at
        self._last = None if times is None else counted + at + times - 1
        self._code = code

    def heal(self) -> None:
        """Nothing fails any more."""
        self.break_down(())

    def create(self, path: Path) -> int:
        self._count("create", path)
        return super().create(path)

    def append(self, descriptor: int, data: bytes) -> None:
        try:
            self._count("append", None)
        except OSError:
            # Straight to the disk: this part is no operation of its own.
            os.write(descriptor, data[: self._torn_bytes])
            raise
        super().append(descriptor, data)

    def fdatasync(self, descriptor: int) -> None:
        self._count("fdatasync", None)
        super().fdatasync(descriptor)

    def sync_file(self, path: Path) -> None:
        self._count("sync_file", path)
        super().sync_file(path)

    def truncate(self, path: Path, size: int) -> None:
        self._count("truncate", path)
        super().truncate(path, size)

    def rename(self, source: Path, target: Path) -> None:
        self._count("rename", source)
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._count("remove", path)
        super().remove(path)

    def make_dir(self, path: Path) -> None:
        self._count("make_dir", path)
        super().make_dir(path)

    def sync_dir(self, path: Path) -> None:
        self._count("sync_dir", path)
        super().sync_dir(path)

    def free_bytes(self, path: Path) -> int:
        self._count("free_bytes", path)
        return super().free_bytes(path)

    def disk_bytes(self, path: Path) -> int:
        self._count("disk_bytes", path)
        return super().disk_bytes(path)

    def _count(self, operation: str, path: Path | None) -> None:
        self.calls[operation] += 1
        if operation not in self._fail:
            return
        count = self._counted()
        if count >= self._first and (self._last is None or count <= self._last):
            raise OSError(self._code, os.strerror(self._code), None if path is None else str(path))

    def _counted(self) -> int:
        return sum(self.calls[operation] for operation in self._fail)
