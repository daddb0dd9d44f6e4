"""Records out of files, in runs of some thousand at most, in constant memory.

    format    files                        a record's number     its original
    ndjson    .ndjson .jsonl .json         the line              the line
    json      .json that begins with [     place in the array    JSON of the element
    csv, tsv  .csv .tsv                    the line it ends on   JSON of the columns, every value a text
    parquet   .parquet                     the row               JSON of the columns
    arrow     .arrow .feather .arrows      the row               JSON of the columns

Each also behind .gz or .zst. A path is a local one, a pattern, `-` for standard input, or an address that pyarrow's
file systems know (s3://, gs://, hdfs://). Parquet and Arrow's file format are read from their end: where that can't be,
behind a compression or from standard input, they go through a temporary file.

A line of CSV that is none, by its quotes or its bytes, stands as it is for its original, so that it is rejected and the
rest goes on. An instant is read to the microsecond.

A rejected file of an earlier job is NDJSON of `{"line", "code", "message", "original"}`; its originals are read, so
that a mended file is backfilled like the first. Numbers count from 1.
"""

from __future__ import annotations

import csv
import glob
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
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
GATHERED_RECORDS = 1000
TABLE_ROWS = 4096
"""Rows of a table that are made at once, however many lie together in its file."""
RECORD_BYTES_MAX = 64 * 1024 * 1024
"""A line without an end would be read until memory is full."""
STANDARD_INPUT = "-"
REJECTED_SUFFIX = ".rejected.ndjson"

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
_UNREADABLE = (OSError, pa.ArrowException, EOFError, ValueError, OverflowError)
_WRAPPER = {"line", "code", "message", "original"}
_WRAPPED = b'{"line":'
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ARROW_FILE = b"ARROW1"


class Records(msgspec.Struct, frozen=True):
    """Consecutive records of a file, none to some thousand: an object for each would cost as much as sending it."""

    numbers: Sequence[int]
    """Ascending, one a record."""
    originals: list[bytes]
    """The JSON of each, or bytes that are none."""

    def __len__(self) -> int:
        return len(self.originals)

    def part(self, start: int, end: int) -> Records:
        """Those from one place to before another."""
        return Records(self.numbers[start:end], self.originals[start:end])


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

    The rejected file of one that is named, too, is left out: the job itself writes it. Raises BackfillError when a
    path names nothing, when a file is named twice, or when its format can't be told from its name.
    """
    expanded = [one for path in paths for one in _expanded(path)]
    written = {f"{path}{REJECTED_SUFFIX}" for path in expanded}
    found = [path for path in expanded if path not in written]
    for path in found:
        if found.count(path) > 1:
            raise BackfillError(f"{path}: named twice")
    return [_input(path, format_name) for path in found]


def compression_of(path: str) -> str | None:
    """How a file is compressed, by its name; None where it is not."""
    return _COMPRESSIONS.get(Path(path).suffix)


def read_records(source: Input) -> Iterator[Records]:
    """The records of a file in order, in runs. Raises BackfillError when it can't be read as what it is."""
    try:
        yield from _READERS[source.format](source)
    except _UNREADABLE as error:
        raise BackfillError(
            f"{source.path}: can't be read to its end as {source.format} ({type(error).__name__}): is it whole?"
        ) from None


def encode_record(record: dict[str, Any]) -> bytes:
    """The JSON of a record's columns; what JSON has no word for becomes a text, and an instant ISO 8601."""
    return _ENCODER.encode(record)


# Finding


def _expanded(path: str) -> list[str]:
    if "://" in path:
        return _expanded_address(path) if "*" in path.rpartition("/")[2] else [path]
    if path == STANDARD_INPUT or Path(path).exists():
        return [path]
    matches = sorted(glob.glob(path))  # noqa: PTH207 (a pattern of the user's, absolute or not)
    if not matches:
        raise BackfillError(f"{path}: no such file")
    return matches


def _expanded_address(path: str) -> list[str]:
    """The addresses that a pattern in the last part of one names."""
    directory, _, pattern = path.rpartition("/")
    system, inner = _file_system(directory)
    try:
        found = system.get_file_info(pa.fs.FileSelector(inner, allow_not_found=True))
    except OSError as error:
        raise BackfillError(f"{path}: can't be listed ({type(error).__name__})") from None
    names = sorted(one.base_name for one in found if one.type == pa.fs.FileType.File)
    matches = [f"{directory}/{name}" for name in names if fnmatchcase(name, pattern)]
    if not matches:
        raise BackfillError(f"{path}: no such file")
    return matches


