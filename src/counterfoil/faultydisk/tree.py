"""Files and directories in memory, each as it is now and as it is flushed; and what a power cut leaves of them.

A file has pages that were written since the last flush, and its least length since then. A change of directory entries
(a creation, a removal, a rename as a whole) waits until one of the directories that it touches is flushed.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from random import Random

import msgspec

PAGE_BYTES = 4096
SECTOR_BYTES = 512
"""What a disk writes whole or not at all."""
ROOT = 1
TORN = 0.1
"""How often a page that is partly kept is torn between two sectors."""


class Inode:
    """What a name leads to."""

    def __init__(self, number: int, mode: int) -> None:
        self.number = number
        self.mode = mode
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self.modified_ns = time.time_ns()
        self.link_count = 0
        self.lookups = 0
        """How many times the kernel knows it; it is kept until the kernel forgets, whatever leads to it."""
        self.path = ""
        """Where it was seen last."""

    @property
    def size(self) -> int:
        return 0


class File(Inode):
    """Bytes: as they are now, and as they are flushed."""

    def __init__(self, number: int, mode: int) -> None:
        super().__init__(number, mode)
        self.data = bytearray()
        self.flushed = bytearray()
        self.dirty: set[int] = set()
        """Pages that were written since the last flush."""
        self.least_bytes = 0
        """The file's least length since the last flush: what lay behind it is not of this file any more."""

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def is_flushed(self) -> bool:
        return not self.dirty and self.least_bytes == len(self.flushed) == len(self.data)

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at a place; what lies between it and the old end is zero."""
        end = offset + len(data)
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset:end] = data
        self.dirty.update(range(offset // PAGE_BYTES, -(-end // PAGE_BYTES)))

    def truncate(self, size: int) -> None:
        """Cut the file, or make it longer by zeros."""
        if size < len(self.data):
            del self.data[size:]
            self.least_bytes = min(self.least_bytes, size)
            self.dirty = {page for page in self.dirty if page * PAGE_BYTES < size}
        else:
            self.data.extend(bytes(size - len(self.data)))

    def flush(self) -> None:
        """Make all of it durable."""
        self._flush(self.dirty)

    def fail_to_flush(self, chance: Random) -> None:
        """Make some of it durable, and throw the rest away for good (K3).

        The kernel has it in memory for a while; whoever reads it when the kernel has let go of it reads what is here.
        """
        kept = [page for page in sorted(self.dirty) if chance.random() < 0.5]
        size, before = len(self.data), len(self.flushed)
        self._flush(kept)
        self.data[:] = self.flushed
        # A length is not thrown away, and only a flush that succeeds makes it durable.
        del self.flushed[max(before, (max(kept, default=-1) + 1) * PAGE_BYTES) :]
        self.least_bytes = len(self.flushed)
        assert len(self.data) == size

    def _flush(self, pages: Iterable[int]) -> None:
        del self.flushed[self.least_bytes :]
        self.flushed.extend(bytes(len(self.data) - len(self.flushed)))
        for page in pages:
            start, end = page * PAGE_BYTES, min((page + 1) * PAGE_BYTES, len(self.data))
            if start < end:
                self.flushed[start:end] = self.data[start:end]
        self.dirty.clear()
        self.least_bytes = len(self.flushed)

    def lose_power(self, chance: Random) -> int:
        """Keep what was flushed and some of the rest; how many unflushed pages are not what they were."""
        if self.is_flushed:
            return 0
        kept = self._kept(chance)
        changed = sum(
            kept[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] != self.data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
            for page in self.dirty
        )
        self.data, self.flushed = kept, bytearray(kept)
        self.dirty.clear()
        self.least_bytes = len(kept)
        return changed

    def _kept(self, chance: Random) -> bytearray:
        how = chance.choice(("nothing", "all", "part", "part"))
        if how == "nothing":
            return bytearray(self.flushed)
        old, now = self.flushed[: self.least_bytes], len(self.data)
        between = chance.randint(min(len(old), now), max(len(old), now))
        size = now if how == "all" else chance.choice((now, len(old), between))
        kept = bytearray(old[:size]) + bytes(max(0, size - len(old)))
        share = 1.0 if how == "all" else chance.random()
        for page in sorted(self.dirty):
            start, end = page * PAGE_BYTES, min((page + 1) * PAGE_BYTES, size)
            if start >= end or chance.random() >= share:
                continue
            if how == "part" and chance.random() < TORN:
                start, end = self._torn(start, end, chance)
            kept[start:end] = self.data[start:end]
        return kept

    @staticmethod
    def _torn(start: int, end: int, chance: Random) -> tuple[int, int]:
        """The sectors of a page that reached the disk: its first ones, or its last ones."""
        at = min(end, start + SECTOR_BYTES * chance.randrange(1, PAGE_BYTES // SECTOR_BYTES))
        return (start, at) if chance.random() < 0.5 else (at, end)


class Directory(Inode):
    """Entries: as they are now, and as they are flushed."""

    def __init__(self, number: int, mode: int) -> None:
        super().__init__(number, mode)
        self.entries: dict[bytes, Inode] = {}
        self.flushed: dict[bytes, Inode] = {}


class Change(msgspec.Struct, frozen=True):
    """One change of entries, done as a whole or not at all: what stands under each name after it; None: nothing."""

    edits: tuple[tuple[Directory, bytes, Inode | None], ...]

    def names(self) -> set[tuple[int, bytes]]:
        return {(directory.number, name) for directory, name, _ in self.edits}

    def apply_flushed(self) -> None:
        for directory, name, inode in self.edits:
            if inode is None:
                directory.flushed.pop(name, None)
            else:
                directory.flushed[name] = inode


class CutReport(msgspec.Struct, frozen=True):
    """What a power cut did."""

    seed: int
    pages: int
    """Unflushed pages that are not what they were."""
    unflushed_files: int
    entries: int
    """Unflushed changes of entries that are undone."""
    unflushed_entries: int


class Tree:
    """A file system. Raises OSError as a system call would."""

    def __init__(self) -> None:
        self.root = Directory(ROOT, stat.S_IFDIR | 0o755)
        self.known: dict[int, Inode] = {ROOT: self.root}
        """What the kernel knows, by number."""
        self.room_bytes: int | None = None
        """How many bytes it holds at most; None: no end."""
        self.used_bytes = 0
        self._waiting: list[Change] = []
        self._last_number = ROOT

    # Names

    def lookup(self, directory: Directory, name: bytes) -> Inode:
        inode = directory.entries.get(name)
        if inode is None:
            raise OSError(errno.ENOENT, "")
        return inode

    def make(self, directory: Directory, name: bytes, mode: int) -> Inode:
        """A new file or directory."""
        if name in directory.entries:
            raise OSError(errno.EEXIST, "")
        self._need(PAGE_BYTES)
        self._last_number += 1
        kind = Directory if stat.S_ISDIR(mode) else File
        inode = kind(self._last_number, mode)
        if isinstance(inode, File):
            self.used_bytes += _room(inode)
        self._change((directory, name, inode))
        return inode

    def link(self, inode: Inode, directory: Directory, name: bytes) -> None:
        if name in directory.entries:
            raise OSError(errno.EEXIST, "")
        self._change((directory, name, inode))

    def remove(self, directory: Directory, name: bytes, *, is_directory: bool) -> None:
        inode = self.lookup(directory, name)
        if is_directory and isinstance(inode, Directory) and inode.entries:
            raise OSError(errno.ENOTEMPTY, "")
        self._change((directory, name, None))

    def rename(self, source: Directory, name: bytes, target: Directory, new_name: bytes, *, replaces: bool) -> None:
        inode = self.lookup(source, name)
        there = target.entries.get(new_name)
        if there is inode:
            return
        if there is not None and not replaces:
            raise OSError(errno.EEXIST, "")
        if isinstance(there, Directory) and there.entries:
            raise OSError(errno.ENOTEMPTY, "")
        self._change((source, name, None), (target, new_name, inode))

    def _change(self, *edits: tuple[Directory, bytes, Inode | None]) -> None:
        for directory, name, inode in edits:
            old = directory.entries.pop(name, None)
            if inode is not None:
                directory.entries[name] = inode
                inode.link_count += 1
                inode.path = f"{directory.path}/{os.fsdecode(name)}".lstrip("/")
            directory.modified_ns = time.time_ns()
            if old is not None:
                old.link_count -= 1
                self._drop_unused(old)
        self._waiting.append(Change(edits))

    # Bytes

    def write(self, file: File, offset: int, data: bytes) -> int:
        """How many bytes were written: fewer where the room ends, which raises ENOSPC when there is none."""
        data = data[: self._room_for(file, offset, len(data))]
        before = _room(file)
        file.write(offset, data)
        file.modified_ns = time.time_ns()
        self.used_bytes += _room(file) - before
        return len(data)

    def truncate(self, file: File, size: int) -> None:
        if size > file.size:
            self._need(size - file.size)
        before = _room(file)
        file.truncate(size)
        file.modified_ns = time.time_ns()
        self.used_bytes += _room(file) - before

    @property
    def free_bytes(self) -> int:
        room = 1 << 40 if self.room_bytes is None else self.room_bytes
        return max(0, room - self.used_bytes)

    def _need(self, size: int) -> None:
        if self.free_bytes < size:
            raise OSError(errno.ENOSPC, "")

    def _room_for(self, file: File, offset: int, size: int) -> int:
        # What overwrites pages that are there needs no room, as on a disk that allots by pages.
        there = -(-file.size // PAGE_BYTES) * PAGE_BYTES
        fits = max(0, there - offset) + self.free_bytes // PAGE_BYTES * PAGE_BYTES
        if size and not fits:
            raise OSError(errno.ENOSPC, "")
        return min(size, fits)

    # What is durable

    def flush_directory(self, directory: Directory) -> None:
        """Make a directory's entries durable, and what earlier changes of the same names must have been before."""
        names: set[tuple[int, bytes]] = set()
        flushed: list[Change] = []
        left: list[Change] = []
        for change in reversed(self._waiting):
            if not names.isdisjoint(change.names()) or any(edit[0] is directory for edit in change.edits):
                names |= change.names()
                flushed.append(change)
            else:
                left.append(change)
        for change in reversed(flushed):
            change.apply_flushed()
        self._waiting = left[::-1]

    def lose_power(self, seed: int) -> CutReport:
        """Keep what was flushed and some of the rest, and forget that the kernel ever knew anything."""
        chance = Random(seed)
        is_in_order = chance.random() < 0.4
        share = chance.choice((0.0, 1.0, chance.random()))
        unflushed = self._waiting
        kept = [change for change in unflushed if chance.random() < share]
        if is_in_order:
            # As a journal would: up to some point, and nothing after it.
            kept = unflushed[: len(kept)]
        for change in kept:
            change.apply_flushed()
        self._waiting = []
        pages = unflushed_files = 0
        self.known = {ROOT: self.root}
        self.used_bytes = 0
        for inode in self._begin_anew():
            if isinstance(inode, File):
                unflushed_files += not inode.is_flushed
                pages += inode.lose_power(chance)
                self.used_bytes += _room(inode)
        return CutReport(seed, pages, unflushed_files, len(unflushed) - len(kept), len(unflushed))

    def _begin_anew(self) -> Iterator[Inode]:
        """Every inode that flushed entries lead to, with these as its entries now."""
        seen: set[int] = set()
        left: list[Inode] = [self.root]
        while left:
            inode = left.pop()
            if inode.number not in seen:
                seen.add(inode.number)
                inode.link_count = inode.lookups = 0
                yield inode
                if isinstance(inode, Directory):
                    inode.entries = dict(inode.flushed)
                    left += [inode.entries[name] for name in sorted(inode.entries)]
            inode.link_count += 1

    # What the kernel knows

    def know(self, inode: Inode) -> None:
        """The kernel was told of it once more."""
        inode.lookups += 1
        self.known[inode.number] = inode

    def forget(self, number: int, lookups: int) -> None:
        inode = self.known.get(number)
        if inode is not None and number != ROOT:
            inode.lookups -= lookups
            if inode.lookups <= 0:
                del self.known[number]
                self._drop_unused(inode)

    def forget_all(self) -> None:
        """The kernel knows nothing any more, though no power was cut: nothing is lost."""
        for inode in list(self.known.values()):
            self.forget(inode.number, inode.lookups)
        self.known = {ROOT: self.root}

    def _drop_unused(self, inode: Inode) -> None:
        if inode.link_count <= 0 and inode.lookups <= 0 and isinstance(inode, File):
            self.used_bytes -= _room(inode)


def _room(file: File) -> int:
    return (file.size // PAGE_BYTES + 1) * PAGE_BYTES
