"""The page of the API, docs/reference/api.md.

Answers and messages on it are those that the contract's own code gives to the requests beside them, so none can be
behind it; the requests are for a newcomer to paste, and a test does so.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from counterfoil.contract import rejections, unavailability
from counterfoil.contract.answers import TRACK_ACCEPTED, Answer, batch_answer
from counterfoil.contract.limits import Limits
from counterfoil.contract.rejections import RequestRejected
from counterfoil.contract.requests import read_batch
from counterfoil.contract.rows import RowRules, judge_batch

LIMITS = Limits()
NOW_MS = 1_780_000_000_000
RULES = RowRules(LIMITS, LIMITS.age_days_max * 86_400_000, LIMITS.ahead_seconds_max * 1000)
BY_SHELL = "'$(cat counterfoil.token)'"
"""In a request to paste: the shell puts the token in."""

BATCH = f"""\
{{"token": "{BY_SHELL}", "events": [
       {{"event": "Purchase", "distinctId": "order-1001", "externalId": "customer-7",
        "eventProperties": {{"total": 49.9, "currency": "EUR"}}}},
       {{"event": "Purchase", "distinctId": "order-1002", "userProperties": {{"city": {{}}}}, "time": 1}},
       {{"distinctId": "order-1003"}}]}}"""
TRACK = f"""\
{{"token": "{BY_SHELL}", "event": "Sign Up", "distinctId": "sign-up-7", "email": "ada@example.com",
       "defaultProperties": {{"host": "shop.example.com"}}}}"""
IDENTIFY = f"""\
{{"token": "{BY_SHELL}", "externalId": "customer-7",
       "userProperties": {{"first_name": "Ada", "city": "Bonn", "custom_properties": {{"plan": "pro"}}}}}}"""


def api_page() -> str:
    """docs/reference/api.md"""
    return "\n".join(
        [
            _HEAD,
            _BATCH.format(request=_posted("batch", BATCH), answer=_shown(_batch_answer(BATCH))),
            _ROW_CODES,
            _TRACK.format(request=_posted("track", TRACK), answer=_shown(TRACK_ACCEPTED)),
            _IDENTIFY.format(request=_posted("identify", IDENTIFY), answer=_shown(TRACK_ACCEPTED)),
            _ASKED.format(limits=_json(LIMITS.model_dump())),
            _MESSAGES,
            _table(("expected", "for example", "what to do"), _expected_rows()),
            _FOUND,
            _table(("found", "what it means"), ((f"`{said}`", meaning) for said, meaning in FOUND.items())),
            _REFUSED,
            _table(("status", "`error`", "what to do"), _refusal_rows()),
            _UNAVAILABLE,
            _table(("`error`", "`retryable`", "what happened"), _unavailable_rows()),
            _AGAIN,
        ]
    )


_HEAD = f"""\
# The API

Every request, every answer, and what to do about each. The base path is `/api/v1`; JSON in, JSON out. It is the Ours
Privacy Ingest API, so its SDKs work with nothing changed but the base URL. `GET /api/v1/openapi` says the same for
programs, [fields](fields.md) lists every field, and [the conformance kit](../conformance.md) tests any server of this
API.

The requests on this page can be pasted into a shell in the directory in which `make run` was called: it keeps the token
in `./counterfoil.token`. The token stands in the body, beside the rows.

A body is `application/json` in UTF-8 of at most {LIMITS.body_bytes_max:,} bytes, whole or in chunks, over HTTP/1.1 or
HTTP/2. It may be compressed, with `Content-Encoding: gzip`, `deflate`, `zstd` or `br`; the limit holds for both sizes.
Every answer carries `X-Request-Id`. A path answers OPTIONS with the methods it takes, and HEAD where it takes GET.
"""

_BATCH = """\
## `POST /api/v1/batch`

Many rows, each judged alone and answered alone: nothing in one can fail another.

```sh
{request}
```

207, because some rows failed; when all are accepted it is 200, with `"success": true`:

```json
{answer}
```

`results` has one entry a row, in the order of the request; `index` counts from 0. `success` at the top is true exactly
when `failed` is 0. A row that is answered with `"success": true` is flushed to disk.

A row is itself by its `distinctId`: the same one sent again by the same source is a success, and delivered once. What
becomes of other content under the same `distinctId` is in [the glossary](../glossary.md): the first one stays.
"""

_ROW_CODES = """\
### Row codes

