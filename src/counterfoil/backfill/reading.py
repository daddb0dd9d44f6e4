"""Records out of files, one after the other, in constant memory.

    format    files                        a record's number     its original
    ndjson    .ndjson .jsonl .json         the line              the line
    json      .json that begins with [     place in the array    JSON of the element
    csv, tsv  .csv .tsv                    the line it ends on   JSON of the columns, every value a text
    parquet   .parquet                     the row               JSON of the columns
    arrow     .arrow .feather .arrows      the row               JSON of the columns

Each but Parquet and Arrow also behind .gz or .zst. A path is a local one, a pattern, `-` for standard input, or an
address that pyarrow's file systems know (s3://, gs://, hdfs://).

A rejected file of an earlier job is NDJSON of `{"line", "code", "message", "original"}`; its originals are read, so
that a mended file is backfilled like the first. Numbers count from 1.
"""

from __future__ import annotations

import csv
import glob
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import ijson
import msgspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.ipc
import pyarrow.parquet

from counterfoil.backfill.errors import BackfillError

Format = Literal["ndjson", "json", "csv", "tsv", "parquet", "arrow"]

CHUNK_BYTES = 1024 * 1024
RECORD_BYTES_MAX = 64 * 1024 * 1024
"""A line without an end would be read until memory is full."""
STANDARD_INPUT = "-"

