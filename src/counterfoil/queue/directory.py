"""A writer's directory: who may write in it, its id, and the segments in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import xxhash

from counterfoil.aside import copy_aside
from counterfoil.errors import FrameDamaged, StartRefused
from counterfoil.files import FILE_MODE, Files
from counterfoil.positions import DirectoryId, SegmentNumber
from counterfoil.queue.published import PUBLISHED_NAME
from counterfoil.queue.segment import SEGMENT_HEADER_BYTES, parse_header, segment_name, segment_numbers

ID_NAME = "id"
ID_MARK = b"\xf0CFDIR\x0d\x0a"
ID_BYTES = 24
LOCK_NAME = "lock"
WRITERS_MAX = 4096


class WriterDirectory:
    """A directory whose lock we hold, until `release`."""

    def __init__(self, path: Path, number: int, directory: DirectoryId, lock: int) -> None:
        self.path = path
        self.number = number
        self.id = directory
        self._lock = lock

    @property
    def published_path(self) -> Path:
        return self.path / PUBLISHED_NAME

    def segment_path(self, number: SegmentNumber) -> Path:
        return self.path / segment_name(number)

    def release(self) -> None:
        """Let another writer have it; releasing twice is harmless."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class SegmentFacts(msgspec.Struct, frozen=True):
    """A segment as retention sees it."""

    number: SegmentNumber
    size_bytes: int
    begun_at_ms: int | None
    """None when its header is damaged."""
    is_newest: bool
    """The newest is never removed (I1): the next number is counted from it."""


def take_directory(
    root: Path, files: Files, random_bytes: Callable[[int], bytes] = os.urandom, quarantine: Path | None = None
) -> WriterDirectory:
    """The directory of the lowest number whose lock can be had, made when there is none. Raises OSError."""
    for number in range(1, WRITERS_MAX + 1):
        directory = _take(root / str(number), number, files, random_bytes, quarantine)
        if directory is not None:
            return directory
    raise StartRefused(f"{root}: all of {WRITERS_MAX} writers' directories are taken")


def take_idle_directories(root: Path, files: Files, quarantine: Path | None = None) -> list[WriterDirectory]:
    """The directories that are there and that no writer holds, locked. Raises OSError."""
    taken = (take_idle_directory(root / str(number), files, quarantine) for number in writer_numbers(root))
    return [directory for directory in taken if directory is not None]


def take_idle_directory(path: Path, files: Files, quarantine: Path | None = None) -> WriterDirectory | None:
    """A writer's directory that is there, locked; None while a writer holds it. Raises OSError."""
    return _take(path, int(path.name), files, os.urandom, quarantine)


def writer_numbers(root: Path) -> list[int]:
    """The numbers of the writers' directories under `root`, in order; none when there is no root."""
    try:
        names = [entry.name for entry in root.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isdecimal() and name.isascii() and name[0] != "0")


def read_id(path: Path) -> DirectoryId | None:
    """The id of a writer's directory, or of the first good header in it; None when it has none."""
    return _stored_id(path) or _id_of_segments(path)


def pack_id(directory: DirectoryId) -> bytes:
    """The bytes of the file `id`: mark, id, and the xxh3-64 of both."""
    return ID_MARK + directory + xxhash.xxh3_64_intdigest(ID_MARK + directory).to_bytes(8, "little")


def list_segments(path: Path) -> list[SegmentFacts]:
    """The segments of a writer's directory, oldest first. Raises StartRefused when one is of a newer version."""
    numbers = segment_numbers(path)
    return [
        SegmentFacts(
            number=number,
            size_bytes=(path / segment_name(number)).stat().st_size,
            begun_at_ms=_begun_at_ms(path / segment_name(number)),
            is_newest=number == numbers[-1],
        )
        for number in numbers
    ]


def remove_oldest(path: Path, number: SegmentNumber, files: Files) -> None:
    """Remove the oldest segment of a writer's directory for good; it must not be the newest too.

    Only the oldest: a gap further on is how a reader knows that a segment was lost. Removing what is gone is harmless.
    """
    numbers = segment_numbers(path)
    if number in numbers:
        if number != numbers[0] or number == numbers[-1]:
            raise ValueError("only a directory's oldest segment may be removed, and never its newest")
        files.remove(path / segment_name(number))
    files.sync_dir(path)


def _take(
    path: Path, number: int, files: Files, random_bytes: Callable[[int], bytes], quarantine: Path | None
) -> WriterDirectory | None:
    files.make_dir(path)
    # An earlier life may have made them and died before their entries were flushed.
    for above in (path.parent, path.parent.parent):
        files.sync_dir(above)
    lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    try:
        directory = _id_or_new(path, files, random_bytes, quarantine)
    except BaseException:
        os.close(lock)
        raise
    return WriterDirectory(path, number, directory, lock)


def _id_or_new(path: Path, files: Files, random_bytes: Callable[[int], bytes], quarantine: Path | None) -> DirectoryId:
    stored = _stored_id(path)
    if stored is not None:
        return stored
    if quarantine is not None and (path / ID_NAME).exists():
        copy_aside(path / ID_NAME, f"queue/{path.name}/{ID_NAME}", quarantine, "not a directory's id", files)
    directory = _id_of_segments(path) or DirectoryId(random_bytes(8))
    files.write_whole(path / ID_NAME, pack_id(directory))
    return directory


def _stored_id(path: Path) -> DirectoryId | None:
    try:
        packed = (path / ID_NAME).read_bytes()
    except FileNotFoundError:
        return None
    directory = DirectoryId(packed[8:16])
    return directory if packed == pack_id(directory) else None


def _id_of_segments(path: Path) -> DirectoryId | None:
    for number in segment_numbers(path):
        try:
            return parse_header(_beginning(path / segment_name(number)), path / segment_name(number)).directory
        except (FrameDamaged, FileNotFoundError):
            continue
    return None


def _begun_at_ms(path: Path) -> int | None:
    try:
        return parse_header(_beginning(path), path).begun_at_ms
    except FrameDamaged:
        return None


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SEGMENT_HEADER_BYTES)
