"""A disk that can lose its power: it remembers what was flushed, whoever wrote it.

`tests.faults.disk` replays a record of what went through `Files`; here deltalake writes past it, so this one looks at
the directory instead each time something is flushed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from counterfoil.files import RealFiles


class PowerCut(BaseException):
    """The machine is off."""


class PowerFiles(RealFiles):
    """`RealFiles` that end at their `cut_at`-th operation, and know what is on the disk then."""

    def __init__(self, root: Path, cut_at: int | None = None) -> None:
        super().__init__()
        self._root = root
        self._left = cut_at
        self.operation_count = 0
        self._paths: dict[int, Path] = {}
        self._flushed: dict[Path, tuple[int, bytes]] = {}
        """What is flushed of the file that is at a path now, with its inode."""
        self._on_disk: dict[Path, tuple[int, bytes]] = {}
        """What a power cut leaves at a path for certain."""

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._paths[descriptor] = path
        return descriptor

    def fdatasync(self, descriptor: int) -> None:
        self._operate()
        super().fdatasync(descriptor)
        self._flush(self._paths[descriptor])

    def sync_file(self, path: Path) -> None:
        self._operate()
        super().sync_file(path)
        self._flush(path)

    def rename(self, source: Path, target: Path) -> None:
        self._operate()
        super().rename(source, target)
        self._flushed.pop(source, None)
        self._flushed[target] = (target.stat().st_ino, target.read_bytes())  # `write_whole` flushed it.

    def remove(self, path: Path) -> None:
        self._operate()
        super().remove(path)
        self._flushed.pop(path, None)

    def sync_dir(self, path: Path) -> None:
        self._operate()
        super().sync_dir(path)
        if not path.is_relative_to(self._root):
            return
        self._on_disk = {file: kept for file, kept in self._on_disk.items() if file.parent != path}
        for file in filter(Path.is_file, path.iterdir()):
            inode, data = self._flushed.get(file, (0, b""))
            now = file.stat().st_ino
            self._on_disk[file] = (now, data if inode == now else b"")

    def after_cut(self, target: Path, keep: Random | None) -> None:
        """Put below `target` what a power cut leaves: `keep` decides about what was not flushed; None keeps nothing."""
        here = {path for path in self._root.rglob("*") if path.is_file()}
        for path in here | set(self._on_disk):
            data = self._kept(path, keep)
            if data is not None:
                copy = target / path.relative_to(self._root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(data)

    def _kept(self, path: Path, keep: Random | None) -> bytes | None:
        certain = self._on_disk.get(path)
        if keep is None:
            return None if certain is None else certain[1]
        inode = path.stat().st_ino if path.exists() else 0
        if not path.exists() or (certain is not None and certain[0] != inode and keep.random() < 0.5):
            return None if certain is None or keep.random() < 0.5 else certain[1]
        if certain is None and keep.random() < 0.3:
            return None
        data, flushed = path.read_bytes(), self._flushed.get(path, (0, b""))
        if flushed == (inode, data):
            return data
        tears: list[Callable[[bytes], bytes]] = [
            lambda whole: whole,
            lambda whole: whole[: len(whole) // 2],
            lambda whole: bytes(len(whole)),
            lambda whole: whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
            lambda whole: b"",
        ]
        return keep.choice(tears)(data)

    def _flush(self, path: Path) -> None:
        inode, data = path.stat().st_ino, path.read_bytes()
        self._flushed[path] = (inode, data)
        if self._on_disk.get(path, (0, b""))[0] == inode:
            self._on_disk[path] = (inode, data)

    def _operate(self) -> None:
        self.operation_count += 1
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise PowerCut
