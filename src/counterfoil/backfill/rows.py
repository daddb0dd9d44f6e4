"""Records into rows as they are sent: the bytes of one JSON object, or the reason why there is none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rocksdict import Options, Rdict

from counterfoil.backfill.mapping import Mapper, Mapping, MappingFault, automatic_mapping
from counterfoil.backfill.reading import Input, Record, encode_record

RowMaker = Callable[[Record], bytes]
_SELF_DESCRIBING = ("ndjson", "json")
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_columns_decoder = msgspec.json.Decoder(dict)


class RowFault(Exception):
    """A record that makes no row; the message says why, never a value."""


@contextmanager
def row_maker(source: Input, mapping: Mapping | None) -> Iterator[RowMaker]:
    """What makes rows of a file's records, called once for each, in order. It raises RowFault.

    Without a mapping, JSON records are rows already and tables are mapped by the names of their columns.
    """
    if mapping is None and source.format in _SELF_DESCRIBING:
        yield _row_as_it_is
    elif mapping is not None and mapping.counts_repeats:
        with tempfile.TemporaryDirectory(prefix="counterfoil-repeats-") as directory:
            repeats = _Repeats(Path(directory))
            try:
                yield _mapped(Mapper(mapping, repeats.count))
            finally:
                repeats.close()
    elif mapping is not None:
        yield _mapped(Mapper(mapping, lambda _: 0))
    else:
        yield _by_names()


def _row_as_it_is(record: Record) -> bytes:
    try:
        _object_decoder.decode(record.original)
    except UnicodeDecodeError:
        # Bad UTF-8 makes this one row invalid, and the server says so (contract.md section 3).
        return record.original
    except RecursionError:
        raise RowFault("nested too deep") from None
    except msgspec.ValidationError:
        raise RowFault("expected a JSON object") from None
    except msgspec.DecodeError:
        raise RowFault("not JSON") from None
    return record.original


def _mapped(mapper: Mapper) -> RowMaker:
    def make(record: Record) -> bytes:
        try:
            return encode_record(mapper.row(_columns_decoder.decode(record.original)))
        except MappingFault as fault:
            raise RowFault(str(fault)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise RowFault("not a JSON object") from None

    return make


def _by_names() -> RowMaker:
    """Maps by names; the columns of a table are those of its first record, and of any that has others."""
    mappers: dict[tuple[str, ...], RowMaker] = {}

    def make(record: Record) -> bytes:
        names = tuple(_columns_decoder.decode(record.original))
        mapper = mappers.get(names)
        if mapper is None:
            if len(mappers) >= 64:
                mappers.clear()
            mapper = mappers[names] = _mapped(Mapper(automatic_mapping(names), lambda _: 0))
        return mapper(record)

    return make


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