| `code` | what it means | what to do |
|---|---|---|
| none, with `"success": true` | the row is on disk; it is new, or a repeat of one that is | nothing |
| `invalid_event` | the row breaks a rule; `message` says [which](#why-a-row-is-invalid) | fix the row |
| `queue_failed` | the row is valid and could not be written | send the same row again |
"""

_TRACK = """\
## `POST /api/v1/track`

One row, its fields beside the token.

```sh
{request}
```

```json
{answer}
```

200 is an accepted row; an invalid one is 400, with the row's message as `error`. The `distinctId` may be missing: then
the server makes one, and **the request has no identity: sent twice, by you or by an SDK that tries again, it is two
rows**. Send a `distinctId` wherever you can.
"""

_IDENTIFY = """\
## `POST /api/v1/identify`

Sets properties of a visitor, who is found by `userId`, then `externalId`, then `email`, then
`userProperties.phone_number`; without any of them it is a new one.

```sh
{request}
```

```json
{answer}
```

`userProperties` is required, an object that may be empty. Null clears a property; one that is absent or an empty string
stays as it was. It makes one row whose event is `$identify`, and is harmless to repeat: it sets the same properties
again.
"""

_ASKED = """\
## What can be asked

Without a token.

```sh
curl -sS http://127.0.0.1:8080/api/v1/limits
```

gives every limit with its value; the names are those of the [configuration](configuration.md#limits), which explains
them:

```json
{limits}
```

| path | answer |
|---|---|
| `GET /api/v1/openapi` | this server's OpenAPI 3.1 document |
| `GET /livez` | 200, `{{"success":true}}`: the process serves |
| `GET /readyz` | the same when the queue can take a row now; otherwise 503 with `error` |
"""

_MESSAGES = """\
## Why a row is invalid

    events[1].userProperties.city: expected a string of at most 2000 characters, found an object (and 1 more)

A message names the field by its path (of a row of `/batch` with the row's index, `events[1]`), what was expected, and
what kind of thing was found; never a value, nor a name that the API doesn't know. It tells the first fault in the order
of the [fields](fields.md), and how many more there are. Numbers in the table are the limits' defaults and the fields'
lengths.
"""

_FOUND = """
What was found:
"""

_REFUSED = """
## Why a request is refused

No row of it was accepted. The body is `{"success": false, "error": "…"}`; a 413 has `limit` too, the limit that was
exceeded. `error` says one of these (or, with a 400 of `/track` and `/identify`, why [the row is
invalid](#why-a-row-is-invalid)):
"""

_UNAVAILABLE = """
## When nothing is confirmed

500, with `{"success": false, "error": "…", "retryable": true}` and `Retry-After` in seconds, from 1 to 60: send the
whole request again. With `results`, send those rows again whose code is `queue_failed`; the invalid ones are there too.
`"retryable": false` comes with the header `x-should-retry: false`, which keeps SDKs from sending it again.
"""

_AGAIN = """
## What to send again

| what came | what to do |
|---|---|
| 200 | nothing |
| 207 | send the rows with `queue_failed` again; fix those with `invalid_event` |
| 400, 404, 405, 413, 415 | fix the request; sent again as it is, it fails again |
| 401 | ask the operator for the token; the rows are good |
| 408, 429 | send the request again; after 429 wait for `Retry-After` seconds |
| 500 with `"retryable": true` | send it again after `Retry-After` seconds |
| 500 with `"retryable": false` | look first whether the row arrived: it may be kept, and a repeat is a second one |
| no answer: a broken connection, a timeout | send the same bytes again |

With a `distinctId` in every row a repeat never does harm, so when in doubt, repeat. SDKs repeat 408, 409, 429, 5xx and
broken connections by themselves, twice, with the same bytes. Whatever became of a row, its operator can see with
[`counterfoil trace`](cli.md#counterfoil-trace).

Not offered, though the SDKs have them: `POST /api/v1/experiments/assignments/{key}` and
`POST /api/v1/experiments/personalization`. The PHP SDK takes its base URL as an argument only; with the environment
variable alone it still sends to the vendor.
"""


# Requests and answers


def _posted(name: str, body: str) -> str:
    return f"curl -sS http://127.0.0.1:8080/api/v1/{name} -H 'Content-Type: application/json' \\\n  -d '{body}'"


def _batch_answer(pasted: str) -> Answer:
    """What the contract answers to a batch, when the queue takes its rows."""
    request = read_batch(pasted.replace(BY_SHELL, "a-token").encode(), LIMITS)
    return batch_answer(len(request.rows), judge_batch(request, RULES, NOW_MS).faults)


def _shown(answer: Answer) -> str:
    return _json(msgspec.json.decode(answer.body))


def _json(value: Any) -> str:
    """JSON in some lines: an entry of a list is one, and so is what is short."""
    text = json.dumps(value)
    if len(text) <= 100:
        return text
    lines = []
    for name, member in value.items():
        if isinstance(member, list):
            entries = ",\n".join(f"    {json.dumps(entry)}" for entry in member)
            lines.append(f"  {json.dumps(name)}: [\n{entries}\n  ]")
        else:
            lines.append(f"  {json.dumps(name)}: {json.dumps(member)}")
    return "{\n" + ",\n".join(lines) + "\n}"


# Messages of rows


class Expectation(NamedTuple):
    """A kind of thing that a message expects, shown by a row that lacks it."""

    row: str | bytes
    """Of /batch, without its braces and, where it names neither, without event and distinctId."""
    todo: str


EXPECTATIONS: tuple[Expectation, ...] = (
    Expectation('"event": "", "distinctId": "1"', "send text of that length; spaces around it don't count"),
    Expectation('"email": 5', "send text that is not longer, or leave the field out; count an emoji as 2 characters"),
    Expectation('"userProperties": {"user_agent": 5}', "send text"),
    Expectation('"defaultProperties": {"duration": "5"}', "send a number, without quotation marks"),
    Expectation('"defaultProperties": {"iframe": 1}', "send `true` or `false`, without quotation marks"),
    Expectation('"eventProperties": []', "send an object; as the row itself: every entry of `events` is an object"),
    Expectation('"time": "2026-01-31"', "send the time as a number: milliseconds since 1970, in UTC"),
    Expectation(
        '"time": 1700000000',
        "send milliseconds, not seconds; not older and not further ahead than this source takes"
        " (`age_days_max` and `ahead_seconds_max` of the limits, or its own `max_age_days`)",
    ),
    Expectation('"eventProperties": {"total": 1e400}', "send numbers that a double can hold, or text"),
    Expectation(
        rb'"eventProperties": {"name": "\ud83d"}',
        "an emoji was cut in half (`\\ud83d` without what belongs to it); cut texts between characters",
    ),
    Expectation(b'"eventProperties": {"name": "\xfc"}', "encode the body as UTF-8"),
    Expectation(
        '"eventProperties": {' + ", ".join(f'"k{key}": 0' for key in range(LIMITS.object_keys_max + 1)) + "}",
        "send fewer properties, or put some into an object of their own",
    ),
    Expectation(
        '"eventProperties": ' + '{"a": ' * LIMITS.object_levels_max + "{}" + "}" * LIMITS.object_levels_max,
        "nest less deeply; the object itself is the first level, arrays are not counted",
    ),
    Expectation(
        '"eventProperties": {"a": {' + ", ".join(f'"{key:05}": 9e15' for key in range(40_000)) + "}}",
        "send a smaller object: its JSON, as it is kept, is too long",
    ),
    Expectation(f'"eventProperties": {{"a": "{"x" * LIMITS.row_bytes_max}"}}', "send a smaller row"),
    Expectation(
        '"eventProperties": {"a": ' + "[" * LIMITS.row_depth_max + "]" * LIMITS.row_depth_max + "}",
        "nest less deeply",
    ),
)

FOUND: dict[str, str] = {
    "none": "the field is required and not there",
    "null": "the field is null, and must not be",
    "a string": "text",
    "a number": "a number",
    "a boolean": "`true` or `false`",
    "an array": "an array",
    "an object": "an object",
    "an empty string": "nothing is left of the text when the space around it is taken off",
    "401 characters": "the length of the text after trimming, in UTF-16 code units",
    "201": "the number of keys, or of levels",
    "more": "more than the bound",
    "a larger one": "a number beyond a double's range, such as `1e400`",
    "one that looks like seconds": "a time so small that it was given in seconds",
    "an older one": "a time before the window",
    "a later one": "a time after the window",
    "a lone surrogate": "half of a character, such as `\\ud83d` alone",
    "other bytes": "bytes that are not UTF-8",
    "… in an unknown field": "the same, in a field that the API doesn't know; the path is that of what it is in",
}


def message_of(expectation: Expectation) -> str:
    """What the contract says of the row."""
    row = expectation.row if isinstance(expectation.row, bytes) else expectation.row.encode()
    head = b"" if b'"event"' in row else b'"event": "E", "distinctId": "1", '
    request = read_batch(b'{"token": "t", "events": [{' + head + row + b"}]}", LIMITS)
    (message,) = judge_batch(request, RULES, NOW_MS).faults.values()
    return message


def expected_in(message: str) -> str:
    """What a message expects, numbers left out."""
    return re.sub(r"\d+", "N", message.partition(": expected ")[2].partition(", found ")[0])


def found_in(message: str) -> str:
    """What a message found, numbers left out."""
    found = message.rpartition(", found ")[2].partition(" (and ")[0]
    return re.sub(r"\d+", "N", found.removesuffix(" in an unknown field"))


def _expected_rows() -> Iterator[tuple[str, ...]]:
    for expectation in EXPECTATIONS:
        message = message_of(expectation)
        expected = message.partition(": expected ")[2].partition(", found ")[0]
        yield f"`{expected}`", f"`{message}`", expectation.todo


# Refusals


def _spoken() -> RequestRejected:
    return rejections.content_encoding_unknown(("gzip", "deflate", "zstd", "br"))


REFUSALS: tuple[tuple[Callable[[], RequestRejected], str], ...] = (
    (rejections.not_json, "send JSON in UTF-8; inside a row, what is wrong with its values is the row's own"),
    (rejections.not_an_object, "put token and rows into an object"),
    (lambda: rejections.token_invalid(LIMITS, "none"), "put the token beside the rows, as text"),
    (lambda: rejections.events_invalid(LIMITS, "an empty array"), "send at least one row, in an array"),
    (rejections.body_incomplete, "send as many bytes as Content-Length says"),
    (lambda: rejections.body_damaged("gzip"), "compress the body anew, as Content-Encoding says"),
    (rejections.token_unknown, "ask the operator: the token is mistyped, or was dropped after a rotation"),
    (lambda: rejections.path_unknown(True), "add `/api/v1` to the base URL"),
    (lambda: rejections.path_unknown(False), "see the paths of this page"),
    (rejections.path_not_offered, "nothing: this server has no experiments"),
    (lambda: rejections.method_wrong(("POST", "OPTIONS")), "use a method of the header `Allow`"),
    (lambda: rejections.too_late(LIMITS), "send it again, all at once; the connection is closed"),
    (lambda: rejections.body_too_large(LIMITS), "send fewer rows at once; `limit` is in bytes"),
    (lambda: rejections.body_too_large(LIMITS, is_inflated=True), "the same; the limit holds for both sizes"),
    (lambda: rejections.rows_too_many(LIMITS), "send fewer rows at once; `limit` is in rows"),
    (rejections.content_type_wrong, "send `Content-Type: application/json`; parameters are allowed"),
    (_spoken, "compress in one of these ways, or not at all"),
    (lambda: rejections.rate_limited(1), "wait for `Retry-After` seconds, then send it again"),
)


def _refusal_rows() -> Iterator[tuple[str, ...]]:
    for make, todo in sorted(REFUSALS, key=lambda refusal: refusal[0]().status):
        refused = make()
        yield str(refused.status), f"`{refused.message}`", todo


def _unavailable_rows() -> Iterator[tuple[str, ...]]:
    """Every reason of `unavailability`, with its docstring, and that of a batch of which the queue took no row."""
    reasons = [
        (make(), make.__doc__ or "")
        for make in vars(unavailability).values()
        if inspect.isfunction(make) and make.__module__ == unavailability.__name__
    ]
    reasons.append(
        (batch_answer(1, {}, (0,)), "Every valid row of a /batch failed in the queue; `results` says which.")
    )
    for answer, why in reasons:
        body = msgspec.json.decode(answer.body)
        yield f"`{body['error']}`", f"`{json.dumps(body['retryable'])}`", " ".join(why.split())


def _table(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])