def _without_compression(path: str) -> str:
    return path if compression_of(path) is None else path.removesuffix(Path(path).suffix)


def _input(path: str, format_name: Format | None) -> Input:
    if path == STANDARD_INPUT:
        return Input(path, format_name or "ndjson", 0, 0)
    chosen = format_name or _SUFFIXES.get(Path(_without_compression(path)).suffix)
    if chosen is None:
        raise BackfillError(f"{path}: the name tells no format; say --format, one of {', '.join(_READERS)}")
    system, inner = _file_system(path)
    facts = system.get_file_info(inner)
    if facts.type != pa.fs.FileType.File:
        is_directory = facts.type == pa.fs.FileType.Directory
        raise BackfillError(f"{path}: {'a directory; name its files' if is_directory else 'no such file'}")
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
    stream = system.open_input_stream(inner, compression=compression_of(source.path), buffer_size=CHUNK_BYTES)
    return cast("BinaryIO", stream)


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


@contextmanager
def _from_any_place(source: Input, stream: BinaryIO) -> Iterator[pa.NativeFile]:
    """A file that can be read from any place; `stream` has its bytes from the beginning on."""
    if source.is_seekable and compression_of(source.path) is None:
        system, inner = _file_system(source.path)
        with system.open_input_file(inner) as file:
            yield file
        return
    with tempfile.TemporaryFile(prefix="counterfoil-backfill-") as spooled:
        shutil.copyfileobj(stream, spooled, CHUNK_BYTES)
        spooled.seek(0)
        yield _python_file(cast("BinaryIO", spooled))


# Reading


def _read_ndjson(source: Input) -> Iterator[Records]:
    with closing(_stream(source)) as stream:
        first = stream.read(CHUNK_BYTES).removeprefix(_BYTE_ORDER_MARK)
        if source.format == "json" or (_may_be_array(source) and first.lstrip()[:1] == b"["):
            yield from _gathered(_elements(_Chained(first, stream), source.path))
            return
        yield from _lines(first, stream, source.path)


def _may_be_array(source: Input) -> bool:
    return not source.is_seekable or Path(_without_compression(source.path)).suffix == ".json"


def _lines(chunk: bytes, stream: BinaryIO, path: str) -> Iterator[Records]:
    number = 1
    rest = b""
    while chunk:
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        yield _records(number, lines)
        number += len(lines)
        if len(rest) > RECORD_BYTES_MAX:
            raise BackfillError(f"{path}, line {number}: longer than {RECORD_BYTES_MAX} bytes")
        chunk = stream.read(CHUNK_BYTES)
    yield _records(number, [rest])


def _records(first: int, lines: list[bytes]) -> Records:
    """What stands in lines, the first of which has the number `first`; a blank one is no record."""
    numbers: Sequence[int] = range(first, first + len(lines))
    originals = [*map(bytes.strip, lines)]
    if b"" in originals:
        numbers = [number for number, original in zip(numbers, originals, strict=True) if original]
        originals = [original for original in originals if original]
    return Records(numbers, [one if not one.startswith(_WRAPPED) else _unwrapped(one) for one in originals])


def _unwrapped(line: bytes) -> bytes:
    """The original when the line is one of a rejected file; else the line."""
    try:
        members = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return line
    if members.keys() != _WRAPPER:
        return line
    original = bytes(members["original"])
    # A record that was no JSON stands there as a text, to be mended in its place.
    return msgspec.json.decode(original, type=str).encode() if original.startswith(b'"') else original


def _gathered(records: Iterable[tuple[int, bytes]]) -> Iterator[Records]:
    """Runs of records that come one by one, each of about CHUNK_BYTES at most."""
    numbers: list[int] = []
    originals: list[bytes] = []
    size_bytes = 0
    try:
        for number, original in records:
            numbers.append(number)
            originals.append(original)
            size_bytes += len(original)
            if size_bytes >= CHUNK_BYTES or len(numbers) == GATHERED_RECORDS:
                yield Records(numbers, originals)
                numbers, originals, size_bytes = [], [], 0
    except (BackfillError, *_UNREADABLE):
        yield Records(numbers, originals)
        raise
    yield Records(numbers, originals)


