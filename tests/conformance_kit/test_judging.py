"""An answer is right when it says what was expected, and nothing that it must not say."""

import json
from typing import Any

import pytest

from counterfoil.conformance.cases import Expectation
from counterfoil.conformance.judging import judge, match
from counterfoil.conformance.templates import Values
from counterfoil.conformance.wire import Answer

VALUES = Values({"token": "cf-live-token", "secret": "the secret"}, {"rows_max": 3}, "cf-1", {})
GOOD = {"index": 0, "success": True}
BAD = {"index": 0, "success": False, "code": "invalid_event", "message": "events[0].time: expected a number"}


def answer(status: int, body: Any, **headers: str) -> Answer:
    """An answer of JSON."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, (("content-type", "application/json"), *named.items()), json.dumps(body).encode(), 0.1)


def batch(*results: dict[str, Any]) -> dict[str, Any]:
    """The body of a batch with these results."""
    failed = sum(not result["success"] for result in results)
    return {"success": not failed, "accepted": len(results) - failed, "failed": failed, "results": list(results)}


@pytest.mark.parametrize(
    ("expected", "came"),
    [
        (Expectation(rows=["accepted"]), answer(200, batch(GOOD))),
        (Expectation(rows=["invalid"]), answer(207, batch(BAD))),
        (Expectation(rows=["invalid: time"]), answer(207, batch(BAD))),
        (Expectation(rows=["any"]), answer(207, batch(BAD))),
        (Expectation(rows=["any"]), answer(200, batch(GOOD))),
        (
            Expectation(every="accepted", count="rows_max"),
            answer(200, batch(*({**GOOD, "index": i} for i in range(3)))),
        ),
        (Expectation(success=True), answer(200, {"success": True})),
        (Expectation(status=400, error="TOKEN"), answer(400, {"success": False, "error": "the token is missing"})),
        (Expectation(status=413, limit="rows_max"), answer(413, {"success": False, "error": "no", "limit": 3})),
        (Expectation(status=[200, 503], foreign_body=True), Answer(503, (), b"down", 0.1)),
        (Expectation(headers={"Allow": "contains POST"}), answer(405, {}, allow="GET, POST")),
        (Expectation(headers={"Retry-After": "integer 1 to 60"}), answer(500, {}, retry_after="5")),
        (Expectation(headers={"x-should-retry": "is false"}), answer(404, {}, x_should_retry="false")),
        (Expectation(headers={"x-should-retry": "absent"}), answer(404, {})),
        (Expectation(headers={"Vary": "one of a, b"}), answer(404, {}, vary="B")),
        (Expectation(headers={"Vary": "present"}), answer(404, {}, vary="")),
        (Expectation(says=["seconds|milliseconds", "expected"]), answer(400, {"error": "Milliseconds expected"})),
        (Expectation(status=400, hides=["{{id}}"]), answer(400, {"error": "cf-2"})),
    ],
)
def test_what_is_right_has_no_findings(expected: Expectation, came: Answer) -> None:
    """A server that does what it should is never blamed."""
    assert judge(expected, came, VALUES) == []


@pytest.mark.parametrize(
    ("expected", "came"),
    [
        (Expectation(rows=["accepted"]), answer(207, batch(BAD))),
        (Expectation(rows=["accepted"]), answer(207, batch(GOOD))),
        (Expectation(rows=["accepted", "accepted"]), answer(200, batch(GOOD))),
        (Expectation(rows=["accepted"]), answer(200, batch({**GOOD, "index": 1}))),
        (Expectation(rows=["accepted"]), answer(200, batch({**GOOD, "code": "invalid_event"}))),
        (Expectation(rows=["accepted"]), answer(200, {**batch(GOOD), "accepted": 2})),
        (Expectation(rows=["accepted"]), answer(200, {**batch(GOOD), "accepted": True})),
        (Expectation(rows=["accepted"]), answer(200, {**batch(GOOD), "success": False})),
        (Expectation(rows=["accepted"]), answer(200, {**batch(GOOD), "more": 1})),
        (Expectation(rows=["accepted"]), answer(200, [])),
        (Expectation(rows=["invalid"]), answer(207, batch({**BAD, "code": "queue_failed"}))),
        (Expectation(rows=["invalid"]), answer(207, batch({**BAD, "message": ""}))),
        (Expectation(rows=["invalid: event"]), answer(207, batch(BAD))),
        (Expectation(rows=["invalid: tim"]), answer(207, batch(BAD))),
        (Expectation(rows=["invalid"]), answer(207, batch({**BAD, "message": "events[1]: no"}))),
        (Expectation(success=True), answer(200, {"success": True, "more": 1})),
        (Expectation(success=True), answer(201, {"success": True})),
        (Expectation(status=400, error=""), answer(400, {"success": False})),
        (Expectation(status=400, error=""), answer(400, {"success": False, "error": ""})),
        (Expectation(status=400, error="token"), answer(400, {"success": False, "error": "no"})),
        (Expectation(status=413, limit=5), answer(413, {"success": False, "error": "no", "limit": 6})),
        (Expectation(status=413, limit=5), answer(413, {"success": False, "error": "no"})),
        (Expectation(status=200), Answer(200, (("Content-Type", "text/html"),), b"{}", 0.1)),
        (Expectation(status=200), Answer(200, (("Content-Type", "application/json"),), b"{", 0.1)),
        (Expectation(status=200), Answer(200, (("Content-Type", "application/json"),), b"", 0.1)),
        (Expectation(headers={"Allow": "contains POST"}), answer(405, {}, allow="GET")),
        (Expectation(headers={"Allow": "present"}), answer(405, {})),
        (Expectation(headers={"Retry-After": "integer 1 to 60"}), answer(500, {}, retry_after="61")),
        (Expectation(headers={"Retry-After": "integer 1 to 60"}), answer(500, {}, retry_after="soon")),
        (Expectation(headers={"Vary": "absent"}), answer(404, {}, vary="x")),
        (Expectation(says=["seconds|days"]), answer(400, {"error": "no"})),
        (Expectation(status=400, hides=["{{id}}"]), answer(400, {"error": "cf-1-1"})),
        (Expectation(status=400), answer(400, {"error": "the secret was found"})),
        (Expectation(status=400), answer(400, {}, x_echo="cf-live-token")),
        (Expectation(status=400), answer(400, {}, x_should_retry="true")),
        (Expectation(seconds_max=1), Answer(200, (("Content-Type", "application/json"),), b"{}", 1.5)),
    ],
)
def test_what_is_wrong_has_a_finding(expected: Expectation, came: Answer) -> None:
    """Each way to be wrong is found."""
    findings = judge(expected, came, VALUES)
    assert findings
    assert all(finding.expected and finding.came for finding in findings)


def test_a_head_has_no_body() -> None:
    """What answers HEAD is judged by status and headers, and is empty."""
    expected = Expectation(status=200)
    assert judge(expected, Answer(200, (), b"", 0.1), VALUES, is_head=True) == []
    assert judge(expected, Answer(200, (), b"{}", 0.1), VALUES, is_head=True)


@pytest.mark.parametrize(
    ("pattern", "value", "is_match"),
    [
        ("<string>", "a", True),
        ("<string>", "", False),
        ("<integer>", 1, True),
        ("<integer>", True, False),
        ("<integer>", 1.5, False),
        ("<number>", 1.5, True),
        ("<number>", False, False),
        ("<boolean>", False, True),
        ("<boolean>", 0, False),
        ("<object>", {}, True),
        ("<array>", {}, False),
        ("<any>", None, True),
        (1, 1, True),
        (1, 1.0, False),
        (True, 1, False),
        (None, None, True),
        ({"a": "<any>"}, {"a": 1}, True),
        ({"a": "<any>"}, {}, False),
        ({}, {"a": 1}, False),
        ({"...": "<any>"}, {"a": 1}, True),
        ([1, "<integer>"], [1, 2], True),
        ([1], [1, 2], False),
    ],
)
def test_patterns(pattern: Any, value: Any, is_match: bool) -> None:
    """A pattern matches what it describes and nothing else."""
    assert (not list(match(pattern, value))) == is_match
