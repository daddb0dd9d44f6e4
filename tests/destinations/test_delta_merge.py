from __future__ import annotations

from datetime import date
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from counterfoil.destinations.delta_merge import CLASS_FILES, TableFile, plan_merges, size_class

MIB = 1024 * 1024
TODAY = date(2026, 3, 5)
FILE_BYTES = 128 * MIB

FILES = st.lists(
    st.tuples(st.sampled_from([date(2026, 3, 4), TODAY]), st.integers(1, 200 * MIB)), max_size=60
).map(lambda drawn: [TableFile(f"f{n}", day, size, n * 10) for n, (day, size) in enumerate(drawn)])  # fmt: skip


def merged(files: list[TableFile]) -> list[TableFile]:
    """What the table holds after the planned merges, were a merged file as large as its parts."""
    left = list(files)
    for number, merge in enumerate(plan_merges(files, TODAY, FILE_BYTES)):
        left = [file for file in left if file not in merge.files]
        size = sum(file.file_bytes for file in merge.files)
        left.append(TableFile(f"m{number}-{merge.files[0].path}", merge.day, size, merge.files[0].least_seq))
    return left


@given(FILES)
def test_a_merge_takes_files_of_one_day_once_in_order_and_within_the_bound(files: list[TableFile]) -> None:
    """No file is in two merges, none alone, none that is large enough; the order of rows is kept."""
    taken = [file.path for merge in plan_merges(files, TODAY, FILE_BYTES) for file in merge.files]
    assert len(taken) == len(set(taken))
    for merge in plan_merges(files, TODAY, FILE_BYTES):
        assert len(merge.files) > 1
        assert {file.day for file in merge.files} == {merge.day}
        assert sum(file.file_bytes for file in merge.files) <= FILE_BYTES
        assert [file.least_seq for file in merge.files] == sorted(file.least_seq for file in merge.files)


@given(FILES)
def test_merging_comes_to_rest(files: list[TableFile]) -> None:
    """Merging again and again ends, with few files on an open day and neighbours that fit no file on a closed one."""
    for _ in range(len(files) + 1):
        if not plan_merges(files, TODAY, FILE_BYTES):
            break
        files = merged(files)
    assert plan_merges(files, TODAY, FILE_BYTES) == []
    small = [file for file in files if file.file_bytes < FILE_BYTES]
    open_day = [size_class(file.file_bytes) for file in small if file.day == TODAY]
    for number in set(open_day):
        of_class = [file for file in small if file.day == TODAY and size_class(file.file_bytes) == number]
        if len(of_class) >= (CLASS_FILES if number else 2):
            assert all(a.file_bytes + b.file_bytes > FILE_BYTES for a, b in pairwise(of_class))


def test_many_deliveries_leave_few_files_and_are_rewritten_seldom() -> None:
    """Over 100,000 small files a row is written some times over, not once a merge."""
    files: list[TableFile] = []
    written = delivered = 0
    for number in range(100_000):
        files.append(TableFile(f"d{number}", TODAY, 20_000, number))
        delivered += 20_000
        if number % 50 == 49:
            written += sum(file.file_bytes for merge in plan_merges(files, TODAY, FILE_BYTES) for file in merge.files)
            files = merged(files)
    assert len(files) < 50
    assert written < 6 * delivered
