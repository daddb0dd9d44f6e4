"""Records into rows as they are sent: the bytes of one JSON object, or the reason why there is none."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rocksdict import Options, Rdict

from counterfoil.backfill.mapping import Columns, Mapper, Mapping, MappingFault, automatic_mapping
from counterfoil.backfill.reading import Input, encode_record

_SELF_DESCRIBING = ("ndjson", "json")
_NOT_READ = {
    "csv": "not a line of CSV: expected UTF-8, quotes around whole cells and closed",
    "tsv": "not a line of TSV: expected UTF-8, quotes around whole cells and closed",
}


class Made(msgspec.Struct, frozen=True):
    """What records became, place by place."""

    bodies: list[bytes]
    """The JSON that is sent for each; empty where there is none."""
    faults: dict[int, str]
    """Why not, by place; the message never has a value in it."""


RowMaker = Callable[[list[bytes]], Made]
"""Takes the originals of records, called once for each and in order."""


@contextmanager
def row_maker(source: Input, mapping: Mapping | None) -> Iterator[RowMaker]:
    """What makes rows of a file's records.

    Without a mapping, JSON records are rows already and tables are mapped by the names of their columns.
    """
    fault = _NOT_READ.get(source.format, "not a JSON object")
    if mapping is None and is_self_describing(source):
        yield _as_they_are
    elif mapping is not None and mapping.counts_repeats:
        with tempfile.TemporaryDirectory(prefix="counterfoil-repeats-") as directory:
            repeats = _Repeats(Path(directory))
            try:
                yield _each(_columns_to_row(Mapper(mapping, repeats.count).row, fault))
            finally:
                repeats.close()
    elif mapping is not None:
        yield _each(_columns_to_row(Mapper(mapping, lambda _: 0).row, fault))
    else:
        yield _each(_columns_to_row(_by_names(), fault))


def is_self_describing(source: Input) -> bool:
    """Whether its records may be rows as they are."""
    return source.format in _SELF_DESCRIBING


class _RowFault(Exception):
    """A record that makes no row; the message says why."""


_RowOf = Callable[[bytes], bytes]
"""Takes one original; raises _RowFault."""


def _each(row_of: _RowOf) -> RowMaker:
    def make(originals: list[bytes]) -> Made:
        bodies: list[bytes] = []
        faults: dict[int, str] = {}
        for place, original in enumerate(originals):
            try:
                bodies.append(row_of(original))
            except _RowFault as fault:
                bodies.append(b"")
                faults[place] = str(fault)
        return Made(bodies, faults)

    return make


def _as_they_are(originals: list[bytes]) -> Made:
    try:
        # Nearly always all are good, and a look at each in a loop of Python costs more than the check.
        deque(map(_row_decoder.decode, originals), maxlen=0)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _each_as_it_is(originals)
    return Made(originals, {})


def _as_it_is(original: bytes) -> bytes:
    try:
        _object_decoder.decode(original)
        if b'"columns"' in original and _brings_columns_back(original):
            return _columns_to_row(_by_names(), "not columns of a table")(original)
    except RecursionError:
        raise _RowFault("nested too deep") from None
    except msgspec.ValidationError:
        raise _RowFault("expected a JSON object") from None
    except msgspec.DecodeError:
        raise _RowFault("not JSON") from None
    return original


_each_as_it_is = _each(_as_it_is)


def _brings_columns_back(original: bytes) -> bool:
    try:
        return _is_wrapped(_columns_decoder.decode(original))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _is_wrapped(columns: Columns) -> bool:
    """Whether they are the columns of a table as a rejected file has them (see there)."""
    return columns.keys() == {"columns"} and isinstance(columns["columns"], dict)


def _columns_to_row(row: Callable[[Columns], dict[str, Any]], fault: str) -> _RowOf:
    """Maps originals; `fault` tells of one that holds no columns."""

    def row_of(original: bytes) -> bytes:
        try:
            columns: Columns = _columns_decoder.decode(original)
            return encode_record(row(columns["columns"] if _is_wrapped(columns) else columns))
        except MappingFault as found:
            raise _RowFault(str(found)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _RowFault(fault) from None

    return row_of


def _by_names() -> Callable[[Columns], dict[str, Any]]:
    """Maps by names; the columns of a table are those of its first record, and of any that has others."""
    mappers: dict[tuple[str, ...], Mapper] = {}

    def row(columns: Columns) -> dict[str, Any]:
        names = tuple(columns)
        mapper = mappers.get(names)
        if mapper is None:
            if len(mappers) >= 64:
                mappers.clear()
            mapper = mappers[names] = Mapper(automatic_mapping(names), lambda _: 0)
        return mapper.row(columns)

    return row


class _Repeats:
    """Counts digests on disk, so that a file of any size can be counted in little memory."""

    def __init__(self, directory: Path) -> None:
        options = Options(raw_mode=True)
        options.set_write_buffer_size(16 * 1024 * 1024)
        self._counts = Rdict(str(directory / "counts"), options)

    def count(self, digest: bytes) -> int:
        earlier = self._counts.get(digest)
        met = 0 if earlier is None else int.from_bytes(earlier, "big")
        self._counts[digest] = (met + 1).to_bytes(8, "big")
        return met

    def close(self) -> None:
        self._counts.close()


class _AnyObject(msgspec.Struct, gc=False):
    """A JSON object whatever is in it: checked to its end, and nothing of it made.

    Bad UTF-8 passes: it makes its one row invalid, and the server says so (contract.md section 3).
    """


class _AnyRow(_AnyObject, gc=False):
    """The same, without columns of a table that a rejected file may bring back: those deserve a second look."""

    columns: None = None


_object_decoder = msgspec.json.Decoder(_AnyObject)
_row_decoder = msgspec.json.Decoder(_AnyRow)
_columns_decoder = msgspec.json.Decoder(dict)
