"""SQL over the default table, read only; works while the pipeline writes, because a query sees one version of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from arro3.core import RecordBatchReader
from deltalake import QueryBuilder
from deltalake.exceptions import DeltaError, TableNotFoundError

from counterfoil.contract.subject import Subject
from counterfoil.destinations.delta_address import TableAddress
from counterfoil.destinations.delta_columns import TABLE_NAME
from counterfoil.destinations.delta_errors import problem_of
from counterfoil.destinations.delta_subject import subject_predicate
from counterfoil.destinations.delta_table import table_files
from counterfoil.destinations.interface import HeldRows
from counterfoil.errors import DestinationDown, QueryRefused

_READS = ("select", "with", "values", "explain", "describe")
_WORD = re.compile(r"\w+")
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


class QueryResult(msgspec.Struct, frozen=True):
    """The answer of a query; rows are read as they are asked for."""

    columns: tuple[str, ...]
    batches: Iterator[pa.RecordBatch]

    def rows(self) -> Iterator[tuple[object, ...]]:
        """The rows as Python values."""
        for batch in self.batches:
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def run_query(address: TableAddress, sql: str) -> QueryResult:
    """Run one statement that reads, over the table `events` at an address.

    Raises QueryRefused with one line: there is no table yet, or the statement is wrong, or it would write.
    """
    words = _WORD.findall(_COMMENT.sub(" ", sql).lower())
    # EXPLAIN ANALYZE runs what it explains, and so could write a file.
    if not words or words[0] not in _READS or (words[0] == "explain" and "analyze" in words):
        raise QueryRefused(f"expected one statement that reads ({', '.join(_READS).upper()})")
    try:
        reader = _execute(address, sql)
    except TableNotFoundError as error:
        raise QueryRefused(f"{address}: there is no table yet: it is made when the pipeline first starts") from error
    except (DeltaError, OSError) as error:
        raise _refusal(address, error) from None
    return QueryResult(tuple(reader.schema.names), _batches(address, reader))


def rows_by_source(address: TableAddress) -> dict[str, int]:
    """How many rows the table holds of each source; none when there is no table.

    Raises DestinationDown, as `held_rows` does, when a data file can't be read.
    """
    counts: dict[str, int] = {}
    for batch in _read(address, f"SELECT source, count(*) FROM {TABLE_NAME} WHERE seq IS NOT NULL GROUP BY source"):  # noqa: S608
        columns: list[list[Any]] = [column.to_pylist() for column in batch.columns]
        counts.update(zip(*columns, strict=True))
    return counts


def held_rows(address: TableAddress, first_seq: int, last_seq: int | None) -> Iterator[HeldRows]:
    """The rows of a range of `seq`, ends included, some of one source at a time."""
    upto = "" if last_seq is None else f" AND seq <= {last_seq}"
    sql = f"SELECT source, seq, distinct_id FROM {TABLE_NAME} WHERE seq >= {first_seq}{upto}"  # noqa: S608
    for batch in _read(address, sql):
        by_source: dict[str, tuple[list[int], list[str]]] = {}
        for source, seq, distinct_id in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            seqs, ids = by_source.setdefault(source, ([], []))
            seqs.append(seq)
            ids.append(distinct_id)
        for source, (seqs, ids) in by_source.items():
            yield HeldRows(source, seqs, ids)


def subject_seqs(address: TableAddress, subject: Subject) -> Sequence[int]:
    """The seqs of the rows that the table holds of a subject, in order."""
    sql = f"SELECT seq FROM {TABLE_NAME} WHERE {subject_predicate(subject)}"  # noqa: S608
    seqs: list[int] = []
    for batch in _read(address, sql):
        found: list[Any] = batch.column(0).to_pylist()
        seqs += found
    return sorted(seqs)


def _read(address: TableAddress, sql: str) -> Iterator[pa.RecordBatch]:
    try:
        reader = _execute(address, sql)
    except TableNotFoundError:
        return
    try:
        yield from _as_pyarrow(reader)
    except Exception as error:
        # deltalake's reader raises nothing more special for a data file that is damaged or gone.
        which = _unreadable_file(address) or "a data file of the table"
        raise DestinationDown(f"{address}: {which} can't be read") from error


def _unreadable_file(address: TableAddress) -> str | None:
    """The first data file of a table on this machine that is damaged or gone; None when each can be read."""
    if address.path is None:
        return None
    for file in table_files(address.load()):
        try:
            with pq.ParquetFile(address.path / file.path, memory_map=False) as opened:
                for index in range(opened.num_row_groups):
                    opened.read_row_group(index)
        except (OSError, pa.ArrowException):
            return file.path
    return None


def _execute(address: TableAddress, sql: str) -> RecordBatchReader:
    return QueryBuilder().register(TABLE_NAME, address.load()).execute(sql)


def _as_pyarrow(reader: RecordBatchReader) -> Iterator[pa.RecordBatch]:
    # A batch at a time: pyarrow given the whole reader takes the process down when a query fails on its way.
    for batch in reader:
        yield pa.record_batch(batch)


def _batches(address: TableAddress, reader: RecordBatchReader) -> Iterator[pa.RecordBatch]:
    try:
        yield from _as_pyarrow(reader)
    except Exception as error:
        raise _refusal(address, error) from None


def _refusal(address: TableAddress, error: Exception) -> QueryRefused:
    """The query engine's words are for who asked; those of an object store may hold a key's name."""
    if isinstance(error, OSError) or (address.path is None and "Error performing" in str(error)):
        return QueryRefused(str(problem_of(address, error)))
    return QueryRefused(" ".join(str(error).split()))
