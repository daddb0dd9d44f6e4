"""No value that a sender sent is shown by the server, whatever became of its row."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from counterfoil.queue.frame import FRAME_MARK
from tests import postgres_server as postgres
from tests.e2e.canaries import CANARY, CANARY_NUMBER, find_canaries, what_a_server_says
from tests.e2e.server import TEST_TOKEN, TOKEN, Server, until
from tests.http_receiver import Receiver, Reply, http_receiver

MakeServer = Callable[..., Server]

GOOD: dict[str, Any] = {
    "event": f"{CANARY} event", "userId": f"{CANARY}-user", "externalId": CANARY_NUMBER,
    "email": f"{CANARY}@example.org", f"{CANARY}-field": [f"{CANARY}-unknown", CANARY_NUMBER],
    "eventProperties": {"text": f"{CANARY}-text", "number": CANARY_NUMBER, "deep": {"er": [f"{CANARY}-deep"]}},
    "userProperties": {"first_name": f"{CANARY}-name", "phone_number": f"+{CANARY_NUMBER}", "consent": {"a": CANARY}},
    "defaultProperties": {"browser_name": f"{CANARY}-browser", "referrer": f"https://{CANARY}.example.org"},
    "identityContext": {"ip": f"{CANARY}-ip", "userAgent": f"{CANARY}-agent"},
}  # fmt: skip

BROKEN: dict[str, dict[str, Any]] = {
    "event no text": {"event": {CANARY: CANARY_NUMBER}},
    "event too long": {"event": CANARY * 200},
    "user no text": {"userId": [CANARY]},
    "email too long": {"email": CANARY * 200},
    "time no number": {"time": f"{CANARY}-time"},
    "time too old": {"time": CANARY_NUMBER},
    "properties no object": {"eventProperties": f"{CANARY}-properties"},
    "properties too deep": {"eventProperties": {"a": {"b": {"c": {"d": {"e": {"f": CANARY}}}}}}},
    "too many properties": {"eventProperties": {f"{CANARY}{n}": n for n in range(300)}},
    "known name of another kind": {"userProperties": {"first_name": {"of": CANARY}}},
    "half an identity": {"identityContext": {"ip": CANARY}},
    "a lone surrogate": {"email": f"{CANARY}\ud800"},
}


def row(name: str, **fields: Any) -> dict[str, Any]:
    return {**GOOD, "distinctId": f"{CANARY}-{name}", **fields}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook's receiver that refuses every request and quotes it."""
    with http_receiver() as running:
        running.answer = lambda request: Reply(400, {"x-reason": f"{CANARY}-header"}, request.body)
        yield running


