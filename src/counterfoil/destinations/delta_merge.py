"""Which small files become one larger file.

Each delivery leaves a file a day of receipt, so files are many and small while rows come slowly. Files are merged in
classes by size, each eight times the one before: those of the smallest class as soon as there are two, others when
there are eight. So a row is written about once for each class it passes, and a day that is open holds few files
whatever was delivered. A day that is over is merged whole, once. No file grows past `file_bytes`, and no merge crosses
a day.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from itertools import groupby

import msgspec

SMALLEST_CLASS_BYTES = 256 * 1024
CLASS_FACTOR = 8
CLASS_FILES = 8


class TableFile(msgspec.Struct, frozen=True):
    """A data file that the table holds now."""

    path: str
    day: date
    file_bytes: int
    least_seq: int


class Merge(msgspec.Struct, frozen=True):
    """Files of one day that become one, in the order of their rows."""

    day: date
    files: tuple[TableFile, ...]


def plan_merges(files: Iterable[TableFile], today: date, file_bytes_max: int) -> list[Merge]:
    """The merges that are worth doing now; no file is in two of them."""
    merges: list[Merge] = []
    for day, of_day in groupby(sorted(files, key=lambda file: (file.day, file.least_seq)), lambda file: file.day):
        small = [file for file in of_day if file.file_bytes < file_bytes_max]
        for group in [small] if day < today else _full_classes(small):
            merges += [Merge(day, run) for run in _runs(group, file_bytes_max) if len(run) > 1]
    return merges


def _full_classes(files: Sequence[TableFile]) -> list[list[TableFile]]:
    classes: dict[int, list[TableFile]] = {}
    for file in files:
        classes.setdefault(size_class(file.file_bytes), []).append(file)
    return [group for number, group in sorted(classes.items()) if len(group) >= (CLASS_FILES if number else 2)]


def _runs(files: Sequence[TableFile], file_bytes_max: int) -> list[tuple[TableFile, ...]]:
    """The files cut into neighbours that fit one file together."""
    runs: list[list[TableFile]] = [[]]
    run_bytes = 0
    for file in files:
        if runs[-1] and run_bytes + file.file_bytes > file_bytes_max:
            runs.append([])
            run_bytes = 0
        runs[-1].append(file)
        run_bytes += file.file_bytes
    return [tuple(run) for run in runs]


def size_class(file_bytes: int) -> int:
    """0 for the smallest files, and one more for each eightfold."""
    number, bound = 0, SMALLEST_CLASS_BYTES
    while file_bytes >= bound:
        number, bound = number + 1, bound * CLASS_FACTOR
    return number
