"""A long quarrel with a real server over HTTP: whatever is sent, it answers as the contract says and goes on.

`make fuzz ARGS="--minutes 30"` plays it for long. The requests are cases of the conformance kit, broken at every level
(`fuzz_requests.py`); several connections send at the same time, and each goes on after an answer. Never may there be

    an answer of 500 or above, or one that the server's own OpenAPI document doesn't describe
    no answer to a request whose HTTP holds
    an answer or a line of the log with a token or a property's value in it
    a warning, an error or a traceback in the log
    a process that died
    memory that grows with the requests

and at the end every row that was answered as accepted stands in the books, which balance.

The limits are small, so that what is generated passes them often.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import msgspec
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.e2e.fuzz_requests import ELSEWHERE, SECRET, FuzzedRequest, Requests, row_texts, seeds_of
from tests.e2e.server import TEST_TOKEN, TOKEN, Server, running

LIMITS = """
[limits]
body_bytes_max = 4000000
rows_max = 50
row_bytes_max = 8192
row_depth_max = 16
token_chars_max = 80
object_keys_max = 20
object_levels_max = 4
array_entries_max = 10
object_units_max = 4000
request_seconds_max = 5
"""
CONNECTIONS_MAX = 8
ROUND_EXAMPLES = 100
ROW_TEXTS = 500
ANSWER_SECONDS_MAX = 60
PATIENCE_SECONDS = 600
"""For a start on a busy machine, and for what half an hour of small requests leaves to deliver and to recount."""
GROWTH_BYTES_MAX = 32 * 1024 * 1024
"""From what a worker took in the first quarter of a run to what it takes in the last."""


class FuzzResult(msgspec.Struct, frozen=True):
    """What a run came to."""

    requests: int
    statuses: dict[str, int]
    """Answers by status; `none` is no answer to what was no request."""
    rows_accepted: int
    rows_failed: int
    seconds: float
    worker_bytes: dict[str, tuple[int, int, int]]
    """Of each process: memory when the run had begun, at its end, and at its peak."""


class Answer(msgspec.Struct, frozen=True):
    """What came back to one request."""

    status: int
    content_type: str | None
    body: bytes


class Fuzz:
    """A run against one server, which is started and has the limits of this module."""

    def __init__(self, server: Server, seed_number: int, row_texts_made: int = ROW_TEXTS) -> None:
        self._server = server
        self._seed_number = seed_number
        self._pool = ThreadPoolExecutor(CONNECTIONS_MAX)
        self._judge = Judge(httpx.get(f"{server.url}/openapi", trust_env=False, timeout=60).json())
        limits = httpx.get(f"{server.url}/limits", trust_env=False, timeout=60).json()
        seeds = seeds_of(limits, TOKEN, TEST_TOKEN, time.time_ns() // 1_000_000)
        self._requests = Requests(seeds, row_texts(row_texts_made, seed_number), TOKEN)
        self._pids = self._pids_now()
        self._memory: dict[str, list[int]] = {name: [] for name in self._pids}
        self._began = time.monotonic()

    def round(self, examples: int = ROUND_EXAMPLES) -> None:
        """Send what so many examples are, and look at the server after it; fails with the smallest example found."""
        self._seed_number += 1

        @seed(self._seed_number)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(st.integers(0, 2**48), min_size=1, max_size=CONNECTIONS_MAX))
        def send(connections: list[int]) -> None:
            for answers in self._pool.map(self._converse, map(self._requests.of, connections)):
                for request, answer in answers:
                    self._judge.judge(request, answer)

        send()
        self._look()

    def answered(self) -> str:
        """How many answers of each status there were so far."""
        return ", ".join(f"{status}: {count:,}" for status, count in sorted(self._judge.statuses.items()))

    def finish(self) -> FuzzResult:
        """Hold the books against what was answered; what the run came to."""
        judge = self._judge
        self._pool.shutdown()
        seconds = time.monotonic() - self._began
        status = self._server.settle_down(PATIENCE_SECONDS)
        booked = sum(source["accepted"] for source in status["sources"])
        assert booked >= judge.accepted_rows, f"{judge.accepted_rows} rows were accepted, {booked} stand in the books"
        self._server.run("audit")
        self._look()
        memory = {}
        for name, samples in self._memory.items():
            early, late = max(samples[: len(samples) // 4 + 1]), sorted(samples[-(len(samples) // 4 + 1) :])
            memory[name] = (early, late[len(late) // 2], resident_bytes(self._pids[name], "VmHWM"))
        grown = {name: late - early for name, (early, late, _) in memory.items() if name.startswith("gateway-")}
        assert max(grown.values()) <= GROWTH_BYTES_MAX, f"memory grows with the requests: {grown}"
        return FuzzResult(
            requests=judge.statuses.total(),
            statuses=dict(sorted(judge.statuses.items())),
            rows_accepted=judge.accepted_rows,
            rows_failed=judge.failed_rows,
            seconds=seconds,
            worker_bytes=memory,
        )

    def _converse(self, requests: Sequence[FuzzedRequest]) -> list[tuple[FuzzedRequest, Answer | None]]:
        """Send requests over one connection, each after the answer to the one before; a new one when it is closed."""
        told: list[tuple[FuzzedRequest, Answer | None]] = []
        connection: socket.socket | None = None
        try:
            for request in requests:
                if connection is None:
                    connection = socket.create_connection(("127.0.0.1", self._server.port), ANSWER_SECONDS_MAX)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                answer, is_open = exchange(connection, request)
                told.append((request, answer))
                if not is_open:
                    connection.close()
                    connection = None
        finally:
            if connection is not None:
                connection.close()
        return told

    def _look(self) -> None:
        """Fail when the server is not as it was, or has something to say."""
        assert self._pids_now() == self._pids, "a process died"
        for line in self._server.log():
            assert line["level"] in ("debug", "info"), f"the log has {line}"
        log = self._server.log_path.read_text()
        for what in ("Traceback", "panicked", SECRET, TOKEN, TEST_TOKEN):
            assert what not in log, f"the log has {what}"
        for name, pid in self._pids.items():
            self._memory[name].append(resident_bytes(pid))

    def _pids_now(self) -> dict[str, int]:
        return {process["name"]: int(process["pid"]) for process in self._server.status()["processes"]}


class Judge:
    """Holds answers against the server's OpenAPI document, and counts them."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.statuses: Counter[str] = Counter()
        self.accepted_rows = 0
        self.failed_rows = 0
        self._document = document
        self._validators: dict[str, Any] = {}

    def judge(self, request: FuzzedRequest, answer: Answer | None) -> None:
        """Fail when this is no answer to that."""
        self.statuses["none" if answer is None else str(answer.status)] += 1
        if answer is None:
            assert not request.is_sound, f"no answer to {request}, whose HTTP holds"
            return
        assert answer.status < 500, f"{request} answered {answer.status}: {answer.body!r}"
        for secret in (SECRET, TOKEN, TEST_TOKEN):
            assert secret.encode() not in answer.body, "what was sent comes back"
        if request.is_sound:
            fault = self._fault_of(request, answer)
            assert fault is None, f"{request} answered {answer.status}, {answer.body!r}: {fault}"
        if answer.status in (200, 207) and request.method == "POST" and answer.body:
            self._count_rows(json.loads(answer.body))

    def _count_rows(self, body: dict[str, Any]) -> None:
        """What an answer that took rows says of them; its parts must agree."""
        results = body.get("results", [{"index": 0, "success": True}])
        accepted = sum(result["success"] for result in results)
        assert [result["index"] for result in results] == list(range(len(results)))
        assert body.get("accepted", 1) == accepted
        assert body.get("failed", 0) == len(results) - accepted
        assert body["success"] == (accepted == len(results))
        self.accepted_rows += accepted
        self.failed_rows += len(results) - accepted

    def _fault_of(self, request: FuzzedRequest, answer: Answer) -> str | None:
        """In what an answer is not as described; None if it is."""
        if request.method == "HEAD" or answer.status == 204:
            return "a body where none may be" if answer.body else None
        if answer.content_type != "application/json":
            return "another Content-Type than application/json"
        try:
            body = json.loads(answer.body)
        except ValueError:
            return "no JSON"
        schema = self._schema(request, answer.status)
        if schema is None:
            return "a status that is not described"
        return next((error.message for error in self._validator(schema).iter_errors(body)), None)

    def _schema(self, request: FuzzedRequest, status: int) -> str | None:
        """The schema of an answer, as JSON; 404 and 405 are described nowhere and are refusals like any other."""
        if status in (404, 405):
            return '{"$ref": "#/components/schemas/Refused"}'
        path = request.path.removeprefix(ELSEWHERE).partition("?")[0]
        operation = self._document["paths"].get(path, {}).get(request.method.lower())
        response = (operation or {}).get("responses", {}).get(str(status))
        if response is None:
            return None
        if "$ref" in response:
            response = self._document["components"]["responses"][response["$ref"].rpartition("/")[2]]
        return json.dumps(response["content"]["application/json"]["schema"])

    def _validator(self, schema: str) -> Any:
        if schema not in self._validators:
            components = self._document["components"]
            self._validators[schema] = jsonschema_rs.Draft202012Validator(
                {**json.loads(schema), "components": components}
            )
        return self._validators[schema]


