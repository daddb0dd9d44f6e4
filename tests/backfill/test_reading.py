"""Records out of files: every format, compressed or not, with the place of each record."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from counterfoil.backfill import reading
from counterfoil.backfill.errors import BackfillError
from counterfoil.backfill.reading import Records, find_inputs, read_records

TABLE = pa.table({"order_id": [1, 2, 3], "event": ["a", "b", None]})


def one_by_one(runs: Iterable[Records]) -> list[tuple[int, bytes]]:
    """Number and original of each record of some runs."""
    return [pair for run in runs for pair in zip(run.numbers, run.originals, strict=True)]


def originals(path: Path | str, **options: Any) -> list[tuple[int, bytes]]:
    """Number and original of each record of a file."""
    (source,) = find_inputs([str(path)], **options)
    return one_by_one(read_records(source))


def records(path: Path | str, **options: Any) -> list[tuple[int, Any]]:
    """Number and decoded original of each record of a file."""
    return [(number, json.loads(original)) for number, original in originals(path, **options)]


def test_lines_of_json_keep_their_numbers_and_bytes(tmp_path: Path) -> None:
    """Blank lines count and give no record; the last line needs no end; the original is the line."""
    path = tmp_path / "a.ndjson"
    path.write_bytes(b'{"a": 1.50}\n\n  \n{"a":\t2}\r\n{broken')
    assert originals(path) == [
        (1, b'{"a": 1.50}'),
        (4, b'{"a":\t2}'),
        (5, b"{broken"),
    ]


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=30), st.integers(1, 16))
def test_lines_are_the_same_wherever_a_chunk_ends(lines: list[bytes], chunk_bytes: int) -> None:
    """A line that lies across two reads is one line."""
    content = b"\n".join(lines)
    stream = io.BytesIO(content)

    class Small(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return stream.read(chunk_bytes)

    found = one_by_one(reading._lines(stream.read(chunk_bytes), Small(), "x"))
    numbered = enumerate(content.split(b"\n"), 1)
    expected = [(number, line.strip()) for number, line in numbered if line and not line.isspace()]
    assert found == expected


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed_files_are_read(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    """gzip and zstd are told by the name's end."""
    path = tmp_path / f"a.ndjson{suffix}"
    path.write_bytes(compress(b'{"a":1}\n{"a":2}\n'))
    assert records(path) == [(1, {"a": 1}), (2, {"a": 2})]


def test_an_array_of_json_keeps_every_number(tmp_path: Path) -> None:
    """Elements are counted from 1; large integers and decimals come out as they went in."""
    path = tmp_path / "a.json"
    path.write_bytes(b' [{"a": 123456789012345678901234567890},\n {"a": 0.10}]')
    assert originals(path) == [(1, b'{"a":123456789012345678901234567890}'), (2, b'{"a":0.10}')]


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    """.json that begins with no bracket is read as lines."""
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a":1}\n{"a":2}')
    assert records(path) == [(1, {"a": 1}), (2, {"a": 2})]


def test_an_array_that_ends_early_is_told(tmp_path: Path) -> None:
    """The file is named as damaged, and not taken for one that has ended."""
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a":1},{"a":')
    with pytest.raises(BackfillError, match="ends early"):
        records(path)


def test_csv_keeps_columns_as_texts_with_the_line_a_record_ends_on(tmp_path: Path) -> None:
    """Quoted line ends, a BOM, and cells beyond the header are kept."""
    path = tmp_path / "a.csv"
    path.write_bytes('\ufefforder,note\n1,"two\nlines"\n2,b,extra\n3\n'.encode())
    assert records(path) == [
        (3, {"order": "1", "note": "two\nlines"}),
        (4, {"order": "2", "note": "b", "column 3": "extra"}),
        (5, {"order": "3"}),
    ]


