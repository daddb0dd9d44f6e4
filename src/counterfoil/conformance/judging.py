"""Compares an answer with what was expected: facts in, findings out.

A JSON pattern is JSON in which these strings stand for a kind of value, and everything else for itself:

    "<string>" (not empty)  "<integer>"  "<number>"  "<boolean>"  "<object>"  "<array>"  "<any>"

An object matches when it has exactly the pattern's members; a member `"..."` allows others beside them.

What must hold of every answer, whatever its case expects:

- It is JSON, and says so in its Content-Type; one to HEAD is empty.
- No token and no `{{secret}}` stands in its body or headers.
- A 4xx that SDKs don't repeat by themselves never tells them to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from counterfoil.conformance.cases import Expectation
from counterfoil.conformance.expressions import evaluate
from counterfoil.conformance.templates import Values, render_text
from counterfoil.conformance.wire import Answer

CODES = ("invalid_event", "queue_failed")
HIDDEN = ("token", "test_token", "secret")
_REPEATED_4XX = (408, 409, 429)
_SHOWN_CHARS = 300
_HIDDEN_CHARS_MIN = 8
"""A shorter token may stand in an answer by chance: somebody calls theirs "token"."""
_KINDS: dict[str, tuple[type, ...]] = {
    "<string>": (str,),
    "<integer>": (int,),
    "<number>": (int, float),
    "<boolean>": (bool,),
    "<object>": (dict,),
    "<array>": (list,),
}


class Finding(msgspec.Struct, frozen=True):
    """One thing in which an answer fell short."""

    expected: str
    came: str


def judge(
    expected: Expectation, answer: Answer, values: Values, *, each: Sequence[str] = (), is_head: bool = False
) -> list[Finding]:
    """Everything in which an answer falls short; nothing when it is right."""
    findings = [*_status(expected, answer), *_headers(expected, answer), *_hidden(expected, answer, values)]
    if expected.seconds_max is not None and answer.seconds > expected.seconds_max:
        findings.append(Finding(f"an answer within {expected.seconds_max} s", f"one after {answer.seconds:.1f} s"))
    if is_head:
        return findings + ([Finding("an empty body", shown(answer.body))] if answer.body else [])
    if not expected.foreign_body:
        findings += _body(expected, answer, values, each)
    return findings


def shown(body: bytes) -> str:
    """The beginning of a body, for a reader."""
    text = body.decode("utf-8", "backslashreplace")
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}… ({len(body)} bytes)"


def _status(expected: Expectation, answer: Answer) -> Iterator[Finding]:
    if _has_wrong_status(expected, answer):
        statuses = " or ".join(map(str, _statuses(expected)))
        yield Finding(f"status {statuses}", f"status {answer.status}: {shown(answer.body)}")


def _has_wrong_status(expected: Expectation, answer: Answer) -> bool:
    statuses = _statuses(expected)
    return bool(statuses) and answer.status not in statuses


def _statuses(expected: Expectation) -> list[int]:
    if expected.status is not None:
        return expected.status if isinstance(expected.status, list) else [expected.status]
    if expected.success:
        return [200]
    words = expected.rows or ([expected.every] if expected.every else [])
    if "any" in words:
        return [200, 207]
    return [200 if all(word == "accepted" for word in words) else 207] if words else []


def _headers(expected: Expectation, answer: Answer) -> Iterator[Finding]:
    for name, condition in expected.headers.items():
        value = answer.header(name)
        if not _header_holds(condition, value):
            yield Finding(f"header {name}: {condition}", "none" if value is None else repr(value))
    may_repeat = answer.status >= 500 or answer.status in _REPEATED_4XX
    if answer.status >= 400 and not may_repeat and answer.header("x-should-retry") == "true":
        yield Finding(f"a {answer.status} that asks nobody to repeat it", "x-should-retry: true")


def _header_holds(condition: str, value: str | None) -> bool:
    verb, _, rest = condition.partition(" ")
    if verb == "absent" or value is None:
        return verb == "absent" and value is None
    if verb == "present":
        return True
    if verb == "is":
        return value.strip().lower() == rest.lower()
    if verb == "contains":
        return rest.lower() in value.lower()
    if verb == "one":
        return value.strip().lower() in [word.strip().lower() for word in rest.removeprefix("of ").split(",")]
    low, _, high = rest.partition(" to ")
    return (
        verb == "integer"
        and value.strip().isascii()
        and value.strip().isdigit()
        and int(low) <= int(value) <= int(high)
    )


def _hidden(expected: Expectation, answer: Answer, values: Values) -> Iterator[Finding]:
    said = answer.body.decode("utf-8", "replace") + "\n" + "\n".join(value for _, value in answer.headers)
    hidden = {name: values.texts[name] for name in HIDDEN if len(values.texts.get(name, "")) >= _HIDDEN_CHARS_MIN}
    hidden |= {template: render_text(template, values) for template in expected.hides}
    for name, text in hidden.items():
        if text in said or json.dumps(text)[1:-1] in said:
            yield Finding(f"an answer without the value of {name!r}", shown(answer.body))


def _body(expected: Expectation, answer: Answer, values: Values, each: Sequence[str]) -> Iterator[Finding]:
    content_type = (answer.header("Content-Type") or "none").split(";")[0].strip().lower()
    if content_type != "application/json":
        yield Finding("Content-Type application/json", content_type)
    try:
        body = answer.json()
    except ValueError:
        yield Finding("a body of JSON", shown(answer.body) or "an empty body")
        return
    words = _words(expected, values, each)
    if words is not None and answer.status in (200, 207):
        yield from _results(words, body)
    if _has_wrong_status(expected, answer):
        return
    if expected.success:
        yield from match({"success": True}, body)
    if expected.error is not None or expected.limit is not None:
        yield from _error(expected, body, values)
    if expected.body is not None:
        yield from match(json.loads(render_text(expected.body, values)), body)
    if expected.says:
        yield from _said(expected.says, body)


def _words(expected: Expectation, values: Values, each: Sequence[str]) -> list[str] | None:
    """What is expected of each row, in order; None where rows are not what the case is about."""
    if expected.rows is not None:
        return [render_text(word, values) for word in expected.rows]
    if expected.every is None:
        return None
    if expected.count is not None:
        return [expected.every] * evaluate(expected.count, values.numbers)
    return [render_text(expected.every, values.with_verbatim(each=word)) for word in each or ("",)]


def _results(words: list[str], body: Any) -> Iterator[Finding]:
    results = body.get("results") if isinstance(body, dict) else None
    if not isinstance(results, list):
        yield Finding("an object with `results`, an array", shown(json.dumps(body).encode()))
        return
    if len(results) != len(words):
        yield Finding(f"{len(words)} results", f"{len(results)}")
        return
    failed = sum(isinstance(result, dict) and result.get("success") is False for result in results)
    counts = {"success": not failed, "accepted": len(words) - failed, "failed": failed, "results": "<array>"}
    yield from match(counts, body)
    for index, (word, result) in enumerate(zip(words, results, strict=True)):
        yield from _result(index, word, result)


def _result(index: int, word: str, result: Any) -> Iterator[Finding]:
    accepted = {"index": index, "success": True}
    invalid = {"index": index, "success": False, "code": "invalid_event", "message": "<string>"}
    if word == "any":
        word = "invalid" if isinstance(result, dict) and result.get("success") is False else "accepted"
    verdict, _, path = word.partition(": ")
    is_success = result.get("success") if isinstance(result, dict) else None
    if is_success is (verdict != "accepted"):
        yield Finding(f"row {index}: {word}", shown(json.dumps(result, ensure_ascii=False).encode()))
        return
    findings = list(match(accepted if verdict == "accepted" else invalid, result, f"results[{index}]"))
    yield from findings
    if verdict != "accepted" and not findings:
        yield from _names(f"events[{index}]" + (f".{path}" if path else ""), result["message"])


def _names(path: str, message: str) -> Iterator[Finding]:
    """A message names a path when the path stands in it whole: `events[1].time`, not `events[1].timeless`."""
    if not re.search(rf"(?<![\w.$]){re.escape(path)}(?![\w])", message):
        yield Finding(f"a message that names {path}", repr(message))


def _error(expected: Expectation, body: Any, values: Values) -> Iterator[Finding]:
    shape: dict[str, Any] = {"success": False, "error": "<string>"}
    if expected.limit is not None:
        shape["limit"] = evaluate(expected.limit, values.numbers)
    findings = list(match(shape, body))
    yield from findings
    if expected.error and not findings and expected.error.lower() not in body["error"].lower():
        yield Finding(f"an error that names {expected.error!r}", repr(body["error"]))


def _said(alternatives: list[str], body: Any) -> Iterator[Finding]:
    said = json.dumps(body, ensure_ascii=False).lower()
    for text in alternatives:
        if not any(word.strip().lower() in said for word in text.split("|")):
            yield Finding(f"messages that say {text!r}", shown(said.encode()))


def match(pattern: Any, value: Any, place: str = "the body") -> Iterator[Finding]:
    """Where a value differs from a JSON pattern."""
    if pattern == "<any>":
        return
    if isinstance(pattern, dict) and isinstance(value, dict):
        yield from _match_members(pattern, value, place)
    elif isinstance(pattern, list) and isinstance(value, list) and len(pattern) == len(value):
        for index, (inner, came) in enumerate(zip(pattern, value, strict=True)):
            yield from match(inner, came, f"{place}[{index}]")
    elif not _is_of_kind(pattern, value):
        yield Finding(f"{place}: {_said_as(pattern)}", shown(json.dumps(value, ensure_ascii=False).encode()))


def _match_members(pattern: dict[str, Any], value: dict[str, Any], place: str) -> Iterator[Finding]:
    for name, inner in pattern.items():
        if name in value:
            yield from match(inner, value[name], f"{place}.{name}")
        elif name != "...":
            yield Finding(f"{place}.{name}: {_said_as(inner)}", "nothing of this name")
    others = sorted(value.keys() - pattern.keys())
    if others and "..." not in pattern:
        yield Finding(f"{place} without other members", "also " + ", ".join(others)[:_SHOWN_CHARS])


def _is_of_kind(pattern: Any, value: Any) -> bool:
    kinds = _KINDS.get(pattern) if isinstance(pattern, str) else None
    if kinds is None:
        return type(pattern) is type(value) and bool(pattern == value)
    if isinstance(value, bool) and bool not in kinds:
        return False
    return isinstance(value, kinds) and value != ""


def _said_as(pattern: Any) -> str:
    if isinstance(pattern, str) and pattern in _KINDS:
        return pattern.strip("<>")
    return json.dumps(pattern, ensure_ascii=False)
