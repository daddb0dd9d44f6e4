"""Which rows of a table are a subject's: in SQL, and in columns that were read."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from counterfoil.contract.subject import Subject

SUBJECT_COLUMNS = ("source", "distinct_id", "user_id")
"""What has to be read to tell."""


def subject_predicate(subject: Subject) -> str:
    """A condition of SQL that is true for the subject's rows."""
    return " AND ".join(f"{column} = {_literal(value)}" for column, value in subject.given)


def subject_rows(rows: pa.Table, subject: Subject) -> int:
    """How many of the rows are the subject's."""
    return pc.sum(_mask(rows, subject)).as_py() or 0


def rows_of_others(rows: pa.Table, subject: Subject) -> pa.Table:
    """The rows that are not the subject's, in their order."""
    return rows.filter(pc.invert(_mask(rows, subject)))


def _mask(rows: pa.Table, subject: Subject) -> Any:
    """For each row whether it is the subject's, in a column without nulls."""
    mask: Any = None
    for column, value in subject.given:
        is_equal: Any = pc.fill_null(pc.equal(rows.column(column), pa.scalar(value)), pa.scalar(False))
        mask = is_equal if mask is None else pc.and_(mask, is_equal)
    return mask


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
