"""The file `flushed`: up to where a writer's frames are durable, for whoever reads them.

The writer maps it and stores into it after every flush; readers in other processes map it too. A store is no atomic
thing, so the place stands in two slots that are written in turn, each with a checksum: a reader that meets a slot half
written takes the other, which is one flush older. Nothing hangs on this file after a power cut: it may then say less
than what is durable, never more, because it is stored to after the flush.

Little-endian, 128 bytes; slots at 0 and 64:

    0   8   mark, PUBLISHED_MARK
    8   8   the directory's id
    16  4   segment
    20  4   format version, 1
    24  8   offset: all bytes of the segment below it are flushed
    32  8   checksum: xxh3-64 over bytes 0 to 32
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import xxhash

from counterfoil.files import Files
from counterfoil.positions import DirectoryId, FramePosition, SegmentNumber

PUBLISHED_NAME = "flushed"
PUBLISHED_MARK = b"\xf0CFPUB\x0d\x0a"
PUBLISHED_VERSION = 1
PUBLISHED_BYTES = 128

_SLOTS = (0, 64)
_PLACE = struct.Struct("<8s8sIIQ")
_SLOT_BYTES = _PLACE.size + 8


class PublishedPlace:
    """The writer's side: `publish` what is durable, over what an earlier life published."""

    def __init__(self, path: Path, files: Files, directory: DirectoryId) -> None:
        self._path = path
        self._files = files
        self._directory = directory
        self._map: mmap.mmap | None = None
        self._slot = 0

    def publish(self, segment: SegmentNumber, offset: int) -> None:
        """Tell readers that everything of `segment` below `offset`, and every segment before it, is durable."""
        if self._map is None or _status(self._path) != self._mapped:
            self._open()
        packed = _pack(self._directory, segment, offset)
        assert self._map is not None
        self._map[self._slot : self._slot + _SLOT_BYTES] = packed
        self._slot = _SLOTS[1] - self._slot

    def flush(self) -> None:
        """Bring to disk what was published, so that a power cut leaves no older place behind."""
        self._files.sync_file(self._path)

    def close(self) -> None:
        """Let go of the file."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def _open(self) -> None:
        # A store into a map whose file was cut or removed under it kills the process, so the map is made anew.
        self.close()
        status = _status(self._path)
        if status is None or status[2] != PUBLISHED_BYTES:
            self._files.write_whole(self._path, bytes(PUBLISHED_BYTES))
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(descriptor, PUBLISHED_BYTES)
        finally:
            os.close(descriptor)
        self._mapped = _status(self._path)
        # The slot that holds the newest place is written last, or a torn store would leave none.
        places = [_unpack(self._map[slot : slot + _SLOT_BYTES], self._directory) for slot in _SLOTS]
        self._slot = _SLOTS[1] if places[0] == _newest(places) else _SLOTS[0]


class PublishedView:
    """A reader's side: the place that the writer published last."""

    def __init__(self, path: Path, directory: DirectoryId) -> None:
        self._path = path
        self._directory = directory
        self._map: mmap.mmap | None = None
        self._mapped: tuple[int, int, int] | None = None

    def place(self) -> FramePosition | None:
        """The published place; None when the file is missing, cut or garbage."""
        status = _status(self._path)
        if status is None or status[2] != PUBLISHED_BYTES:
            self.close()
            return None
        view = self._map
        if view is None or status != self._mapped:
            view = self._open(status)
        return _newest([_unpack(view[slot : slot + _SLOT_BYTES], self._directory) for slot in _SLOTS])

    def close(self) -> None:
        """Let go of the file."""
        self._map = None

    def _open(self, status: tuple[int, int, int]) -> mmap.mmap:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            view = mmap.mmap(descriptor, PUBLISHED_BYTES, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self._map, self._mapped = view, status
        return view


def _pack(directory: DirectoryId, segment: SegmentNumber, offset: int) -> bytes:
    place = _PLACE.pack(PUBLISHED_MARK, directory, segment, PUBLISHED_VERSION, offset)
    return place + xxhash.xxh3_64_intdigest(place).to_bytes(8, "little")


def _unpack(slot: bytes, directory: DirectoryId) -> FramePosition | None:
    place = slot[: _PLACE.size]
    if xxhash.xxh3_64_intdigest(place).to_bytes(8, "little") != slot[_PLACE.size :]:
        return None
    mark, of_directory, segment, version, offset = _PLACE.unpack(place)
    if mark != PUBLISHED_MARK or of_directory != directory or version != PUBLISHED_VERSION:
        return None
    return FramePosition(directory, SegmentNumber(segment), offset)


def _newest(places: list[FramePosition | None]) -> FramePosition | None:
    return max((place for place in places if place is not None), default=None)


def _status(path: Path) -> tuple[int, int, int] | None:
    """Which file stands at a path, and its size: None when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size