def test_tsv_is_cut_at_tabs(tmp_path: Path) -> None:
    """.tsv differs by its delimiter alone."""
    path = tmp_path / "a.tsv"
    path.write_bytes(b"a\tb\n1,5\tx\n")
    assert records(path) == [(2, {"a": "1,5", "b": "x"})]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """One of them would be lost."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,a\n1,2\n")
    with pytest.raises(BackfillError, match="same name"):
        records(path)


@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow", "arrows"])
def test_tables_are_read_row_by_row(tmp_path: Path, suffix: str) -> None:
    """Parquet, and Arrow as a file or a stream; a null is an absent column."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pa.parquet.write_table(TABLE, path)
    elif suffix == "feather":
        pa.feather.write_feather(TABLE, path)
    else:
        make = pa.ipc.new_file if suffix == "arrow" else pa.ipc.new_stream
        with make(str(path), TABLE.schema) as writer:
            writer.write_table(TABLE)
    expected = [(1, {"order_id": 1, "event": "a"}), (2, {"order_id": 2, "event": "b"}), (3, {"order_id": 3})]
    assert records(path) == expected


def test_values_json_has_no_word_for_become_texts(tmp_path: Path) -> None:
    """An instant is ISO 8601, a decimal keeps its digits."""
    path = tmp_path / "a.parquet"
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    pa.parquet.write_table(pa.table({"at": [moment], "sum": [Decimal("12.50")]}), path)
    assert originals(path) == [(1, b'{"at":"2026-01-01T00:00:00Z","sum":12.50}')]


def test_a_rejected_file_is_read_by_its_originals(tmp_path: Path) -> None:
    """A mended file is backfilled like the first, also a record that was no JSON."""
    path = tmp_path / "a.ndjson.rejected.ndjson"
    path.write_bytes(
        b'{"line":7,"code":"invalid_event","message":"m","original":{"event":"a"}}\n'
        b'{"line":9,"code":"invalid_event","message":"m","original":"{\\"event\\":\\"b\\"}"}\n'
        b'{"line":1,"other":2}\n'
    )
    assert records(path) == [(1, {"event": "a"}), (2, {"event": "b"}), (3, {"line": 1, "other": 2})]


def test_a_pattern_names_its_files_in_order(tmp_path: Path) -> None:
    """A pattern that names nothing is an error, not an empty job."""
    for name in ("b.ndjson", "a.ndjson"):
        (tmp_path / name).write_bytes(b"{}\n")
    assert [Path(one.path).name for one in find_inputs([str(tmp_path / "*.ndjson")])] == ["a.ndjson", "b.ndjson"]
    with pytest.raises(BackfillError, match="no such file"):
        find_inputs([str(tmp_path / "*.csv")])


def test_a_name_that_tells_no_format_needs_one(tmp_path: Path) -> None:
    """--format says what the name doesn't."""
    path = tmp_path / "dump"
    path.write_bytes(b'{"a":1}')
    with pytest.raises(BackfillError, match="--format"):
        find_inputs([str(path)])
    assert records(path, format_name="ndjson") == [(1, {"a": 1})]


def test_a_file_that_is_not_what_it_says_is_told(tmp_path: Path) -> None:
    """A damaged file is one line, not a traceback."""
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(BackfillError, match="can't be read as parquet"):
        records(path)


def test_standard_input_may_be_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads lines, and tells gzip by its first bytes."""

    class Input:
        buffer = io.BufferedReader(io.BytesIO(gzip.compress(b'{"a":1}\n')))

    monkeypatch.setattr(sys, "stdin", Input)
    assert records("-") == [(1, {"a": 1})]


def test_an_address_is_read_like_a_path(tmp_path: Path) -> None:
    """What pyarrow's file systems know is read through them."""
    (tmp_path / "a.ndjson").write_bytes(b'{"a":1}\n')
    assert records((tmp_path / "a.ndjson").as_uri()) == [(1, {"a": 1})]


def test_a_run_holds_about_a_chunk_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: records that come one by one are handed on when they are many, or large."""
    monkeypatch.setattr(reading, "CHUNK_BYTES", 1000)
    path = tmp_path / "a.csv"
    path.write_text("a\n" + "1\n" * 2500 + ("x" * 800 + "\n") * 3)
    (source,) = find_inputs([str(path)])
    runs = list(read_records(source))
    assert max(sum(map(len, run.originals)) for run in runs) < 2000
    assert [number for number, _ in one_by_one(runs)] == list(range(2, 2505))
