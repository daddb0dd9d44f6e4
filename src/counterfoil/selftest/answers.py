"""What an answer says of each row, read strictly by the contract (contract.md sections 2 and 3).

answer                                        of each row
200, 207 with a result a row                  TAKEN, or by its code REFUSED or AGAIN
500 with a result a row                       REFUSED or AGAIN by its code
500 with `retryable`, 408, 429                AGAIN
400, 413, 415 with the body of an error       REFUSED
none, or one that is cut off                  SILENCE
anything else, or results that don't add up   NEITHER: not success, and no error that the contract knows
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

WAIT_SECONDS_MAX = 60.0


class RowAnswer(enum.IntEnum):
    """What a server said of one row."""

    TAKEN = 1
    REFUSED = 2
    AGAIN = 3
    """It failed, and the contract says to send it again."""
    SILENCE = 4
    """The connection broke, or nothing came in time: it may have been taken or not; it is sent again."""
    NEITHER = 5
    """An answer came, and it was neither a success nor an error of the contract; it is sent again."""


class Answer(msgspec.Struct, frozen=True):
    """The answer to one request."""

    status: int
    """Of HTTP; 0 when none came."""
    rows: tuple[RowAnswer, ...]
    """One a row, in the order of the request."""
    wait_seconds: float | None = None
    """What `Retry-After` asks for."""


def silence(row_count: int) -> Answer:
    """No answer."""
    return Answer(0, (RowAnswer.SILENCE,) * row_count)


def read_batch_answer(status: int, headers: Mapping[str, str], body: bytes, row_count: int) -> Answer:
    """What an answer to /batch says of its rows; header names in lower case or a mapping that does not mind."""
    document = _object(body)
    rows: tuple[RowAnswer, ...] | None = None
    if status in (200, 207) or (status == 500 and "results" in document):
        rows = _by_results(status, document, row_count)
    elif _is_error(status, document):
        rows = (RowAnswer.AGAIN if status in (408, 429, 500) else RowAnswer.REFUSED,) * row_count
    return Answer(status, rows or (RowAnswer.NEITHER,) * row_count, _wait_seconds(headers))


def read_track_answer(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """What an answer to /track says of its one row."""
    document = _object(body)
    row = RowAnswer.NEITHER
    if status == 200 and document.get("success") is True:
        row = RowAnswer.TAKEN
    elif _is_error(status, document):
        row = RowAnswer.AGAIN if status in (408, 429, 500) else RowAnswer.REFUSED
    return Answer(status, (row,), _wait_seconds(headers))


def _by_results(status: int, document: dict[str, Any], row_count: int) -> tuple[RowAnswer, ...] | None:
    """One answer a row; None when the results don't belong to the request or don't add up."""
    results = document.get("results")
    if not isinstance(results, list) or len(results) != row_count:
        return None
    if any(not isinstance(result, dict) or result.get("index") != index for index, result in enumerate(results)):
        return None
    rows = tuple(map(_of_result, results))
    taken = rows.count(RowAnswer.TAKEN)
    if status == 500:
        return tuple(RowAnswer.NEITHER if row is RowAnswer.TAKEN else row for row in rows)
    failed = row_count - taken
    counts = (document.get("success"), document.get("accepted"), document.get("failed"))
    return rows if counts == (failed == 0, taken, failed) and status == (207 if failed else 200) else None


def _of_result(result: dict[str, Any]) -> RowAnswer:
    match result.get("success"), result.get("code"):
        case True, None:
            return RowAnswer.TAKEN
        case False, "invalid_event":
            return RowAnswer.REFUSED
        case False, "queue_failed":
            return RowAnswer.AGAIN
    return RowAnswer.NEITHER


def _is_error(status: int, document: dict[str, Any]) -> bool:
    """Whether this is the body of an error on a status that the contract knows."""
    if document.get("success") is not False or not isinstance(document.get("error"), str):
        return False
    return status in (400, 408, 413, 415, 429) or (status == 500 and document.get("retryable") is True)


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return document if isinstance(document, dict) else {}


def _wait_seconds(headers: Mapping[str, str]) -> float | None:
    try:
        return min(max(float(headers.get("retry-after", "")), 0.0), WAIT_SECONDS_MAX)
    except ValueError:
        return None
