"""A real HTTP server whose answers a test decides and whose requests it reads."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Received:
    """A request that came in; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Those that it brings; a message that is none of rows has none."""
        rows: list[dict[str, Any]] = json.loads(self.body).get("rows", [])
        return rows


@dataclass(frozen=True)
class Reply:
    """What is answered; `cut` closes the connection without a word, and without `has_length` its end is the body's."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: bool = False
    has_length: bool = True


class Receiver:
    """Takes requests until it is closed; `answer` decides each."""

    def __init__(self, certificate: Path | None = None, key: Path | None = None, port: int = 0) -> None:
        """Over HTTPS with a certificate and its key; at a port of its own when none is named."""
        self.received: list[Received] = []
        self.replies: list[Reply] = []
        self.answer: Callable[[Received], Reply] = lambda _: Reply()
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body_bytes = int(self.headers.get("content-length", 0))
                body = self.rfile.read(body_bytes)
                if len(body) < body_bytes:
                    # Who sent it was killed meanwhile: a request that did not arrive is nothing that was received.
                    self.close_connection = True
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = receiver._take(Received(self.command, self.path, headers, body))
                if reply.cut:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                frame = {"content-length": str(len(reply.body))} if reply.has_length else {"connection": "close"}
                for name, value in {**frame, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        # What a client broke off, or a handshake that failed, is the test's own doing.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def _take(self, request: Received) -> Reply:
        with self._lock:
            self.received.append(request)
            reply = self.answer(request)
            self.replies.append(reply)
            return reply

    @property
    def taken_rows(self) -> list[dict[str, Any]]:
        """The rows of all requests that were answered with success."""
        with self._lock:
            answered = list(zip(self.received, self.replies, strict=True))
        return [row for request, reply in answered if 200 <= reply.status < 300 for row in request.rows]

    @property
    def taken(self) -> list[int]:
        """Their seqs."""
        return [row["seq"] for row in self.taken_rows]

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def http_receiver(certificate: Path | None = None, key: Path | None = None) -> Iterator[Receiver]:
    """A receiver that runs until the end of the block."""
    receiver = Receiver(certificate, key)
    try:
        yield receiver
    finally:
        receiver.close()
