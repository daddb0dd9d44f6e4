"""The kit proves itself on servers that are wrong on purpose: it finds each fault, and none where there is none."""

import json
import socket
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from rich.console import Console

from counterfoil.conformance.cases import Section, read_section
from counterfoil.conformance.report import as_json, as_junit, is_met, print_table
from counterfoil.conformance.suite import DEFAULT_LIMITS, Kind, Known, Outcome, Run, ServerUnusable, learn, run_sections
from counterfoil.conformance.wire import UrlInvalid, server_at
from tests.conformance_kit.small_server import LIMITS, TEST_TOKEN, TOKEN, small_server

CASES = r"""
section = "2"
title = "What the small server knows"

[[case]]
name = "good"
rule = "A good row is accepted."
send.rows = ['{"event": "E", "distinctId": "{{id}}"}']
expect.rows = ["accepted"]
[[case.then]]
expect.rows = ["accepted"]

[[case]]
name = "mixed"
rule = "A broken row fails alone."
send.rows = ['{"event": "E", "distinctId": "{{id}}"}', '{"event": ["{{secret}}"], "distinctId": "{{id}}"}', '5']
expect.rows = ["accepted", "invalid: event", "invalid"]

[[case]]
name = "track"
rule = "A track is accepted."
send.track = '{"event": "E"}'
expect.success = true

[[case]]
name = "unknown token"
rule = "An unknown token is refused."
send.body = '{"token": "{{unknown_token}}", "events": [{}]}'
expect.status = 401
expect.error = "token"

[[case]]
name = "too many rows"
rule = "Too many rows are refused."
send.body = '{"token": "{{token}}", "events": [{{many}}]}'
parts.many = {repeat = "0", between = ",", times = "rows_max + 1"}
expect.status = 413
expect.limit = "rows_max"

[[case]]
name = "raw"
rule = "A request in pieces is a request."
send.raw.head = [
  "POST {{base}}/track HTTP/1.1", "Host: {{host}}", "Content-Type: application/json", "Content-Length: {{= length}}",
]
send.raw.pieces = ['{"token": ', '"{{token}}", "event": "E"}']
send.raw.copies = 2
expect.success = true

[[case]]
name = "test token"
rule = "The test token is a token."
needs = ["test_token"]
send.test_token = true
send.rows = ['{"event": "E", "distinctId": "{{id}}"}']
expect.rows = ["accepted"]

[[case]]
name = "slow"
rule = "What takes long is tried when asked for."
needs = ["slow"]
send.rows = ['{"event": "E", "distinctId": "{{id}}"}']
expect.rows = ["accepted"]

[[case]]
name = "not here"
rule = "What a server's limits don't allow is not tried."
needs = ["rows_max > 1000"]
send.rows = ['{"event": "E", "distinctId": "{{id}}"}']
expect.rows = ["accepted"]
"""
SECTION = read_section(CASES, "small.toml")


def run_of(url: str, *, test_token: str | None = TEST_TOKEN, is_slow: bool = True, timeout: float = 60) -> Run:
    """A run against a server there."""
    server = server_at(url, timeout_seconds=timeout)
    return Run(server, TOKEN, test_token, run_id="00000001", is_slow=is_slow, pause=lambda _: None)


def outcomes_of(run: Run, sections: Iterable[Section] = (SECTION,)) -> dict[str, Outcome]:
    """The outcome of each case, by name."""
    return {outcome.case.name: outcome for outcome in run_sections(sections, run, learn(run))}


def test_a_right_server_passes() -> None:
    """A server that does what the cases ask falls short in none; what doesn't apply to it is not tried."""
    with small_server() as server:
        found = outcomes_of(run_of(server.url))
    assert {name for name, outcome in found.items() if outcome.kind is Kind.FELL_SHORT} == set()
    assert found["not here"].kind is Kind.NOT_TRIED
    assert found["not here"].why == "this server's limits don't allow it: rows_max > 1000"
    assert sum(outcome.kind is Kind.PASSED for outcome in found.values()) == len(SECTION.case) - 1