def send(server: Server, path: str, body: bytes | dict[str, Any], status: int, **headers: str) -> httpx.Response:
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    answer = httpx.post(
        f"{server.url}{path}",
        content=content,
        headers={"content-type": "application/json"} | headers,
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == status, answer.text
    return answer


def test_nothing_that_was_sent_is_shown(make_server: MakeServer, receiver: Receiver) -> None:
    """Rows of every kind and fate, and their tokens: no value of them is in a log, metric, page, answer or command."""
    secret = base64.b64encode(bytes(24)).decode()
    hook = f'name = "hook"\ntype = "webhook"\nurl = "{receiver.url}/{CANARY}"\nsecret = "whsec_{secret}"\n'
    more = f"[[destinations]]\n{hook}"
    with ExitStack() as stack:
        if postgres.why_not() is None:
            database = stack.enter_context(postgres.postgres_server())
            more += f'[[destinations]]\nname = "base"\ntype = "postgres"\ndsn = "{database.dsn()}"\n'
        only = f'allowed_events = ["Purchase", "{CANARY} event"]'
        server = make_server(source=only, more=more).start()
        answers = {
            "new": send(server, "/batch", {"token": TOKEN, "events": [row("a"), row("b", event="Purchase")]}, 200),
            "repeat": send(server, "/batch", {"token": TOKEN, "events": [row("a"), row("b", email="other")]}, 200),
            "blocked": send(server, "/batch", {"token": TOKEN, "events": [row("c", event=f"{CANARY} blocked")]}, 200),
            "test": send(server, "/batch", {"token": TEST_TOKEN, "events": [row("d")]}, 200),
            "refused by the database": send(
                server, "/batch", {"token": TOKEN, "events": [row("e", userId=f"{CANARY}\0")]}, 200
            ),
            "unknown token": send(server, "/track", {"token": f"{CANARY}-token", **row("f")}, 401),
            "no JSON": send(server, "/batch", f'{{"token": "{TOKEN}", "events": [{CANARY}]}}'.encode(), 400),
            "damaged": send(server, "/batch", CANARY.encode(), 400, **{"content-encoding": "gzip"}),
            "unknown encoding": send(server, "/batch", b"{}", 415, **{"content-encoding": CANARY}),
            "unknown path": send(server, f"/{CANARY}?{CANARY}={CANARY}", b"{}", 404),
            "unknown type": send(server, "/batch", b"{}", 415, **{"content-type": f"text/{CANARY}"}),
        }
        for name, fields in BROKEN.items():
            answers[name] = send(server, "/batch", {"token": TOKEN, "events": [row("g", **fields)]}, 207)
            answers[f"{name}, alone"] = send(server, "/track", {"token": TOKEN, **row("g", **fields)}, 400)
        said = {f"answer: {name}": f"{answer.headers!r} {answer.text}" for name, answer in answers.items()}

        def is_dead() -> bool:
            destinations = {each["name"]: each for each in server.status()["destinations"]}
            return destinations["hook"]["dead"] >= 3 and all(each["pending"] == 0 for each in destinations.values())

        until(is_dead, "the webhook's rows are dead letters")
        assert all(request.rows for request in receiver.received), "the receiver saw rows to quote"
        assert find_canaries(said | what_a_server_says(server)) == []
        reasons = server.run("trace", f"{CANARY}-a", "--source", "website", "--json")
        assert "dead" in reasons
        assert f"{CANARY}-text" not in reasons


def test_nothing_of_what_was_damaged_is_shown(make_server: MakeServer, receiver: Receiver) -> None:
    """Rows whose bytes are damaged, torn or lost, and what commands say of them: no value of them is shown either."""
    secret = base64.b64encode(bytes(24)).decode()
    hook = (
        f'[[destinations]]\nname = "hook"\ntype = "webhook"\nurl = "{receiver.url}/{CANARY}"\n'
        f'secret = "whsec_{secret}"\n'
    )
    server = make_server(more=hook).start()
    for names in ("ab", "cd", "ef"):
        send(server, "/batch", {"token": TOKEN, "events": [row(name) for name in names]}, 200)
    until(lambda: _of(server, "hook")["dead"] == 6, "the webhook's rows are dead letters")
    server.settle_down()
    server.kill()
    segment = max((server.directory / "data").glob("queue/1/*.seg"), key=lambda path: path.stat().st_size)
    frames = [found.start() for found in re.finditer(re.escape(FRAME_MARK), segment.read_bytes())]
    assert len(frames) >= 3
    with segment.open("r+b") as file:
        # One frame in the middle gets another byte, and behind the last stands half of one that was never flushed.
        file.seek(frames[2] - 100)
        file.write(b"\x00")
        file.seek(frames[1])
        half = file.read(200)
        file.seek(0, 2)
        file.write(half)
    for path in (server.directory / "data" / "ledger").glob("*.log"):
        path.write_bytes(path.read_bytes()[:-50])
    shutil.rmtree(server.directory / "data" / "lake")

    said = {"rebuild": server.run("rebuild", "--json", "--send-again")}
    server.start()
    send(server, "/batch", {"token": TOKEN, "events": [row("a"), row("c"), row("g")]}, 200)
    until(lambda: _of(server, "hook")["dead"] >= 1, "rows are settled and delivered anew")
    assert list((server.directory / "data" / "quarantine").glob("*.json")), "the damage was set aside, with notes"
    said["dead list"] = server.run("dead", "list") + server.run("dead", "list", "--json")
    seq = str(server.facts("dead", "list")["letters"][0]["seq"])
    said["dead show"] = server.run("dead", "show", "hook", seq) + server.run("dead", "show", "hook", seq, "--json")
    said["replay"] = server.run("replay", "hook", "--again", "--dry-run", "--json", status=1)
    said["retry"] = server.run("dead", "retry", "--json")
    said["check"] = server.run("check")
    for named in ((f"{CANARY}-a",), ("--user-id", f"{CANARY}-user")):
        said[f"erase {len(named)}"] = server.run("erase", *named, "--yes", "--json", "--wait", "0", status=1)
    until(lambda: "refused" in server.run("erase", "--list", "--json"), "the receiver refused to be told")
    said["erase list"] = server.run("erase", "--list", "--json") + server.run("erase", "--list")
    assert find_canaries(said | what_a_server_says(server)) == []


def _of(server: Server, name: str) -> dict[str, Any]:
    """The state of a destination."""
    found: dict[str, Any] = next(each for each in server.status()["destinations"] if each["name"] == name)
    return found


def test_a_canary_is_found() -> None:
    """The search finds a value, a number and a token wherever they stand in a text, and nothing else."""
    texts = {"log": f"so {CANARY.upper()}-x", "page": f"{CANARY_NUMBER}", "path": f"?token={TOKEN}", "good": "token"}
    assert [found.partition(":")[0] for found in find_canaries(texts)] == ["log", "page", "path"]