def _elements(stream: _Chained, path: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for element in ijson.items(stream, "item"):
            number += 1
            yield number, _ENCODER.encode(element)
    except ijson.JSONError:
        raise BackfillError(f"{path}: the array of JSON ends early or is damaged after its element {number}") from None
    except RecursionError:
        raise BackfillError(f"{path}: element {number} of the array is nested too deep") from None


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


def _read_csv(source: Input) -> Iterator[Records]:
    yield from _gathered(_csv_rows(source))


def _csv_rows(source: Input) -> Iterator[tuple[int, bytes]]:
    csv.field_size_limit(RECORD_BYTES_MAX)
    delimiter = "\t" if source.format == "tsv" else ","
    with closing(_stream(source)) as stream:
        text = io.TextIOWrapper(_buffered(stream), "utf-8-sig", "surrogateescape", newline="")
        taken: list[str] = []
        reader = csv.reader(_noted(text, taken), delimiter=delimiter, strict=True)
        header = _header(reader, source.path)
        while True:
            taken.clear()
            try:
                cells = next(reader, None)
                if cells is None:
                    return
                if cells:
                    yield reader.line_num, _ENCODER.encode(_columns(header, cells))
            except (csv.Error, UnicodeEncodeError):
                yield reader.line_num, "".join(taken).strip("\r\n").encode("utf-8", "surrogateescape")


def _noted(lines: Iterable[str], taken: list[str]) -> Iterator[str]:
    """Lines, each noted before it is given."""
    for line in lines:
        taken.append(line)
        yield line


def _header(reader: Iterator[list[str]], path: str) -> list[str]:
    try:
        header = next(reader, [])
        "".join(header).encode()
    except (csv.Error, UnicodeEncodeError):
        raise BackfillError(f"{path}: the first line is no header of CSV in UTF-8") from None
    if len(set(header)) != len(header):
        raise BackfillError(f"{path}: two columns have the same name")
    return header


def _columns(header: list[str], cells: list[str]) -> dict[str, str]:
    """The cells by name; what is beyond the header stands under its place, so that nothing is lost unseen."""
    columns = dict(zip(header, cells, strict=False))
    columns.update((f"column {place}", cell) for place, cell in enumerate(cells[len(header) :], len(header) + 1))
    return columns


def _buffered(stream: BinaryIO) -> io.BufferedReader:
    return io.BufferedReader(_Raw(stream), CHUNK_BYTES)


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


def _read_parquet(source: Input) -> Iterator[Records]:
    with closing(_stream(source)) as stream, _from_any_place(source, stream) as file:
        # Read as far as a batch needs it: a group of rows may be as large as the file.
        table = pa.parquet.ParquetFile(file, memory_map=False, pre_buffer=False, buffer_size=CHUNK_BYTES)
        yield from _rows(table.iter_batches(batch_size=TABLE_ROWS))


def _read_arrow(source: Input) -> Iterator[Records]:
    with closing(_stream(source)) as stream:
        buffered = _buffered(stream)
        if buffered.peek(len(_ARROW_FILE))[: len(_ARROW_FILE)] != _ARROW_FILE:
            yield from _rows(pa.ipc.open_stream(_python_file(buffered)))
            return
        with _from_any_place(source, buffered) as file:
            reader = pa.ipc.open_file(file)
            yield from _rows(reader.get_batch(index) for index in range(reader.num_record_batches))


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Records]:
    number = 1
    for batch in batches:
        for start in range(0, batch.num_rows, TABLE_ROWS):
            originals = [*map(_ENCODER.encode, _in_microseconds(batch.slice(start, TABLE_ROWS)).to_pylist())]
            yield Records(range(number, number + len(originals)), originals)
            number += len(originals)


def _in_microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with times that Python has: it knows no nanoseconds."""
    schema = batch.schema
    for index, field in enumerate(schema):
        kind = field.type
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            schema = schema.set(index, field.with_type(pa.timestamp("us", kind.tz)))
        elif pa.types.is_duration(kind) and kind.unit == "ns":
            schema = schema.set(index, field.with_type(pa.duration("us")))
        elif pa.types.is_time64(kind) and kind.unit == "ns":
            schema = schema.set(index, field.with_type(pa.time64("us")))
    return batch if schema is batch.schema else batch.cast(schema, safe=False)


_ENCODER = msgspec.json.Encoder(decimal_format="number", enc_hook=str)
_READERS: dict[Format, Callable[[Input], Iterator[Records]]] = {
    "ndjson": _read_ndjson,
    "json": _read_ndjson,
    "csv": _read_csv,
    "tsv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
