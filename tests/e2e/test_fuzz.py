"""The short version of the fuzzing."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterfoil.contract.limits import Limits
from counterfoil.contract.openapi import openapi_document
from tests.e2e.fuzz import LIMITS, Answer, Fuzz, Judge
from tests.e2e.fuzz_requests import FuzzedRequest, Requests, row_texts, seeds_of
from tests.e2e.server import TEST_TOKEN, TOKEN, Server, running

SEEDS = seeds_of({"rows_max": 50, "body_bytes_max": 100_000}, TOKEN, TEST_TOKEN, 1_780_000_000_000)


GOOD = b'{"success":true,"accepted":1,"failed":0,"results":[{"index":0,"success":true}]}'


def test_whatever_is_sent_the_server_answers_and_goes_on(tmp_path: Path) -> None:
    """A hundred broken requests: no 5xx, no traceback, no death, no answer but as described; the books balance."""
    with running(Server(tmp_path, more=LIMITS)) as server:
        fuzz = Fuzz(server, 1, row_texts_made=60)
        fuzz.round(25)
        result = fuzz.finish()
    assert result.requests > 150
    assert {"200", "207", "400", "404", "405", "415"} <= result.statuses.keys()
    assert result.rows_accepted > 30
    assert result.rows_failed > 30


def test_what_a_connection_sends_follows_from_its_number() -> None:
    """A run can be played again."""
    requests = Requests(SEEDS, row_texts(5, 1), TOKEN)
    assert requests.of(7) == requests.of(7)
    assert requests.of(7) != requests.of(8)


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (500, b'{"success":false,"error":"x","retryable":true}', "application/json"),
        (200, b'{"success":true,"accepted":1,"failed":0}', "application/json"),
        (207, b'{"success":true,"accepted":0,"failed":1,"results":[{"index":1,"success":true}]}', "application/json"),
        (418, b'{"success":false,"error":"x"}', "application/json"),
        (400, b'{"success":false,"error":"x"}', "text/plain"),
        (400, b"no JSON", "application/json"),
        (401, b'{"success":false,"error":"e2e-live-token"}', "application/json"),
        (400, b'{"success":false,"error":"a-value-that-must-not-come-back"}', "application/json"),
        (204, b"x", None),
        (None, b"", None),
    ],
)
def test_a_wrong_answer_is_seen(status: int | None, body: bytes, content_type: str | None) -> None:
    """An answer that is missing, of a wrong status or shape, or with what was sent in it fails the run."""
    request = FuzzedRequest("POST", "/api/v1/batch", (b"",), is_sound=True)
    judge = Judge(openapi_document(Limits(), "1"))
    judge.judge(request, Answer(200, "application/json", GOOD))
    assert (judge.accepted_rows, judge.failed_rows) == (1, 0)
    with pytest.raises(AssertionError):
        judge.judge(request, None if status is None else Answer(status, content_type, body))
