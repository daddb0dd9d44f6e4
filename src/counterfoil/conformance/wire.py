"""Sends requests and reads answers: by httpx, or written onto a socket for what httpx would not send."""

from __future__ import annotations

import io
import json
import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import msgspec

from counterfoil.conformance.requests import API, Prepared, PreparedRaw


class NoAnswer(Exception):
    """No answer came. `kind` says how: refused, closed, timed out or unreadable."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


class UrlInvalid(ValueError):
    """A URL that doesn't name an HTTP server."""


class Server(msgspec.Struct, frozen=True):
    """Where the server under test is."""

    scheme: str
    host: str
    port: int
    prefix: str
    """What stands before `/api/v1` in the path, without a slash at its end."""
    timeout_seconds: float
    tls: ssl.SSLContext | None

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


class Answer(msgspec.Struct, frozen=True):
    """What came back."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    seconds: float

    def header(self, name: str) -> str | None:
        """A header's value, those of the same name joined; None when there is none."""
        values = [value for own, value in self.headers if own.lower() == name.lower()]
        return ", ".join(values) if values else None

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self.body.decode())


def server_at(url: str, *, timeout_seconds: float, ca_file: str | None = None) -> Server:
    """The server that a URL names, with or without `/api/v1` at its end. Raises UrlInvalid, OSError, ssl.SSLError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UrlInvalid(str(error)) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UrlInvalid("expected http:// or https://, a host and a port")
    tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
    prefix = parts.path.rstrip("/").removesuffix(API)
    port = port or (443 if tls else 80)
    return Server(parts.scheme, parts.hostname, port, prefix, timeout_seconds, tls)


@contextmanager
def client_of(server: Server) -> Iterator[httpx.Client]:
    """A client with connections of its own, kept alive while it lasts."""
    with httpx.Client(verify=server.tls or _NO_TLS, timeout=server.timeout_seconds, trust_env=False) as client:
        yield client


# Without TLS httpx would still load the certificates of the whole world for each client: 20 ms a case.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def exchange(client: httpx.Client, server: Server, prepared: Prepared) -> Answer:
    """Sends a request and reads its answer. Raises NoAnswer."""
    started = time.perf_counter()
    content = prepared.body if prepared.body or prepared.method == "POST" else None
    try:
        response = client.request(
            prepared.method, server.url + prepared.path, headers=list(prepared.headers), content=content
        )
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise NoAnswer("refused", "no connection") from error
    except httpx.TimeoutException as error:
        raise NoAnswer("timed out", f"no answer within {server.timeout_seconds:g} s") from error
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError) as error:
        raise NoAnswer("closed", f"{type(error).__name__} before there was a whole answer") from error
    except httpx.HTTPError as error:
        raise NoAnswer("unreadable", type(error).__name__) from error
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw)
    return Answer(response.status_code, headers, response.content, time.perf_counter() - started)


def exchange_raw(server: Server, prepared: PreparedRaw) -> list[Answer]:
    """Writes a request onto a socket of its own, and reads one answer for each copy of it. Raises NoAnswer."""
    started = time.perf_counter()
    try:
        with socket.create_connection((server.host, server.port), server.timeout_seconds) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if server.tls is None:
                return _write_and_read(plain, prepared, started)
            with server.tls.wrap_socket(plain, server_hostname=server.host) as wrapped:
                return _write_and_read(wrapped, prepared, started)
    except ConnectionRefusedError as error:
        raise NoAnswer("refused", "no connection") from error
    except TimeoutError as error:
        raise NoAnswer("timed out", f"no answer within {server.timeout_seconds:g} s") from error
    except OSError as error:
        raise NoAnswer("closed", type(error).__name__) from error


def _write_and_read(connection: socket.socket, prepared: PreparedRaw, started: float) -> list[Answer]:
    # A server that has heard enough may close before all is written; what it said first can still be read.
    with suppress(BrokenPipeError, ConnectionResetError):
        _write(connection, prepared)
    buffer = _Buffer(connection)
    return [_read(buffer, started) for _ in range(prepared.copies)]


def _write(connection: socket.socket, prepared: PreparedRaw) -> None:
    for _ in range(prepared.copies):
        connection.sendall(prepared.head)
        for piece in prepared.pieces:
            connection.sendall(piece)
    if prepared.cut:
        connection.shutdown(socket.SHUT_WR)
    until = time.monotonic() + prepared.drip_seconds
    while (wait_seconds := until - time.monotonic()) > 0:
        if _has_something_to_say(connection, min(1.0, wait_seconds)):
            return
        connection.sendall(b" ")


def _has_something_to_say(connection: socket.socket, wait_seconds: float) -> bool:
    """Whether the other side has answered or closed within this time; takes nothing from the socket."""
    return bool(select.select([connection], [], [], wait_seconds)[0])


class _Buffer:
    """What HTTPResponse takes for a socket: one buffer for all answers of a connection, which it must not close."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rb")

    def makefile(self, mode: str) -> io.BufferedReader:
        return cast("io.BufferedReader", _Unclosable(self._file))


class _Unclosable:
    def __init__(self, file: io.BufferedReader) -> None:
        self.readline, self.read, self.readinto, self.read1 = file.readline, file.read, file.readinto, file.read1

    def flush(self) -> None:
        """There is nothing to flush in what is read."""

    def close(self) -> None:
        """The next answer comes from the same buffer."""


def _read(buffer: _Buffer, started: float) -> Answer:
    response = HTTPResponse(cast("socket.socket", buffer), method="POST")
    try:
        response.begin()
        body = response.read()
    except TimeoutError:
        raise
    except (HTTPException, ConnectionError) as error:
        kind = "closed" if isinstance(error, ConnectionError) else "unreadable"
        raise NoAnswer(kind, f"{type(error).__name__} before there was a whole answer") from error
    return Answer(response.status, tuple(response.getheaders()), body, time.perf_counter() - started)