_SUFFIXES: dict[str, Format] = {
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "ndjson",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_WRAPPER = {"line", "code", "message", "original"}


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record of a file; `original` is its JSON, or bytes that are none."""

    number: int
    original: bytes


class Input(msgspec.Struct, frozen=True):
    """A file to read, and what it was when the job began."""

    path: str
    format: Format
    size_bytes: int
    modified_ns: int

    @property
    def is_seekable(self) -> bool:
        """Whether it can be read a second time, as going on with a job needs."""
        return self.path != STANDARD_INPUT


def find_inputs(paths: list[str], format_name: Format | None = None) -> list[Input]:
    """The files that paths, patterns and addresses name, in order.

    Raises BackfillError when one names nothing, or when a file's format can't be told from its name.
    """
    found: list[Input] = []
    for path in paths:
        found += [_input(one, format_name) for one in _expanded(path)]
    return found


def read_records(source: Input) -> Iterator[Record]:
    """The records of a file in order. Raises BackfillError when it can't be read as what it is."""
    try:
        yield from _READERS[source.format](source)
    except (OSError, pa.ArrowInvalid, EOFError) as error:
        raise BackfillError(f"{source.path}: can't be read as {source.format} ({type(error).__name__})") from None


def encode_record(record: dict[str, Any]) -> bytes:
    """The JSON of a record's columns; what JSON has no word for becomes a text, and an instant ISO 8601."""
    return _ENCODER.encode(record)


# Finding


def _expanded(path: str) -> list[str]:
    if path == STANDARD_INPUT or "://" in path or Path(path).exists():
        return [path]
    matches = sorted(glob.glob(path))  # noqa: PTH207 (a pattern of the user's, absolute or not)
    if not matches:
        raise BackfillError(f"{path}: no such file")
    return matches


def _input(path: str, format_name: Format | None) -> Input:
    if path == STANDARD_INPUT:
        return Input(path, format_name or "ndjson", 0, 0)
    suffixes = Path(path).suffixes
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    chosen = format_name or (_SUFFIXES.get(suffixes[-1]) if suffixes else None)
    if chosen is None:
        raise BackfillError(f"{path}: the name tells no format; say --format, one of {', '.join(_READERS)}")
    system, inner = _file_system(path)
    facts = system.get_file_info(inner)
    if facts.type != pa.fs.FileType.File:
        raise BackfillError(f"{path}: no such file")
    return Input(path, chosen, facts.size, facts.mtime_ns or 0)


def _file_system(path: str) -> tuple[pa.fs.FileSystem, str]:
    if "://" not in path:
        return pa.fs.LocalFileSystem(), str(Path(path).absolute())
    try:
        return pa.fs.FileSystem.from_uri(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise BackfillError(f"{path}: can't be opened ({type(error).__name__})") from None


# Opening


def _stream(source: Input) -> BinaryIO:
    """The bytes of a file, inflated."""
    if not source.is_seekable:
        return _inflated_input()
    system, inner = _file_system(source.path)
    compression = _COMPRESSIONS.get(Path(source.path).suffix)
    return cast("BinaryIO", system.open_input_stream(inner, compression=compression, buffer_size=CHUNK_BYTES))


def _inflated_input() -> BinaryIO:
    raw = sys.stdin.buffer
    head = raw.peek(4)[:4] if isinstance(raw, io.BufferedReader) else b""
    if head[:2] == b"\x1f\x8b":
        return cast("BinaryIO", pa.CompressedInputStream(_python_file(raw), "gzip"))
    if head == b"\x28\xb5\x2f\xfd":
        return cast("BinaryIO", pa.CompressedInputStream(_python_file(raw), "zstd"))
    return raw


def _python_file(stream: BinaryIO) -> pa.PythonFile:
    return pa.PythonFile(cast("io.IOBase", stream), mode="r")


# Reading


def _read_ndjson(source: Input) -> Iterator[Record]:
    with closing(_stream(source)) as stream:
        first = stream.read(CHUNK_BYTES)
        if source.format == "json" or (_is_plain_json(source) and first.lstrip()[:1] == b"["):
            yield from _elements(_Chained(first, stream))
            return
        yield from _lines(first, stream, source.path)


def _is_plain_json(source: Input) -> bool:
    return Path(source.path.removesuffix(".gz").removesuffix(".zst")).suffix == ".json"


def _lines(chunk: bytes, stream: BinaryIO, path: str) -> Iterator[Record]:
    number = 0
    rest = b""
    while chunk:
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            number += 1
            if line and not line.isspace():
                yield Record(number, _original(line))
        if len(rest) > RECORD_BYTES_MAX:
            raise BackfillError(f"{path}, line {number + 1}: longer than {RECORD_BYTES_MAX} bytes")
        chunk = stream.read(CHUNK_BYTES)
    if rest and not rest.isspace():
        yield Record(number + 1, _original(rest))


def _original(line: bytes) -> bytes:
    """The line, or what stands in it when it is one of a rejected file."""
    line = line.strip()
    if not line.startswith(b'{"line":'):
        return line
    try:
        members = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return line
    if members.keys() != _WRAPPER:
        return line
    original = bytes(members["original"])
    # A record that was no JSON stands there as a text, to be mended in its place.
    return msgspec.json.decode(original, type=str).encode() if original.startswith(b'"') else original


def _elements(stream: _Chained) -> Iterator[Record]:
    try:
        for number, element in enumerate(ijson.items(stream, "item"), 1):
            yield Record(number, _ENCODER.encode(element))
    except ijson.JSONError:
        raise BackfillError("the array of JSON ends early or is damaged") from None


class _Chained:
    """A stream that begins with bytes that were read already."""

    def __init__(self, first: bytes, rest: BinaryIO) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        if not self._first:
            return self._rest.read(size)
        taken, self._first = self._first[:size], self._first[size:]
        return taken


def _read_csv(source: Input) -> Iterator[Record]:
    csv.field_size_limit(RECORD_BYTES_MAX)
    delimiter = "\t" if source.format == "tsv" else ","
    with closing(_stream(source)) as stream:
        text = io.TextIOWrapper(io.BufferedReader(_Raw(stream), CHUNK_BYTES), "utf-8-sig", "replace", newline="")
        reader = csv.reader(text, delimiter=delimiter)
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) != len(header):
            raise BackfillError(f"{source.path}: two columns have the same name")
        for cells in reader:
            if cells:
                yield Record(reader.line_num, _ENCODER.encode(_columns(header, cells)))


def _columns(header: list[str], cells: list[str]) -> dict[str, str]:
    """The cells by name; what is beyond the header stands under its place, so that nothing is lost unseen."""
    columns = dict(zip(header, cells, strict=False))
    columns.update((f"column {place}", cell) for place, cell in enumerate(cells[len(header) :], len(header) + 1))
    return columns


class _Raw(io.RawIOBase):
    """A pyarrow stream as what BufferedReader wants."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._stream.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _read_parquet(source: Input) -> Iterator[Record]:
    system, inner = _file_system(source.path)
    with system.open_input_file(inner) as file:
        batches = pa.parquet.ParquetFile(file, memory_map=False, pre_buffer=False).iter_batches(batch_size=4096)
        yield from _rows(batches)


def _read_arrow(source: Input) -> Iterator[Record]:
    if not source.is_seekable:
        yield from _rows(pa.ipc.open_stream(_python_file(sys.stdin.buffer)))
        return
    system, inner = _file_system(source.path)
    with system.open_input_file(inner) as file:
        if file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(file)
            yield from _rows(reader.get_batch(index) for index in range(reader.num_record_batches))
            return
    with closing(_stream(source)) as stream:
        yield from _rows(pa.ipc.open_stream(cast("io.IOBase", stream)))


def _rows(batches: Any) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield Record(number, _ENCODER.encode({name: value for name, value in row.items() if value is not None}))


_ENCODER = msgspec.json.Encoder(decimal_format="number", enc_hook=str)
_READERS: dict[Format, Callable[[Input], Iterator[Record]]] = {
    "ndjson": _read_ndjson,
    "json": _read_ndjson,
    "csv": _read_csv,
    "tsv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
