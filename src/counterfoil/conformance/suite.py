"""Runs cases against a server: each case has one outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from enum import Enum

import httpx
import msgspec

from counterfoil.conformance.cases import Case, Expectation, Section
from counterfoil.conformance.expressions import evaluate, holds
from counterfoil.conformance.judging import Finding, judge, shown
from counterfoil.conformance.requests import API, Prepared, PreparedRaw, prepare
from counterfoil.conformance.templates import Values
from counterfoil.conformance.wire import Answer, NoAnswer, Server, client_of, exchange, exchange_raw

DEFAULT_LIMITS: Mapping[str, int] = {
    "body_bytes_max": 16 * 1024 * 1024,
    "rows_max": 10_000,
    "row_bytes_max": 1024 * 1024,
    "row_depth_max": 64,
    "token_chars_max": 250,
    "object_keys_max": 200,
    "object_levels_max": 5,
    "array_entries_max": 250,
    "object_units_max": 1_048_576,
    "age_days_max": 7,
    "ahead_seconds_max": 300,
    "request_seconds_max": 30,
}
"""The contract's limits, by the names that `GET /api/v1/limits` gives them."""

UNITS: Mapping[str, int] = {"second": 1000, "minute": 60_000, "day": 86_400_000, "kib": 1024, "mib": 1024 * 1024}
"""Names that a sum may use beside the limits: times in milliseconds, sizes in bytes."""

_LOST_AFTER = 3
"""So many cases one after the other without a connection: the server is gone, and the rest is not tried."""
_RATE_LIMITED_MAX = 4


class Kind(Enum):
    """How a case ended."""

    PASSED = "passed"
    FELL_SHORT = "fell short"
    NOT_TRIED = "not tried"


class StepFinding(msgspec.Struct, frozen=True):
    """In what the answer to one request of a case fell short."""

    request: str
    expected: str
    came: str


class Outcome(msgspec.Struct, frozen=True):
    """What became of a case."""

    section: str
    case: Case
    kind: Kind
    why: str = ""
    """Why it was not tried."""
    findings: tuple[StepFinding, ...] = ()
    seconds: float = 0.0


class ServerUnusable(Exception):
    """The server can't be tested at all: it can't be reached, or doesn't know the token."""


class NotTried(Exception):
    """A case whose conditions this server or this run doesn't offer."""


class Known(msgspec.Struct, frozen=True):
    """What is known of the server before the first case."""

    limits: Mapping[str, int]
    are_limits_offered: bool
    ahead_ms: int
    """How far the server's clock is ahead of ours, as its Date header says."""


class Run(msgspec.Struct, frozen=True):
    """What the cases of one run share."""

    server: Server
    token: str
    test_token: str | None
    run_id: str
    """Stands in every distinctId, so that no two runs share one."""
    is_slow: bool = False
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    pause: Callable[[float], None] = time.sleep


def learn(run: Run) -> Known:
    """Asks the server for its limits and tries the tokens. Raises ServerUnusable."""
    with client_of(run.server) as client:
        answer = _answer_if_any(client, run, Prepared("GET", f"{API}/limits", (), b""))
        limits = _limits_of(answer) if answer else {}
        ahead_ms = _ahead_ms(answer, run.now_ms()) if answer else 0
        for name, token in (("token", run.token), ("test token", run.test_token)):
            if token is not None:
                _try_token(client, run, name, token)
    return Known({**DEFAULT_LIMITS, **limits}, bool(limits), ahead_ms)


def _answer_if_any(client: httpx.Client, run: Run, prepared: Prepared) -> Answer | None:
    """The answer; None from a server that is there and gives none: that is for the cases to tell."""
    try:
        return exchange(client, run.server, prepared)
    except NoAnswer as error:
        if error.kind == "refused":
            raise ServerUnusable(f"{run.server.url} can't be reached") from error
        return None


def _limits_of(answer: Answer) -> dict[str, int]:
    try:
        body = answer.json() if answer.status == 200 else {}
    except ValueError:
        body = {}
    named = body if isinstance(body, dict) else {}
    return {name: value for name, value in named.items() if name in DEFAULT_LIMITS and type(value) is int}


def _ahead_ms(answer: Answer, now_ms: int) -> int:
    """The server's clock against ours; a Date header has whole seconds, so less than two of them mean nothing."""
    try:
        ahead_ms = round(parsedate_to_datetime(answer.header("Date") or "").timestamp() * 1000) - now_ms
    except ValueError:
        return 0
    return ahead_ms if abs(ahead_ms) > 2000 else 0


def _try_token(client: httpx.Client, run: Run, name: str, token: str) -> None:
    """A batch of one row that is no object: whoever knows the token answers that row, and nothing is stored."""
    body = msgspec.json.encode({"token": token, "events": [0]})
    answer = _answer_if_any(client, run, Prepared("POST", f"{API}/batch", (_JSON,), body))
    if answer is not None and answer.status == 401:
        raise ServerUnusable(f"{run.server.url} doesn't know the {name}")


_JSON = ("Content-Type", "application/json")


def run_sections(sections: Iterable[Section], run: Run, known: Known) -> Iterator[Outcome]:
    """The outcome of each case, as soon as there is one."""
    lost_count = 0
    for section in sections:
        for number, case in enumerate(section.case):
            if lost_count >= _LOST_AFTER:
                yield Outcome(section.section, case, Kind.NOT_TRIED, "the server can't be reached any more")
                continue
            ids = f"cf-{run.run_id}-{section.section}-{number}"
            outcome = run_case(section, case, run, known, ids)
            is_lost = any(finding.came.startswith("refused") for finding in outcome.findings)
            lost_count = lost_count + 1 if is_lost else 0
            yield outcome