@pytest.mark.parametrize(
    ("fault", "name", "told"),
    [
        ("answers nothing", "good", "an answer"),
        ("answers HTML", "good", "Content-Type application/json"),
        ("answers no JSON", "good", "a body of JSON"),
        ("closes", "good", "an answer"),
        ("closes", "raw", "an answer"),
        ("counts from one", "good", "results[0].index: 0"),
        ("counts wrongly", "mixed", "accepted: 1"),
        ("echoes the value", "mixed", "without the value of 'secret'"),
        ("echoes the token", "good", "without the value of 'token'"),
        ("fails everything", "good", "status 200"),
        ("forgets the limit", "too many rows", "limit: 50"),
        ("invents codes", "mixed", 'code: "invalid_event"'),
        ("names no path", "mixed", "names events[1].event"),
        ("repeats on 401", "unknown token", "asks nobody to repeat"),
        ("says more than it should", "good", "without other members"),
        ("swallows a row", "mixed", "3 results"),
        ("takes everything", "mixed", "status 207"),
        ("takes everything", "unknown token", "status 401"),
    ],
)
def test_each_fault_is_found(fault: str, name: str, told: str) -> None:
    """A wrong server falls short in the case that its fault breaks, and the finding says what was expected."""
    only = Section(SECTION.section, SECTION.title, [case for case in SECTION.case if case.name == name])
    with small_server(fault) as server:
        # Nobody waits long for an answer that never comes, and as long as it takes for any other.
        run = run_of(server.url, timeout=0.5 if fault == "answers nothing" else 60)
        (found,) = run_sections([only], run, Known({**DEFAULT_LIMITS, **LIMITS}, True, 0))
    assert found.kind is Kind.FELL_SHORT
    assert any(told in finding.expected for finding in found.findings)


def test_reports_hide_the_tokens() -> None:
    """No report holds a token, also when the server's answer does."""
    with small_server("echoes the token") as server:
        run = run_of(server.url)
        known = learn(run)
        outcomes = list(run_sections([SECTION], run, known))
    console = Console(width=100, record=True, quiet=True)
    print_table(console, server.url, [SECTION], outcomes)
    told = console.export_text() + json.dumps(as_json(server.url, known, outcomes))
    told += as_junit([SECTION], outcomes).decode()
    assert "<token>" in told
    assert TOKEN not in told
    assert TEST_TOKEN not in told


def test_what_a_run_doesnt_offer_is_not_tried() -> None:
    """Without a test token, or without the time, a case is told apart from one that passed."""
    with small_server() as server:
        found = outcomes_of(run_of(server.url, test_token=None, is_slow=False))
    assert "--test-token-file" in found["test token"].why
    assert "--slow" in found["slow"].why


def test_a_rate_limit_is_waited_for() -> None:
    """A 429 is no case's business: the kit waits as long as it is told, and asks again."""
    waits: list[float] = []
    with small_server() as server:
        run = run_of(server.url)
        known = learn(run)
        server.limited_times = 2
        patient = Run(run.server, run.token, run.test_token, run.run_id, pause=waits.append)
        outcomes = list(run_sections([SECTION], patient, known))
    assert outcomes[0].kind is Kind.PASSED
    assert waits[:2] == [1, 1]


def test_a_rate_limit_without_end_is_not_tried() -> None:
    """A source that stays over its rate limit can't be tested."""
    with small_server() as server:
        run = run_of(server.url)
        known = learn(run)
        server.limited_times = 10_000
        outcomes = list(run_sections([SECTION], run, known))
    assert outcomes[0].kind is Kind.NOT_TRIED
    assert "rate limit" in outcomes[0].why


def test_rows_that_a_request_may_not_hold_are_not_sent() -> None:
    """A case whose rows are to be judged is not tried where the server's limits refuse the request that holds them."""
    text = r"""
section = "4"
title = "More than a small server takes"
words.many = [WORDS]

[[case]]
name = "rows"
rule = "A row for each word."
send.row = '{"event": "E", "distinctId": "{{id}}-{{each}}"}'
each = "many"
expect.every = "accepted"

[[case]]
name = "bytes"
rule = "A large row."
send.rows = ['{"event": "E", "distinctId": "{{id}}", "unknown": "{{long}}"}']
parts.long = {repeat = "x", times = "body_bytes_max"}
expect.rows = ["accepted"]
"""
    section = read_section(text.replace("WORDS", ", ".join(f'"{n}"' for n in range(51))), "large.toml")
    with small_server() as server:
        found = outcomes_of(run_of(server.url), [section])
    assert found["rows"].why == "this server's limits don't allow it: 51 rows"
    assert found["bytes"].why.startswith("this server's limits don't allow it: 65")