def exchange(connection: socket.socket, request: FuzzedRequest) -> tuple[Answer | None, bool]:
    """Write a request and read its answer, if one comes; whether the connection goes on after it."""
    # A server that has heard enough may close before all is written; what it said first can still be read.
    with suppress(OSError):
        for piece in request.pieces:
            connection.sendall(piece)
        if not request.is_sound:
            connection.shutdown(socket.SHUT_WR)
    response = HTTPResponse(connection, method=request.method)
    try:
        response.begin()
        answer = Answer(response.status, response.getheader("content-type"), response.read())
    except (HTTPException, ConnectionError, ValueError):
        return None, False
    return answer, request.is_sound and not response.will_close


def resident_bytes(pid: int, what: str = "VmRSS") -> int:
    """The memory of a process, now or (`VmHWM`) at its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def told(result: FuzzResult) -> str:
    """The figures of a run, for a person."""
    lines = [
        f"{result.requests:,} requests in {result.seconds:.0f} s, {result.requests / result.seconds:,.0f} a second",
        f"{result.rows_accepted:,} rows accepted, {result.rows_failed:,} failed; the books balance",
    ]
    for name, sizes in result.worker_bytes.items():
        early, late, peak = (size / 1024 / 1024 for size in sizes)
        lines.append(f"memory of {name}: {early:.0f} MiB when it had begun, {late:.0f} at the end, {peak:.0f} at most")
    return "\n".join(lines)


def main() -> None:
    """Play for some minutes and tell the figures."""
    parser = argparse.ArgumentParser(description="Fuzz the HTTP port of a real server; it must answer and go on.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: exit(1))
    directory = Path(tempfile.mkdtemp(prefix="counterfoil-fuzz-"))
    print(f"in {directory}, which stays when a promise is broken", flush=True)
    server = Server(directory, workers=2, more=LIMITS)
    server.patience_seconds = PATIENCE_SECONDS
    with running(server):
        fuzz = Fuzz(server, asked.seed * 1_000_000)
        end = time.monotonic() + asked.minutes * 60
        while time.monotonic() < end:
            fuzz.round()
        print(f"answers by status: {fuzz.answered()}; now the books are recounted", flush=True)
        print(told(fuzz.finish()))
        assert server.stop() == 0
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