def run_case(section: Section, case: Case, run: Run, known: Known, ids: str) -> Outcome:
    """Sends the requests of a case and judges the answers."""
    values = _values(case, run, known, ids)
    started = time.perf_counter()
    try:
        _check_needs(case, run, known, values)
        findings = _findings(case, section.words_of(case), run, values)
    except NotTried as reason:
        return Outcome(section.section, case, Kind.NOT_TRIED, str(reason))
    kind = Kind.FELL_SHORT if findings else Kind.PASSED
    return Outcome(section.section, case, kind, "", tuple(findings), time.perf_counter() - started)


def _values(case: Case, run: Run, known: Known, ids: str) -> Values:
    server = run.server
    texts = {
        "token": run.token,
        "unknown_token": f"unknown-{ids}",
        "secret": f"secret-{ids[::-1]}-secret",
        "host": server.authority,
        "base": server.prefix + API,
    }
    if run.test_token is not None:
        texts["test_token"] = run.test_token
    numbers = {**known.limits, **UNITS, "now": run.now_ms() + known.ahead_ms}
    return Values(texts, numbers, ids, case.parts)


def _check_needs(case: Case, run: Run, known: Known, values: Values) -> None:
    for need in case.needs:
        if need == "test_token":
            if run.test_token is None:
                raise NotTried("needs the source's test token (--test-token-file)")
        elif need == "limits":
            if not known.are_limits_offered:
                raise NotTried("this server doesn't tell its limits")
        elif need == "slow":
            if not run.is_slow:
                raise NotTried("takes long (--slow)")
        elif not holds(need, values.numbers):
            raise NotTried(f"this server's limits don't allow it: {need}")


def _check_size(expected: Expectation, prepared: Prepared | PreparedRaw, values: Values, word_count: int) -> None:
    """A case whose rows are to be judged must get past the limits of a whole request."""
    if not (expected.rows or expected.every or expected.success) or isinstance(prepared, PreparedRaw):
        return
    if len(prepared.body) > values.numbers["body_bytes_max"]:
        raise NotTried(f"this server's limits don't allow it: {len(prepared.body)} bytes")
    if word_count > values.numbers["rows_max"]:
        raise NotTried(f"this server's limits don't allow it: {word_count} rows")


def _findings(case: Case, words: tuple[str, ...], run: Run, values: Values) -> list[StepFinding]:
    """What fell short in the first request of a case that did; what would follow is not sent any more."""
    prepared = prepare(case.send, values, words)
    if isinstance(prepared, PreparedRaw) and prepared.cut and run.server.tls is not None:
        raise NotTried("TLS has no connection that is closed in one direction alone")
    _check_size(case.expect, prepared, values, len(words))
    with client_of(run.server) as client:
        findings = _step(client, run, prepared, case.expect, values, words)
        for step in case.then:
            if findings:
                break
            run.pause(evaluate(step.pause_seconds, values.numbers))
            if step.send is not None:
                prepared = prepare(step.send, values, words)
            findings = _step(client, run, prepared, step.expect, values, words)
    return findings


def _step(
    client: httpx.Client,
    run: Run,
    prepared: Prepared | PreparedRaw,
    expected: Expectation,
    values: Values,
    words: tuple[str, ...],
) -> list[StepFinding]:
    """Sends one request and judges its answers."""
    try:
        answers = _answers(client, run, prepared)
    except NoAnswer as error:
        if expected.closing_is_fine and error.kind == "closed":
            return []
        findings = [Finding("an answer", str(error))]
    else:
        is_head = isinstance(prepared, Prepared) and prepared.method == "HEAD"
        judged = [judge(expected, answer, values, each=words, is_head=is_head) for answer in answers]
        findings = [finding for one in judged for finding in one]
    told = _told(prepared)
    return [StepFinding(_redacted(told, run), f.expected, _redacted(f.came, run)) for f in findings]


def _answers(client: httpx.Client, run: Run, prepared: Prepared | PreparedRaw) -> list[Answer]:
    """The answers to a request, repeated while the source is over its rate limit: that is no case's business."""
    for _ in range(_RATE_LIMITED_MAX):
        if isinstance(prepared, PreparedRaw):
            answers = exchange_raw(run.server, prepared)
        else:
            answers = [exchange(client, run.server, prepared)]
        if all(answer.status != 429 for answer in answers):
            return answers
        wait = answers[-1].header("Retry-After") or ""
        run.pause(min(int(wait), 60) if wait.isascii() and wait.isdigit() else 1)
    raise NotTried("the source stayed over its rate limit")


def _told(prepared: Prepared | PreparedRaw) -> str:
    """A request, for a reader."""
    if isinstance(prepared, PreparedRaw):
        head = prepared.head.decode("latin-1").split("\r\n")[0]
        return f"{head} {shown(b''.join(prepared.pieces))}".strip()
    coding = [f"{name}: {value}" for name, value in prepared.headers if name in ("Content-Encoding", "Content-Type")]
    is_plain = not any(name == "Content-Encoding" for name, _ in prepared.headers)
    body = shown(prepared.body) if is_plain else f"({len(prepared.body)} bytes)"
    return " ".join([prepared.method, prepared.path, *([f"[{', '.join(coding)}]"] if coding else []), body]).strip()


def _redacted(text: str, run: Run) -> str:
    for name, token in (("<token>", run.token), ("<test token>", run.test_token)):
        if token:
            text = text.replace(token, name)
    return text
