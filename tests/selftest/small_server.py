"""A small server of the API, right or broken in one way on purpose: what the checker proves itself against.

It keeps rows in memory and delivers them to a list at the end. It knows nothing of Counterfoil's own server.
"""

from __future__ import annotations

import copy
import enum
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from counterfoil.selftest.judging import FoundRow


class Breakage(enum.Enum):
    """In which way the server is broken; each shows at about every twentieth chance."""

    NONE = "none"
    ACKNOWLEDGES_BEFORE_THE_FLUSH = "acknowledges before the flush, and what was not flushed is lost in the crash"
    KNOWS_NO_REPEATS = "delivers a row as often as it is sent"
    FLIPS_A_BIT = "one bit of a value is another"
    DROPS_A_FIELD = "a field is missing"
    SWAPS_ROWS = "a row is delivered with the content of another"
    INVENTS_ROWS = "delivers rows that nobody sent"
    LEAVES_RESULTS_OUT = "answers fewer results than there were rows"
    SAYS_NOTHING = "answers 200 with an empty object"
    SAYS_ANOTHER_CODE = "a row fails with a code that the contract does not know"
    REFUSES_GOOD_ROWS = "says invalid_event of a row that is valid"
    TAKES_BROKEN_ROWS = "takes rows that are invalid"
    DELIVERS_WHAT_IT_REFUSED = "delivers rows that it refused"
    FAILS_OFTEN = "cuts connections, and answers 500, 429 and queue_failed: all of which the contract allows"


class SmallServer:
    """Takes /batch and /track; `breakage` says what is wrong with it."""

    def __init__(self, breakage: Breakage = Breakage.NONE) -> None:
        self.breakage = breakage
        self._rows: list[dict[str, Any]] = []
        self._unflushed: list[dict[str, Any]] = []
        self._keys: set[str] = set()
        self._requests = 0
        self._chances = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body in one packet: in two, each answer waits for the client's delayed acknowledgement.
            wbufsize = -1

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server._lock:
                    reply = server._answer(self.path, body)
                if reply is None:
                    self.close_connection = True
                    return
                status, document = reply
                told = json.dumps(document).encode()
                self.send_response(status)
                if status in (429, 500):
                    self.send_header("retry-after", "1")
                self.send_header("content-length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/api/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def crash(self) -> None:
        """What was not flushed is gone."""
        with self._lock:
            self._unflushed.clear()

    def delivered(self) -> list[FoundRow]:
        """What the destination holds now."""
        with self._lock:
            rows = copy.deepcopy(self._rows)
        if self._is(Breakage.INVENTS_ROWS):
            run = str(rows[0]["distinctId"]).partition("-")[0]
            rows += [{**rows[0], "distinctId": name} for name in (f"{run}-10000000", f"{run}-007", "somebody-1")]
        found = []
        for place, row in enumerate(rows):
            if self._is(Breakage.SWAPS_ROWS) and place % 20 == 1:
                row = {**rows[place - 1], "distinctId": row["distinctId"]}
            found.append(self._found(row, place % 20 == 0))
        return found

    def _found(self, row: dict[str, Any], is_chosen: bool) -> FoundRow:
        known = ("event", "distinctId", "userId", "externalId", "email", "time", "eventProperties", "userProperties")
        fields = {name: row.get(name) for name in (*known, "identityContext")}
        fields["extra"] = {n: v for n, v in row.items() if n not in {*fields, "defaultProperties"}}
        received = {"received_at": "2026-01-01T00:00:00.000Z", "version": "x"}
        fields["defaultProperties"] = {**row.get("defaultProperties", {}), **received}
        if self._is(Breakage.FLIPS_A_BIT) and is_chosen:
            text = row["eventProperties"]["text"]
            fields["eventProperties"] = {**row["eventProperties"], "text": chr(ord(text[0]) ^ 1) + text[1:]}
        if self._is(Breakage.DROPS_A_FIELD) and is_chosen:
            fields["eventProperties"] = {n: v for n, v in row["eventProperties"].items() if n != "count"}
        return FoundRow(row["distinctId"], fields)

    def _is(self, breakage: Breakage) -> bool:
        return self.breakage is breakage

    def _now(self, breakage: Breakage) -> bool:
        """Whether the server is broken in this way, and this is the chance at which it shows."""
        if not self._is(breakage):
            return False
        self._chances += 1
        return self._chances % 20 == 1

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        self._requests += 1
        failure = self._requests % 7 if self._is(Breakage.FAILS_OFTEN) else 0
        if failure in (1, 2, 3):
            if failure == 1:
                self._take_all(body)
                return None
            limited = {"success": False, "error": "slow down"}
            return (429, limited) if failure == 2 else (500, {**limited, "retryable": True})
        if path.endswith("/track"):
            row = {name: value for name, value in body.items() if name != "token"}
            if self._takes(row):
                return 200, {} if self._now(Breakage.SAYS_NOTHING) else {"success": True}
            return 400, {"success": False, "error": "event: expected a string"}
        results = [self._result(index, row, failure) for index, row in enumerate(body["events"])]
        failed = sum(not result["success"] for result in results)
        accepted = len(results) - failed
        if self._now(Breakage.LEAVES_RESULTS_OUT):
            results.pop()
        if self._now(Breakage.SAYS_NOTHING):
            return 200, {}
        if failed and failure == 4:
            told = {"success": False, "error": "the queue failed", "retryable": True, "results": results}
            return (500, told) if not accepted else (207, told)
        counts = {"success": not failed, "accepted": accepted, "failed": failed}
        return (207 if failed else 200), {**counts, "results": results}

    def _take_all(self, body: dict[str, Any]) -> None:
        for row in body.get("events", [body]):
            self._takes({name: value for name, value in row.items() if name != "token"})

    def _result(self, index: int, row: dict[str, Any], failure: int) -> dict[str, Any]:
        fault = {"index": index, "success": False, "code": "invalid_event", "message": "event: expected a string"}
        if self._now(Breakage.SAYS_ANOTHER_CODE):
            return {**fault, "code": "overloaded"}
        if self._now(Breakage.REFUSES_GOOD_ROWS):
            return fault
        if failure == 4 and isinstance(row["event"], str):
            return {**fault, "code": "queue_failed"}
        return {"index": index, "success": True} if self._takes(row) else fault

    def _takes(self, row: dict[str, Any]) -> bool:
        """Whether the row is answered with success."""
        if not isinstance(row["event"], str) and not self._is(Breakage.TAKES_BROKEN_ROWS):
            if self._is(Breakage.DELIVERS_WHAT_IT_REFUSED):
                self._rows.append(row)
            return False
        key = row["distinctId"]
        if key in self._keys and not self._is(Breakage.KNOWS_NO_REPEATS):
            return True
        self._keys.add(key)
        if self._is(Breakage.ACKNOWLEDGES_BEFORE_THE_FLUSH):
            self._unflushed.append(row)
            if len(self._unflushed) >= 50:
                self._rows += self._unflushed
                self._unflushed.clear()
        else:
            self._rows.append(row)
        return True


@contextmanager
def small_server(breakage: Breakage) -> Iterator[SmallServer]:
    """A server that runs until the end of the block."""
    server = SmallServer(breakage)
    try:
        yield server
    finally:
        server.close()
