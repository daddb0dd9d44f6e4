"""A Delta table's data files on a local disk: written once, flushed before any commit names them.

A file of ours lies in the directory of its partition under a name that no other writer makes:
`received_date=2026-01-31/counterfoil-<32 hex digits>.parquet`. Paths are relative to the table's directory, as in the
log.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from counterfoil.destinations.delta_columns import COLUMNS, PARTITION, ParquetFile
from counterfoil.files import Files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer

PREFIX = "counterfoil-"
SINK_BYTES = 1024 * 1024


class WrittenFile(msgspec.Struct, frozen=True):
    """A durable data file that no commit names yet."""

    path: str
    day: date
    file_bytes: int
    statistics: str


class TableFiles:
    """The data files below one table's directory."""

    def __init__(self, root: Path, files: Files, new_id: Callable[[], str]) -> None:
        self._root = root
        self._files = files
        self._new_id = new_id

    def begin(self, day: date) -> DataFile:
        """A new file in the partition of a day."""
        directory = f"{PARTITION}={day.isoformat()}"
        self._files.make_dir(self._root / directory)
        return DataFile(self._root, f"{directory}/{PREFIX}{self._new_id()}.parquet", day, self._files)

    def read(self, path: str) -> Iterator[pa.Table]:
        """The rows of a file of ours, a row group at a time."""
        with pq.ParquetFile(self._root / path, memory_map=False) as file:
            for index in range(file.num_row_groups):
                yield file.read_row_group(index, use_threads=False).cast(COLUMNS)

    def ours(self) -> list[str]:
        """The files of our making that are there, whether a commit names them or not."""
        found = self._root.glob(f"{PARTITION}=*/{PREFIX}*.parquet")
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files for good; those that are gone already are no error."""
        directories = set()
        for path in paths:
            full = self._root / path
            # Only what lies below the table: the log may name a file of another place by its whole address.
            if not full.resolve().is_relative_to(self._root.resolve()):
                continue
            with suppress(FileNotFoundError):
                self._files.remove(full)
                directories.add(full.parent)
        for directory in directories:
            self._files.sync_dir(directory)


class DataFile:
    """A data file that is being written; `finish` makes it durable, `abandon` removes it."""

    def __init__(self, root: Path, path: str, day: date, files: Files) -> None:
        self._path = root / path
        self._relative = path
        self._day = day
        self._files = files
        self._descriptor = files.create(self._path)
        self._appending = _Appending(self._descriptor, files)
        self._sink = io.BufferedWriter(self._appending, SINK_BYTES)
        self._parquet = ParquetFile(self._sink)

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self._parquet.write(table)

    def finish(self) -> WrittenFile:
        """Close and flush the file and its name."""
        self._parquet.close()
        self._sink.flush()
        self._files.fdatasync(self._descriptor)
        file_bytes = os.fstat(self._descriptor).st_size
        self._close()
        self._files.sync_dir(self._path.parent)
        return WrittenFile(self._relative, self._day, file_bytes, self._parquet.statistics.text())

    def abandon(self) -> None:
        """Throw away what was written; harmless after `finish` failed."""
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            self._files.remove(self._path)

    def _close(self) -> None:
        self._appending.end()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class _Appending(io.RawIOBase):
    """What `Files` appends to a descriptor, as a file that Parquet's writer can write to."""

    def __init__(self, descriptor: int, files: Files) -> None:
        self._descriptor = descriptor
        self._files = files

    def writable(self) -> bool:
        return True

    def end(self) -> None:
        """Take whatever comes later, and write it nowhere.

        A writer that is thrown away after a failure still empties its buffer when it is collected; by then another
        file may have the descriptor's number.
        """
        self._descriptor = -1

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data)
        if self._descriptor >= 0:
            self._files.append(self._descriptor, bytes(view))
        return view.nbytes
