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
from types import SimpleNamespace
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
from counterfoil.backfill.rows import row_maker

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


def standard_input(content: bytes) -> Any:
    """What stands for `sys.stdin` with this content."""
    return SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content)))


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
    with pytest.raises(BackfillError, match=r"a\.json: .* ends early or is damaged after its element 1"):
        records(path)


def test_an_array_nested_too_deep_is_told(tmp_path: Path) -> None:
    """One line with its element, not a traceback."""
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a":1},' + b"[" * 5000 + b"]" * 5000 + b"]")
    with pytest.raises(BackfillError, match=r"a\.json: element 2 of the array is nested too deep"):
        records(path)


@pytest.mark.parametrize("content", [b'{"a":1}\n{"a":2}\n', b'[{"a":1},{"a":2}]'])
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, content: bytes) -> None:
    """As Windows writes it before lines and arrays."""
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + content)
    assert records(path) == [(1, {"a": 1}), (2, {"a": 2})]


def test_csv_keeps_columns_as_texts_with_the_line_a_record_ends_on(tmp_path: Path) -> None:
    """Quoted line ends, a BOM, and cells beyond the header are kept."""
    path = tmp_path / "a.csv"
    path.write_bytes('\ufefforder,note\n1,"two\nlines"\n2,b,extra\n3\n'.encode())
    assert records(path) == [
        (3, {"order": "1", "note": "two\nlines"}),
        (4, {"order": "2", "note": "b", "column 3": "extra"}),
        (5, {"order": "3"}),
    ]


def test_a_line_that_is_no_csv_stands_as_it_is(tmp_path: Path) -> None:
    """Other bytes than UTF-8 and quotes that enclose no cell are not mended unseen: the record will be rejected."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1,caf\xe9\n"x"y,"two\r\nlines"\r\n2,c\n3,"open\n4,d\n')
    assert originals(path) == [
        (2, b"1,caf\xe9"),
        (3, b'"x"y,"two'),
        (4, b'{"a":"lines\\""}'),
        (5, b'{"a":"2","b":"c"}'),
        (7, b'3,"open\n4,d'),
    ]
    (source,) = find_inputs([str(path)])
    with row_maker(source, None) as make:
        made = make([original for _, original in originals(path)])
    assert set(made.faults) == {0, 1, 4}
    assert made.faults[0].startswith("not a line of CSV: expected UTF-8")


def test_a_header_that_is_none_is_told(tmp_path: Path) -> None:
    """Nothing could be mapped by it."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"caf\xe9\n1\n")
    with pytest.raises(BackfillError, match="no header"):
        records(path)


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
def test_tables_are_read_row_by_row(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet, and Arrow as a file or a stream, also compressed as a whole and from standard input."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pa.parquet.write_table(TABLE, path)
    elif suffix == "feather":
        pa.feather.write_feather(TABLE, path)
    else:
        make = pa.ipc.new_file if suffix == "arrow" else pa.ipc.new_stream
        with make(str(path), TABLE.schema) as writer:
            writer.write_table(TABLE)
    expected = [(number, row) for number, row in enumerate(TABLE.to_pylist(), 1)]
    assert records(path) == expected
    content = path.read_bytes()
    for ending, packed in ((".gz", gzip.compress(content)), (".zst", zstandard.compress(content))):
        compressed = Path(f"{path}{ending}")
        compressed.write_bytes(packed)
        assert records(compressed) == expected
    for piped in (content, gzip.compress(content)) if suffix != "parquet" else (content,):
        monkeypatch.setattr(sys, "stdin", standard_input(piped))
        assert records("-", format_name="parquet" if suffix == "parquet" else "arrow") == expected


def test_values_json_has_no_word_for_become_texts(tmp_path: Path) -> None:
    """An instant is ISO 8601 to the microsecond, a decimal keeps its digits."""
    path = tmp_path / "a.parquet"
    nanoseconds = 1_767_225_600_123_456_789
    columns = {
        "at": [datetime(2026, 1, 1, tzinfo=UTC)],
        "sum": [Decimal("12.50")],
        "ns": pa.array([nanoseconds], pa.timestamp("ns", "UTC")),
        "of_day": pa.array([1_500], pa.time64("ns")),
        "took": pa.array([1_500], pa.duration("ns")),
    }
    pa.parquet.write_table(pa.table(columns), path)
    assert originals(path) == [
        (
            1,
            b'{"at":"2026-01-01T00:00:00Z","sum":12.50,"ns":"2026-01-01T00:00:00.123456Z","of_day":"00:00:00.000001",'
            b'"took":"PT0.000001S"}',
        )
    ]


def test_large_batches_of_a_table_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: a file may hold all its rows in one batch."""
    monkeypatch.setattr(reading, "TABLE_ROWS", 10)
    path = tmp_path / "a.arrow"
    table = pa.table({"n": range(25)})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    (source,) = find_inputs([str(path)])
    runs = list(read_records(source))
    assert [len(run) for run in runs] == [10, 10, 5]
    assert one_by_one(runs)[-1] == (25, b'{"n":24}')


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
    with pytest.raises(BackfillError, match="can't be read to its end as parquet"):
        records(path)


def test_standard_input_may_be_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads lines, and tells gzip by its first bytes."""
    monkeypatch.setattr(sys, "stdin", standard_input(gzip.compress(b'{"a":1}\n')))
    assert records("-") == [(1, {"a": 1})]


def test_an_address_is_read_like_a_path(tmp_path: Path) -> None:
    """What pyarrow's file systems know is read through them."""
    (tmp_path / "a.ndjson").write_bytes(b'{"a":1}\n')
    assert records((tmp_path / "a.ndjson").as_uri()) == [(1, {"a": 1})]


def test_a_pattern_may_end_an_address(tmp_path: Path) -> None:
    """A warehouse unloads many files; a pattern that names none is an error."""
    for name in ("part-1.ndjson", "part-0.ndjson", "other.csv"):
        (tmp_path / name).write_bytes(b'{"a":1}\n')
    found = find_inputs([f"{tmp_path.as_uri()}/part-*.ndjson"])
    assert [one.path for one in found] == [f"{tmp_path.as_uri()}/part-{n}.ndjson" for n in range(2)]
    assert one_by_one(read_records(found[1])) == [(1, b'{"a":1}')]
    with pytest.raises(BackfillError, match="no such file"):
        find_inputs([f"{tmp_path.as_uri()}/none-*"])


def test_a_run_holds_about_a_chunk_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: records that come one by one are handed on when they are many, or large."""
    monkeypatch.setattr(reading, "CHUNK_BYTES", 1000)
    path = tmp_path / "a.csv"
    path.write_text("a\n" + "1\n" * 2500 + ("x" * 800 + "\n") * 3)
    (source,) = find_inputs([str(path)])
    runs = list(read_records(source))
    assert max(sum(map(len, run.originals)) for run in runs) < 2000
    assert [number for number, _ in one_by_one(runs)] == list(range(2, 2505))
