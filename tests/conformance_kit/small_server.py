"""A very small server of the API, right in the little it does, with faults that a test switches on.

It knows /batch, /track and /limits, judges `event` and `distinctId`, and nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

TOKEN = "a token for tests"
TEST_TOKEN = "another token for tests"
LIMITS = {"body_bytes_max": 65_536, "rows_max": 50, "row_bytes_max": 4096, "token_chars_max": 250}

FAULTS = (
    "answers nothing",
    "answers HTML",
    "answers no JSON",
    "closes",
    "counts from one",
    "counts wrongly",
    "echoes the value",
    "echoes the token",
    "fails everything",
    "forgets the limit",
    "invents codes",
    "names no path",
    "repeats on 401",
    "says more than it should",
    "swallows a row",
    "takes everything",
)


class SmallServer(ThreadingHTTPServer):
    """The server; `url` is where it is."""

    daemon_threads = True

    def __init__(self, fault: str | None = None, limited_times: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        assert fault is None or fault in FAULTS
        self.fault = fault
        self.limited_times = limited_times
        """So many requests are answered 429 first."""
        self.is_over = Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


@contextmanager
def small_server(fault: str | None = None, limited_times: int = 0) -> Iterator[SmallServer]:
    """A small server that runs while the block does."""
    with SmallServer(fault, limited_times) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.is_over.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SmallServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""

    def do_GET(self) -> None:
        if self.path == "/api/v1/limits":
            self._answer(200, LIMITS)
        else:
            self._refuse(404, "nothing here")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.server.limited_times > 0:
            self.server.limited_times -= 1
            self._answer(429, {"success": False, "error": "too many rows a second"}, {"Retry-After": "1"})
        elif self.path not in ("/api/v1/batch", "/api/v1/track"):
            self._refuse(404, "nothing here")
        elif len(body) > LIMITS["body_bytes_max"]:
            self._too_large("the body has too many bytes", "body_bytes_max")
        else:
            self._judge(body)

    def _judge(self, body: bytes) -> None:
        fault = self.server.fault
        if fault == "answers nothing":
            self.server.is_over.wait()
            self.close_connection = True
            return
        if fault == "closes":
            self.close_connection = True
            return
        try:
            request = json.loads(body)
            token = request["token"].strip(" \t\r\n\ufeff")
        except (ValueError, KeyError, TypeError, AttributeError):
            self._refuse(400, "not JSON, or without a token")
            return
        if token not in (TOKEN, TEST_TOKEN) and fault != "takes everything":
            headers = {"x-should-retry": "true"} if fault == "repeats on 401" else {}
            self._answer(401, {"success": False, "error": "the token is unknown"}, headers)
        elif self.path == "/api/v1/track":
            fault_of_row = _fault("event", request)
            if fault_of_row:
                self._refuse(400, fault_of_row)
            else:
                self._answer(200, {"success": True})
        else:
            self._judge_rows(request.get("events"))

    def _judge_rows(self, rows: Any) -> None:
        fault = self.server.fault
        if not isinstance(rows, list) or not rows:
            self._refuse(400, "events: expected an array of rows")
        elif len(rows) > LIMITS["rows_max"]:
            self._too_large("too many rows", "rows_max")
        elif fault == "fails everything":
            self._answer(500, {"success": False, "error": "no", "retryable": True}, {"Retry-After": "1"})
        else:
            results = [_result(index, row, fault) for index, row in enumerate(rows)]
            failed = sum(not result["success"] for result in results)
            answer: dict[str, Any] = {"success": not failed, "accepted": len(rows) - failed, "failed": failed}
            if fault == "counts wrongly":
                answer["accepted"] += 1
            if fault == "says more than it should":
                answer["version"] = 1
            if fault == "echoes the token":
                answer["token"] = TOKEN
            answer["results"] = results[1:] if fault == "swallows a row" else results
            self._answer(207 if failed else 200, answer)

    def _too_large(self, error: str, limit: str) -> None:
        answer: dict[str, Any] = {"success": False, "error": error, "limit": LIMITS[limit]}
        if self.server.fault == "forgets the limit":
            del answer["limit"]
        self._answer(413, answer)

    def _refuse(self, status: int, error: str) -> None:
        self._answer(status, {"success": False, "error": error})

    def _answer(self, status: int, answer: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        if self.server.fault == "answers no JSON" and self.path == "/api/v1/batch":
            body = b"<p>\x01fine"
        content_type = "text/html" if self.server.fault == "answers HTML" else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _result(index: int, row: Any, fault: str | None) -> dict[str, Any]:
    accepted = {"index": index + (fault == "counts from one"), "success": True}
    found = _fault("event", row) or _fault("distinctId", row)
    if found is None or fault == "takes everything":
        return accepted
    message = f"events[{index}]{found}"
    if fault == "names no path":
        message = "something is wrong"
    if fault == "echoes the value":
        message += f": {row}"
    code = "bad_row" if fault == "invents codes" else "invalid_event"
    return {"index": accepted["index"], "success": False, "code": code, "message": message}


def _fault(field: str, row: Any) -> str | None:
    if not isinstance(row, dict):
        return ": expected an object"
    value = row.get(field)
    if not isinstance(value, str) or not 1 <= len(value.strip()) <= 1000:
        return f".{field}: expected a string"
    return None