def test_half_a_close_is_not_tried_over_tls() -> None:
    """Python's TLS gives up reading when it closes for writing: no answer would be the kit's fault."""
    text = r"""
section = "3"
title = "Half a close"

[[case]]
name = "cut"
rule = "A body that breaks off is refused."
send.raw.head = ["POST {{base}}/batch HTTP/1.1", "Host: {{host}}", "Content-Length: 10"]
send.raw.pieces = ["{"]
send.raw.cut = true
expect.status = 400
"""
    (outcome,) = run_sections([read_section(text, "cut.toml")], run_of("https://h"), Known(DEFAULT_LIMITS, False, 0))
    assert outcome.kind is Kind.NOT_TRIED
    assert "one direction" in outcome.why


def test_the_limits_of_the_server_are_used() -> None:
    """Cases go by the limits that the server tells, and by the contract's where it tells none."""
    with small_server() as server:
        known = learn(run_of(server.url))
    assert known.are_limits_offered
    assert known.limits["rows_max"] == LIMITS["rows_max"]
    assert known.limits["object_keys_max"] == 200


def test_a_server_that_goes_away_ends_the_run() -> None:
    """When nobody answers any more, the rest is not tried, and nothing raises."""
    with small_server() as server:
        run = run_of(server.url)
        known = learn(run)
    kinds = [outcome.kind for outcome in run_sections([SECTION], run, known)]
    assert kinds[:3] == [Kind.FELL_SHORT] * 3
    assert set(kinds[3:]) == {Kind.NOT_TRIED}


def test_nobody_there() -> None:
    """A server that can't be reached can't be tested."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ServerUnusable, match="can't be reached"):
        learn(run_of(f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize(("token", "test_token"), [("wrong", None), (TOKEN, "wrong")])
def test_a_token_that_the_server_doesnt_know(token: str, test_token: str | None) -> None:
    """With a wrong token every case would fall short; that is told once instead."""
    with small_server() as server:
        run = Run(server_at(server.url, timeout_seconds=60), token, test_token, run_id="00000001")
        with pytest.raises(ServerUnusable, match="doesn't know the"):
            learn(run)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://h", "http://h"),
        ("http://h/", "http://h"),
        ("http://h:80/api/v1", "http://h"),
        ("http://h:8080/api/v1/", "http://h:8080"),
        ("http://h/behind/a/proxy/api/v1", "http://h/behind/a/proxy"),
        ("https://h:443", "https://h"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_urls(url: str, told: str) -> None:
    """A base URL is taken with or without /api/v1, and with or without a slash."""
    assert server_at(url, timeout_seconds=1).url == told


@pytest.mark.parametrize("url", ["h:8080", "ftp://h", "http://", "http://h:port", "http://h:99999"])
def test_urls_that_are_none(url: str) -> None:
    """What names no HTTP server is refused."""
    with pytest.raises(UrlInvalid):
        server_at(url, timeout_seconds=1)


def test_junit(tmp_path: Path) -> None:
    """JUnit's XML has a suite a section, counts that are right, and no character that XML can't carry."""
    with small_server("answers no JSON") as server:
        run = run_of(server.url, is_slow=False)
        outcomes = list(run_sections([SECTION], run, Known({**DEFAULT_LIMITS, **LIMITS}, True, 0)))
    root = Xml.fromstring(as_junit([SECTION], outcomes))
    suite = root[0]
    assert suite.attrib["tests"] == str(len(SECTION.case)) == str(len(suite))
    assert suite.attrib["failures"] == str(len(suite.findall(".//failure")))
    assert suite.attrib["skipped"] == str(len(suite.findall(".//skipped"))) == "2"
    assert "fine" in (suite.findall(".//failure")[0].text or "")


def test_a_run_is_met_when_something_passed_and_nothing_fell_short() -> None:
    """A run that tried nothing shows nothing."""
    passed = Outcome("2", SECTION.case[0], Kind.PASSED)
    fell_short = Outcome("2", SECTION.case[0], Kind.FELL_SHORT)
    not_tried = Outcome("2", SECTION.case[0], Kind.NOT_TRIED)
    assert is_met([passed, not_tried])
    assert not is_met([not_tried])
    assert not is_met([passed, fell_short])
