"""Answers are what contract.md sections 2 and 3 say, byte by byte where SDKs look."""

from __future__ import annotations

import json
from typing import Any

import pytest

from counterfoil.contract import rejections
from counterfoil.contract.answers import TRACK_ACCEPTED, Answer, batch_answer, error_answer, unavailable, uncertain
from counterfoil.contract.limits import Limits


def content(answer: Answer) -> Any:
    assert dict(answer.headers)["content-type"] == "application/json"
    return json.loads(answer.body)


@pytest.mark.parametrize("row_count", [1, 2, 10, 999, 1024, 1025, 10_000])
def test_accepted_rows_have_one_entry_each_in_order(row_count: int) -> None:
    """200, `index` counting from 0."""
    answer = batch_answer(row_count, {})
    assert answer.status == 200
    results = [{"index": index, "success": True} for index in range(row_count)]
    assert content(answer) == {"success": True, "accepted": row_count, "failed": 0, "results": results}


def test_a_failed_row_has_its_code_and_message() -> None:
    """207: invalid rows say why, rows that the queue did not take say that they may come again."""
    answer = batch_answer(4, {1: 'a "quoted" é'}, [3])
    assert answer.status == 207
    assert content(answer) == {
        "success": False,
        "accepted": 2,
        "failed": 2,
        "results": [
            {"index": 0, "success": True},
            {"index": 1, "success": False, "code": "invalid_event", "message": 'a "quoted" é'},
            {"index": 2, "success": True},
            {
                "index": 3,
                "success": False,
                "code": "queue_failed",
                "message": "events[3]: the queue did not take this row; send it again",
            },
        ],
    }


def test_only_invalid_rows_are_a_207() -> None:
    """Each row's reason must reach the sender."""
    assert batch_answer(1, {0: "x"}).status == 207


def test_every_valid_row_failing_in_the_queue_is_a_500_with_results() -> None:
    """The sender sends the failed rows again; invalid ones stand beside them."""
    answer = batch_answer(2, {0: "x"}, [1], retry_after_seconds=7)
    assert answer.status == 500
    body = content(answer)
    assert (body["success"], body["retryable"]) == (False, True)
    assert [entry["code"] for entry in body["results"]] == ["invalid_event", "queue_failed"]
    assert dict(answer.headers)["retry-after"] == "7"


@pytest.mark.parametrize(("asked", "said"), [(0, "1"), (1, "1"), (60, "60"), (61, "60")])
def test_retry_after_is_from_1_to_60(asked: int, said: str) -> None:
    """SDKs ignore anything else."""
    assert dict(unavailable("x", asked).headers)["retry-after"] == said
    assert dict(error_answer(rejections.rate_limited(asked)).headers)["retry-after"] == said


def test_an_error_has_one_shape() -> None:
    """`success` and `error`, and `limit` with a 413; headers that its status asks for."""
    limits = Limits()
    assert content(error_answer(rejections.token_unknown())) == {
        "success": False,
        "error": "the token is unknown or revoked",
    }
    assert content(error_answer(rejections.body_too_large(limits))) == {
        "success": False,
        "error": "the body is larger than 16777216 bytes",
        "limit": 16_777_216,
    }
    assert dict(error_answer(rejections.method_wrong(["POST"])).headers)["allow"] == "POST"
    assert dict(error_answer(rejections.path_not_offered()).headers)["x-should-retry"] == "false"
    assert content(unavailable("x")) == {"success": False, "error": "x", "retryable": True}
    assert dict(uncertain("x").headers)["x-should-retry"] == "false"


def test_a_track_is_answered_with_success_alone() -> None:
    """Nothing more: strict SDKs look."""
    assert content(TRACK_ACCEPTED) == {"success": True}
