"""Connections of a backfill, against servers that answer, refuse, close and fall silent as they are told."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from counterfoil.backfill.connections import Connections, Response
from counterfoil.backfill.errors import BackfillError
from tests.certificate import make_certificate
from tests.http_receiver import Reply, http_receiver
from tests.ports import free_port

PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
LARGE = b"x" * 16 * 1024 * 1024
"""More than two sockets hold, so that sending it fails when nobody reads."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy but the one that a test names."""
    for name in PROXY_NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def requested(base_url: str, *bodies: bytes) -> list[Response | None]:
    """The responses to bodies that are posted one after the other."""

    async def run() -> list[Response | None]:
        async with Connections(base_url, 1) as connections:
            return [await connections.request("POST", "/batch", body) for body in bodies]

    return asyncio.run(run())


@contextmanager
def talking(*talks: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server whose first connections go as they are told, one after the other; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for talk in talks:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def read_request(connection: socket.socket) -> bytes:
    """A head, and as much of a body as it says."""
    read = b""
    while b"\r\n\r\n" not in read:
        read += connection.recv(65_536)
    head, _, body = read.partition(b"\r\n\r\n")
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int((lengths or [b"0"])[0]):
        body += connection.recv(65_536)
    return head


def answer_once(connection: socket.socket) -> None:
    """Answer one request, and close without having said so."""
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


def test_a_connection_is_kept_open() -> None:
    """Requests that follow each other go over one connection."""

    def answer_three(connection: socket.socket) -> None:
        for _ in range(3):
            answer_once(connection)

    with talking(answer_three) as port:
        assert requested(f"http://127.0.0.1:{port}", b"{}", b"{}", b"{}") == [Response(200, b"ok")] * 3


def test_a_connection_that_the_server_closed_meanwhile_is_opened_anew() -> None:
    """A server may close what is idle: the next request does not fail by it."""
    closed = threading.Event()

    def closing(connection: socket.socket) -> None:
        answer_once(connection)
        connection.close()
        closed.set()

    async def run(port: int) -> list[Response | None]:
        async with Connections(f"http://127.0.0.1:{port}", 1) as connections:
            first = await connections.request("POST", "/batch", b"{}")
            await asyncio.to_thread(closed.wait)
            return [first, await connections.request("POST", "/batch", b"{}")]

    with talking(closing, answer_once) as port:
        assert asyncio.run(run(port)) == [Response(200, b"ok")] * 2


def test_a_refusal_before_the_body_has_gone_is_read() -> None:
    """What the server said counts, and what was left of the body goes to no later request."""

    def refuse(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 413 Too large\r\ncontent-length: 2\r\nretry-after: 7\r\n\r\nno")

    with talking(refuse, answer_once) as port:
        found = requested(f"http://127.0.0.1:{port}", LARGE, b"{}")
    assert found == [Response(413, b"no", "7"), Response(200, b"ok")]


@pytest.mark.parametrize(
    "said",
    [b"nonsense\r\n\r\n"]
    + [b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nok"[:end] for end in (0, 7, 15, 17, 20, 33, 34, 36, 37, 40, 41)]
    + [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"[:end] for end in (44, 47, 48, 51, 53)],
)
def test_what_is_no_whole_response_is_none(said: bytes) -> None:
    """No HTTP at all, or cut wherever it is: the rows are sent again."""

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(said)

    with talking(talk, answer_once) as port:
        assert requested(f"http://127.0.0.1:{port}", b"{}", b"{}") == [None, Response(200, b"ok")]


def test_a_body_without_a_length_is_told() -> None:
    """One that was cut looks whole, so whoever reads it must know."""

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nok")

    with talking(talk, answer_once) as port:
        first, second = requested(f"http://127.0.0.1:{port}", b"{}", b"{}")
    assert first == Response(200, b"ok", has_end=False)
    assert second == Response(200, b"ok")


def test_a_server_that_is_not_there_is_none() -> None:
    """It may come back."""
    assert requested(f"http://127.0.0.1:{free_port()}", b"{}") == [None]


def test_leaving_cuts_what_is_under_way() -> None:
    """Nobody waits for an answer that nobody wants any more: the server sees the end at once."""
    asked = threading.Event()
    ends: list[bytes] = []

    def fall_silent(connection: socket.socket) -> None:
        read_request(connection)
        asked.set()
        ends.append(connection.recv(1))

    async def run(port: int) -> None:
        async with Connections(f"http://127.0.0.1:{port}", 1) as connections:
            request = asyncio.create_task(connections.request("POST", "/batch", b"{}"))
            await asyncio.to_thread(asked.wait)
            request.cancel()

    with talking(fall_silent) as port:
        asyncio.run(run(port))
    assert ends == [b""]


def test_credentials_and_path_of_the_base_url_are_used() -> None:
    """A server may stand behind a name, a password and a path of its own."""
    with http_receiver() as receiver:
        requested(f"http://me:a%20b@127.0.0.1:{receiver.port}/über/api/v1/", b"{}")
    (request,) = receiver.received
    assert request.path == "/%C3%BCber/api/v1/batch"
    assert request.headers["authorization"] == "Basic bWU6YSBi"
    assert request.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "url", ["localhost:8080", "ftp://a", "http://", "http://a:b", "http://a:0", "http://[", "http://a..b", ""]
)
def test_what_is_no_base_url_is_told(url: str) -> None:
    """Trying again for a quarter of an hour would not mend it."""
    with pytest.raises(BackfillError, match="expected a base URL"):
        Connections(url, 1)


def test_a_proxy_is_asked_for_the_whole_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY names it, and NO_PROXY what goes without."""
    with http_receiver() as proxy, http_receiver() as server:
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        requested("http://collector.invalid:8080/api/v1", b"{}")
        requested(server.url, b"{}")
    (request,) = proxy.received
    assert request.path == "http://collector.invalid:8080/api/v1/batch"
    assert request.headers["host"] == "collector.invalid:8080"
    assert request.headers["proxy-authorization"] == "Basic bWU6c2VjcmV0"
    assert [one.path for one in server.received] == ["/batch"]


def test_a_proxy_of_another_kind_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going around it unasked is not what its owner wants."""
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(BackfillError, match="expected a proxy that begins with http://"):
        Connections("http://collector.invalid", 1)


def test_https_goes_through_a_proxy_in_a_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy learns host and port, and nothing of what is sent."""
    certificate, key = make_certificate(tmp_path)
    heads: list[bytes] = []

    def tunnel(connection: socket.socket) -> None:
        heads.append(read_request(connection))
        with socket.create_connection(("127.0.0.1", server.port)) as beyond:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=pass_on, args=(beyond, connection))
            back.start()
            pass_on(connection, beyond)
            back.join()

    with http_receiver(certificate, key) as server, talking(tunnel) as port:
        server.answer = lambda _: Reply(200, {}, b"ok")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
        assert requested(f"https://localhost:{server.port}/api/v1", b"{}") == [Response(200, b"ok")]
    assert heads[0].startswith(f"CONNECT localhost:{server.port} ".encode())
    assert [one.path for one in server.received] == ["/api/v1/batch"]


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Hand bytes on until they end, then end the other side, too."""
    with suppress(OSError):
        while chunk := source.recv(65_536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)


def test_https_connections_are_kept_open_and_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of HTTP are: what TLS sends for itself is not taken for the end, and leaving waits for no answer."""
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    asked = threading.Event()

    def answer_two_and_fall_silent(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            answer_once(secured)
            answer_once(secured)
            read_request(secured)
            asked.set()
            secured.recv(1)

    async def run(port: int) -> list[Response | None]:
        async with Connections(f"https://localhost:{port}", 1) as connections:
            found = [await connections.request("POST", "/batch", b"{}") for _ in range(2)]
            request = asyncio.create_task(connections.request("POST", "/batch", b"{}"))
            await asyncio.to_thread(asked.wait)
            request.cancel()
            return found

    with talking(answer_two_and_fall_silent) as port:
        assert asyncio.run(run(port)) == [Response(200, b"ok")] * 2


def test_a_certificate_that_is_not_trusted_is_told(tmp_path: Path) -> None:
    """Somebody must act: the job stops with what to do."""
    with http_receiver(*make_certificate(tmp_path)) as server, pytest.raises(BackfillError, match="SSL_CERT_FILE"):
        requested(server.url, b"{}")
