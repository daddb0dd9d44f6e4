"""The operations on files that durability hangs on.

Whatever must survive a power cut goes through a `Files`, so that tests can hand in one that fails or forgets. Files
are made readable by their owner alone (promise P6). Raises OSError as the system gives it: what a failure means is
known where it happens, not here.
"""

from __future__ import annotations

import errno
import os
import pwd
import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700

_STANDING = frozenset({errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EROFS})


class Files(Protocol):
    """What the queue and the destinations ask of a file system."""

    def create(self, path: Path) -> int:
        """A descriptor of a new file, open for appending; raises FileExistsError when there is one."""
        ...

    def append(self, descriptor: int, data: bytes) -> None:
        """Write all of `data` at the end, however many writes it takes."""
        ...

    def fdatasync(self, descriptor: int) -> None:
        """Return when the file's bytes and its length are on disk."""
        ...

    def sync_file(self, path: Path) -> None:
        """Return when the bytes of a file that somebody else wrote are on disk."""
        ...

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file to `size` bytes and flush it."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Put `source` in the place of `target`; durable after `sync_dir` of both directories."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file; durable after `sync_dir`."""
        ...

    def make_dir(self, path: Path) -> None:
        """Make a directory and what lies above it, and return when its entry is on disk; no error when it is there."""
        ...

    def sync_dir(self, path: Path) -> None:
        """Return when the entries of a directory are on disk."""
        ...

    def write_whole(self, path: Path, data: bytes) -> None:
        """Put `data` in the place of `path` at once and for good: after a crash it is the old file or the new."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Bytes that an unprivileged process may still write to the file system of `path`."""
        ...

    def disk_bytes(self, path: Path) -> int:
        """Bytes of the file system of `path`, free or not."""
        ...


class RealFiles:
    """`Files` of the operating system."""

    def __init__(self) -> None:
        self._made: set[Path] = set()
        """Directories whose entry is on disk."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)

    def append(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def fdatasync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def sync_file(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def truncate(self, path: Path, size: int) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink()

    def make_dir(self, path: Path) -> None:
        is_there = path.is_dir()
        if is_there and path in self._made:
            return
        if not is_there:
            self.make_dir(path.parent)
            path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        try:
            # Also where it is there: who made it may have been killed before its entry was flushed.
            self.sync_dir(path.parent)
        except PermissionError:
            if not is_there:  # Else it is none of ours: where we can't read, nobody of us made anything.
                raise
        self._made.add(path)

    def sync_dir(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def write_whole(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.tmp")
        with suppress(FileNotFoundError):
            self.remove(temporary)
        descriptor = self.create(temporary)
        try:
            self.append(descriptor, data)
            self.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self.rename(temporary, path)
        self.sync_dir(path.parent)

    def free_bytes(self, path: Path) -> int:
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize

    def disk_bytes(self, path: Path) -> int:
        stat = os.statvfs(path)
        return stat.f_blocks * stat.f_frsize


def is_standing(error: OSError) -> bool:
    """Whether it stays so until somebody changes it: rights, or something else in a file's place.

    Other than a disk that is full or fails, and a file that is gone, which a moment later may be as it should.
    """
    is_dead_link = error.errno == errno.ENOENT and error.filename is not None and Path(error.filename).is_symlink()
    return error.errno in _STANDING or is_dead_link


def told_in_a_line(error: OSError, path: Path) -> str:
    """What the system did not let do in a data directory, with the file's name; `path` where the system names none."""
    return (
        f"{error.filename or path}: {error.strerror or error}; everything in the data directory must be as Counterfoil "
        f"made it, for {user_name(os.geteuid())} to read and write"
    )


def user_name(uid: int) -> str:
    """A user in words: `user counterfoil`, or by the number where it has no name."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
