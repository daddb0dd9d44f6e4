"""Files that are recorded, and the disks that a power cut could have left at any point of the record.

A power cut keeps what was flushed. Of the rest it keeps what it likes: each new entry of a directory or not, of each
file's unflushed bytes a part, or all of them with blocks that never arrived.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.faults.files import FaultyFiles

SECTOR_BYTES = 512


class Tree(msgspec.Struct, frozen=True):
    """The files below a directory, by their paths from there."""

    files: dict[Path, bytes]
    dirs: set[Path]

    @classmethod
    def of(cls, root: Path) -> Tree:
        """What lies below `root` now."""
        paths = sorted(root.rglob("*"))
        return cls(
            {path.relative_to(root): path.read_bytes() for path in paths if path.is_file()},
            {path.relative_to(root) for path in paths if path.is_dir()},
        )

    def write(self, root: Path) -> None:
        """Put it below another root."""
        for path in sorted(self.dirs):
            (root / path).mkdir(parents=True, exist_ok=True)
        for path, data in self.files.items():
            (root / path).write_bytes(data)


class Operation(msgspec.Struct, frozen=True):
    """One operation that succeeded, or a mark that the test set."""

    name: str
    path: Path
    target: Path | None = None
    data: bytes = b""
    shared: bytes | None = None
    """What the file `shared` held after it: a file that is stored to through a map."""


class RecordingFiles(FaultyFiles):
    """`FaultyFiles` that keep a record of what was done below `root`."""

    def __init__(self, root: Path, shared: str) -> None:
        super().__init__()
        self.root = root
        self.before = Tree.of(root)
        self.record: list[Operation] = []
        self._shared = shared
        self._paths: dict[int, Path] = {}

    def mark(self, name: str) -> None:
        """Note that something happened between two operations."""
        self._note("mark", self.root / name)

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._paths[descriptor] = path
        self._note("create", path)
        return descriptor

    def append(self, descriptor: int, data: bytes) -> None:
        path = self._paths[descriptor]
        before = path.stat().st_size
        try:
            super().append(descriptor, data)
        finally:
            self._note("append", path, data=path.read_bytes()[before:])

    def fdatasync(self, descriptor: int) -> None:
        super().fdatasync(descriptor)
        self._note("sync", self._paths[descriptor])

    def sync_file(self, path: Path) -> None:
        super().sync_file(path)
        self._note("sync", path)

    def truncate(self, path: Path, size: int) -> None:
        super().truncate(path, size)
        self._note("truncate", path, data=path.read_bytes())

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._note("rename", source, target)

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._note("remove", path)

    def cut(self, count: int, keep: Callable[[], float]) -> Tree:
        """What a power cut after `count` operations could leave."""
        disk = Disk(self.before, self._shared)
        for operation in self.record[:count]:
            disk.apply(operation)
        return disk.power_cut(keep)

    def make_dir(self, path: Path) -> None:
        is_new = not path.is_dir()
        super().make_dir(path)
        if is_new:
            # `super` has flushed the entry by now; before that nothing lay in it.
            self._note("make_dir", path)

    def sync_dir(self, path: Path) -> None:
        super().sync_dir(path)
        if path.is_relative_to(self.root):
            self._note("sync_dir", path)

    def _note(self, name: str, path: Path, target: Path | None = None, data: bytes = b"") -> None:
        found = [file.read_bytes() for file in self.root.rglob(self._shared)]
        here = path.relative_to(self.root)
        there = None if target is None else target.relative_to(self.root)
        self.record.append(Operation(name, here, there, data, found[0] if found else None))


class _Inode:
    def __init__(self) -> None:
        self.now = b""
        self.flushed = b""
        self.shared: list[bytes] = []
        """What a mapped file held, from the last flush on."""


class Disk:
    """What a record up to some point left, flushed and not, of a directory that began as `before`."""

    def __init__(self, before: Tree, shared: str) -> None:
        self._shared = shared
        self._now: dict[Path, _Inode] = {}
        self._dirs = set(before.dirs)
        for path, data in before.files.items():
            inode = _Inode()
            inode.now = inode.flushed = data
            if path.name == shared:
                inode.shared.append(data)
            self._now[path] = inode
        self._flushed = dict(self._now)

    def apply(self, operation: Operation) -> None:
        """Do one operation of the record."""
        path = operation.path
        match operation.name:
            case "create":
                self._now[path] = _Inode()
            case "append":
                self._now[path].now += operation.data
            case "sync":
                inode = self._now[path]
                inode.flushed = inode.now
                inode.shared = inode.shared[-1:]
            case "truncate":
                self._now[path].now = self._now[path].flushed = operation.data
            case "rename":
                assert operation.target is not None
                self._now[operation.target] = self._now.pop(path)
            case "remove":
                del self._now[path]
            case "make_dir":
                self._dirs.add(path)
            case "sync_dir":
                self._flush_entries(path)
        for path, inode in self._now.items():
            if path.name == self._shared and operation.shared is not None and inode.shared[-1:] != [operation.shared]:
                inode.shared.append(operation.shared)

    def power_cut(self, keep: Callable[[], float]) -> Tree:
        """What a power cut could leave; `keep` says for each choice how much is kept, from 0 to 1."""
        entries = dict(self._flushed)
        for path in sorted({*self._now, *self._flushed}):
            if self._now.get(path) is not self._flushed.get(path) and keep() >= 0.5:
                if path in self._now:
                    entries[path] = self._now[path]
                else:
                    del entries[path]
        return Tree({path: self._content(path, inode, keep) for path, inode in entries.items()}, set(self._dirs))

    def _flush_entries(self, directory: Path) -> None:
        self._flushed = {path: inode for path, inode in self._flushed.items() if path.parent != directory}
        self._flushed |= {path: inode for path, inode in self._now.items() if path.parent == directory}

    def _content(self, path: Path, inode: _Inode, keep: Callable[[], float]) -> bytes:
        if path.name == self._shared and inode.shared:
            return inode.shared[round(keep() * (len(inode.shared) - 1))]
        unflushed = inode.now[len(inode.flushed) :]
        if not unflushed:
            return inode.flushed
        kept = bytearray(unflushed[: round(keep() * len(unflushed))])
        for at in range(0, len(kept), SECTOR_BYTES):
            if keep() < 0.1:
                kept[at : at + SECTOR_BYTES] = bytes(len(kept[at : at + SECTOR_BYTES]))
        return inode.flushed + bytes(kept)


def nothing() -> float:
    """A power cut that keeps nothing it need not keep."""
    return 0.0


def everything() -> float:
    """A process that is killed on a machine that lives on."""
    return 1.0


def by_chance(seed: int) -> Callable[[], float]:
    """A power cut that keeps one thing and forgets another: all, nothing or a part of each."""
    chance = random.Random(seed)

    def keep() -> float:
        return chance.choice([0.0, 1.0, chance.random()])

    return keep
