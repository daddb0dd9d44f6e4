"""Connections to one server, each served by a thread: requests go in, responses come out.

A request of a thousand rows costs http.client a sixth of the processor time that it costs httpx, whose layers make
some thousand calls for each; where sender and server share a machine, the difference is the server's. A thread sends
and receives without the interpreter's lock, so that the next records are read meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import select
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from counterfoil.backfill.errors import BackfillError

CONNECT_SECONDS = 10.0
"""Also how long an interrupt may take, while there is no socket yet that could be cut."""
TIMEOUT_SECONDS = 60.0
_HEADERS = {"content-type": "application/json", "user-agent": "counterfoil-backfill"}


class Response(msgspec.Struct, frozen=True):
    """What a server answered."""

    status: int
    body: bytes
    retry_after: str = ""
    has_end: bool = True
    """The server said how long the body is; without that, one that was cut looks like a whole one."""


class Connections:
    """Connections to the server of a base URL, kept open; each of them takes one request at a time.

    HTTP and HTTPS, through the proxy that the environment names (`HTTPS_PROXY`, `NO_PROXY`).
    Raises BackfillError for a base URL, or a proxy, that is none.
    """

    def __init__(self, base_url: str, count_max: int) -> None:
        self._route = _Route(base_url)
        self._threads = ThreadPoolExecutor(count_max, "backfill-connection")
        self._idle: list[HTTPConnection] = []
        self._busy: set[HTTPConnection] = set()
        self._is_closing = threading.Event()

    async def request(self, method: str, path: str, body: bytes | None = None) -> Response | None:
        """The response to a request for a path below the base URL; None where none came, and trying again may help.

        Raises BackfillError when the server's certificate is not trusted.
        """
        connection = self._idle.pop() if self._idle else self._route.connection()
        self._busy.add(connection)
        exchange = asyncio.get_running_loop().run_in_executor(
            self._threads, self._exchange, connection, method, self._route.target + path, body
        )
        # Whoever is cancelled here leaves a connection behind that its thread still uses.
        response = await exchange
        self._busy.remove(connection)
        self._idle.append(connection)
        return response

    def _exchange(self, connection: HTTPConnection, method: str, target: str, body: bytes | None) -> Response | None:
        try:
            if not _is_usable(connection):
                _open(connection)
            if self._is_closing.is_set():
                return None
            is_sent = False
            # A server may refuse a body before it has all of it, and what it says then can still be read.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, body, self._route.headers)
                is_sent = True
            response = _read(connection.getresponse())
            if not is_sent:
                connection.close()
            return response
        except ssl.SSLCertVerificationError:
            raise BackfillError(
                f"{self._route.host}: its certificate is not trusted here: let SSL_CERT_FILE name the certificate of "
                "its authority"
            ) from None
        except (OSError, HTTPException):
            connection.close()
            return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut the requests that are under way, and close."""
        self._is_closing.set()
        for connection in self._busy:
            # Looked at once: its thread may close it meanwhile.
            connected = connection.sock
            if connected is not None:
                with suppress(OSError):
                    # That of the plain socket: TLS would wait for the thread that reads.
                    socket.socket.shutdown(connected, socket.SHUT_RDWR)
        self._threads.shutdown()
        for connection in (*self._idle, *self._busy):
            connection.close()


class _Route:
    """How the server of a base URL is reached: what a connection is made to, and what is asked of it."""

    def __init__(self, base_url: str) -> None:
        url = _split(base_url)
        if url is None or url.scheme not in ("http", "https"):
            raise BackfillError("--to: expected a base URL that begins with http:// or https://")
        self.host = str(url.hostname)
        self.target = quote(url.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        self.headers = _HEADERS | _credentials("authorization", url)
        # Without a number http.client looks for one in the host, and finds that of an IPv6 address.
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = _trusted() if url.scheme == "https" else None
        self._proxy = _proxy(url)
        if self._proxy is not None and self._tls is None:
            # A proxy is asked for the whole address.
            self.target = f"http://{_authority(url)}{self.target}"
            self.headers |= _credentials("proxy-authorization", self._proxy)

    def connection(self) -> HTTPConnection:
        """One that is not open yet."""
        host, port = self.host, self._port
        if self._proxy is not None:
            host, port = str(self._proxy.hostname), self._proxy.port or 80
        if self._tls is None:
            return HTTPConnection(host, port, timeout=CONNECT_SECONDS)
        connection = HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=self._tls)
        if self._proxy is not None:
            connection.set_tunnel(self.host, self._port, _credentials("proxy-authorization", self._proxy))
        return connection


def _split(url: str) -> SplitResult | None:
    """The parts of a URL with a host; None when it has none, or a port that is none."""
    try:
        parts = urlsplit(url)
        # As it is looked up, which refuses an empty label and one that is too long.
        str(parts.hostname).encode("idna")
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def without_credentials(url: str) -> str:
    """A URL as it may be shown and kept."""
    parts = _split(url)
    return url if parts is None else parts._replace(netloc=_authority(parts)).geturl()


def _authority(url: SplitResult) -> str:
    """Host and port as they stand in a URL."""
    return url.netloc.rpartition("@")[2]


def _proxy(url: SplitResult) -> SplitResult | None:
    """What the environment says of the way to a URL."""
    proxies = getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if not named or proxy_bypass(_authority(url)):
        return None
    proxy = _split(named if "://" in named else f"http://{named}")
    if proxy is None or proxy.scheme != "http":
        raise BackfillError(f"{url.scheme.upper()}_PROXY: expected a proxy that begins with http://")
    return proxy


def _credentials(header: str, url: SplitResult) -> dict[str, str]:
    """The header that says the name and password of a URL, where it has them."""
    if url.username is None:
        return {}
    pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {header: f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _trusted() -> ssl.SSLContext:
    """As the webhook destination trusts: the authorities that httpx brings along, or those of SSL_CERT_FILE."""
    # Loaded for HTTPS alone: it takes half as long as all else that a backfill imports.
    import httpx

    return httpx.create_ssl_context()


def _open(connection: HTTPConnection) -> None:
    connection.close()
    connection.connect()
    connection.sock.settimeout(TIMEOUT_SECONDS)


def _read(answer: HTTPResponse) -> Response | None:
    has_end = answer.chunked or answer.length is not None
    body = answer.read()
    if not has_end and not body:
        # http.client takes a head that breaks off for a whole one, with nothing behind it.
        return None
    return Response(answer.status, body, answer.headers.get("retry-after", ""), has_end)


def _is_usable(connection: HTTPConnection) -> bool:
    """Whether it is open; where something can be read before anything was asked, that is its end."""
    if connection.sock is None:
        return False
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return not poll.poll(0)
