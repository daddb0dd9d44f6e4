"""A Delta table's data files on a local disk: written once, flushed before any commit names them.

A file of ours lies in the directory of its partition under a name that no other writer makes:
`received_date=2026-01-31/counterfoil-<32 hex digits>.parquet`. Paths are relative to the table's directory, as in the
log.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from counterfoil.contract.subject import Subject
from counterfoil.destinations.delta_columns import COLUMNS, PARTITION, ParquetFile
from counterfoil.destinations.delta_subject import SUBJECT_COLUMNS, subject_rows
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
    row_count: int
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

    def read(self, path: str, columns: Sequence[str] = COLUMNS.names) -> Iterator[pa.Table]:
        """The rows of a file, whoever wrote it, a row group at a time; raises OSError or ArrowException."""
        with pq.ParquetFile(self._root / path, memory_map=False) as file:
            yield from read_rows(file, columns)

    def may_hold(self, path: str, subject: Subject) -> bool:
        """Whether a file holds a row of a subject; also True where it can't be read."""
        try:
            with pq.ParquetFile(self._root / path, memory_map=False) as file:
                return holds_rows(file, subject)
        except FileNotFoundError:
            return False
        except (OSError, pa.ArrowException):
            return True

    def ours(self) -> list[str]:
        """The files of our making that are there, whether a commit names them or not."""
        found = self._root.glob(f"{PARTITION}=*/{PREFIX}*.parquet")
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def all(self) -> dict[str, int]:
        """Every Parquet file below the table's directory, whoever made it, with the time of its last change (ms)."""
        found = (path.relative_to(self._root) for path in self._root.rglob("*.parquet"))
        # Names that begin so are no data, by Delta Lake's protocol: the log is one.
        data = [path for path in found if not path.parts[0].startswith(("_", "."))]
        return {path.as_posix(): (self._root / path).stat().st_mtime_ns // 1_000_000 for path in data}

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


def read_rows(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of a file of the table, whoever wrote it, a row group at a time; raises OSError or ArrowException.

    A column that it lacks, as other writers may leave one out, is null.
    """
    schema = pa.schema([COLUMNS.field(name) for name in columns])
    here = [name for name in columns if name in file.schema_arrow.names]
    for index in range(file.num_row_groups):
        rows = file.read_row_group(index, columns=here, use_threads=False)
        for name in set(columns) - set(here):
            rows = rows.append_column(name, pa.nulls(rows.num_rows))
        # Other writers may have the columns in another order.
        rows = rows.select(schema.names)
        if any(rows.column(field.name).null_count for field in schema if not field.nullable):
            raise pa.ArrowInvalid("a column that may not be null is")
        yield rows.cast(schema)


def holds_rows(file: pq.ParquetFile, subject: Subject) -> bool:
    """Whether a file holds a row of a subject; False for one that is no file of the table's. Raises as `read_rows`."""
    if not {"source", "distinct_id"} <= set(file.schema_arrow.names):
        return False
    return any(subject_rows(rows, subject) for rows in read_rows(file, SUBJECT_COLUMNS))


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
        statistics = self._parquet.statistics
        return WrittenFile(self._relative, self._day, file_bytes, statistics.row_count, statistics.text())

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
